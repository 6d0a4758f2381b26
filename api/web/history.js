// The filmstrip: the jobs that the service has, newest first, a page at a time. The browser only
// adds the names of the files that it knows.

import { getBlob, getJson, resolveAddress, sendJson } from "./api.js";
import { byId, createElement, setText, setVisible, showBlob } from "./dom.js";
import { hasEnded, hasExpiredImages } from "./job-stream.js";
import { retry, sleep } from "./retry.js";
import { deviceStorage } from "./storage.js";
import { formatDate, formatPercent, t } from "./text.js";
import { endToast, showToast } from "./toast.js";

const STORAGE_NAME = "impasto history";
const MAX_NAMES = 300, PAGE_SIZE = 20, POLL_SECONDS = 2, HIDDEN_POLL_SECONDS = 15;
const UNDO_SECONDS = 10;

const FILTERS = {
  all: [], active: ["queued", "running"], done: ["succeeded"],
  ended: ["failed", "canceled", "expired"],
};

// ---- names: {content, styles}, the file names of a job's inputs

const loadEntries = () => {
  try {
    const entries = JSON.parse(deviceStorage.get(STORAGE_NAME));
    if (!Array.isArray(entries)) return [];
    return entries.filter((entry) => /^job_[a-z2-7]{26}$/.test(entry?.id));
  } catch { return []; }
};

export const getNames = (id) => loadEntries().find((entry) => entry.id === id)?.names ?? null;

export function setNames(id, names) {
  const others = loadEntries().filter((entry) => entry.id !== id);
  const entries = [{ id, names }, ...others].slice(0, MAX_NAMES);
  deviceStorage.set(STORAGE_NAME, JSON.stringify(entries));
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
  // onDeleted(id): the job is deleted, as far as the user sees.
  constructor({ onDeleted }) {
    this.onDeleted = onDeleted;
    this.list = byId("history-list");
    Object.assign(this, { tiles: new Map(), deleted: new Map(), next: null, selected: null });
    byId("history-filter").addEventListener("change", () => this.load());
    byId("history-more").addEventListener("click", () => this.#loadPage(this.next));
    new IntersectionObserver(([change]) => {
      if (change.isIntersecting && this.next && !this.isLoading) this.#loadPage(this.next);
    }, { root: this.list.parentElement, rootMargin: "0px 400px" }).observe(byId("history-more"));
    this.visible = new IntersectionObserver((changes) => {
      for (const { target, isIntersecting } of changes) {
        if (isIntersecting) this.#showPicture(this.tiles.get(target.dataset.job));
      }
    }, { rootMargin: "200px" });
    // A deletion that can still be undone must not be lost with the page.
    addEventListener("pagehide", () => {
      for (const id of this.deleted.keys()) deleteJob(id, { keepalive: true }).catch(() => {});
    });
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
      if (isFirst) {
        this.list.replaceChildren();
        this.tiles.clear();
      }
      this.next = next;
      for (const job of jobs) this.#addTile(job);
      setText("history-error", "");
    } catch (error) {
      setText("history-error", error.message);
    }
    if (this.isLoading === current) this.isLoading = null;
    this.#update();
  }

  // Asks for the newest jobs while one of them has not ended, or when the page calls `refresh`.
  async #poll() {
    for (;;) {
      await sleep(document.hidden ? HIDDEN_POLL_SECONDS : POLL_SECONDS);
      const isActive = [...this.tiles.values()].some(({ job }) => !hasEnded(job));
      if (isActive && !this.isLoading) await this.refresh();
    }
  }

  // Updates the newest tiles; adds jobs that are new, and removes those that are deleted.
  async refresh() {
    try {
      const address = this.#firstAddress, { jobs } = await getJson(address);
      if (address !== this.#firstAddress || this.isLoading) return;
      for (const job of [...jobs].reverse()) this.#addTile(job, true);
      const ids = jobs.map(({ id }) => id), oldest = jobs.at(-1)?.created_at ?? "";
      for (const [id, { job }] of this.tiles) {
        if (!ids.includes(id) && (job.created_at > oldest || jobs.length < PAGE_SIZE)) {
          this.#removeTile(id);
        }
      }
    } catch { /* the next time */ }
    this.#update();
  }

  // Shows a newer state of a job that the page knows.
  update(job) { if (this.tiles.has(job.id)) this.#addTile(job); }

  select(id) {
    this.selected = id;
    for (const [tileId, tile] of this.tiles) {
      if (tileId === id) tile.link.setAttribute("aria-current", "page");
      else tile.link.removeAttribute("aria-current");
    }
  }

  #update() {
    const isEmpty = !this.tiles.size;
    setVisible(byId("history-empty"), isEmpty && !this.isLoading);
    setVisible(byId("history-more"), this.next);
    this.select(this.selected);
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
  }

  #createTile(id) {
    const span = (className) => createElement("span", { className });
    const thumbnail = span("thumbnail"), title = span("caption"), status = span("status");
    const link = createElement("a", { href: resolveAddress(`j/${id}`), "data-local-link": "" },
      thumbnail, title, status);
    const remove = () => this.remove(id);
    const button = createElement("button", {
      className: "remove", textContent: "✕", onclick: remove,
      "aria-label": t("deleteNamed", { name: titleOf(id) }) });
    link.addEventListener("keydown", ({ key }) => { if (key === "Delete") remove(); });
    const item = createElement("li", { "data-job": id }, link, button);
    item.dataset.job = id;
    return { item, link, thumbnail, title, status, job: null };
  }

  #removeTile(id) {
    this.tiles.get(id)?.item.remove();
    this.tiles.delete(id);
  }

  // Shows a picture that the page has already, under its name.
  showPicture(id, name, blob) {
    const tile = this.tiles.get(id);
    if (!tile) return;
    tile.picture = name;
    tile.thumbnail.replaceChildren(showBlob(blob));
  }

  // Fetches the picture if it is another one than the tile shows; not that of the job on the
  // canvas, which is fetched there.
  async #showPicture(tile) {
    if (!tile) return;
    tile.isSeen = true;
    const { job } = tile, { result, preview } = job.links;
    const name = result ? job.outputs[0].id : preview && !hasExpiredImages(job) && job.preview;
    if (!name || tile.picture === name || tile.isFetching) return;
    if (job.id === this.selected && !result) return;
    tile.isFetching = true;
    try {
      const image = await getBlob(result ? `${result}?format=webp&width=256` : preview);
      tile.thumbnail.replaceChildren(showBlob(image));
      tile.picture = name;
    } catch { /* with the next state */ }
    tile.isFetching = false;
  }

  // Hides the job at once, and deletes it when the time to undo is over.
  remove(id) {
    const tile = this.tiles.get(id), next = tile?.item.nextElementSibling;
    const hadFocus = tile?.item.contains(document.activeElement);
    const previous = tile?.item.previousElementSibling;
    this.deleted.set(id, tile);
    if (tile) {
      tile.item.remove();
      this.tiles.delete(id);
    }
    if (hadFocus) ((next ?? previous)?.querySelector("a") ?? byId("main")).focus();
    this.onDeleted(id);
    this.#update();
    const restore = () => {
      this.deleted.delete(id);
      if (!tile) return this.refresh();
      this.tiles.set(id, tile);
      this.list.insertBefore(tile.item, next?.isConnected ? next : null);
      this.#update();
      tile.link.focus();
    };
    const finish = async () => {
      try {
        await deleteJob(id);
        this.deleted.delete(id);
      } catch (error) {
        restore();
        showToast(t("notDeleted", { message: error.message }));
      }
    };
    showToast(t("deleted"), {
      seconds: UNDO_SECONDS, action: t("undo"), onAction: restore, onEnd: finish });
  }

  // Deletes at once what waits for the end of the time to undo.
  flush() { endToast(); }
}

export const nameStatus = (job) => {
  if (job.status === "canceled" && job.links.result) return t("status.finishedEarly");
  return t(`status.${job.status}`);
};

function describeStatus(job) {
  if (hasExpiredImages(job)) return t("picturesExpired");
  if (job.status === "running" && job.progress) return formatPercent(job.progress.value);
  if (job.pinned) return t("keptForever");
  if (job.status !== "succeeded" || !job.expires_at) return nameStatus(job);
  return t("until", { date: formatDate(job.expires_at, { dateStyle: "medium" }) });
}
