// Where each painting goes, drawn on the photo with a finger: white there. Nothing drawn: everywhere.

import { at, make, show } from "./element.js";
import { Picture } from "./picture.js";

const LONG_SIDE = 512;  // of a mask; it is laid over the photo, however large that is

export class Masks extends EventTarget {
  constructor(photo, painting) {
    super();
    Object.assign(this, { photo, painting, drawn: new Map(), sent: new Map() });
    photo.addEventListener("change", () => { this.drawn.clear(); this.sent.clear(); });
    for (const well of [photo, painting]) well.addEventListener("change", () => show(at("mask"), photo.ready && painting.ready));
    at("mask").addEventListener("click", () => this.open());
    at("whose").addEventListener("change", () => this.#lay());
    at("everywhere").addEventListener("click", () => { this.drawn.delete(this.whose); this.#lay(); });
    at("masking").addEventListener("close", () => { this.sent.clear(); this.dispatchEvent(new Event("change")); });
    at("masked").addEventListener("click", () => at("masking").close());
    this.#brush();
  }

  get whose() { return this.painting.pictures[at("whose").selectedIndex]; }

  open() {
    const { pictures } = this.painting;
    at("whose").replaceChildren(...pictures.map((picture) => make("option", { textContent: picture.name })));
    show(at("whose"), pictures.length > 1);
    at("under").src = this.photo.pictures[0].url;
    at("masking").showModal();
    this.#lay();
  }

  #lay() { at("over").replaceChildren(this.drawn.get(this.whose) ?? this.#canvas()); }

  #canvas(fill = null) {
    const { naturalWidth: wide, naturalHeight: high } = at("under");
    const scale = LONG_SIDE / Math.max(wide, high, 1);
    const canvas = make("canvas", { width: Math.max(32, Math.round(wide * scale)), height: Math.max(32, Math.round(high * scale)) });
    if (fill) Object.assign(canvas.getContext("2d"), { fillStyle: fill }).fillRect(0, 0, canvas.width, canvas.height);
    return canvas;
  }

  // x, y: shares of the photo.
  #dab(x, y, from = { x, y }) {
    const canvas = at("over").firstChild, pen = canvas.getContext("2d");
    this.drawn.set(this.whose, canvas);
    Object.assign(pen, { lineCap: "round", lineWidth: at("width").value / 100 * LONG_SIDE, strokeStyle: "white" });
    pen.globalCompositeOperation = at("erase").checked ? "destination-out" : "source-over";
    pen.beginPath();
    pen.moveTo(from.x * canvas.width, from.y * canvas.height);
    pen.lineTo(x * canvas.width, y * canvas.height);
    pen.stroke();
  }

  // A finger or a mouse; or the arrow keys, with the space bar to paint.
  #brush() {
    const over = at("over");
    let from = null, spot = { x: 0.5, y: 0.5 };
    const where = (event) => {
      const box = over.getBoundingClientRect();
      return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
    };
    over.addEventListener("pointerdown", (event) => { over.setPointerCapture(event.pointerId); from = where(event); this.#dab(from.x, from.y); });
    over.addEventListener("pointermove", (event) => {
      if (!from) return;
      const to = where(event);
      this.#dab(to.x, to.y, from);
      from = to;
    });
    for (const end of ["pointerup", "pointercancel"]) over.addEventListener(end, () => { from = null; });
    over.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], " ": [0, 0] }[event.key];
      if (!step) return;
      event.preventDefault();
      const to = { x: Math.min(1, Math.max(0, spot.x + step[0] / 25)), y: Math.min(1, Math.max(0, spot.y + step[1] / 25)) };
      if (event.key === " " || event.shiftKey) this.#dab(to.x, to.y, spot);
      spot = to;
      over.style.setProperty("--x", `${spot.x * 100}%`);
      over.style.setProperty("--y", `${spot.y * 100}%`);
    });
  }

  // One digest for each painting, or null where every painting goes everywhere.
  async digests() {
    const { pictures } = this.painting;
    if (!pictures.some((picture) => this.drawn.has(picture))) return null;
    return Promise.all(pictures.map((picture) => {
      if (!this.sent.has(picture)) this.sent.set(picture, this.#send(this.drawn.get(picture) ?? this.#canvas("white")));
      return this.sent.get(picture);
    }));
  }

  async #send(canvas) {
    return new Picture(await new Promise((done) => canvas.toBlob(done, "image/png")), "mask").send();
  }
}
