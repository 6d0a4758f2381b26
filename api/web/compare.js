// Shows the result over the photo: with a divider between them, blended, or pixel by pixel.

import { byId, createElement, encodeCanvas, setValueText, showBlob } from "./dom.js";

export class ComparisonView {
  constructor(stage) {
    const [before, after] = stage.querySelectorAll("img");
    const divider = byId("divider"), blend = byId("blend"), zoomButton = byId("zoom");
    const layers = divider.parentElement;
    Object.assign(this, { stage, layers, before, after, divider, blend, zoomButton });
    for (const slider of [divider, blend]) slider.addEventListener("input", () => this.render());
    zoomButton.addEventListener("click", () => this.setZoom());
  }

  // result, photo: blobs. Without a photo there is no comparison.
  show(result, alt, photo) {
    this.result = result;
    showBlob(result, alt, this.after);
    if (photo) showBlob(photo, "The photo", this.before);
    this.stage.classList.toggle("has-photo", Boolean(photo));
    this.render();
  }

  get hasPhoto() { return this.stage.classList.contains("has-photo"); }

  // Shows a frame in place of the result; null shows the result again.
  showFrame(frame) {
    const image = frame ?? this.result;
    if (image) showBlob(image, this.after.alt, this.after);
  }

  clear() {
    this.result = null;
    for (const image of [this.before, this.after]) image.removeAttribute("src");
    this.stage.classList.remove("has-photo");
    this.divider.value = 50;
    this.blend.value = 100;
    this.render();
    this.setZoom(false);
  }

  render() {
    this.layers.style.setProperty("--divider", `${this.divider.value}%`);
    this.layers.style.setProperty("--blend", this.blend.value / 100);
    setValueText(this.divider, `${this.divider.value} % photo, the rest painting`);
    setValueText(this.blend, `${this.blend.value} %`);
  }

  // Zoomed, one pixel of the image is one of the screen, or several if the image is small.
  setZoom(isZoomed = !this.isZoomed) {
    this.isZoomed = isZoomed;
    this.stage.classList.toggle("zoomed", isZoomed);
    this.zoomButton.setAttribute("aria-pressed", isZoomed);
    this.stage.tabIndex = isZoomed ? 0 : -1;  // so that the arrow keys scroll it
    const width = this.after.naturalWidth / devicePixelRatio;
    const factor = Math.ceil(1.5 * this.stage.clientWidth / width);
    this.layers.style.width = isZoomed ? `${width * factor}px` : "";
    if (isZoomed) this.stage.scrollTo((this.stage.scrollWidth - this.stage.clientWidth) / 2, 0);
  }

  // Encodes the blend of photo and result, of the result itself also while a frame is shown.
  async encodeBlend(type) {
    const result = await createImageBitmap(this.result), { width, height } = result;
    const canvas = createElement("canvas", { width, height }), context = canvas.getContext("2d");
    context.drawImage(this.before, 0, 0, width, height);
    context.globalAlpha = this.blend.value / 100;
    context.drawImage(result, 0, 0);
    return encodeCanvas(canvas, type, 0.95);
  }
}
