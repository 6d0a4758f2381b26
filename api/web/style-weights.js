// The weights of several paintings in a mixture: one slider each, shown as a share of their sum.

import { createElement, setValueText, setVisible } from "./dom.js";

export class StyleWeights extends EventTarget {
  constructor(root, picker) {
    super();
    Object.assign(this, { root, picker });
    picker.addEventListener("change", () => this.render());
  }

  // null unless there are several paintings.
  get weights() {
    const { pictures } = this.picker;
    return pictures.length > 1 ? pictures.map((picture) => picture.weight) : null;
  }

  // weights: as in a spec, with a sum of 1.
  setWeights(pictures, weights) {
    pictures.forEach((picture, i) => { picture.weight = 100 * weights[i]; });
    this.render();
  }

  render() {
    const { pictures } = this.picker;
    setVisible(this.root, pictures.length > 1);
    this.root.replaceChildren(...pictures.map((picture, i) => this.#createSlider(picture, i)));
    this.#showShares();
  }

  #createSlider(picture, index) {
    const id = `style-weight-${index}`;
    const input = createElement("input", { type: "range", id, value: picture.weight });
    input.addEventListener("input", () => {
      picture.weight = Number(input.value);
      this.#showShares();
      this.dispatchEvent(new Event("change"));
    });
    const label = createElement("label", { htmlFor: id },
      createElement("span", { textContent: picture.name }),
      createElement("output", { htmlFor: id }));
    return createElement("div", { className: "parameter" }, label, input);
  }

  #showShares() {
    const { pictures } = this.picker;
    const sum = pictures.reduce((total, { weight }) => total + weight, 0) || 1;
    this.root.querySelectorAll("input").forEach((input, i) =>
      setValueText(input, `${Math.round(100 * pictures[i].weight / sum)} %`));
  }
}
