// A picture that the user has chosen. It is uploaded once; its digest identifies it from then on.

import { getBlob, upload } from "./api.js";
import { createElement, encodeCanvas, hideBlob, showBlob } from "./dom.js";
import { createKey, retry } from "./retry.js";
import { form } from "./schema.js";
import { formatPercent, t, tOr } from "./text.js";

const MAX_SIDE = 4096;  // of a picture that the service refuses as it is, and of one for a slow
const SLOW_SIDE = 2048;  // connection; both are made smaller, as JPEG
const JPEG_QUALITY = 0.92;
// A picture with more pixels is shown smaller: a phone has no memory for 40 megapixels, decoded for
// its tile and again for the canvas.
const SCREEN_PIXELS = 12e6, SCREEN_SIDE = 2560;

export const TILE_PX = 256;  // the width of a small copy that the service makes

export class Picture {
  constructor(file, name) {
    // id: in the draft. uploading: the pending or successful upload. weight: the share in a mixture,
    // 0 to 100. screen: what the page shows, once `prepare` has made it. isPhoto: a painting never
    // needs more of its pixels than its own size. slowSide: of the copy for a slow connection.
    Object.assign(this, {
      id: createKey(), file, name: name || t("picture"), source: null, digest: null,
      uploading: null, weight: 50, error: "", progress: null, onProgress: () => {}, reduced: false,
      screen: null, isPhoto: false, slowSide: null });
  }

  // A sample of this page; its file is fetched when the service needs it. source: its name.
  // row: of its thumbnail.
  static fromSample({ name, title, words, width, height }, address, row) {
    return Object.assign(new Picture(null, tOr(`sample.${name}`, title)), {
      id: name, source: name, words: tOr(`sample.${name}.words`, words), width, height, address, row });
  }

  // An image that the service already has.
  static async fromDigest(digest, name) {
    const picture = new Picture(await getBlob(`v1/images/${digest}`), name);
    // Not every browser can show what the service can read, such as HEIC.
    const [width, height] = await measure(picture.file).catch(() => []);
    return Object.assign(picture, { digest, width, height });
  }

  prepare() { return this.preparing ??= this.#prepare(); }

  async #prepare() {
    this.screen = await shrinkForScreen(this.file)
      ?? await retry(async () => fetchCopy(await this.upload())).catch(() => this.file);
  }

  // The name for titles: "the_scream.jpg" is "the scream".
  get title() {
    const name = this.name.replace(/\.(jpe?g|png|webp|heic|avif|tiff?|gif|bmp)$/i, "");
    return name.replace(/[\s_-]+/g, " ").trim() || name;
  }

  get isReady() { return Boolean(this.digest || this.source); }

  // The state of the picture in words: its size, or how far it is sent.
  describe() {
    if (!this.isReady) {
      if (this.error) return this.error;
      if (this.progress === null) return t("preparing");
      return t("sending", { percent: formatPercent(this.progress) });
    }
    if (!this.width || this.source) return "";
    const size = t("pixels", this);
    if (this.slowSide) return t("reducedForConnection", { size });
    return this.reduced ? t("reducedTo", { size }) : size;
  }

  // Uploads the image, once; returns its digest. Throws errors whose messages are for the user.
  upload() {
    this.uploading ??= this.#upload().catch((error) => { this.uploading = null; throw error; });
    return this.uploading;
  }

  // Makes the next call of `upload` send the photo itself if the painting is to be larger than the
  // copy that was sent.
  requireSide(side) {
    if (!this.slowSide || side <= this.slowSide) return;
    this.forgetUpload();
    Object.assign(this, { isPhoto: false, slowSide: null });
  }

  // The browser may read what the service refuses: a BMP, a scan of 100 megapixels. Such an image
  // is uploaded as a smaller JPEG. So is a JPEG from a phone, on a slow connection.
  async #upload() {
    if (this.digest) return this.digest;
    if (this.source) this.file ??= await getBlob(this.address);
    await this.file.slice(0, 1).arrayBuffer().catch(() => { throw new Error(t("cannotBeRead")); });
    const { id, width, height } = await this.#sendWholeOrSmaller();
    Object.assign(this, { width, height, error: "", digest: id });
    this.onProgress();
    return id;
  }

  async #sendWholeOrSmaller() {
    const small = await this.#shrinkForConnection().catch(() => null);
    if (small) return this.#send(small);
    if (this.file.size > form.limits.max_file_bytes) return this.#send(await this.#shrink());
    return this.#send(this.file).catch(async (error) => {
      if (!["unsupported_image", "image_too_large"].includes(error.code)) throw error;
      return this.#send(await this.#shrink().catch(() => { throw error; }));
    });
  }

  // Returns null for a picture that stays whole: only JPEGs are never transparent.
  async #shrinkForConnection() {
    if (!this.isPhoto || this.file.type !== "image/jpeg" || !isConnectionSlow()) return null;
    const side = Math.min(SLOW_SIDE, form.limits.max_size);
    if (Math.max(...await measure(this.file)) <= side) return null;
    const small = await encodeAsJpeg(this.file, side);
    if (small.size >= this.file.size) return null;
    this.slowSide = side;
    return small;
  }

  // Makes the next call of `upload` send it again: the service keeps an upload for a day.
  forgetUpload() { this.digest = this.uploading = null; }

  #send(file) {
    return upload("v1/images", "image", file, (share) => {
      this.progress = share;
      this.onProgress();
    });
  }

  async #shrink() {
    const small = await encodeAsJpeg(this.file, MAX_SIDE);
    this.reduced = Math.max(...await measure(this.file)) > MAX_SIDE;
    return small;
  }
}

// Where the browser does not know, the connection counts as fast.
export const isConnectionSlow = () => {
  const { saveData, effectiveType } = navigator.connection ?? {};
  return Boolean(saveData) || /[23]g$/.test(effectiveType);
};

const encodeAsJpeg = async (blob, maxSide) =>
  encodeCanvas(await draw(blob, maxSide, "white"), "image/jpeg", JPEG_QUALITY);

// Returns the picture itself, or a smaller one if its pixels are too many to show; null if the
// browser cannot read it.
async function shrinkForScreen(blob) {
  try {
    const [width, height] = await measure(blob);
    if (width * height <= SCREEN_PIXELS) return blob;
    return await encodeCanvas(await draw(blob, SCREEN_SIDE), "image/webp", 0.9);
  } catch { return null; }
}

// Fetches a small copy of a picture that the service has, which every browser can read.
export const fetchCopy = (digest, width = SCREEN_SIDE, options = {}) =>
  getBlob(`v1/images/${digest}?width=${Math.min(width, SCREEN_SIDE)}`, options);

// Returns width and height without decoding the pixels.
async function measure(blob) {
  const image = createElement("img");
  try {
    await new Promise((resolve, reject) => {
      Object.assign(image, { onload: resolve, onerror: reject });
      showBlob(blob, "", image);
    });
    return [image.naturalWidth, image.naturalHeight];
  } finally { hideBlob(image); }
}

// Draws the picture with at most so many pixels a side. Only one decoded copy exists, for a moment.
async function draw(blob, maxSide, background = null) {
  const sides = await measure(blob), scale = Math.min(1, maxSide / Math.max(...sides));
  const [width, height] = sides.map((side) => Math.max(1, Math.round(side * scale)));
  const bitmap = await createImageBitmap(blob, {
    resizeWidth: width, resizeHeight: height, resizeQuality: "high" });
  const canvas = createElement("canvas", { width, height }), context = canvas.getContext("2d");
  if (background) Object.assign(context, { fillStyle: background }).fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return canvas;
}
