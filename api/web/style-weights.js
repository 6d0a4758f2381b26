// The shares of several styles in a mixture: one slider each. Together they are always 100 %: a
// slider that moves takes from the others, or gives to them, in proportion.

import { byId, createElement, setValueText, setVisible } from "./dom.js";
import { t } from "./text.js";

export class StyleWeights extends EventTarget {
  constructor(picker) {
    super();
    Object.assign(this, { root: byId("style-weights"), picker, shown: [] });
    picker.addEventListener("change", () => this.render());
  }

  // null unless there are several styles.
  get weights() {
    const { pictures } = this.picker;
    return pictures.length > 1 ? pictures.map((picture) => picture.weight / 100) : null;
  }

  // weights: as in a spec, with a sum of 1.
  setWeights(pictures, weights) {
    pictures.forEach((picture, i) => { picture.weight = 100 * weights[i]; });
    this.shown = [...pictures];
    this.render();
  }

  render() {
    const { pictures } = this.picker;
    setVisible(this.root, pictures.length > 1);
    // Another choice of styles begins with equal shares.
    if (pictures.length !== this.shown.length || pictures.some((one) => !this.shown.includes(one))) {
      for (const picture of pictures) picture.weight = 100 / pictures.length;
    }
    this.shown = [...pictures];
    this.root.replaceChildren(...pictures.map((picture, i) => this.#createSlider(picture, i)));
    this.#showShares();
  }

  #createSlider(picture, index) {
    const id = `style-weight-${index}`;
    const input = createElement("input", { type: "range", id, value: picture.weight });
    input.addEventListener("input", () => {
      this.#setShare(picture, Number(input.value));
      this.#showShares();
      this.dispatchEvent(new Event("change"));
    });
    const label = createElement("label", { htmlFor: id },
      createElement("span", { textContent: picture.title }),
      createElement("output", { htmlFor: id }));
    return createElement("div", { className: "parameter" }, label, input);
  }

  #setShare(picture, share) {
    const others = this.picker.pictures.filter((other) => other !== picture);
    const sum = others.reduce((total, { weight }) => total + weight, 0);
    for (const other of others) {
      const part = sum > 0 ? other.weight / sum : 1 / others.length;
      other.weight = part * (100 - share);
    }
    picture.weight = share;
  }

  // Rounds so that the labels sum to 100.
  #showShares() {
    const { pictures } = this.picker;
    let sum = 0, shown = 0;
    this.root.querySelectorAll("input").forEach((input, i) => {
      sum += pictures[i].weight;
      const percent = Math.round(sum) - shown;
      shown += percent;
      if (input !== document.activeElement) input.value = pictures[i].weight;
      setValueText(input, t("percent", { n: percent }));
    });
  }
}
