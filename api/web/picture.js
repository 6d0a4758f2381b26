// A picture that the user has chosen. It is uploaded once; its digest identifies it from then on.

import { getBlob, upload } from "./api.js";
import { createElement, encodeCanvas } from "./dom.js";
import { getForm } from "./schema.js";
import { formatPercent, t, tOr } from "./text.js";

const MAX_SIDE = 4096;  // of a picture that this page makes smaller

export class Picture {
  constructor(file, name) {
    Object.assign(this, { file, name: name || t("picture"), source: null });
    // uploading: the pending or successful upload. weight: the share in a mixture, 0 to 100.
    Object.assign(this, { digest: null, uploading: null, weight: 50, error: "", progress: null });
    Object.assign(this, { reduced: false, onProgress: () => {} });
  }

  // A sample of this page; its file is fetched when the service needs it. source: its name.
  // thumbnail: see createThumbnail.
  static fromSample({ name, title, words, width, height }, address, thumbnail) {
    return Object.assign(new Picture(null, tOr(`sample.${name}`, title)), {
      source: name, words, width, height, address, thumbnail });
  }

  // An image that the service already has.
  static async fromDigest(digest, name) {
    const picture = new Picture(await getBlob(`v1/images/${digest}`), name);
    // Not every browser can show what the service can read, such as HEIC.
    const { width, height } = await createImageBitmap(picture.file).catch(() => ({}));
    return Object.assign(picture, { digest, width, height });
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
    const size = t("pixels", { width: this.width, height: this.height });
    return this.reduced ? t("reducedTo", { size }) : size;
  }

  // Uploads the image, once; returns its digest. Throws errors whose messages are for the user.
  upload() {
    this.uploading ??= this.#upload().catch((error) => { this.uploading = null; throw error; });
    return this.uploading;
  }

  // The browser may read what the service refuses: a BMP, a scan of 100 megapixels. Such an image
  // is uploaded as a smaller JPEG.
  async #upload() {
    if (this.digest) return this.digest;
    if (this.source) this.file ??= await getBlob(this.address);
    await this.file.slice(0, 1).arrayBuffer().catch(() => { throw new Error(t("cannotBeRead")); });
    const { max_file_bytes: maxBytes } = (await getForm()).limits;
    const { id, width, height } = this.file.size > maxBytes
      ? await this.#send(await this.#shrink())
      : await this.#send(this.file).catch(async (error) => {
        if (!["unsupported_image", "image_too_large"].includes(error.code)) throw error;
        return this.#send(await this.#shrink().catch(() => { throw error; }));
      });
    Object.assign(this, { width, height, error: "" });
    return (this.digest = id);
  }

  // Makes the next call of `upload` send it again: the service keeps an upload for a day.
  forgetUpload() { this.digest = this.uploading = null; }

  #send(file) {
    return upload("v1/images", "image", file, (share) => {
      this.progress = share;
      this.onProgress();
    });
  }

  // The browser scales while it decodes, so that a phone does not need the memory of the original.
  async #shrink() {
    const original = await loadImage(this.file);
    const scale = Math.min(1, MAX_SIDE / Math.max(original.naturalWidth, original.naturalHeight));
    const [width, height] = [original.naturalWidth, original.naturalHeight]
      .map((side) => Math.max(1, Math.round(side * scale)));
    const bitmap = await createImageBitmap(this.file, {
      resizeWidth: width, resizeHeight: height, resizeQuality: "high" });
    const canvas = createElement("canvas", { width, height }), context = canvas.getContext("2d");
    Object.assign(context, { fillStyle: "white" }).fillRect(0, 0, width, height);
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
    this.reduced = true;
    return encodeCanvas(canvas, "image/jpeg", 0.94);
  }
}

// Loads a blob into an image without a place on the page.
export async function loadImage(blob) {
  const src = URL.createObjectURL(blob), image = createElement("img", { src });
  try {
    await image.decode();
    return image;
  } finally { URL.revokeObjectURL(src); }
}
