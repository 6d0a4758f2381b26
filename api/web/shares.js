// How several paintings are mixed: one slider each, as shares of their sum.

import { make, show } from "./element.js";

export class Shares extends EventTarget {
  constructor(root, well) {
    super();
    Object.assign(this, { root, well, of: new Map() });
    well.addEventListener("change", () => this.draw());
  }

  get weights() {
    const { pictures } = this.well;
    return pictures.length > 1 ? pictures.map((picture) => this.of.get(picture) ?? 50) : null;
  }

  set(pictures, weights) {
    pictures.forEach((picture, i) => this.of.set(picture, 100 * (weights[i] ?? 1)));
    this.draw();
  }

  draw() {
    const { pictures } = this.well;
    show(this.root, pictures.length > 1);
    const told = [];
    const tell = () => {
      const sum = pictures.reduce((total, picture) => total + (this.of.get(picture) ?? 50), 0) || 1;
      pictures.forEach((picture, i) => { told[i].textContent = `${Math.round(100 * (this.of.get(picture) ?? 50) / sum)} %`; });
    };
    this.root.replaceChildren(...pictures.map((picture, i) => {
      const id = `share-${i}`;
      told[i] = make("output", { htmlFor: id });
      const input = make("input", { type: "range", id, min: 0, max: 100, value: this.of.get(picture) ?? 50 });
      input.addEventListener("input", () => { this.of.set(picture, Number(input.value)); tell(); this.dispatchEvent(new Event("change")); });
      return make("div", { className: "knob" }, make("label", { htmlFor: id }, make("span", { textContent: picture.name }), told[i]), input);
    }));
    if (pictures.length) tell();
  }
}
