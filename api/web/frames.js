// How a picture came about: its frames, where the service keeps them.

import { at, saved, show } from "./element.js";
import { blob, read } from "./service.js";

export class Reel {
  // shown(url): a frame instead of the picture, or null for the picture itself.
  constructor(root, shown) {
    Object.assign(this, { root, shown });
    at("frame").addEventListener("input", () => this.#turn());
    at("timelapse").addEventListener("click", () => this.#save());
  }

  clear() {
    for (const url of this.kept?.values() ?? []) url.then(URL.revokeObjectURL, () => {});
    Object.assign(this, { job: null, frames: [], kept: new Map() });
    show(this.root, false);
  }

  async of(job) {
    if (this.job || !job.links.frames) return;
    this.job = job;
    try { this.frames = (await read(job.links.frames)).frames; } catch { return; }
    if (this.job !== job || this.frames.length < 2) return;
    Object.assign(at("frame"), { max: this.frames.length, value: this.frames.length });
    show(this.root, true);
    this.#turn();
  }

  async #turn() {
    const turn = this.turn = Number(at("frame").value), frame = this.frames[turn];
    at("when").textContent = frame ? `iteration ${frame.iteration}` : "the end";
    at("frame").setAttribute("aria-valuetext", at("when").textContent);
    if (!frame) return this.shown(null);
    if (!this.kept.has(turn)) this.kept.set(turn, blob(frame.url).then(URL.createObjectURL));
    try {
      const url = await this.kept.get(turn);
      if (this.turn === turn) this.shown(url);
    } catch { this.kept.delete(turn); }
  }

  async #save() {
    saved(await blob(this.job.links.timelapse), `impasto-${this.job.id.slice(4, 12)}.webp`);
  }
}
