// Two paintings on the canvas, one on each side of the divider, and what differs in their settings.

import { getBlob, getJson, resolveAddress } from "./api.js";
import {
  byId, createElement, onClick, setText, setVisible, showBlob, showError,
} from "./dom.js";
import { describeValue, labelOf } from "./form.js";
import { titleOf } from "./history.js";
import { fetchCopy, TILE_PX } from "./picture.js";
import { retry } from "./retry.js";
import { canonicalize } from "./schema.js";
import { t } from "./text.js";

export class CompareView {
  constructor(viewer) {
    this.viewer = viewer;
    onClick("swap", () => this.#show([...this.shown].reverse()));
  }

  // ids: of two jobs with a result.
  async open(ids) {
    const { signal } = this.closing = new AbortController();
    const onError = (message) => showError("compare-error", message);
    const load = (get, address) => retry(() => get(address, { signal }), { signal, onError });
    onError("");
    this.viewer.clear();
    setVisible("swap compared", false);
    setText("canvas-title", t("compare"));
    try {
      const shown = await Promise.all(ids.map(async (id) => {
        const job = await load(getJson, `v1/jobs/${id}`);
        return { job, blob: await load(getBlob, job.links.result ?? `v1/jobs/${id}/result`) };
      }));
      signal.throwIfAborted();
      byId("stage").classList.add("two");
      await this.#show(shown);
    } catch (error) {
      if (!signal.aborted) onError(error.message);
    }
  }

  close() {
    this.closing?.abort();
    byId("stage").classList.remove("two");
  }

  async #show(shown) {
    this.shown = shown;
    const titles = shown.map(({ job }) => titleOf(job)), { viewer } = this;
    setText("canvas-title", titles.join(" | "));
    this.#showDifferences(shown, titles);
    viewer.clear();
    viewer.showPhoto(shown[0].blob, titles[0]);
    await viewer.showPainting(shown[1].blob, titles[1]);
    if (viewer.result === shown[1].blob) viewer.setDivider(50);
  }

  #showDifferences(shown, titles) {
    const inputs = shown.map(({ job }) => job.input), specs = inputs.map(({ spec }) => spec);
    const differ = ([left, right]) => canonicalize(left) !== canonicalize(right);
    const row = (label, cells) => createElement("tr", {},
      createElement("th", { scope: "row", textContent: label }),
      ...cells.map((cell) => createElement("td", {}, cell)));
    const links = shown.map(({ job }, i) => createElement("a", {
      href: resolveAddress(`j/${job.id}`), "data-local-link": "", textContent: titles[i] }));
    const rows = [
      createElement("tr", {}, createElement("td"), ...["left", "right"].map((side) =>
        createElement("th", { scope: "col", textContent: t(side) }))),
      row(t("painting"), links),
      row(t("parameter.size"), shown.map(({ job }) => t("pixels", job.outputs[0]))),
    ];
    const hasOtherStyles = differ(inputs.map(({ styles }) => styles));
    if (hasOtherStyles) {
      rows.push(row(t("style.title"), inputs.map(({ styles }) => this.#createThumbnails(styles))));
    }
    const isMasked = inputs.map((input) => input.masks.length + input.style_masks.length > 0);
    if (differ(isMasked)) {
      rows.push(row(t("mask"), isMasked.map((has) => (has ? t("settings.masks") : "–"))));
    }
    const isShown = (name) => name !== "size" && !(name === "style_weights" && hasOtherStyles)
      && differ(specs.map((spec) => spec[name]));
    rows.push(...Object.keys(specs[0]).filter(isShown).map((name) =>
      row(labelOf(name), specs.map((spec) => describeValue(name, spec[name])))));
    byId("compared").replaceChildren(...rows);
    setVisible("swap compared", true);
  }

  #createThumbnails(digests) {
    const { signal } = this.closing, images = digests.map(() => createElement("img", { alt: "" }));
    digests.forEach((digest, i) => fetchCopy(digest, TILE_PX, { signal }).then(
      (blob) => showBlob(blob, t("theStyle"), images[i]), () => {}));
    return createElement("span", { className: "thumbnails" }, ...images);
  }
}
