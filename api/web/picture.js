// A picture that somebody chose: shown at once, sent once, named by its digest from then on.

import { ask, blob } from "./service.js";

const TAKEN = ["image/jpeg", "image/png", "image/webp"];
const MOST_BYTES = 20_000_000;
const MOST_PIXELS = 24_000_000;
const LONG_SIDE = 4096;  // of a picture that this page makes smaller

export class Picture {
  // source: where the page got it; null where it is the user's own.
  constructor(file, name, source = null) {
    Object.assign(this, { file, name: name || "picture", source, digest: null, note: "" });
    this.url = URL.createObjectURL(file);
    this.sent = null;
  }

  // One that the service has.
  static async known(digest, name) {
    const picture = new Picture(await blob(`/v1/images/${digest}`), name);
    picture.digest = digest;
    return Object.assign(picture, await sizeOf(picture.file));
  }

  static async at(address, name) {
    return new Picture(await blob(address, { cache: "default" }), name, address);
  }

  // The digest, once the service has looked at it. Throws errors in words.
  send() {
    return (this.sent ??= this.#send().catch((error) => { this.sent = null; throw error; }));
  }

  async #send() {
    if (this.digest) return this.digest;
    const form = new FormData();
    form.append("image", await this.#fitting(), "picture");
    const kept = await (await ask("/v1/images", { method: "POST", body: form })).json();
    this.width = kept.width;
    this.height = kept.height;
    return (this.digest = kept.id);
  }

  // The service keeps an upload for a day: after that it is sent again.
  forget() { this.digest = this.sent = null; }

  // The file as it is, or what this browser can make of it: a phone's HEIC, a scan of 100 megapixels.
  async #fitting() {
    if (TAKEN.includes(this.file.type) && this.file.size <= MOST_BYTES && !(await this.#isVast())) return this.file;
    const bitmap = await createImageBitmap(this.file).catch(() => {
      throw new Error("This browser can't open that file. Save it as JPEG, PNG or WebP.");
    });
    const scale = Math.min(1, LONG_SIDE / Math.max(bitmap.width, bitmap.height));
    const canvas = Object.assign(document.createElement("canvas"), {
      width: Math.max(1, Math.round(bitmap.width * scale)), height: Math.max(1, Math.round(bitmap.height * scale)),
    });
    const pen = canvas.getContext("2d");
    pen.fillStyle = "white";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    this.note = scale < 1 ? `made smaller, to ${canvas.width} × ${canvas.height}` : "sent as JPEG";
    return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.94));
  }

  async #isVast() {
    if (this.file.size < 2_000_000) return false;
    const { width, height } = await sizeOf(this.file);
    return width * height > MOST_PIXELS;  // not, if nobody can tell: the service says what is wrong with it
  }
}

async function sizeOf(file) {
  try {
    const bitmap = await createImageBitmap(file), { width, height } = bitmap;
    bitmap.close();
    return { width, height };
  } catch { return {}; }
}
