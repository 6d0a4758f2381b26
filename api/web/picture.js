// An image that the user has chosen. It is uploaded once; its digest identifies it from then on.

import { getBlob, request } from "./api.js";
import { createElement, encodeCanvas } from "./dom.js";
import { getLimits } from "./schema.js";

const MAX_SIDE = 4096;  // of an image that this page makes smaller

export class Picture {
  // source: the address of an example of this page; null for the user's own file.
  constructor(file, name, source = null) {
    Object.assign(this, { file, name: name || "picture", source });
    // uploading: the pending or successful upload. weight: the share in a mixture, 0 to 100.
    Object.assign(this, { digest: null, uploading: null, weight: 50, error: "" });
  }

  // An image that the service already has.
  static async fromDigest(digest, name) {
    const picture = new Picture(await getBlob(`v1/images/${digest}`), name);
    // Not every browser can show what the service can read, such as HEIC.
    const { width, height } = await createImageBitmap(picture.file).catch(() => ({}));
    return Object.assign(picture, { digest, width, height });
  }

  static async fromAddress(address, name) {
    return new Picture(await getBlob(address), name, address);
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
    await this.file.slice(0, 1).arrayBuffer().catch(() => {
      throw new Error("It cannot be read. Is it a folder, or was it changed?");
    });
    const { max_file_bytes: maxBytes } = await getLimits();
    const { id, width, height } = this.file.size > maxBytes
      ? await uploadFile(await this.#shrink())
      : await uploadFile(this.file).catch(async (error) => {
        if (!["unsupported_image", "image_too_large"].includes(error.code)) throw error;
        return uploadFile(await this.#shrink().catch(() => { throw error; }));
      });
    Object.assign(this, { width, height });
    return (this.digest = id);
  }

  // Makes the next call of `upload` send it again: the service keeps an upload for a day.
  forgetUpload() { this.digest = this.uploading = null; }

  async #shrink() {
    const bitmap = await createImageBitmap(this.file);
    const scale = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
    const [width, height] = [bitmap.width, bitmap.height]
      .map((side) => Math.max(1, Math.round(side * scale)));
    const canvas = createElement("canvas", { width, height }), context = canvas.getContext("2d");
    Object.assign(context, { fillStyle: "white" }).fillRect(0, 0, width, height);
    context.drawImage(bitmap, 0, 0, width, height);
    return encodeCanvas(canvas, "image/jpeg", 0.94);
  }
}

async function uploadFile(file) {
  const form = new FormData();
  form.append("image", file, "picture");
  return (await request("v1/images", { method: "POST", body: form })).json();
}
