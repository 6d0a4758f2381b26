// Masks: where on the photo each painting's style applies. The user draws the area in white.
// Without any mask the style applies everywhere.

import { getBlob } from "./api.js";
import { byId, createElement, encodeCanvas, setVisible, showBlob } from "./dom.js";
import { Picture } from "./picture.js";

const LONG_SIDE = 512;  // of a mask; the service scales it to the photo
const KEY_STEP = 1 / 25;  // of the photo's side, per press of an arrow key

const STEPS = {
  ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], " ": [0, 0],
};

const clamp = (share) => Math.min(1, Math.max(0, share));

export class MaskEditor extends EventTarget {
  constructor(photo, painting) {
    super();
    // canvases, digests: by the picture of the painting.
    Object.assign(this, { photo, painting, canvases: new Map(), digests: new Map() });
    photo.addEventListener("change", () => { this.canvases.clear(); this.digests.clear(); });
    for (const picker of [photo, painting]) {
      picker.addEventListener("change", () =>
        setVisible(byId("open-mask"), photo.hasPictures && painting.hasPictures));
    }
    byId("open-mask").addEventListener("click", () => this.open());
    byId("mask-painting").addEventListener("change", () => this.#showCanvas());
    byId("mask-clear").addEventListener("click", () => {
      this.canvases.delete(this.selected);
      this.#showCanvas();
    });
    byId("mask-dialog").addEventListener("close", () => {
      this.digests.clear();
      this.dispatchEvent(new Event("change"));
    });
    byId("mask-done").addEventListener("click", () => byId("mask-dialog").close());
    this.#addBrush();
  }

  // The painting whose mask is drawn.
  get selected() { return this.painting.pictures[byId("mask-painting").selectedIndex]; }

  async open() {
    const { pictures } = this.painting;
    const options = pictures.map(({ name }) => createElement("option", { textContent: name }));
    byId("mask-painting").replaceChildren(...options);
    setVisible(byId("mask-painting"), pictures.length > 1);
    byId("mask-layer").replaceChildren();
    showBlob(this.photo.pictures[0].file, "The photo", byId("mask-photo"));
    byId("mask-dialog").showModal();
    await byId("mask-photo").decode();  // a mask has the proportions of the photo
    this.#showCanvas();
  }

  #showCanvas() {
    byId("mask-layer").replaceChildren(this.canvases.get(this.selected) ?? this.#createCanvas());
  }

  #createCanvas(color = null) {
    const { naturalWidth, naturalHeight } = byId("mask-photo");
    const scale = LONG_SIDE / Math.max(naturalWidth, naturalHeight, 1);
    const [width, height] = [naturalWidth, naturalHeight]
      .map((side) => Math.max(32, Math.round(side * scale)));  // the service's minimum is 32
    const canvas = createElement("canvas", { width, height });
    if (color) {
      Object.assign(canvas.getContext("2d"), { fillStyle: color }).fillRect(0, 0, width, height);
    }
    return canvas;
  }

  // to, from: x and y as shares of the photo.
  #drawLine(to, from) {
    const canvas = byId("mask-layer").firstChild, context = canvas?.getContext("2d");
    if (!context) return;  // the photo has not loaded yet
    this.canvases.set(this.selected, canvas);
    const lineWidth = byId("brush-width").value / 100 * LONG_SIDE;
    Object.assign(context, { lineCap: "round", lineWidth, strokeStyle: "white" });
    context.globalCompositeOperation = byId("erase").checked ? "destination-out" : "source-over";
    context.beginPath();
    context.moveTo(from.x * canvas.width, from.y * canvas.height);
    context.lineTo(to.x * canvas.width, to.y * canvas.height);
    context.stroke();
  }

  // Draws with a finger or a mouse; or with the arrow keys, and the space bar or Shift to paint.
  #addBrush() {
    const layer = byId("mask-layer");
    let position = { x: 0.5, y: 0.5 };
    const moveTo = (to, isDrawing, from = position) => {
      if (isDrawing) this.#drawLine(to, from);
      position = to;
      for (const axis of ["x", "y"]) layer.style.setProperty(`--${axis}`, `${to[axis] * 100}%`);
    };
    const locate = ({ offsetX, offsetY }) =>
      ({ x: offsetX / layer.clientWidth, y: offsetY / layer.clientHeight });
    layer.addEventListener("pointerdown", (event) => {
      layer.setPointerCapture(event.pointerId);
      moveTo(locate(event), true, locate(event));
    });
    layer.addEventListener("pointermove", (event) => moveTo(locate(event), event.buttons));
    layer.addEventListener("keydown", (event) => {
      const step = STEPS[event.key];
      if (!step) return;
      event.preventDefault();
      const x = clamp(position.x + step[0] * KEY_STEP), y = clamp(position.y + step[1] * KEY_STEP);
      moveTo({ x, y }, event.key === " " || event.shiftKey);
    });
  }

  // Loads the masks of an earlier job, in the order of its paintings.
  async loadMasks(digests) {
    await Promise.all(digests.map(async (digest, i) => {
      const picture = this.painting.pictures[i];
      const bitmap = await createImageBitmap(await getBlob(`v1/images/${digest}`));
      const { width, height } = bitmap, canvas = createElement("canvas", { width, height });
      canvas.getContext("2d").drawImage(bitmap, 0, 0);
      this.canvases.set(picture, canvas);
      this.digests.set(picture, digest);
    }));
  }

  // Uploads the masks; returns one digest per painting, or null if there is no mask. A painting
  // without a mask gets a white one, because the service takes all or none.
  async uploadMasks() {
    const { pictures } = this.painting;
    if (!pictures.some((picture) => this.canvases.has(picture))) return null;
    return Promise.all(pictures.map(async (picture) => {
      const digest = this.digests.get(picture)
        ?? await uploadCanvas(this.canvases.get(picture) ?? this.#createCanvas("white"));
      this.digests.set(picture, digest);
      return digest;
    }));
  }

  // Makes the next call of `uploadMasks` upload them again.
  forgetUploads() { this.digests.clear(); }
}

const uploadCanvas = async (canvas) => new Picture(await encodeCanvas(canvas), "mask").upload();
