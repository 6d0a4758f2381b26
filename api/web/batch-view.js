// Drafts of one photo in all sample styles, as a grid on the canvas: a batch of small jobs.

import { getBlob, getJson } from "./api.js";
import { byId, createElement, onClick, setText, setVisible, showBlob } from "./dom.js";
import { setNames } from "./history.js";
import { hasEnded, newestPicture } from "./job-stream.js";
import { closeLayer, openLayer } from "./layers.js";
import { create, createKey, retry, sleep } from "./retry.js";
import { canonicalize } from "./schema.js";
import { t } from "./text.js";
import { createThumbnail } from "./thumbnail.js";

const DRAFT_SIZE = 256, POLL_SECONDS = 1.5;

// All of its jobs were deleted.
function ignoreMissing(error) {
  if (error.status !== 404) throw error;
  return { jobs: [] };
}

export class BatchView {
  // onPick({photo, style, blob}): the user likes this draft; blob is null before it has a picture.
  // onStarted(): the drafts are submitted.
  constructor({ onPick, onStarted }) {
    Object.assign(this, { onPick, onStarted });
    this.root = byId("batch");
    onClick("batch-close", this.close);
  }

  // Shows a draft for each style; starts them unless those of the same pictures and parameters are
  // still there. spec: the parameters of the editor.
  async open(photo, styles, spec) {
    this.close();
    const onError = (message) => setText("batch-status", message);
    const { signal } = this.closing = new AbortController();
    const last = this.last = this.#findLast(photo, styles, spec) ?? {
      photo, styles, spec, key: createKey(),
      tiles: styles.map((style) => this.#createTile(photo, style)) };
    byId("batch-tiles").replaceChildren(...last.tiles.map(({ root }) => root));
    openLayer(this.close);
    setVisible(this.root, true);
    setText("batch-status", t("uploadingStyles"));
    const load = () => retry(() => getJson(last.batch.links.self, { signal }), { signal, onError });
    try {
      if (last.batch) last.batch = await load().catch(ignoreMissing);
      if (last.batch?.jobs.length !== styles.length) last.batch = await this.#start(last, signal, onError);
      for (;;) {
        this.#show(last.batch, last.tiles, signal);
        if (last.batch.jobs.every(hasEnded)) break;
        await sleep(POLL_SECONDS, signal);
        last.batch = await load();
      }
    } catch (error) {
      if (signal.aborted) return;
      this.last = null;
      onError(error.message);
    }
  }

  #findLast(photo, styles, spec) {
    const { last } = this;
    const isSame = last?.photo === photo && last.styles.length === styles.length
      && last.styles.every((style, i) => style === styles[i])
      && canonicalize(last.spec) === canonicalize(spec);
    return isSame ? last : null;
  }

  // Submits the drafts; again with the same key if the answer was not waited for.
  async #start(last, signal, onError) {
    const { photo, styles, tiles, spec: { style_weights: _, init, ...parameters } } = last;
    if (init !== "picture") parameters.init = init;  // a batch has no such picture
    if (last.batch) last.key = createKey();  // some were deleted
    const [content, ...digests] = await Promise.all(
      [photo, ...styles].map((one) => retry(() => one.upload(), { signal, onError })));
    signal.throwIfAborted();
    const draft = { ...parameters, size: DRAFT_SIZE, quality: "draft" };
    const body = { contents: [content], styles: digests, spec: draft };
    const batch = await create("v1/batches", body, { key: last.key, signal, onError });
    batch.jobs.forEach((job, i) => {
      tiles[i].id = job.id;
      setNames(job.id, { content: photo.title, styles: [styles[i].title] });
    });
    this.onStarted();
    return batch;
  }

  close = () => {
    if (this.root.hidden) return;
    this.closing.abort();
    setVisible(this.root, false);
    closeLayer(this.close);
    byId("try-all").focus();
  };

  #createTile(photo, style) {
    const thumb = createElement("span", { className: "thumb" });
    if (style.source) thumb.append(createThumbnail(style.row));
    const status = createElement("span", { className: "status" }), image = createElement("img");
    const tile = { thumb, status, image, id: null, picture: null, blob: null };
    const onclick = () => this.onPick({ photo, style, blob: tile.blob });
    tile.root = createElement("button", { type: "button", onclick },
      thumb, createElement("span", { className: "caption", textContent: style.title }), status);
    return tile;
  }

  // A deleted job is missing.
  #show({ jobs }, tiles, signal) {
    const done = jobs.filter(hasEnded).length;
    setText("batch-status", done < jobs.length
      ? t("draftsDone", { done, n: jobs.length }) : t("pickOne"));
    jobs.forEach(async (job) => {
      const tile = tiles.find(({ id }) => id === job.id), picture = newestPicture(job, "?format=webp");
      tile.status.textContent = job.status === "succeeded" ? "" : t(`status.${job.status}`);
      if (!picture || tile.picture === picture.name) return;
      tile.picture = picture.name;
      try {
        const blob = await getBlob(picture.address, { signal });
        if (tile.picture !== picture.name) return;  // a newer one is on its way
        tile.blob = blob;
        tile.thumb.replaceChildren(showBlob(blob, "", tile.image));
        tile.root.classList.add("painted");
      } catch { tile.picture = null; }  // the next state tries again
    });
  }
}
