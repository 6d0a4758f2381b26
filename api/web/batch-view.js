// Drafts of one photo in all sample styles, as a grid on the canvas: a batch of small jobs.

import { getBlob, getJson, sendJson } from "./api.js";
import { byId, createElement, onClick, setText, setVisible, showBlob } from "./dom.js";
import { hasEnded, newestPicture } from "./job-stream.js";
import { closeLayer, openLayer } from "./layers.js";
import { retry, sleep } from "./retry.js";
import { createKey } from "./submit-view.js";
import { t } from "./text.js";
import { createThumbnail } from "./thumbnail.js";

const DRAFT_SIZE = 256, POLL_SECONDS = 1.5;

export class BatchView {
  // onPick({style, blob}): the user likes this draft; blob is null before it has a picture.
  // onStarted(job, photo, style): a draft is submitted.
  constructor({ onPick, onStarted }) {
    Object.assign(this, { onPick, onStarted });
    this.root = byId("batch");
    onClick("batch-close", this.close);
  }

  // Starts a draft for each style. spec: the parameters of the editor; onError(message).
  async open(photo, styles, { spec, onError }) {
    this.close();
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
      const { style_weights: _, ...parameters } = spec;
      const draft = { ...parameters, size: DRAFT_SIZE, quality: "draft" };
      const body = { contents: [content], styles: digests, spec: draft };
      const headers = { "Idempotency-Key": createKey() };
      const send = async () => (await sendJson("POST", "v1/batches", body, headers)).json();
      let batch = await retry(send, { signal, onError });
      batch.jobs.forEach((job, i) => this.onStarted(job, photo, styles[i]));
      for (;;) {
        this.#show(batch, tiles, signal);
        if (batch.jobs.every(hasEnded)) break;
        await sleep(POLL_SECONDS, signal);
        batch = await retry(() => getJson(batch.links.self, { signal }), { signal, onError });
      }
    } catch (error) {
      if (!signal.aborted) setText("batch-status", error.message);
    }
  }

  close = () => {
    this.closing?.abort();
    setVisible(this.root, false);
    closeLayer(this.close);
  };

  #createTile(style) {
    const thumb = createElement("span", { className: "thumb" });
    if (style.thumbnail) thumb.append(createThumbnail(style.thumbnail));
    const status = createElement("span", { className: "status" });
    const tile = { thumb, status, picture: null, blob: null };
    const onclick = () => this.onPick({ style, blob: tile.blob });
    tile.root = createElement("button", { type: "button", onclick },
      thumb, createElement("span", { className: "caption", textContent: style.name }), status);
    return tile;
  }

  // Jobs are in the order of the styles; a deleted one is missing.
  #show({ jobs }, tiles, signal) {
    const done = jobs.filter(hasEnded).length;
    setText("batch-status", done < jobs.length
      ? t("draftsDone", { done, n: jobs.length }) : t("pickOne"));
    jobs.forEach(async (job, i) => {
      const tile = tiles[i], picture = newestPicture(job, "?format=webp");
      tile.status.textContent = job.status === "succeeded" ? "" : t(`status.${job.status}`);
      if (!picture || tile.picture === picture.name) return;
      tile.picture = picture.name;
      try {
        tile.blob = await getBlob(picture.address, { signal });
        tile.thumb.replaceChildren(showBlob(tile.blob));
        tile.root.classList.add("painted");
      } catch { tile.picture = null; }
    });
  }
}
