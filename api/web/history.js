// The filmstrip: the jobs that the service has, newest first, a page at a time. The browser only
// adds the names of the files that it knows.

import { getBlob, getJson, resolveAddress, sendJson } from "./api.js";
import {
  byId, createElement, downloadBlob, hideBlob, listen, onClick, setChildren, setText,
  setVisible, showBlob,
} from "./dom.js";
import { hasEnded, hasExpiredImages, newestPicture } from "./job-stream.js";
import { closeLayer, openLayer } from "./layers.js";
import { TILE_PX } from "./picture.js";
import { retry, sleep } from "./retry.js";
import { gallery } from "./schema.js";
import { deviceStorage } from "./storage.js";
import { formatDate, formatPercent, t, tOr } from "./text.js";
import { showToast } from "./toast.js";
import { createZip } from "./zip.js";

const STORAGE_NAME = "impasto history";
const MAX_NAMES = 300, PAGE_SIZE = 20, MAX_PAGE_SIZE = 100;
const POLL_SECONDS = 2, HIDDEN_POLL_SECONDS = 15;
const UNDO_SECONDS = 10;
const deletions = new BroadcastChannel("impasto deletions");  // to other tabs
// Tiles beside the view that are in the document; that have a picture.
const TILES_AHEAD = 15, PICTURES_AHEAD = 5;

// What was finished early is canceled, and has a result.
const isDone = ({ status, links }) => status === "succeeded" || Boolean(links.result);
const FILTERS = {
  all: { statuses: [] },
  active: { statuses: ["queued", "running"] },
  done: { statuses: ["succeeded", "canceled"], accepts: isDone },
  ended: { statuses: ["failed", "canceled", "expired"], accepts: (job) => !isDone(job) },
};

// ---- names: {content, styles}, the file names of a job's inputs

let stored = { text: null, names: new Map() };

function parseNames(text) {
  try {
    const isValid = ({ id, names }) => /^job_[a-z2-7]{26}$/.test(id)
      && typeof names.content === "string" && Array.isArray(names.styles);
    return new Map(JSON.parse(text).filter(isValid).map(({ id, names }) => [id, names]));
  } catch { return new Map(); }
}

// Parses the text again only if it has changed, as by another tab: each tile asks for its names.
function loadNames() {
  const text = deviceStorage.get(STORAGE_NAME);
  if (text !== stored.text) stored = { text, names: parseNames(text) };
  return stored.names;
}

export const getNames = (id) => loadNames().get(id) ?? null;

export function setNames(id, names) {
  const others = [...loadNames()].filter(([other]) => other !== id);
  const entries = [[id, names], ...others].slice(0, MAX_NAMES);
  deviceStorage.set(STORAGE_NAME, JSON.stringify(entries.map(([id, names]) => ({ id, names }))));
}

export const findSample = (digest) =>
  gallery.find((one) => digest?.startsWith(`sha256:${one.digest}`));

function nameSample(digest) {
  const sample = findSample(digest);
  return sample && tOr(`sample.${sample.name}`, sample.title);
}

// The names of a job's pictures, else its date.
export function titleOf({ id, created_at: created, input = { styles: [] } }) {
  const names = getNames(id), photo = names?.content ?? nameSample(input.content);
  const style = (names?.styles ?? input.styles.map(nameSample)).filter(Boolean).join(" + ");
  if (photo && style) return t("photoInStyle", { photo, style });
  const date = created ? formatDate(created, {
    month: "short", day: "numeric", hour: "numeric", minute: "2-digit" }) : t("untitled");
  return [photo, style, date].filter(Boolean).join(" · ");
}

// The name of a file: the title, if this browser knows it.
export function nameFile(job, type, suffix = "") {
  const extension = type.replace(/^\w+\//, "").replace("jpeg", "jpg");
  const { id } = job, title = titleOf(job).replace(/[\\/:*?"<>|\p{Cc}\p{Cf}]/gu, "_").slice(0, 70);
  return `${getNames(id) ? title : `impasto-${id.slice(4, 12)}`}${suffix}.${extension}`;
}

// Deletes the job from the service, also if the service no longer has it.
async function deleteJob(id, options = {}) {
  await sendJson("DELETE", `v1/jobs/${id}`, undefined, {}, options).catch((error) => {
    if (![404, 410].includes(error.status)) throw error;
  });
  deletions.postMessage(id);
}

export class History {
  // onDeleted(ids): the jobs are deleted, as far as the user sees. onOpen(id): one is to be shown.
  // onCompare(a, b): two ids. onEnded(job): one has ended. onDeletedElsewhere(id): by another tab.
  // onQueueChange(): jobs have begun or ended.
  constructor(callbacks) {
    Object.assign(this, { ...callbacks, list: byId("history-list") });
    this.film = this.list.parentElement;
    // entries: {job, isPicked, index, tile}, newest first. shown: those that are not deleted.
    // undoable: ids of deleted ones.
    // rendered: those that have a tile, because they are near the view.
    Object.assign(this, {
      entries: [], shown: [], rendered: [], deleted: new Set(), next: null, current: null,
      isSelecting: false, isNear: false, undoable: [], queue: "" });
    listen("history-filter", "change", () => this.load());
    onClick("history-more", () => this.#loadPage(this.next));
    this.end = new IntersectionObserver((changes) => {
      if (changes.at(-1).isIntersecting && this.next && !this.isLoading) this.#loadPage(this.next);
    }, { root: this.film, rootMargin: "0px 400px" });
    new IntersectionObserver((changes) => {
      this.isNear = changes.at(-1).isIntersecting;
      this.#render();
    }, { rootMargin: "200px" }).observe(this.film);
    new ResizeObserver(() => this.#render()).observe(this.film);
    listen(this.film, "scroll", () => this.#render(), { passive: true });
    listen(this.list, "focusin", () => this.#render());
    listen(this.list, "keydown", (event) => this.#onKey(event));
    // A deletion that can still be undone must not be lost with the page.
    listen(window, "pagehide", () => this.deleteNow());
    deletions.onmessage = ({ data }) => this.onDeletedElsewhere(data);
    // Another tab, or another device, may have changed the list meanwhile.
    listen(document, "visibilitychange", () => { if (!document.hidden) this.refresh(); });
    this.#addSelection();
    this.#poll();
  }

  // Loads the first page again, as after another filter or a key.
  async load() {
    this.next = null;
    await this.#loadPage(this.#getAddress(PAGE_SIZE), true);
  }

  get filter() { return byId("history-filter").value; }

  #getAddress(limit) {
    const { statuses } = FILTERS[this.filter];
    return `v1/jobs?limit=${limit}${statuses.map((one) => `&status=${one}`).join("")}`;
  }

  #enterAll(jobs) {
    const { accepts = () => true } = FILTERS[this.filter];
    return jobs.filter(accepts).map((job) => this.#enter(job));
  }

  async #loadPage(address, isFirst = false) {
    const current = this.isLoading = {};
    const onError = (message) => setText("history-error", message);
    try {
      const { jobs, next } = await retry(() => getJson(address), { onError });
      if (this.isLoading !== current) return;  // another filter was chosen meanwhile
      if (isFirst) this.film.scrollLeft = 0;
      const newer = isFirst ? [] : this.entries;
      this.entries = [...new Set([...newer, ...this.#enterAll(jobs)])];
      this.next = next;
      setText("history-error", "");
      // Begins to observe anew: the end may be in view still, or again, which is no change.
      this.end.disconnect();
      this.end.observe(byId("history-more"));
    } catch (error) {
      setText("history-error", error.message);
    }
    if (this.isLoading === current) this.isLoading = null;
    this.#update();
  }

  // Asks for the newest jobs while one of them has not ended, or the service has not answered; then
  // less often.
  async #poll() {
    for (let pause = POLL_SECONDS; ;) {
      await sleep(document.hidden ? HIDDEN_POLL_SECONDS : pause);
      const isIdle = !this.hasFailed && this.shown.every(({ job }) => hasEnded(job));
      if (this.isLoading || isIdle) continue;
      pause = await this.refresh() ? POLL_SECONDS : Math.min(HIDDEN_POLL_SECONDS, 2 * pause);
    }
  }

  // Updates the newest jobs, up to the last that has not ended; adds those that are new, and removes
  // those that are deleted. Returns whether the service has answered.
  async refresh() {
    const { filter } = this, active = this.shown.findLastIndex(({ job }) => !hasEnded(job));
    const limit = Math.min(MAX_PAGE_SIZE, Math.max(PAGE_SIZE, active + 1));
    const answer = await getJson(this.#getAddress(limit)).catch(() => null);
    this.hasFailed = !answer;
    if (!answer || filter !== this.filter || this.isLoading) return Boolean(answer);
    const { jobs, next } = answer, ids = jobs.map(({ id }) => id);
    // What is known before this place is in the answer, or deleted.
    const last = this.entries.findLastIndex(({ job }) => ids.includes(job.id));
    const older = last < 0 || !next ? [] : this.entries.slice(last + 1);
    if (last < 0) this.next = next;  // more new jobs than a page has
    this.entries = [...this.#enterAll(jobs), ...older];
    this.#update();
    return true;
  }

  update(job) {
    if (!this.#find(job.id)) return;
    this.#enter(job);
    this.#render();
    this.#showActive();
  }

  // Removes a job that the service does not have.
  forget(id) {
    this.entries = this.entries.filter(({ job }) => job.id !== id);
    this.deleted.delete(id);
    this.#update();
  }

  setCurrent(id) {
    this.current = id;
    for (const { job, tile } of this.rendered) tile.link.ariaCurrent = job.id === id ? "page" : null;
  }

  #find(id) { return this.entries.find(({ job }) => job.id === id); }

  // Returns the entry of a job, with the newest state.
  #enter(job) {
    const entry = this.#find(job.id) ?? { isPicked: false, tile: null }, previous = entry.job;
    if (previous?.version > job.version) return entry;
    entry.job = trimJob(job);
    if (entry.tile) this.#fillTile(entry);
    if (previous && !hasEnded(previous) && hasEnded(job)) this.onEnded(job);
    return entry;
  }

  // Shows a changed list. What the user looks at stays where it is.
  #update() {
    const { film, pitch } = this, anchor = this.shown[Math.floor(film.scrollLeft / pitch)];
    const previous = anchor?.index;
    this.shown = this.entries.filter(({ job }) => !this.deleted.has(job.id));
    this.shown.forEach((entry, index) => { entry.index = index; });
    this.list.style.setProperty("--count", this.shown.length);
    if (film.scrollLeft && anchor) film.scrollLeft += (anchor.index - previous) * pitch;
    this.#render();
    const isEmpty = !this.shown.length;
    setVisible("history-empty", isEmpty && !this.isLoading);
    const text = t(this.filter === "all" ? "historyEmpty" : "nothingFound");
    byId("history-empty").querySelector("p").textContent = text;
    setVisible("history-more", this.next);
    byId("select").disabled = isEmpty && !this.isSelecting;  // in its place from the beginning
    this.#showActive();
    this.#updateSelection();
  }

  #showActive() {
    const jobs = this.shown.map(({ job }) => job).filter((job) => !hasEnded(job));
    const queue = jobs.map(({ id }) => id).join();
    if (queue !== this.queue) this.onQueueChange();
    this.queue = queue;
    const active = jobs.find(({ id }) => getNames(id));
    const link = byId("active-job");
    setVisible(link, active);
    if (!active) return;
    link.href = resolveAddress(`j/${active.id}`);
    const percent = active.progress ? formatPercent(active.progress.value) : "";
    link.textContent = `${nameStatus(active)} ${percent} · ${titleOf(active)} ›`;
  }

  // ---- tiles: only those near the view are in the document

  get pitch() { return this.list.offsetWidth / this.shown.length || 1; }  // from tile to tile, in px

  // wanted: an entry whose tile is needed, wherever it is. The tile with the focus stays, too.
  #render(wanted = null) {
    const { film, list, shown, pitch } = this;
    const first = Math.floor(film.scrollLeft / pitch);
    const last = Math.ceil((film.scrollLeft + film.clientWidth) / pitch);
    const focused = this.rendered.find(({ index, tile }) =>
      shown[index]?.tile === tile && tile.item.contains(document.activeElement));
    const near = shown.slice(Math.max(0, first - TILES_AHEAD), last + TILES_AHEAD);
    const entries = [...new Set([...near, focused, wanted])].filter(Boolean);
    entries.sort((a, b) => a.index - b.index);
    for (const entry of this.rendered) if (!entries.includes(entry)) removeTile(entry);
    this.rendered = entries;
    const stop = focused ?? shown[first];  // where the Tab key enters the list
    for (const entry of entries) {
      const { item, controls } = (entry.tile ?? this.#createTile(entry)), { index } = entry;
      item.style.setProperty("--index", index);
      item.ariaPosInSet = index + 1;
      item.ariaSetSize = this.next ? -1 : shown.length;  // -1: unknown
      for (const control of controls) control.tabIndex = entry === stop ? 0 : -1;
      const isNear = index >= first - PICTURES_AHEAD && index < last + PICTURES_AHEAD;
      if (this.isNear && isNear) this.#showPicture(entry);
    }
    setChildren(list, entries.map(({ tile }) => tile.item));
  }

  #createTile(entry) {
    const { id } = entry.job, name = titleOf(entry.job);
    const span = (className) => createElement("span", { className });
    const thumbnail = span("thumbnail"), title = span("caption"), status = span("status");
    const pick = createElement("input", {
      type: "checkbox", className: "pick", ariaLabel: t("selectNamed", { name }) });
    listen(pick, "change", () => {
      entry.isPicked = pick.checked;
      this.#updateSelection();
    });
    const link = createElement("a", { href: resolveAddress(`j/${id}`), "data-local-link": "" },
      thumbnail, title, status);
    listen(link, "click", (event) => {
      if (!this.isSelecting) return;
      event.preventDefault();
      pick.click();
    });
    const button = createElement("button", {
      className: "remove", textContent: "✕", onclick: () => this.remove([id]),
      ariaLabel: t("deleteNamed", { name }) });
    const item = createElement("li", { "data-job": id }, link, button, pick);
    // picture, failed: the names of the picture that is shown, and of the one that was not found.
    entry.tile = {
      item, link, pick, thumbnail, title, status, controls: [link, button, pick],
      image: createElement("img"), closing: new AbortController(), picture: null, failed: null };
    this.#fillTile(entry);
    return entry.tile;
  }

  #fillTile({ job, isPicked, tile }) {
    tile.title.textContent = titleOf(job);
    tile.status.textContent = describeStatus(job);
    tile.item.dataset.status = job.status;
    const share = job.status === "running" ? job.progress?.value ?? 0 : 0;
    tile.item.style.setProperty("--progress", `${100 * share}%`);
    tile.pick.checked = isPicked;
    tile.failed = null;
    tile.link.ariaCurrent = job.id === this.current ? "page" : null;
  }

  showPicture(id, name, blob) {
    const { tile } = this.#find(id) ?? {};
    if (tile) setPicture(tile, name, blob);
  }

  // Fetches the picture if it is another one than the tile shows: the result or the preview, else
  // the photo. The preview of the job on the canvas is fetched there.
  async #showPicture(entry) {
    const { job, tile } = entry, { name, address, alt } = pictureOf(job);
    const isOnCanvas = job.id === this.current;
    if (hasExpiredImages(job) || tile.isFetching) return;
    if ([tile.picture, tile.failed].includes(name) || (name === job.preview && isOnCanvas)) return;
    tile.isFetching = true;
    try {
      const { signal } = tile.closing, blob = await getBlob(address, { signal });
      if (!signal.aborted) setPicture(tile, name, blob, alt);
    } catch {
      tile.failed = name;  // until the next state
    }
    tile.isFetching = false;
    if (entry.job !== job && entry.tile === tile) this.#showPicture(entry);  // a newer state
  }

  #focus(entry) {
    this.#render(entry);
    entry.tile[this.isSelecting ? "pick" : "link"].focus();
  }

  #onKey(event) {
    const entry = this.rendered.find(({ tile }) => tile.item.contains(event.target));
    if (event.key === "Delete") return this.remove([entry.job.id]);
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const next = {
      ArrowLeft: entry.index - 1, ArrowRight: entry.index + 1, Home: 0, End: this.shown.length - 1,
    }[event.key];
    if (!this.shown[next]) return;
    event.preventDefault();
    this.#focus(this.shown[next]);
  }

  // Hides the jobs at once, and deletes them when the time to undo is over. They join those of an
  // earlier call that can still be undone. action: its name; without one, there is no such time.
  // opens: the job that it opens again.
  remove(added, { text = t("deleted"), action = t("undo"), opens = this.current } = {}) {
    const { rendered } = this, ids = action ? [...this.undoable, ...added] : added;
    const hadFocus = rendered.some(({ job, tile }) =>
      added.includes(job.id) && tile.item.contains(document.activeElement));
    const place = this.#find(added[0])?.index;
    for (const id of added) this.deleted.add(id);
    this.#update();
    const neighbor = this.shown[Math.min(place, this.shown.length - 1)];
    if (hadFocus && neighbor) this.#focus(neighbor);
    else if (hadFocus) byId("main").focus();
    this.onDeleted(added);
    const restore = () => {
      for (const id of ids) this.deleted.delete(id);
      this.#update();
      this.refresh();
    };
    const undo = () => {
      this.undoable = [];
      restore();
      const entry = this.#find(added[0]);
      if (entry) this.#focus(entry);
      const open = [opens, this.current].find((id) => ids.includes(id));
      if (open) this.onOpen(open);
    };
    const finish = async () => {
      try {
        for (const id of ids) {
          await deleteJob(id);
          this.forget(id);
        }
      } catch (error) {
        restore();
        showToast(t("notDeleted", { message: error.message }));
      }
    };
    if (!action) {
      showToast(text);
      return void finish();
    }
    this.undoable = ids;
    if (ids.length > 1) [text, action] = [t("deletedMany", { n: ids.length }), t("undo")];
    this.closeToast?.();
    this.closeToast = showToast(text, { seconds: UNDO_SECONDS, action, onAction: undo, onEnd: () => {
      this.undoable = [];
      finish();
    } });
  }

  // Deletes what can still be undone.
  deleteNow() {
    for (const id of this.deleted) deleteJob(id, { keepalive: true }).catch(() => {});
  }

  #addSelection() {
    onClick("select", () => this.#setSelecting(!this.isSelecting));
    // Also those that have no tile; if all are picked already, none.
    onClick("selection-all", () =>
      this.#pick(this.shown, this.#picked.length < this.shown.length));
    onClick("selection-compare", () => {
      const ids = this.#picked.map(({ job }) => job.id);
      this.#endSelection();
      this.onCompare(...ids);
    });
    listen("history", "keydown", ({ key }) => {
      if (key === "Escape" && this.isSelecting) this.#endSelection();
    });
    onClick("selection-zip", () => this.#downloadZip());
    onClick("selection-delete", () => this.remove(this.#picked.map(({ job }) => job.id)));
  }

  get #picked() { return this.shown.filter(({ isPicked }) => isPicked); }

  #pick(entries, isPicked) {
    for (const entry of entries) {
      entry.isPicked = isPicked;
      if (entry.tile) entry.tile.pick.checked = isPicked;
    }
    this.#updateSelection();
  }

  #endSelection = () => {
    this.#setSelecting(false);
    byId("select").focus();  // a box that had the focus is hidden now
  };

  #setSelecting(isSelecting) {
    (isSelecting ? openLayer : closeLayer)(this.#endSelection);
    this.isSelecting = isSelecting;
    if (!isSelecting) this.#pick(this.#picked, false);
    this.list.classList.toggle("selecting", isSelecting);
    byId("select").ariaPressed = isSelecting;
    setText("select", t(isSelecting ? "done" : "select"));
    setVisible("selection", isSelecting);
    this.#updateSelection();
  }

  #updateSelection() {
    if (!this.isSelecting) return;
    const picked = this.#picked, n = picked.length;
    const painted = picked.filter(({ job }) => job.links.result).length;
    setText("selection-count", n ? t("selected", { n }) : t("selectHint"));
    byId("selection-compare").disabled = n !== 2 || painted !== 2;
    byId("selection-zip").disabled = !painted || this.isZipping;
    byId("selection-delete").disabled = !n;
  }

  async #downloadZip() {
    const jobs = this.#picked.map(({ job }) => job).filter(({ links }) => links.result);
    const files = [], onError = (message) => setText("history-error", message);
    this.isZipping = byId("selection-zip").disabled = true;
    try {
      for (const job of jobs) {
        setText("history-error", t("zipProgress", { done: files.length, n: jobs.length }));
        const blob = await retry(() => getBlob(job.links.result), { onError });
        const suffix = getNames(job.id) ? ` ${job.id.slice(4, 12)}` : "";  // titles repeat
        files.push({ name: nameFile(job, blob.type, suffix), blob, date: job.completed_at });
      }
      downloadBlob(await createZip(files), "impasto.zip");
      setText("history-error", "");
    } catch (error) { setText("history-error", error.message); }
    this.isZipping = false;
    this.#updateSelection();
  }
}

// A painting is named by the title, the photo by its alt.
const pictureOf = (job) => newestPicture(job, `?format=webp&width=${TILE_PX}`) ?? {
  name: job.input.content, address: `v1/images/${job.input.content}?width=${TILE_PX}`,
  alt: t("thePhoto") };

function setPicture(tile, name, blob, alt = "") {
  tile.picture = name;
  tile.image.className = alt && "photo";
  showBlob(blob, alt, tile.image);
  tile.thumbnail.replaceChildren(tile.image);
}

function removeTile(entry) {
  entry.tile.closing.abort();
  hideBlob(entry.tile.image);
  entry.tile = null;
}

// A tile needs no parameters, which are most of a job: thousands of jobs are in memory.
const trimJob = ({ input: { content, styles }, ...job }) =>
  ({ ...job, input: { content, styles } });

export const nameStatus = (job) => {
  if (job.status === "canceled" && job.links.result) return t("status.finishedEarly");
  return t(`status.${job.status}`);
};

function describeStatus(job) {
  if (hasExpiredImages(job)) return t("picturesExpired");
  if (job.status === "running" && job.progress) return formatPercent(job.progress.value);
  if (job.status === "failed") return t("failed");
  if (job.pinned) return t("keptForever");
  if (job.status !== "succeeded" || !job.expires_at) return nameStatus(job);
  return t("until", { date: formatDate(job.expires_at, { month: "short", day: "numeric" }) });
}
