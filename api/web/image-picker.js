// A strip of tiles to choose one picture or several from: the samples, and the user's own. It
// uploads the user's pictures and reports every change. It does not know what they are for.

import {
  announce, createElement, hideBlob, makeRoving, setChildren, setVisible, showBlob, showError,
} from "./dom.js";
import { Picture } from "./picture.js";
import { retry } from "./retry.js";
import { t } from "./text.js";
import { createThumbnail } from "./thumbnail.js";
import { showToast } from "./toast.js";

const MAX_OWN = 12;  // tiles of the user's own pictures; the oldest that is not chosen goes

// Events: "change" of the choice; "prepared" and "uploaded", of a picture; "render".
export class ImagePicker extends EventTarget {
  // kind: "photo" or "style", the prefix of its texts. max: how many may be chosen.
  constructor(root, { kind, max = 1 }) {
    super();
    Object.assign(this, { root, kind, max, isMixing: false, own: [], samples: [], pictures: [] });
    this.errors = [];
    this.tiles = new Map();
    this.strip = createElement("div", {
      className: "tiles", role: "toolbar", ariaLabel: t(`${kind}.plural`) });
    this.status = createElement("p", { className: "status" });
    this.error = createElement("p", { className: "error", role: "alert", hidden: true });
    this.sources = [
      this.#createSource("files", { multiple: max > 1 }),
      // CSS shows it on touch screens.
      ...(kind === "photo" ? [this.#createSource("camera", { capture: "environment" })] : []),
    ];
    root.querySelector(".picker").append(this.strip, this.status, this.error);
    this.button = this.sources[0].querySelector("button");
    this.render();
    makeRoving(this.strip);
  }

  #createSource(className, attributes) {
    const input = createElement("input", {
      type: "file", className, accept: "image/*", hidden: true, ...attributes });
    input.addEventListener("change", () => { this.addFiles([...input.files]); input.value = ""; });
    const button = createElement("button", {
      type: "button", className, onclick: () => input.click() },
    createElement("span", { className: "thumb", ariaHidden: "true" }),
    createElement("span", { className: "caption", textContent: t(`${this.kind}.${className}`) }));
    return createElement("div", { className: `tile source ${className}` }, button, input);
  }

  get label() { return t(`${this.kind}.title`); }

  // samples: pictures that are always there. The first is chosen unless another one is.
  setSamples(samples) {
    this.samples = samples;
    if (!this.pictures.length) this.pictures = samples.slice(0, 1);
    this.notifyChange();
  }

  addFiles(files) {
    const isPhoto = this.kind === "photo";
    const pictures = files.map((file) => Object.assign(new Picture(file, file.name), { isPhoto }));
    if (files.length) this.setPictures(pictures);
  }

  // Adds pictures of an earlier visit, without choosing them.
  restore(pictures) {
    this.own = [...this.own, ...pictures].slice(0, MAX_OWN);
    for (const picture of pictures) if (!picture.digest) this.#upload(picture);
    this.notifyChange();
  }

  // Chooses the pictures, or adds them while several are mixed. Several are always mixed.
  setPictures(pictures, { append = this.isMixing } = {}) {
    const previous = this.pictures;
    const all = append ? [...new Set([...previous, ...pictures])] : pictures;
    this.pictures = all.slice(0, this.max);
    this.isMixing ||= this.pictures.length > 1;
    this.errors = all.length > this.max ? [t("tooMany", { n: this.max })] : [];
    this.showErrors();
    const isNew = (picture) => ![...this.own, ...this.samples].includes(picture);
    const added = this.pictures.filter(isNew);
    this.own = [...added, ...this.own]
      .filter((picture, i) => i < MAX_OWN || this.pictures.includes(picture));
    this.notifyChange();
    for (const picture of added) this.#upload(picture, previous);
  }

  #toggle(picture) {
    if (!this.pictures.includes(picture)) return this.setPictures([picture]);
    if (this.pictures.length < 2) return;
    this.pictures = this.pictures.filter((other) => other !== picture);
    this.notifyChange();
  }

  // If nothing else is chosen, the previous choice returns, as far as it is still there.
  removePicture(picture, previous = []) {
    const isOther = (other) => other !== picture;
    this.own = this.own.filter(isOther);
    this.pictures = this.pictures.filter(isOther);
    const all = [...this.own, ...this.samples], known = previous.filter((one) => all.includes(one));
    if (!this.pictures.length) this.pictures = known.length ? known : all.slice(0, 1);
    this.notifyChange();
  }

  notifyChange() {
    this.render();
    this.dispatchEvent(new Event("change"));
  }

  // If the service refuses the picture, the previous choice returns and the reason is shown.
  async #upload(picture, previous = []) {
    const isKept = () => this.own.includes(picture);
    const onError = (message) => { picture.error = message; this.render(); };
    picture.onProgress = () => this.render();
    try {
      await retry(() => isKept() && picture.upload(), { onError });
      if (!isKept()) return;
      this.render();
      this.dispatchEvent(new Event("uploaded"));
      announce(t("isReady", { kind: this.label, name: picture.name }));
    } catch (error) {
      if (!isKept()) return;
      this.removePicture(picture, previous);
      this.errors.push(t("pictureNamed", { kind: picture.name, name: error.message }));
      this.showErrors();
    }
  }

  showErrors() {
    showError(this.error, this.errors.join("\n"));
    if (this.errors.length) this.error.scrollIntoView({ block: "nearest" });
  }

  render() {
    const all = [...this.own, ...this.samples];
    setChildren(this.strip, [...this.sources, ...all.map((picture) => this.#renderTile(picture))]);
    for (const [picture, tile] of this.tiles) {
      if (all.includes(picture)) continue;
      this.tiles.delete(picture);
      hideBlob(tile.querySelector("img"));
    }
    const { pictures } = this, failing = pictures.find(({ error, digest }) => error && !digest);
    const shown = failing ?? (pictures.length === 1 && pictures[0]);
    this.status.textContent = shown ? shown.describe() : "";
    this.status.classList.toggle("line", !failing);
    setVisible(this.status, this.status.textContent);
    this.dispatchEvent(new Event("render"));
  }

  imageOf(picture) { return this.#renderTile(picture).querySelector("img"); }

  #renderTile(picture) {
    const tile = this.tiles.get(picture) ?? this.#createTile(picture);
    this.tiles.set(picture, tile);
    tile.classList.toggle("uploading", !picture.isReady);
    tile.firstChild.ariaPressed = this.pictures.includes(picture);
    return tile;
  }

  #createTile(picture) {
    const { name, title, row, words } = picture, isOwn = !picture.source;
    const image = isOwn ? createElement("img") : createThumbnail(row, words);
    if (isOwn) {
      const alt = t("pictureNamed", { kind: this.label, name });
      picture.prepare().then(() => {
        if (image.isConnected) showBlob(picture.screen, alt, image);
        this.dispatchEvent(new Event("prepared"));
      });
    }
    const button = createElement("button", {
      type: "button", title: name, onclick: () => this.#toggle(picture) },
    createElement("span", { className: "thumb" }, image),
    createElement("span", { className: "caption name", textContent: title }));
    const tile = createElement("div", { className: `tile ${isOwn ? "own" : "sample"}` }, button);
    if (!isOwn) return tile;
    const remove = () => {
      const wasChosen = this.pictures.includes(picture);
      this.removePicture(picture);
      this.button.focus();
      const restore = () => (wasChosen ? this.setPictures([picture]) : this.restore([picture]));
      showToast(t("removed", { name: title }), { action: t("undo"), onAction: restore });
    };
    button.addEventListener("keydown", ({ key }) => { if (key === "Delete") remove(); });
    tile.append(createElement("button", {
      type: "button", className: "remove", textContent: "✕", onclick: remove,
      ariaLabel: t("removeNamed", { name }) }));
    return tile;
  }
}
