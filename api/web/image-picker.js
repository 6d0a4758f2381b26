// A picker for one picture or several: it shows them, uploads them, and reports every change. It
// does not know what they are for.

import { announce, createElement, setVisible, showBlob, showError } from "./dom.js";
import { Picture } from "./picture.js";
import { retry } from "./retry.js";

// Events: "change" when the pictures change, "uploaded" when one of them is uploaded.
export class ImagePicker extends EventTarget {
  // label: the name of a picture, as in "Photo". max: how many there may be.
  constructor(root, { label, max = 1 }) {
    super();
    Object.assign(this, { root, label, max, isMixing: false, pictures: [], cards: new WeakMap() });
    this.list = createElement("ul", { className: "images" });
    this.error = createElement("p", { className: "error", role: "alert", hidden: true });
    const sources = [
      ...this.#createSource("files", { multiple: max > 1 }),
      ...this.#createSource("camera", { capture: "environment" }),  // CSS shows it on touch screens
    ];
    this.button = sources[0];
    const hint = createElement("p", {
      className: "drop-hint", textContent: "or drop or paste it here" });
    root.querySelector("h2").after(
      createElement("div", { className: "drop-area" }, this.list,
        createElement("div", { className: "sources" }, ...sources, hint)),
      this.error);
    this.render();
  }

  // A button, and the file input that it opens.
  #createSource(className, attributes) {
    const input = createElement("input", {
      type: "file", className, accept: "image/*", hidden: true, ...attributes });
    input.addEventListener("change", () => { this.addFiles([...input.files]); input.value = ""; });
    const button = createElement("button", {
      type: "button", className, textContent: "Camera", onclick: () => input.click() });
    return [button, input];
  }

  get hasPictures() { return this.pictures.length > 0; }

  addFiles(files) {
    if (files.length) this.setPictures(files.map((file) => new Picture(file, file.name)));
  }

  // Replaces the pictures, or appends to them while several are mixed. Several are always mixed.
  setPictures(pictures, { append = this.isMixing } = {}) {
    const previous = this.pictures;
    const all = append ? [...previous, ...pictures] : pictures;
    this.pictures = all.slice(0, this.max);
    this.isMixing ||= this.pictures.length > 1;
    this.pendingChoice = null;  // an example that still loads must not replace these
    const tooMany = all.length > this.max;
    this.showError(tooMany ? `No more than ${this.max}: the rest was left out.` : "");
    this.notifyChange();
    for (const picture of pictures) this.#upload(picture, previous);
  }

  removePicture(picture) {
    this.pictures = this.pictures.filter((other) => other !== picture);
    this.notifyChange();
  }

  notifyChange() {
    this.render();
    this.dispatchEvent(new Event("change"));
  }

  // If the service refuses the picture, the previous pictures return and the reason is shown.
  async #upload(picture, previous) {
    const isChosen = () => this.pictures.includes(picture);
    const onError = (message) => { picture.error = message; this.render(); };
    try {
      await retry(() => isChosen() && picture.upload(), { onError });
      if (!isChosen()) return;
      this.render();
      this.dispatchEvent(new Event("uploaded"));
      announce(`${this.label}: ${picture.name} is ready.`);
    } catch (error) {
      if (!isChosen()) return;
      this.pictures = this.pictures.filter((other) => other !== picture);
      if (!this.hasPictures) this.pictures = previous;
      this.notifyChange();
      this.showError(`${picture.name}: ${error.message}`);
    }
  }

  showError(message) { showError(this.error, message); }

  // A card that is already in the list stays in place, so that it keeps the focus.
  render() {
    this.root.classList.toggle("has-images", this.hasPictures);
    let action = "Choose a";
    if (this.hasPictures) action = this.isMixing ? "Add a" : "Choose another";
    this.button.textContent = `${action} ${this.label.toLowerCase()}`;
    const cards = this.pictures.map((picture) => this.#renderCard(picture));
    const present = [...this.list.children];
    for (const card of present) if (!cards.includes(card)) card.remove();
    for (const card of cards) if (!present.includes(card)) this.list.append(card);
    setVisible(this.list, this.hasPictures);
  }

  #renderCard(picture) {
    const { digest, width, height, error } = picture;
    const card = this.cards.get(picture) ?? this.#createCard(picture);
    this.cards.set(picture, card);
    card.className = digest ? "" : "uploading";
    card.querySelector(".status").textContent =
      digest ? (width ? `${width} × ${height}` : "") : error || "Uploading…";
    return card;
  }

  #createCard(picture) {
    const { file, name } = picture;
    const remove = () => { this.removePicture(picture); this.button.focus(); };
    return createElement("li", {},
      showBlob(file, `${this.label}: ${name}`),
      createElement("p", {},
        createElement("span", { className: "name", textContent: name }),
        createElement("span", { className: "status" })),
      createElement("button", {
        type: "button", className: "subtle remove", textContent: "✕",
        "aria-label": `Remove ${name}`, onclick: remove }));
  }
}
