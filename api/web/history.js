// The filmstrip: the jobs that the service has, newest first, a page at a time. The browser only
// adds the names of the files that it knows.

import { getBlob, getJson, request, resolveAddress, sendJson } from "./api.js";
import {
  byId, createElement, downloadBlob, hideBlob, nameFile, onClick, setText, setVisible, showBlob,
} from "./dom.js";
import { hasEnded, hasExpiredImages } from "./job-stream.js";
import { closeLayer, openLayer } from "./layers.js";
import { shrinkForTile } from "./picture.js";
import { retry, sleep } from "./retry.js";
import { deviceStorage } from "./storage.js";
import { formatDate, formatPercent, t } from "./text.js";
import { showToast } from "./toast.js";
import { createZip } from "./zip.js";

const STORAGE_NAME = "impasto history";
const MAX_NAMES = 300, PAGE_SIZE = 20, POLL_SECONDS = 2, HIDDEN_POLL_SECONDS = 15;
const UNDO_SECONDS = 10;
const MAX_PHOTO_BYTES = 8e6, MAX_PHOTOS = 200;  // that are fetched for a tile; that are kept, small

const FILTERS = {
  all: [], active: ["queued", "running"], done: ["succeeded"],
  ended: ["failed", "canceled", "expired"],
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

export function titleOf(id) {
  const names = getNames(id);
  if (!names) return t("untitled");
  return t("photoInStyle", { photo: names.content, style: names.styles.join(" + ") });
}

// Deletes the job from the service, also if the service no longer has it.
async function deleteJob(id, options = {}) {
  await sendJson("DELETE", `v1/jobs/${id}`, undefined, {}, options).catch((error) => {
    if (![404, 410].includes(error.status)) throw error;
  });
}

export class History {
  // onDeleted(ids): the jobs are deleted, as far as the user sees. onCompare(a, b): two ids.
  // findPicture(digest): a blob that the page has, or null.
  constructor({ onDeleted, onCompare, findPicture }) {
    Object.assign(this, { onDeleted, onCompare, findPicture });
    Object.assign(this, { tiles: new Map(), deleted: new Set() });
    Object.assign(this, { photos: new Map(), lastPhoto: Promise.resolve() });  // by digest: small
    this.list = byId("history-list");
    Object.assign(this, { next: null, current: null, isSelecting: false });
    byId("history-filter").addEventListener("change", () => this.load());
    onClick("history-more", () => this.#loadPage(this.next));
    this.end = new IntersectionObserver((changes) => {
      if (changes.at(-1).isIntersecting && this.next && !this.isLoading) this.#loadPage(this.next);
    }, { root: this.list.parentElement, rootMargin: "0px 400px" });
    this.visible = new IntersectionObserver((changes) => {
      for (const { target, isIntersecting } of changes) {
        const tile = this.tiles.get(target.dataset.job);
        if (!tile) continue;
        tile.isSeen = isIntersecting;
        if (isIntersecting) this.#showPicture(tile);
        else hidePicture(tile);
      }
    }, { rootMargin: "200px", scrollMargin: "0px 600px" });
    // A deletion that can still be undone must not be lost with the page.
    addEventListener("pagehide", () => {
      for (const id of this.deleted) deleteJob(id, { keepalive: true }).catch(() => {});
    });
    // Another tab, or another device, may have changed the list meanwhile.
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.refresh(); });
    this.#addSelection();
    this.#poll();
  }

  // Loads the first page again, as after another filter or a key.
  async load() {
    this.next = null;
    await this.#loadPage(this.#firstAddress, true);
  }

  get #firstAddress() {
    const statuses = FILTERS[byId("history-filter").value];
    return `v1/jobs?limit=${PAGE_SIZE}${statuses.map((status) => `&status=${status}`).join("")}`;
  }

  async #loadPage(address, isFirst = false) {
    const current = this.isLoading = {};
    const onError = (message) => setText("history-error", message);
    try {
      const { jobs, next } = await retry(() => getJson(address), { onError });
      if (this.isLoading !== current) return;  // another filter was chosen meanwhile
      if (isFirst) for (const id of [...this.tiles.keys()]) this.#removeTile(id);
      this.next = next;
      for (const job of jobs) this.#addTile(job);
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

  // Asks for the newest jobs while one of them has not ended, or when the page calls `refresh`;
  // less often while the service does not answer.
  async #poll() {
    for (let pause = POLL_SECONDS; ;) {
      await sleep(document.hidden ? HIDDEN_POLL_SECONDS : pause);
      const isActive = [...this.tiles.values()].some(({ job }) => !hasEnded(job));
      if (!isActive || this.isLoading) continue;
      pause = await this.refresh() ? POLL_SECONDS : Math.min(HIDDEN_POLL_SECONDS, 2 * pause);
    }
  }

  // Updates the newest tiles; adds jobs that are new, and removes those that are deleted. Returns
  // whether the service has answered.
  async refresh() {
    const address = this.#firstAddress, answer = await getJson(address).catch(() => null);
    if (!answer || address !== this.#firstAddress || this.isLoading) return Boolean(answer);
    const { jobs } = answer;
    for (const job of [...jobs].reverse()) this.#addTile(job, true);
    const ids = jobs.map(({ id }) => id), oldest = jobs.at(-1)?.created_at ?? "";
    for (const [id, { job }] of this.tiles) {
      if (!ids.includes(id) && (job.created_at > oldest || jobs.length < PAGE_SIZE)) {
        this.#removeTile(id);
      }
    }
    this.#update();
    return true;
  }

  update(job) { if (this.tiles.has(job.id)) this.#addTile(job); }

  // Removes the tile of a job that the service does not have.
  forget(id) {
    this.#removeTile(id);
    this.#update();
  }

  setCurrent(id) {
    this.tiles.get(this.current)?.link.removeAttribute("aria-current");
    this.current = id;
    this.tiles.get(id)?.link.setAttribute("aria-current", "page");
  }

  #update() {
    const isEmpty = !this.tiles.size;
    setVisible(byId("history-empty"), isEmpty && !this.isLoading);
    const isAll = byId("history-filter").value === "all";
    byId("history-empty").querySelector("p").textContent = t(isAll ? "historyEmpty" : "nothingFound");
    setVisible(byId("history-more"), this.next);
    byId("select").disabled = isEmpty && !this.isSelecting;  // in its place from the beginning
    this.setCurrent(this.current);
    this.#showActive();
    this.#updateSelection();
  }

  #addTile(job, isNewest = false) {
    if (this.deleted.has(job.id)) return;
    let tile = this.tiles.get(job.id);
    if (!tile) {
      tile = this.#createTile(job.id);
      this.tiles.set(job.id, tile);
      if (isNewest) this.list.prepend(tile.item);
      else this.list.append(tile.item);
      this.visible.observe(tile.item);
    }
    if (tile.job?.version > job.version) return;
    tile.job = job;
    tile.title.textContent = titleOf(job.id);
    tile.status.textContent = describeStatus(job);
    tile.item.dataset.status = job.status;
    const share = job.status === "running" ? job.progress?.value ?? 0 : 0;
    tile.item.style.setProperty("--progress", `${100 * share}%`);
    if (tile.isSeen) this.#showPicture(tile);
    this.#showActive();
  }

  #showActive() {
    const tile = [...this.tiles.values()].find(({ job }) => !hasEnded(job) && getNames(job.id));
    const link = byId("active-job");
    setVisible(link, tile);
    if (!tile) return;
    link.href = tile.link.href;
    link.textContent = `${nameStatus(tile.job)} ${describeProgress(tile.job)} · ${titleOf(tile.job.id)} ›`;
  }

  #createTile(id) {
    const span = (className) => createElement("span", { className }), name = titleOf(id);
    const thumbnail = span("thumbnail"), title = span("caption"), status = span("status");
    const pick = createElement("input", {
      type: "checkbox", className: "pick", "aria-label": t("selectNamed", { name }) });
    const link = createElement("a", { href: resolveAddress(`j/${id}`), "data-local-link": "" },
      thumbnail, title, status);
    link.addEventListener("click", (event) => {
      if (!this.isSelecting) return;
      event.preventDefault();
      pick.click();
    });
    const remove = () => this.remove([id]);
    const button = createElement("button", {
      className: "remove", textContent: "✕", onclick: remove,
      "aria-label": t("deleteNamed", { name }) });
    link.addEventListener("keydown", ({ key }) => { if (key === "Delete") remove(); });
    const item = createElement("li", { "data-job": id }, link, button, pick);
    return { item, link, thumbnail, title, status, pick, job: null, image: null };
  }

  #removeTile(id) {
    const tile = this.tiles.get(id);
    if (!tile) return;
    this.visible.unobserve(tile.item);
    hidePicture(tile);
    tile.item.remove();
    this.tiles.delete(id);
  }

  showPicture(id, name, blob) {
    const tile = this.tiles.get(id);
    if (tile?.isSeen) setPicture(tile, name, blob);
  }

  // Fetches the picture if it is another one than the tile shows: the result or the preview, else
  // the photo. The preview of the job on the canvas is fetched there.
  async #showPicture(tile) {
    const { job } = tile, { result } = job.links, { content } = job.input;
    if (hasExpiredImages(job) || tile.isFetching) return;
    const preview = job.preview && job.links.preview;
    const name = (result && job.outputs[0].id) || (preview && job.preview) || content;
    if (tile.picture === name || (preview && !result && job.id === this.current)) return;
    tile.isFetching = true;
    try {
      const address = result ? `${result}?format=webp&width=256` : preview;
      const blob = address ? await getBlob(address) : await this.#loadPhoto(tile, content);
      if (tile.isSeen && blob) setPicture(tile, name, blob, address ? "" : t("thePhoto"));
    } catch { /* with the next state */ }
    tile.isFetching = false;
  }

  // Returns a small copy, or null. One after another: a phone cannot decode many photos at once.
  #loadPhoto(tile, digest) {
    const { photos } = this;
    return this.lastPhoto = this.lastPhoto.then(async () => {
      if (!photos.has(digest) && tile.isSeen) {
        photos.set(digest, await this.#fetchPhoto(digest).catch(() => null));
        if (photos.size > MAX_PHOTOS) photos.delete(photos.keys().next().value);
      }
      return photos.get(digest);
    });
  }

  async #fetchPhoto(digest) {
    const known = this.findPicture(digest);
    if (known) return shrinkForTile(known);
    const response = await request(`v1/images/${digest}`, { cache: "no-cache" });
    if (response.headers.get("Content-Length") <= MAX_PHOTO_BYTES) {
      return shrinkForTile(await response.blob());
    }
    response.body.cancel();
    return null;
  }

  // Hides the jobs at once, and deletes them when the time to undo is over.
  remove(ids) {
    const tiles = ids.map((id) => this.tiles.get(id)).filter(Boolean);
    const places = tiles.map(({ item }) => [item, item.nextElementSibling]);
    const wasCurrent = ids.includes(this.current);
    const hadFocus = tiles.some(({ item }) => item.contains(document.activeElement));
    const neighbor = tiles.at(-1)?.item.nextElementSibling ?? tiles[0]?.item.previousElementSibling;
    for (const id of ids) {
      this.deleted.add(id);
      this.tiles.get(id)?.item.remove();
      this.tiles.delete(id);
    }
    if (hadFocus) (neighbor?.querySelector("a") ?? byId("main")).focus();
    this.onDeleted(ids);
    this.#update();
    const restore = () => {
      ids.forEach((id) => this.deleted.delete(id));
      if (!tiles.length) return this.refresh();
      for (const tile of tiles) this.tiles.set(tile.job.id, tile);
      for (const [item, next] of places.reverse()) {
        this.list.insertBefore(item, next?.isConnected ? next : null);
      }
      this.#update();
      tiles[0].link.focus();
      if (wasCurrent) tiles[0].link.click();
    };
    const finish = async () => {
      try {
        for (const id of ids) await deleteJob(id);
        ids.forEach((id) => this.deleted.delete(id));
      } catch (error) {
        restore();
        this.refresh();  // some of them may be deleted
        showToast(t("notDeleted", { message: error.message }));
      }
    };
    showToast(ids.length > 1 ? t("deletedMany", { n: ids.length }) : t("deleted"), {
      seconds: UNDO_SECONDS, action: t("undo"), onAction: restore, onEnd: finish });
  }

  // ---- several tiles

  #addSelection() {
    onClick("select", () => this.#setSelecting(!this.isSelecting));
    this.list.addEventListener("change", () => this.#updateSelection());
    onClick("selection-compare", () => {
      const ids = this.#picked.map(({ job }) => job.id);
      this.#endSelection();
      this.onCompare(...ids);
    });
    byId("history").addEventListener("keydown", ({ key }) => {
      if (key === "Escape" && this.isSelecting) this.#endSelection();
    });
    onClick("selection-zip", () => this.#downloadZip());
    onClick("selection-delete", () => this.remove(this.#picked.map(({ job }) => job.id)));
  }

  get #picked() { return [...this.tiles.values()].filter(({ pick }) => pick.checked); }

  #endSelection = () => this.#setSelecting(false);

  #setSelecting(isSelecting) {
    (isSelecting ? openLayer : closeLayer)(this.#endSelection);
    this.isSelecting = isSelecting;
    if (!isSelecting) for (const { pick } of this.#picked) pick.checked = false;
    this.list.classList.toggle("selecting", isSelecting);
    byId("select").setAttribute("aria-pressed", isSelecting);
    setText("select", t(isSelecting ? "done" : "select"));
    setVisible(byId("selection"), isSelecting);
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
        const title = titleOf(job.id).replace(/[\\/:*?"<>|\p{Cc}\p{Cf}]/gu, "_").slice(0, 80);
        files.push({ name: `${title} ${nameFile(job, blob.type)}`, blob, date: job.completed_at });
      }
      downloadBlob(await createZip(files), "impasto.zip");
      setText("history-error", "");
    } catch (error) { setText("history-error", error.message); }
    this.isZipping = false;
    this.#updateSelection();
  }
}

// alt: of the photo; the title names a painting.
function setPicture(tile, name, blob, alt = "") {
  tile.picture = name;
  tile.image ??= createElement("img");
  tile.image.className = alt && "photo";
  showBlob(blob, alt, tile.image);
  tile.thumbnail.replaceChildren(tile.image);
}

// Releases the picture of a tile that is far away: a list may have thousands.
function hidePicture(tile) {
  tile.picture = null;
  if (tile.image) hideBlob(tile.image);
  tile.thumbnail.replaceChildren();
}

export const nameStatus = (job) => {
  if (job.status === "canceled" && job.links.result) return t("status.finishedEarly");
  return t(`status.${job.status}`);
};

const describeProgress = ({ progress }) => (progress ? formatPercent(progress.value) : "");

function describeStatus(job) {
  if (hasExpiredImages(job)) return t("picturesExpired");
  if (job.status === "running" && job.progress) return describeProgress(job);
  if (job.status === "failed") return t("failed");
  if (job.pinned) return t("keptForever");
  if (job.status !== "succeeded" || !job.expires_at) return nameStatus(job);
  return t("until", { date: formatDate(job.expires_at, { month: "short", day: "numeric" }) });
}
