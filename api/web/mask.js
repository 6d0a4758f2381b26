// Masks: where on the photo each style applies, and which part of the style's picture it is. The
// user paints them on the canvas, in one color per style. Without any mask a style applies
// everywhere, with its whole picture.

import { getBlob } from "./api.js";
import {
  announce, ARROWS, byId, createElement, encodeCanvas, listen, onClick, setText, setValueText, setVisible,
  showError,
} from "./dom.js";
import { closeLayer, openLayer } from "./layers.js";
import { Picture } from "./picture.js";
import { t } from "./text.js";

const LONG_SIDE = 512;  // of a mask; the service scales it to the photo
const KEY_STEP = 1 / 25;  // of the photo's side, per press of an arrow key
const MAX_LONG_SIDE = 1024;  // of an earlier job's mask while it is edited: undo keeps copies
const MAX_UNDO = 30;
const SIDES = ["photo", "style"];  // the picture that a mask lies on
// One color per style, far apart in hue and in lightness. The first are rare in photos.
const COLORS = [
  "#f0149a", "#e8d40c", "#1a9e5c", "#2f6fed", "#e0762b", "#7a4ad8", "#0aa5b5", "#b23a2e"];

const clamp = (share) => Math.min(1, Math.max(0, share));

export class MaskEditor extends EventTarget {
  // photo, style: the pickers. getRatio(): width / height of the photo on the canvas.
  constructor(photo, style, getRatio) {
    super();
    Object.assign(this, { photo, style, getRatio, isOpen: false });
    this.#reset();
    this.overlay = byId("mask-overlay");
    let lastPhoto = null;
    listen(photo, "change", () => {
      const [current] = photo.pictures;
      if (lastPhoto && lastPhoto !== current) {
        lastPhoto.masks = this.state.photo;  // until it is chosen again
        this.#reset({ style: this.state.style, photo: current.masks });
        this.render();
      }
      lastPhoto = current;
    });
    listen(style, "change", () => this.render());
    onClick("open-mask", () => (this.isOpen ? this.close() : this.open()));
    onClick("remove-mask", () => { this.clear(); byId("open-mask").focus(); });
    onClick("mask-done", this.close);
    for (const side of SIDES) onClick(`mask-on-${side}`, () => this.#select({ side }));
    onClick("mask-clear", () => this.#change(() => this.canvases.delete(this.state.selected)));
    onClick("mask-fill", () => this.#fill("source-over"));
    onClick("mask-invert", () => this.#fill("xor"));
    onClick("mask-undo", () => this.#restore(this.done, this.undone));
    onClick("mask-redo", () => this.#restore(this.undone, this.done));
    onClick("mask-import", () => byId("mask-file").click());
    listen("mask-file", "change", () => this.#import());
    listen("canvas", "keydown", (event) => {
      if (!this.isOpen || !(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z") return;
      event.preventDefault();
      byId(event.shiftKey ? "mask-redo" : "mask-undo").click();
    });
    const showWidth = () => {
      setValueText(byId("brush-width"), t("percent", { n: byId("brush-width").value }));
      this.#setBrush();
    };
    listen("brush-width", "input", showWidth);
    showWidth();
    this.#addBrush();
  }

  // The brush's diameter is a share of the longer side; the style sheet draws it.
  #setBrush() {
    const percent = byId("brush-width").value * Math.max(1, 1 / this.getRatio());
    byId("mask-layer").style.setProperty("--brush", `${percent}%`);
  }

  // state: the masks of each side, by the picture of the style, and what the canvas shows of them.
  // A mask of an earlier state does not change. done, undone: earlier and later states.
  #reset({ photo = new Map(), style = new Map() } = {}) {
    const { side = "photo", selected = null } = this.state ?? {};
    Object.assign(this, { state: { photo, style, side, selected }, done: [], undone: [] });
  }

  get canvases() { return this.state[this.state.side]; }

  get masked() {
    return this.style.pictures.filter((one) => SIDES.some((side) => this.state[side].has(one)));
  }

  get hasMasks() { return this.masked.length > 0; }

  // The style whose picture the canvas is to show in place of the photo, or null.
  get shownStyle() {
    return this.isOpen && this.state.side === "style" ? this.state.selected : null;
  }

  // What to do, in words; empty while it is closed.
  get hint() {
    const key = this.shownStyle ? "maskHintStyle" : "maskHint";
    return this.isOpen && t(key, { style: this.state.selected?.title });
  }

  #select(changes) {
    Object.assign(this.state, changes);
    this.notifyChange();
    byId("mask-layer").focus();
  }

  open() {
    this.isOpen = true;
    openLayer(this.close);
    this.#select({ side: "photo", selected: this.style.pictures[0] });
  }

  close = () => {
    if (!this.isOpen) return;
    this.isOpen = false;
    closeLayer(this.close);
    this.notifyChange();
    byId("open-mask").focus();
  };

  clear() { this.setMasks({}); }

  // Takes the masks of an earlier state.
  setMasks(masks) {
    this.#reset(masks);
    this.notifyChange();
  }

  notifyChange() {
    this.render();
    this.dispatchEvent(new Event("change"));
  }

  // Shows all masks of the photo at once, each in the color of its style, or that of one style's
  // picture; and the tools.
  render() {
    const { overlay, state } = this, { pictures } = this.style;
    if (!pictures.includes(state.selected)) [state.selected] = pictures;
    document.body.classList.toggle("masking", this.isOpen);
    setVisible("mask-tools mask-layer", this.isOpen);
    byId("open-mask").ariaPressed = this.isOpen;
    const shown = this.shownStyle;
    for (const side of SIDES) {
      byId(`mask-on-${side}`).ariaPressed = side === state.side;
    }
    this.#setBrush();
    const names = new Intl.ListFormat(document.documentElement.lang).format(
      this.masked.map((picture) => picture.title));
    setText("mask-state", names && t("maskOn", { names }));
    setVisible("mask-chip", names);
    byId("mask-undo").disabled = !this.done.length;
    byId("mask-redo").disabled = !this.undone.length;
    this.#renderStyles(pictures);
    const masks = pictures.map((picture) =>
      (shown ? picture === shown && state.style.get(picture) : state.photo.get(picture)));
    const first = masks.find(Boolean);
    setVisible(overlay, first);
    if (!first) return;
    Object.assign(overlay, { width: first.width, height: first.height });
    const context = overlay.getContext("2d"), tinted = createElement("canvas");
    masks.forEach((mask, i) => {
      if (!mask) return;
      Object.assign(tinted, { width: overlay.width, height: overlay.height });
      const tint = tinted.getContext("2d");
      tint.drawImage(mask, 0, 0, tinted.width, tinted.height);
      Object.assign(tint, { globalCompositeOperation: "source-in", fillStyle: COLORS[i] });
      tint.fillRect(0, 0, tinted.width, tinted.height);
      context.drawImage(tinted, 0, 0);
    });
  }

  #renderStyles(pictures) {
    const buttons = pictures.map((selected, i) => {
      const swatch = createElement("span", { className: "swatch" });
      swatch.style.background = COLORS[i];
      return createElement("button", {
        type: "button", ariaPressed: selected === this.state.selected,
        onclick: () => this.#select({ selected }) }, swatch, selected.title);
    });
    byId("mask-styles").replaceChildren(...buttons);
    setVisible("mask-styles", buttons.length > 1);
  }

  #createCanvas(color = null) {
    const ratio = this.getRatio();
    // The service's minimum is 32 px.
    const [width, height] = [Math.min(1, ratio), Math.min(1, 1 / ratio)]
      .map((side) => Math.max(32, Math.round(LONG_SIDE * side)));
    const canvas = createElement("canvas", { width, height });
    if (color) {
      Object.assign(canvas.getContext("2d"), { fillStyle: color }).fillRect(0, 0, width, height);
    }
    return canvas;
  }

  // Draws into the selected mask, which is created if there is none.
  #draw(action) {
    const { selected } = this.state, canvas = this.canvases.get(selected) ?? this.#createCanvas();
    this.canvases.set(selected, canvas);
    const context = canvas.getContext("2d");
    context.save();
    action(context, canvas);
    context.restore();
    this.render();
  }

  // Begins a new state, whose selected mask may be changed.
  #remember() {
    const { photo, style, selected } = this.state;
    this.done = [...this.done.slice(1 - MAX_UNDO), this.state];
    this.undone = [];
    this.state = { ...this.state, photo: new Map(photo), style: new Map(style) };
    const canvas = this.canvases.get(selected);
    if (canvas) this.canvases.set(selected, copyCanvas(canvas));
  }

  #restore(from, to) {
    if (!from.length) return;
    to.push(this.state);
    this.state = from.pop();
    this.notifyChange();
  }

  #change(action) {
    this.#remember();
    action();
    this.notifyChange();
  }

  #fill(operation) {
    this.#change(() => this.#draw((context, { width, height }) => {
      Object.assign(context, { globalCompositeOperation: operation, fillStyle: "white" });
      context.fillRect(0, 0, width, height);
    }));
  }

  // A picture as mask: white where the style applies, black or transparent where it does not.
  async #import() {
    const [file] = byId("mask-file").files;
    byId("mask-file").value = "";
    if (!file) return;
    try {
      const bitmap = await createImageBitmap(file);
      this.#change(() => this.#draw((context, canvas) => {
        context.clearRect(0, 0, canvas.width, canvas.height);
        context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
        toAlpha(canvas);
      }));
    } catch { showError("submit-error", t("maskNotRead", { name: file.name })); }
  }

  // to, from: x and y as shares of the photo. A click draws a dot.
  #drawLine(to, from) {
    this.#draw((context, { width, height }) => {
      const lineWidth = byId("brush-width").value / 100 * Math.max(width, height);
      Object.assign(context, {
        lineCap: "round", lineWidth, strokeStyle: "white", fillStyle: "white" });
      context.globalCompositeOperation = byId("erase").checked ? "destination-out" : "source-over";
      context.beginPath();
      if (to.x === from.x && to.y === from.y) {
        context.arc(to.x * width, to.y * height, lineWidth / 2, 0, 2 * Math.PI);
        return context.fill();
      }
      context.moveTo(from.x * width, from.y * height);
      context.lineTo(to.x * width, to.y * height);
      context.stroke();
    });
  }

  // Draws with a finger or a mouse; or with the arrow keys, and the space bar or Shift to paint. Two
  // fingers zoom instead.
  #addBrush() {
    const layer = byId("mask-layer");
    const pressed = new Set();  // the ids of the pointers
    let position = { x: 0.5, y: 0.5 }, drawing = null;
    const moveTo = (to, isDrawing, from = position) => {
      if (isDrawing) this.#drawLine(to, from);
      position = to;
      for (const axis of ["x", "y"]) layer.style.setProperty(`--cursor-${axis}`, `${to[axis] * 100}%`);
    };
    const locate = ({ clientX, clientY }) => {
      const { left, top, width, height } = layer.getBoundingClientRect();
      return { x: (clientX - left) / width, y: (clientY - top) / height };
    };
    listen(layer, "pointerdown", (event) => {
      if (event.button) return;
      layer.setPointerCapture(event.pointerId);
      const isFirst = pressed.add(event.pointerId).size === 1;
      if (!isFirst && drawing !== null) this.state = this.done.pop();
      drawing = isFirst ? event.pointerId : null;
      if (!isFirst) return this.render();
      this.#remember();
      moveTo(locate(event), true, locate(event));
    });
    listen(layer, "pointermove", (event) => {
      if (pressed.size < 2) moveTo(locate(event), drawing === event.pointerId);
    });
    listen(layer, "pointerup pointercancel", ({ pointerId }) => {
      pressed.delete(pointerId);
      drawing = null;
      this.notifyChange();
    });
    listen(layer, "keydown", (event) => {
      const step = { ...ARROWS, " ": [0, 0] }[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopPropagation();
      const x = clamp(position.x + step[0] * KEY_STEP), y = clamp(position.y + step[1] * KEY_STEP);
      const isDrawing = event.key === " " || event.shiftKey;
      if (isDrawing) this.#remember();
      moveTo({ x, y }, isDrawing);
      if (!isDrawing) return;
      announce(t("maskPainted", { percent: this.measure() }));
      this.notifyChange();
    });
  }

  // The share of the photo that the selected mask covers, in percent.
  measure() {
    const canvas = this.canvases.get(this.state.selected);
    if (!canvas) return 0;
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let sum = 0;
    for (let i = 3; i < data.length; i += 4) sum += data[i];
    return Math.round(100 * sum / 255 / (data.length / 4));
  }

  // Sets the masks of an earlier job or draft, by side and in the order of its styles: digests, or
  // blobs. What the browser cannot read, such as a TIFF, is shown as white; the job gets it as it is.
  async load(masks) {
    const { style: { pictures }, state } = this;
    await Promise.all(SIDES.flatMap((side) => masks[side].map(async (source, i) => {
      if (!source) return;
      const digest = typeof source === "string" ? source : null;
      const blob = digest ? await getBlob(`v1/images/${digest}`) : source;
      const bitmap = await createImageBitmap(blob).catch(() => null);
      const canvas = copyCanvas(bitmap ?? this.#createCanvas("white"), MAX_LONG_SIDE);
      if (toAlpha(canvas) && digest && bitmap) return;  // `upload` adds it again
      state[side].set(pictures[i], Object.assign(canvas, { digest }));
    })));
    this.render();
  }

  // Returns the masks as `load` takes them.
  async toBlobs() {
    const encode = (side) => Promise.all(this.style.pictures.map((picture) => {
      const canvas = this.state[side].get(picture);
      return canvas ? encodeCanvas(canvas) : null;
    }));
    return { photo: await encode("photo"), style: await encode("style") };
  }

  // Uploads the masks; returns one digest per style, for the sides that have a mask. A style
  // without a mask gets a white one, because the service takes all or none.
  async upload() {
    const names = { photo: "masks", style: "style_masks" }, { pictures } = this.style;
    const sides = SIDES.filter((side) => pictures.some((one) => this.state[side].has(one)));
    return Object.fromEntries(await Promise.all(sides.map(async (side) => {
      const canvases = pictures.map((one) => this.state[side].get(one) ?? this.#createCanvas("white"));
      for (const canvas of canvases) canvas.digest ??= await uploadCanvas(canvas);
      return [names[side], canvases.map(({ digest }) => digest)];
    })));
  }

  // Makes the next call of `upload` upload them again.
  forgetUploads() {
    for (const side of SIDES) for (const canvas of this.state[side].values()) canvas.digest = null;
  }
}

// Copies a canvas or bitmap, with at most so many pixels a side.
function copyCanvas(source, maxSide = Infinity) {
  const scale = Math.min(1, maxSide / Math.max(source.width, source.height));
  const [width, height] = [source.width, source.height].map((px) => Math.ceil(px * scale));
  const canvas = createElement("canvas", { width, height });
  canvas.getContext("2d").drawImage(source, 0, 0, width, height);
  return canvas;
}

// Makes a mask that is white on black, or white on nothing, one that is white on nothing. Returns
// whether all of it is white.
function toAlpha(canvas) {
  const context = canvas.getContext("2d"), { width, height } = canvas;
  const pixels = context.getImageData(0, 0, width, height), { data } = pixels;
  for (let i = 0; i < data.length; i += 4) {
    data[i + 3] *= (data[i] * 0.299 + data[i + 1] * 0.587 + data[i + 2] * 0.114) / 255;
    data[i] = data[i + 1] = data[i + 2] = 255;
  }
  context.putImageData(pixels, 0, 0);
  return data.every((value) => value === 255);
}

const uploadCanvas = async (canvas) => new Picture(await encodeCanvas(canvas), "mask").upload();
