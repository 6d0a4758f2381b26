// How several paintings are mixed: one slider each, as shares of their sum.

import { make, show, valued } from "./dom.js";

export class Shares extends EventTarget {
  constructor(root, well) {
    super();
    Object.assign(this, { root, well });
    well.addEventListener("change", () => this.draw());
  }

  get weights() {
    const { pictures } = this.well;
    return pictures.length > 1 ? pictures.map((picture) => picture.share) : null;
  }

  set(pictures, weights) {
    pictures.forEach((picture, i) => { picture.share = 100 * weights[i]; });
    this.draw();
  }

  draw() {
    const { pictures } = this.well;
    show(this.root, pictures.length > 1);
    this.root.replaceChildren(...pictures.map((picture, i) => {
      const input = make("input", { type: "range", id: `share-${i}`, value: picture.share });
      input.addEventListener("input", () => { picture.share = Number(input.value); this.#tell(); this.dispatchEvent(new Event("change")); });
      const label = make("label", { htmlFor: input.id }, make("span", { textContent: picture.name }), make("output", { htmlFor: input.id }));
      return make("div", { className: "parameter" }, label, input);
    }));
    this.#tell();
  }

  #tell() {
    const { pictures } = this.well, sum = pictures.reduce((total, { share }) => total + share, 0) || 1;
    this.root.querySelectorAll("input").forEach((input, i) => valued(input, `${Math.round(100 * pictures[i].share / sum)} %`));
  }
}
