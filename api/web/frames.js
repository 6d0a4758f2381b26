// Plays the frames of a run, if the service has them.

import { getBlob, getJson } from "./api.js";
import { byId, downloadBlob, setValueText, setVisible } from "./dom.js";
import { retry } from "./retry.js";

export class FramePlayer {
  // onFrame(blob): a frame to show, or null for the result. onError(error): it cannot be fetched.
  constructor(root, { onFrame, onError }) {
    Object.assign(this, { root, onFrame, onError });
    byId("frame").addEventListener("input", () => this.#showSelected());
  }

  clear() {
    Object.assign(this, { job: null, selected: null, frames: [], blobs: new Map() });
    setVisible(this.root, false);
  }

  // Fetches the list of frames, once per job.
  async open(job, signal) {
    if (this.job || !job.links.frames) return;
    this.job = job;
    const { frames } = await retry(() => getJson(job.links.frames, { signal }), { signal })
      .catch(() => ({ frames: [] }));
    if (signal.aborted || frames.length < 2) return;
    this.frames = frames;
    Object.assign(byId("frame"), { max: frames.length, value: frames.length });
    setVisible(this.root, true);
    this.#showSelected();
  }

  // The slider's last position is the result.
  async #showSelected() {
    const { job, blobs } = this;
    const selected = this.selected = Number(byId("frame").value), frame = this.frames[selected];
    setValueText(byId("frame"), frame ? `iteration ${frame.iteration}` : "result");
    try {
      if (frame && !blobs.has(selected)) blobs.set(selected, getBlob(frame.url));
      const blob = await blobs.get(selected);
      if (this.job === job && this.selected === selected) this.onFrame(blob);
    } catch (error) {
      blobs.delete(selected);
      if (this.job === job) this.onError(error);
    }
  }

  async downloadTimelapse() { downloadBlob(await getBlob(this.job.links.timelapse), this.job); }
}
