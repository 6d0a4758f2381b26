// The picture on the canvas: the photo below, the painting above it, in one place. It zooms, pans
// and compares.

import {
  announce, ARROWS, byId, createElement, encodeCanvas, hideBlob, listen, makeRoving, onClick, setText,
  setValueText, setVisible, showBlob,
} from "./dom.js";
import { closeLayer, openLayer } from "./layers.js";
import { isConnectionSlow } from "./picture.js";
import { formatPercent, t } from "./text.js";

const MAX_ZOOM = 16, ZOOM_STEP = 1.5, HOLD_MS = 220, MOVE_PX = 5, PAN_STEP = 60, GRIP_PX = 44;
const TAP_MS = 300;  // then no second tap follows

const exitFullScreen = () => {
  byId("canvas").classList.remove("large");
  if (document.fullscreenElement) document.exitFullscreen();
  closeLayer(exitFullScreen);
};

const REST = 35;  // the divider of a sample: both pictures are seen

export class Viewer {
  constructor() {
    const stage = this.stage = byId("stage");
    [this.before, this.after] = stage.querySelectorAll("img.before, img.after");
    this.divider = byId("divider");
    this.blend = byId("blend");
    Object.assign(this, { pointers: new Map(), ratio: 4 / 3, isSplit: false, zoom: 1, x: 0, y: 0 });
    this.clear();
    listen(this.divider, "input", () => { this.isTouched = true; this.render(); });
    listen(this.blend, "input", () => this.render());
    new ResizeObserver(() => this.render()).observe(stage);
    onClick("zoom-in", () => this.zoomBy(ZOOM_STEP));
    onClick("zoom-out", () => this.zoomBy(1 / ZOOM_STEP));
    onClick("zoom", () => this.toggleFullSize());
    onClick("side-by-side", () => {
      this.isSplit = !this.isSplit;
      this.showOriginal(false);
      this.fit();
    });
    onClick("full-screen", () => this.toggleFullScreen());
    listen(document, "fullscreenchange", () => {
      if (!document.fullscreenElement) exitFullScreen();
    });
    onClick("hold", () => this.showOriginal(byId("hold").ariaPressed !== "true"));
    this.#addHandle(stage.querySelector(".handle"));
    this.#addPointers();
    listen("canvas", "keydown", (event) => this.#onKey(event));
    makeRoving(byId("viewer-tools"));
  }

  // Shows a photo: a blob or an address, under its painting or alone. It stays if it is shown.
  showPhoto(source, alt, { width, height, isUnder = false } = {}) {
    if (this.photoSource === source) return;
    if (!isUnder) this.clear();
    this.photoSource = source;
    if (width) this.ratio = width / height;
    this.#load(this.before, source, alt).then(() => {
      if (this.photoSource === source && !this.isFinal) this.#setRatio(this.before);
    });
    this.render();
  }

  // Shows a painting or a preview over the photo: a blob or an address. isFinal: it has the right
  // shape; a preview has the shape of the photo, apart from rounding.
  async showPainting(source, alt, { isFinal = true } = {}) {
    Object.assign(this, { result: source, isFinal });
    await this.#load(this.after, source, alt);
    if (this.result !== source) return;
    if (isFinal || !this.hasPhoto) this.#setRatio(this.after);
    this.render();
  }

  removePainting() {
    Object.assign(this, { result: null, isFinal: false, isTouched: false });
    this.blend.value = 100;
    this.showOriginal(false);
    this.#hide(this.after);
    this.setDivider(0);
  }

  get hasPhoto() { return this.before.hasAttribute("src"); }

  get hasPainting() { return this.after.hasAttribute("src"); }

  // The image keeps what it shows until the next picture is decoded: else previews would flash.
  #load(image, source, alt) {
    if (image.wanted !== source) {
      Object.assign(image, { wanted: source, pending: this.#replace(image, source, alt) });
    }
    return image.pending;
  }

  async #replace(image, source, alt) {
    const isSample = typeof source === "string";
    const next = isSample ? createElement("img", { alt, src: source }) : showBlob(source, alt);
    const isShown = await decode(next);
    if (image.wanted !== source) return hideBlob(next);
    // A browser cannot show every format, and a sample may not be painted yet.
    if (!isShown) return this.#hide(image);
    const { blobUrl } = image, show = () => {
      Object.assign(image, { decoding: "sync", alt, src: next.src, blobUrl: next.blobUrl });
      return decode(image).then(() => this.render());
    };
    await show();
    if (blobUrl) URL.revokeObjectURL(blobUrl);
    // When all else is loaded, and where the screen has more pixels: the larger file of the sample.
    if (!isSample || isConnectionSlow()) return;
    await new Promise((done) => (window.requestIdleCallback ?? setTimeout)(done));
    if (this.fitted.width * devicePixelRatio < 1.1 * image.naturalWidth) return;
    next.src = source.replace(/\.(avif|webp)$/, "-large.webp");
    if (await decode(next) && image.wanted === source) show();
  }

  #hide(image) {
    image.wanted = null;
    hideBlob(image);
    this.render();
  }

  #setRatio({ naturalWidth: width, naturalHeight: height }) {
    if (width) this.ratio = width / height;
    this.render();
  }

  // Shows a frame in place of the result; null shows the result again.
  showFrame(frame) {
    const image = frame ?? this.result;
    return image && this.#load(this.after, image, this.after.alt);
  }

  clear() {
    this.photoSource = null;
    this.#hide(this.before);
    this.removePainting();
    this.fit();
  }

  // share: 0 shows the whole painting, 100 the whole photo.
  setDivider(share) {
    this.divider.value = share;
    this.render();
  }

  // Moves the divider from the photo to its rest, until the user touches the canvas.
  #sweep() {
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return this.setDivider(REST);
    const start = performance.now(), { result } = this;
    const step = (now) => {
      const time = Math.min(1, Math.max(0, (now - start) / 2400));
      if (this.result !== result || this.isTouched) return;
      this.setDivider(REST + (100 - REST) * (1 - time) ** 2 * (1 + 2 * time));
      if (time < 1) requestAnimationFrame(step);
    };
    step(start);
  }

  // Shows both pictures of a sample, the first time with a sweep.
  reveal() {
    if (!this.isRevealed) this.#sweep();
    else if (this.divider.value === "0") this.setDivider(REST);
    this.isRevealed = true;
  }

  // ---- geometry: the picture fits its space at zoom 1; x and y are its corner, in px of the space:
  // the stage, or each half of it if the pictures are side by side.

  get isCompared() { return this.hasPhoto && this.hasPainting; }

  get space() {
    const { clientWidth, clientHeight } = this.stage;
    const isHalf = this.isSplit && this.isCompared;
    return { width: isHalf ? clientWidth / 2 : clientWidth, height: clientHeight };
  }

  get fitted() {
    const { space } = this, width = Math.min(space.width, space.height * this.ratio);
    return { width, height: width / this.ratio };
  }

  // The left and the right side of what is in view of the picture.
  get edges() {
    const { x, space } = this, right = x + this.fitted.width * this.zoom;
    return { left: Math.max(0, x), right: Math.min(space.width, right) };
  }

  // The zoom at which one pixel of the picture is one of the screen.
  get fullZoom() {
    const { naturalWidth } = this.hasPainting ? this.after : this.before;
    return (naturalWidth || 1) / devicePixelRatio / (this.fitted.width || 1);
  }

  render() {
    const { stage, fitted, space, isCompared } = this;
    const width = fitted.width * this.zoom, height = fitted.height * this.zoom;
    const place = (corner, size, all) =>
      (size <= all ? (all - size) / 2 : Math.min(0, Math.max(all - size, corner)));
    this.x = place(this.x, width, space.width);
    this.y = place(this.y, height, space.height);
    const { left, right } = this.edges, share = this.divider.value / 100;
    const set = (name, value) => stage.style.setProperty(`--${name}`, value);
    set("w", `${fitted.width}px`);
    set("h", `${fitted.height}px`);
    set("x", `${this.x}px`);
    set("y", `${this.y}px`);
    set("zoom", this.zoom);
    set("ratio", this.ratio);
    const divider = isCompared ? left + share * (right - left) : 0;
    const grip = Math.min(right - GRIP_PX / 2, Math.max(left + GRIP_PX / 2, divider));
    set("divider", `${divider}px`);
    set("grip", `${grip}px`);
    set("top", `${Math.max(0, this.y)}px`);
    set("bottom", `${Math.max(0, space.height - this.y - height)}px`);
    set("blend", this.hasPhoto ? this.blend.value / 100 : 1);
    stage.classList.toggle("comparing", isCompared && !this.isSplit);
    stage.classList.toggle("split", isCompared && this.isSplit);
    stage.classList.toggle("whole", !share);
    stage.classList.toggle("zoomed", this.zoom > 1.001);
    stage.classList.toggle("pixelated", this.zoom > Math.max(1.001, 2 * this.fullZoom));
    const isFull = Math.abs(this.zoom / this.fullZoom - 1) < 0.01 && this.zoom !== 1;
    byId("zoom").ariaPressed = isFull;
    setText("zoom-level", this.zoom === 1 ? t("fit") : formatPercent(this.zoom / this.fullZoom));
    byId("zoom-out").ariaDisabled = this.zoom === 1;
    setVisible("viewer-tools", this.hasPainting || this.hasPhoto);
    setVisible("hold side-by-side", isCompared);
    byId("hold").disabled = this.isSplit;
    byId("side-by-side").ariaPressed = this.isSplit;
    setValueText(this.divider, t("dividerValue", { percent: formatPercent(share) }));
    setValueText(this.blend, formatPercent(this.blend.value / 100));
  }

  // Keeps the point of the stage where it is; without one, the center.
  zoomTo(zoom, point = null) {
    const { space } = this, { x, y } = point ?? { x: space.width / 2, y: space.height / 2 };
    const next = Math.min(MAX_ZOOM * Math.max(1, this.fullZoom), Math.max(1, zoom));
    this.x = x - (x - this.x) * next / this.zoom;
    this.y = y - (y - this.y) * next / this.zoom;
    this.zoom = next;
    this.render();
  }

  zoomBy(factor, point) { this.zoomTo(this.zoom * factor, point); }

  fit() {
    Object.assign(this, { zoom: 1, x: 0, y: 0 });
    this.render();
  }

  // 100 %, or twice the size where that is smaller than the stage; then back.
  toggleFullSize(point = null) {
    if (this.zoom > 1.001) this.fit();
    else this.zoomTo(this.fullZoom > 1.05 ? this.fullZoom : Math.max(2, 2 * this.fullZoom), point);
    announce(byId("zoom-level").textContent);
  }

  toggleFullScreen() {
    const canvas = byId("canvas");
    if (canvas.matches(".large")) return exitFullScreen();
    openLayer(exitFullScreen);
    canvas.classList.add("large");  // for phones that have no full screen
    canvas.requestFullscreen?.().catch(() => {});
  }

  #locate({ clientX, clientY }) {
    const { left, top } = this.stage.getBoundingClientRect();
    return { x: (clientX - left) % this.space.width, y: clientY - top };
  }

  showOriginal(isShown) {
    const isOriginal = isShown && this.isCompared && !this.isSplit;
    this.stage.classList.toggle("original", isOriginal);
    byId("hold").ariaPressed = isOriginal;
  }

  #addHandle(handle) {
    const follow = (event) => {
      if (!handle.hasPointerCapture(event.pointerId)) return;
      const { x } = this.#locate(event), { left, right } = this.edges;
      this.setDivider(Math.min(100, Math.max(0, 100 * (x - left) / (right - left))));
    };
    listen(handle, "pointerdown", (event) => {
      if (event.button) return;
      this.isTouched = true;
      handle.setPointerCapture(event.pointerId);
    });
    listen(handle, "pointermove", follow);
    // Else the browser would drag the picture that the curtain uncovers.
    listen(handle, "mousedown", (event) => {
      event.preventDefault();
      this.divider.focus({ preventScroll: true });
    });
  }

  #addPointers() {
    const { stage, pointers } = this;
    let holdTimer = null, isHeld = false, distance = 0;
    const isOnPicture = ({ target }) => target === this.before || target === this.after;
    const hold = () => this.showOriginal(isHeld = true);
    const endHold = () => {  // what the button shows stays
      clearTimeout(holdTimer);
      if (isHeld) this.showOriginal(isHeld = false);
    };
    listen(stage, "wheel", (event) => {
      if (!this.hasPhoto && !this.hasPainting) return;
      if (this.zoom <= 1 && event.deltaY > 0) return;  // then the page scrolls
      event.preventDefault();
      const delta = event.deltaY * (event.deltaMode ? 20 : 1);
      this.zoomBy(Math.exp(-Math.max(-120, Math.min(120, delta)) / 300), this.#locate(event));
    }, { passive: false });
    listen(stage, "pointerdown", (event) => {
      this.isTouched = true;
      const isOnMask = event.pointerType === "touch" && event.target.id === "mask-layer";
      if (event.button || !isOnMask && !isOnPicture(event)) return;
      pointers.set(event.pointerId, this.#locate(event));
      distance = 0;
      // On a touch screen the same gesture opens the browser's menu, which saves the picture.
      if (event.pointerType === "mouse") holdTimer = setTimeout(hold, HOLD_MS);
    });
    listen(window, "pointermove", (event) => {
      const from = pointers.get(event.pointerId);
      if (!from) return;
      const to = this.#locate(event);
      distance += Math.hypot(to.x - from.x, to.y - from.y);
      if (distance > MOVE_PX) endHold();
      const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
      pointers.set(event.pointerId, to);
      if (other) {
        const span = (a) => Math.hypot(a.x - other.x, a.y - other.y) || 1;
        this.zoomBy(span(to) / span(from), { x: (to.x + other.x) / 2, y: (to.y + other.y) / 2 });
      }
      if (this.zoom > 1 && (other || event.target.id !== "mask-layer")) {
        const share = other ? 0.5 : 1;
        this.x += share * (to.x - from.x);
        this.y += share * (to.y - from.y);
        this.render();
      }
    });
    const end = (event) => { if (pointers.delete(event.pointerId)) endHold(); };
    listen(window, "pointerup pointercancel", end);
    // Zoomed, dragging pans; otherwise the picture can be dragged out of the page.
    listen(stage, "dragstart", (event) => {
      endHold();
      if (this.zoom > 1) event.preventDefault();
      else pointers.clear();
    });
    listen(stage, "dblclick", (event) => {
      if (isOnPicture(event)) this.toggleFullSize(this.#locate(event));
    });
    // A single tap enlarges.
    let tapTimer = null;
    listen(stage, "click", (event) => {
      clearTimeout(tapTimer);
      if (event.pointerType !== "touch" || event.detail > 1 || this.zoom > 1) return;
      if (isOnPicture(event)) tapTimer = setTimeout(() => this.toggleFullScreen(), TAP_MS);
    });
  }

  #onKey(event) {
    if (event.target.matches("input:not(#divider), select, #mask-layer")) return;
    if (event.ctrlKey || event.metaKey || event.altKey) return;  // the browser's own zoom and tabs
    const actions = {
      "+": () => this.zoomBy(ZOOM_STEP), "=": () => this.zoomBy(ZOOM_STEP),
      "-": () => this.zoomBy(1 / ZOOM_STEP), 0: () => this.fit(), 1: () => this.zoomTo(this.fullZoom),
    };
    const pan = ([x, y]) => { this.x -= x * PAN_STEP; this.y -= y * PAN_STEP; };
    const arrow = this.zoom > 1 && event.shiftKey && ARROWS[event.key];
    const action = arrow ? () => pan(arrow) : actions[event.key];
    if (!action) return;
    event.preventDefault();
    this.isTouched = true;
    action();
    this.render();
  }

  async encodeBlend(blob, type) {
    const result = await createImageBitmap(blob), { width, height } = result;
    const canvas = createElement("canvas", { width, height }), context = canvas.getContext("2d");
    context.drawImage(this.before, 0, 0, width, height);
    context.globalAlpha = this.blend.value / 100;
    context.drawImage(result, 0, 0);
    return encodeCanvas(canvas, type, 0.95);
  }
}

// Returns whether the browser can show the image.
const decode = (image) => image.decode().then(() => true, () => image.naturalWidth > 0);
