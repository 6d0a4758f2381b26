// A picture that somebody chose: sent once, named by its digest from then on.

import { limits } from "./schema.js";
import { make, written } from "./dom.js";
import { ask, blob } from "./api.js";

const LONG_SIDE = 4096;  // of a picture that this page makes smaller

export class Picture {
  // source: where the page got it; null where it is the user's own.
  constructor(file, name, source = null) {
    Object.assign(this, { file, name: name || "picture", source, digest: null, sent: null, share: 50, trouble: "" });
  }

  // One that the service has.
  static async known(digest, name) {
    const picture = new Picture(await blob(`/v1/images/${digest}`), name), bitmap = await createImageBitmap(picture.file);
    return Object.assign(picture, { digest, width: bitmap.width, height: bitmap.height });
  }

  static async at(address, name) { return new Picture(await blob(address), name, address); }

  // The digest, once the service has looked at it. Throws errors in words.
  send() {
    return (this.sent ??= this.#send().catch((error) => { this.sent = null; throw error; }));
  }

  // What the service does not take this browser may be able to read: a phone's HEIC, a scan of 100 megapixels.
  async #send() {
    if (this.digest) return this.digest;
    await this.file.slice(0, 1).arrayBuffer().catch(() => { throw new Error("It cannot be read. Is it a folder, or was it changed?"); });
    const { max_file_bytes: most } = await limits();
    const kept = this.file.size > most ? await upload(await this.#smaller()) : await upload(this.file).catch(async (error) => {
      if (!["unsupported_image", "image_too_large"].includes(error.code)) throw error;
      return upload(await this.#smaller().catch(() => { throw error; }));
    });
    Object.assign(this, { width: kept.width, height: kept.height });
    return (this.digest = kept.id);
  }

  // The service keeps an upload for a day: after that it is sent again.
  forget() { this.digest = this.sent = null; }

  async #smaller() {
    const bitmap = await createImageBitmap(this.file), scale = Math.min(1, LONG_SIDE / Math.max(bitmap.width, bitmap.height));
    const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
    const canvas = make("canvas", { width, height }), pen = canvas.getContext("2d");
    Object.assign(pen, { fillStyle: "white" }).fillRect(0, 0, width, height);
    pen.drawImage(bitmap, 0, 0, width, height);
    return written(canvas, "image/jpeg", 0.94);
  }
}

async function upload(file) {
  const form = new FormData();
  form.append("image", file, "picture");
  return (await ask("/v1/images", { method: "POST", body: form })).json();
}
