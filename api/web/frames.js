// How a picture came about: its frames, where the service keeps them.

import { at, saved, show, valued } from "./dom.js";
import { persist } from "./retry.js";
import { blob, read } from "./api.js";

export class Reel {
  // shown(picture): a frame instead of the picture, or null for the picture itself. troubled(error): it cannot be had.
  constructor(root, { shown, troubled }) {
    Object.assign(this, { root, shown, troubled });
    at("frame").addEventListener("input", () => this.#turn());
  }

  clear() {
    Object.assign(this, { job: null, turn: null, frames: [], kept: new Map() });
    show(this.root, false);
  }

  async of(job, signal) {
    if (this.job || !job.links.frames) return;
    this.job = job;
    const { frames } = await persist(() => read(job.links.frames, { signal }), { signal }).catch(() => ({ frames: [] }));
    if (signal.aborted || frames.length < 2) return;
    this.frames = frames;
    Object.assign(at("frame"), { max: frames.length, value: frames.length });
    show(this.root, true);
    this.#turn();
  }

  async #turn() {
    const { job, kept } = this, turn = this.turn = Number(at("frame").value), frame = this.frames[turn];
    valued(at("frame"), frame ? `iteration ${frame.iteration}` : "the end");
    try {
      if (frame && !kept.has(turn)) kept.set(turn, blob(frame.url));
      const picture = await kept.get(turn);
      if (this.job === job && this.turn === turn) this.shown(picture);
    } catch (error) {
      kept.delete(turn);
      if (this.job === job) this.troubled(error);
    }
  }

  async save() { saved(await blob(this.job.links.timelapse), this.job); }
}
