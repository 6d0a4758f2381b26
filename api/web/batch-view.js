// Drafts of one photo in all sample styles, as a grid on the canvas: a batch of small jobs.

import { getBlob, getJson } from "./api.js";
import { byId, createElement, onClick, setText, setVisible, showBlob } from "./dom.js";
import { setNames } from "./history.js";
import { hasEnded, newestPicture } from "./job-stream.js";
import { closeLayer, openLayer } from "./layers.js";
import { create, retry, sleep } from "./retry.js";
import { t } from "./text.js";
import { createThumbnail } from "./thumbnail.js";

const DRAFT_SIZE = 256, POLL_SECONDS = 1.5;

export class BatchView {
  // onPick({style, blob}): the user likes this draft; blob is null before it has a picture.
  // onStarted(): the drafts are submitted.
  constructor({ onPick, onStarted }) {
    Object.assign(this, { onPick, onStarted });
    this.root = byId("batch");
    onClick("batch-close", () => { this.close(); byId("try-all").focus(); });
  }

  // Starts a draft for each style. spec: the parameters of the editor.
  async open(photo, styles, spec) {
    this.close();
    const onError = (message) => setText("batch-status", message);
    const { signal } = this.closing = new AbortController();
    const tiles = styles.map((style) => this.#createTile(style));
    byId("batch-tiles").replaceChildren(...tiles.map(({ root }) => root));
    openLayer(this.close);
    setVisible(this.root, true);
    setText("batch-status", t("uploadingStyles"));
    try {
      const [content, ...digests] = await Promise.all(
        [photo, ...styles].map((one) => retry(() => one.upload(), { signal, onError })));
      signal.throwIfAborted();
      const { style_weights: _, init, ...parameters } = spec;
      if (init !== "picture") parameters.init = init;  // a batch has no such picture
      const draft = { ...parameters, size: DRAFT_SIZE, quality: "draft" };
      const body = { contents: [content], styles: digests, spec: draft };
      let batch = await create("v1/batches", body, { signal, onError });
      batch.jobs.forEach((job, i) => {
        tiles[i].id = job.id;
        setNames(job.id, { content: photo.title, styles: [styles[i].title] });
      });
      this.onStarted();
      for (;;) {
        this.#show(batch, tiles, signal);
        if (batch.jobs.every(hasEnded)) break;
        await sleep(POLL_SECONDS, signal);
        batch = await retry(() => getJson(batch.links.self, { signal }), { signal, onError });
      }
    } catch (error) {
      if (!signal.aborted) onError(error.message);
    }
  }

  close = () => {
    this.closing?.abort();
    setVisible(this.root, false);
    closeLayer(this.close);
  };

  #createTile(style) {
    const thumb = createElement("span", { className: "thumb" });
    if (style.source) thumb.append(createThumbnail(style.row));
    const status = createElement("span", { className: "status" }), image = createElement("img");
    const tile = { thumb, status, image, id: null, picture: null, blob: null };
    const onclick = () => this.onPick({ style, blob: tile.blob });
    tile.root = createElement("button", { type: "button", onclick },
      thumb, createElement("span", { className: "caption", textContent: style.name }), status);
    return tile;
  }

  // A deleted job is missing.
  #show({ jobs }, tiles, signal) {
    const done = jobs.filter(hasEnded).length;
    setText("batch-status", done < jobs.length
      ? t("draftsDone", { done, n: jobs.length }) : t("pickOne"));
    jobs.forEach(async (job) => {
      const tile = tiles.find(({ id }) => id === job.id);
      const picture = newestPicture(job, "?format=webp");
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
