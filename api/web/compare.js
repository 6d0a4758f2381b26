// Photo and painting on one another: a curtain between them, a mixture of both, a look at pixels. Paints nothing again.

import { make } from "./element.js";

export class Compare {
  constructor(stage, curtain, blend) {
    Object.assign(this, { stage, curtain, blend });
    this.before = make("img", { className: "before", alt: "" });
    this.after = make("img", { className: "after", alt: "" });
    this.sheet = make("div", { className: "sheet" }, this.before, this.after);
    stage.append(this.sheet);
    curtain.addEventListener("input", () => this.draw());
    blend.addEventListener("input", () => this.draw());
    this.#drag();
  }

  // URLs; without a photo nothing is compared.
  show({ painted, photo = null, words }) {
    this.painted = this.after.src = painted;
    this.after.alt = words;
    if (photo) { this.before.src = photo; this.before.alt = "The photo"; } else this.before.removeAttribute("src");
    this.stage.classList.toggle("compares", Boolean(photo));
    this.draw();
  }

  // A picture of how it came about, for the while.
  frame(url) { this.after.src = url ?? this.painted; }

  clear() {
    for (const image of [this.before, this.after]) image.removeAttribute("src");
    this.stage.classList.remove("compares");
    this.curtain.value = 50;
    this.blend.value = 100;
    this.zoom(false);
  }

  draw() {
    this.sheet.style.setProperty("--curtain", `${this.curtain.value}%`);
    this.sheet.style.setProperty("--blend", this.blend.value / 100);
    this.curtain.setAttribute("aria-valuetext", `${this.curtain.value} % photo, the rest painting`);
    this.blend.setAttribute("aria-valuetext", `${this.blend.value} % painting`);
  }

  // One pixel of the picture to one of the screen (of small ones, to four), or all of it.
  zoom(on = !this.zoomed) {
    this.zoomed = on;
    this.stage.classList.toggle("zoomed", on);
    const { naturalWidth: wide } = this.after;
    this.sheet.style.width = on ? `${wide / devicePixelRatio * (wide < 900 ? 2 : 1)}px` : "";
    if (on) this.stage.scrollTo((this.stage.scrollWidth - this.stage.clientWidth) / 2, 0);
  }

  // The mixture as a file.
  async mixed(type) {
    const canvas = make("canvas", { width: this.after.naturalWidth, height: this.after.naturalHeight });
    const pen = canvas.getContext("2d");
    pen.drawImage(this.before, 0, 0, canvas.width, canvas.height);
    pen.globalAlpha = this.blend.value / 100;
    pen.drawImage(this.after, 0, 0, canvas.width, canvas.height);
    return new Promise((done) => canvas.toBlob(done, type, 0.95));
  }

  // A finger or a mouse draws the curtain; enlarged, it moves the picture.
  #drag() {
    let from = null;
    const move = (event) => {
      if (!from) return;
      if (this.zoomed) {
        this.stage.scrollBy(from.x - event.clientX, from.y - event.clientY);
        from = { x: event.clientX, y: event.clientY };
      } else if (this.stage.classList.contains("compares")) {
        const box = this.sheet.getBoundingClientRect();
        this.curtain.value = Math.round(100 * (event.clientX - box.left) / box.width);
        this.draw();
      }
    };
    this.sheet.addEventListener("pointerdown", (event) => {
      if (event.button || (this.zoomed && event.pointerType !== "mouse")) return;
      from = { x: event.clientX, y: event.clientY };
      this.sheet.setPointerCapture(event.pointerId);
      move(event);
    });
    this.sheet.addEventListener("pointermove", move);
    for (const end of ["pointerup", "pointercancel"]) this.sheet.addEventListener(end, () => { from = null; });
    this.sheet.addEventListener("dragstart", (event) => event.preventDefault());
  }
}
