// Where each painting goes, drawn on the photo with a finger: white there. Nothing drawn: everywhere.

import { at, make, show, shown, written } from "./dom.js";
import { Picture } from "./picture.js";
import { blob } from "./api.js";

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

  async open() {
    const { pictures } = this.painting;
    at("whose").replaceChildren(...pictures.map((picture) => make("option", { textContent: picture.name })));
    show(at("whose"), pictures.length > 1);
    at("over").replaceChildren();
    shown(this.photo.pictures[0].file, "The photo", at("under"));
    at("masking").showModal();
    await at("under").decode();  // a mask has its proportions
    this.#lay();
  }

  #lay() { at("over").replaceChildren(this.drawn.get(this.whose) ?? this.#canvas()); }

  #canvas(fill = null) {
    const { naturalWidth: wide, naturalHeight: high } = at("under");
    const [width, height] = [wide, high].map((side) => Math.max(32, Math.round(side * LONG_SIDE / Math.max(wide, high, 1))));
    const canvas = make("canvas", { width, height });
    if (fill) Object.assign(canvas.getContext("2d"), { fillStyle: fill }).fillRect(0, 0, width, height);
    return canvas;
  }

  // to, from: x and y as shares of the photo.
  #dab(to, from) {
    const canvas = at("over").firstChild, pen = canvas?.getContext("2d");
    if (!pen) return;  // the photo is not there yet
    this.drawn.set(this.whose, canvas);
    Object.assign(pen, { lineCap: "round", lineWidth: at("width").value / 100 * LONG_SIDE, strokeStyle: "white" });
    pen.globalCompositeOperation = at("erase").checked ? "destination-out" : "source-over";
    pen.beginPath();
    pen.moveTo(from.x * canvas.width, from.y * canvas.height);
    pen.lineTo(to.x * canvas.width, to.y * canvas.height);
    pen.stroke();
  }

  // A finger or a mouse; or the arrow keys, with the space bar to paint.
  #brush() {
    const over = at("over"), share = (number) => Math.min(1, Math.max(0, number));
    let spot = { x: 0.5, y: 0.5 };
    const move = (to, paints, from = spot) => {
      if (paints) this.#dab(to, from);
      spot = to;
      for (const side of ["x", "y"]) over.style.setProperty(`--${side}`, `${to[side] * 100}%`);
    };
    const where = (event) => ({ x: event.offsetX / over.clientWidth, y: event.offsetY / over.clientHeight });
    over.addEventListener("pointerdown", (event) => { over.setPointerCapture(event.pointerId); move(where(event), true, where(event)); });
    over.addEventListener("pointermove", (event) => move(where(event), event.buttons));
    over.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], " ": [0, 0] }[event.key];
      if (!step) return;
      event.preventDefault();
      move({ x: share(spot.x + step[0] / 25), y: share(spot.y + step[1] / 25) }, event.key === " " || event.shiftKey);
    });
  }

  // Those of an earlier job, in the order of the paintings.
  async carry(digests) {
    await Promise.all(digests.map(async (digest, i) => {
      const picture = this.painting.pictures[i], bitmap = await createImageBitmap(await blob(`/v1/images/${digest}`));
      const canvas = make("canvas", { width: bitmap.width, height: bitmap.height });
      canvas.getContext("2d").drawImage(bitmap, 0, 0);
      this.drawn.set(picture, canvas);
      this.sent.set(picture, digest);
    }));
  }

  // One digest for each painting, or null where every painting goes everywhere.
  async digests() {
    const { pictures } = this.painting;
    if (!pictures.some((picture) => this.drawn.has(picture))) return null;
    return Promise.all(pictures.map(async (picture) => {
      const digest = this.sent.get(picture) ?? await send(this.drawn.get(picture) ?? this.#canvas("white"));
      this.sent.set(picture, digest);
      return digest;
    }));
  }
}

const send = async (canvas) => new Picture(await written(canvas), "mask").send();
