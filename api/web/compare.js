// Photo and painting on one another: a curtain between them, a mixture of both, a look at pixels. Paints nothing.

import { at, make, shown, valued, written } from "./dom.js";

export class Compare {
  constructor(stage) {
    const curtain = at("curtain"), blend = at("blend"), closer = at("zoom"), [before, after] = stage.querySelectorAll("img");
    Object.assign(this, { stage, curtain, blend, closer, before, after, sheet: curtain.parentElement });
    for (const slider of [curtain, blend]) slider.addEventListener("input", () => this.draw());
    closer.addEventListener("click", () => this.zoom());
  }

  // Files; without a photo nothing is compared.
  show(painted, words, photo) {
    this.painted = painted;
    shown(painted, words, this.after);
    if (photo) shown(photo, "The photo", this.before);
    this.stage.classList.toggle("compares", Boolean(photo));
    this.draw();
  }

  // A frame, for the while.
  frame(picture) { if (picture ??= this.painted) shown(picture, this.after.alt, this.after); }

  clear() {
    this.painted = null;
    for (const image of [this.before, this.after]) image.removeAttribute("src");
    this.stage.classList.remove("compares");
    this.curtain.value = 50;
    this.blend.value = 100;
    this.draw();
    this.zoom(false);
  }

  draw() {
    this.sheet.style.setProperty("--curtain", `${this.curtain.value}%`);
    this.sheet.style.setProperty("--blend", this.blend.value / 100);
    valued(this.curtain, `${this.curtain.value} % photo, the rest painting`);
    valued(this.blend, `${this.blend.value} %`);
  }

  // One pixel of the picture to one of the screen, of small ones to several; or all of it.
  zoom(on = !this.zoomed) {
    this.zoomed = on;
    this.stage.classList.toggle("zoomed", on);
    this.closer.setAttribute("aria-pressed", on);
    this.stage.tabIndex = on ? 0 : -1;  // to be moved by the arrow keys
    const wide = this.after.naturalWidth / devicePixelRatio;
    this.sheet.style.width = on ? `${wide * Math.ceil(1.5 * this.stage.clientWidth / wide)}px` : "";
    if (on) this.stage.scrollTo((this.stage.scrollWidth - this.stage.clientWidth) / 2, 0);
  }

  // The mixture as a file, of the picture itself whatever frame is shown.
  async mixed(type) {
    const painted = await createImageBitmap(this.painted), { width, height } = painted;
    const canvas = make("canvas", { width, height }), pen = canvas.getContext("2d");
    pen.drawImage(this.before, 0, 0, width, height);
    pen.globalAlpha = this.blend.value / 100;
    pen.drawImage(painted, 0, 0);
    return written(canvas, type, 0.95);
  }
}
