// Plays the frames of a run on the canvas, and saves them as a video.

import { getBlob, getJson } from "./api.js";
import {
  byId, createElement, downloadBlob, onClick, setText, setValueText, setVisible,
} from "./dom.js";
import { nameFile } from "./history.js";
import { retry } from "./retry.js";
import { t } from "./text.js";

const PLAY_MS = 3500, MAX_FRAME_MS = 350, LAST_FRAME_MS = 1200;
const VIDEO_TYPES = ["video/mp4;codecs=avc1.42E01E", "video/mp4"];

export class FramePlayer {
  // onFrame(blob): a frame to show, or null for the result. onError(error): it cannot be fetched.
  constructor({ onFrame, onError }) {
    Object.assign(this, { onFrame, onError });
    byId("frame").addEventListener("input", () => { this.stop(); this.#showSelected(); });
    onClick("play", () => (this.isPlaying ? this.stop() : this.play()));
  }

  clear() {
    this.stop();
    Object.assign(this, { job: null, selected: null, frames: [], blobs: new Map() });
    setVisible("frames", false);
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
    setVisible("frames", true);
    this.#showSelected();
  }

  #fetch(index) {
    const frame = this.frames[index];
    if (frame && !this.blobs.has(index)) this.blobs.set(index, retry(() => getBlob(frame.url)));
    return this.blobs.get(index);
  }

  // The slider's last position is the result.
  async #showSelected() {
    const { job, blobs } = this;
    const selected = this.selected = Number(byId("frame").value), frame = this.frames[selected];
    const last = this.frames.at(-1).iteration;
    setValueText(byId("frame"), frame ? `${frame.iteration}/${last}` : t("result"));
    try {
      const blob = await this.#fetch(selected);
      if (this.job === job && this.selected === selected) await this.onFrame(blob);
    } catch (error) {
      blobs.delete(selected);
      if (this.job === job) this.onError(error);
    }
  }

  get frameMs() { return Math.min(MAX_FRAME_MS, PLAY_MS / this.frames.length); }

  stop() { this.#setPlaying(null); }

  #setPlaying(run) {
    this.isPlaying = run;
    setText("play", run ? "❚❚" : "▶\ufe0e");
    byId("play").ariaLabel = t(run ? "pause" : "timelapse");
  }

  async play() {
    const run = {};
    this.#setPlaying(run);
    await Promise.all(this.frames.map((_, i) => this.#fetch(i))).catch(() => {});
    for (let i = 0; i <= this.frames.length && this.isPlaying === run; i++) {
      byId("frame").value = i;
      await this.#showSelected();
      await new Promise((done) => setTimeout(done, this.frameMs));
    }
    if (this.isPlaying === run) this.stop();
  }

  // MP4 where the browser can encode it, else the service's animation.
  async downloadTimelapse() {
    const { job } = this;  // another one may be open before the video is recorded
    const type = VIDEO_TYPES.find((name) => window.MediaRecorder?.isTypeSupported(name));
    const blob = await (type ? this.#record(type).catch(() => null) : null)
      ?? await getBlob(job.links.timelapse);
    downloadBlob(blob, nameFile(job, blob.type, `-${t("timelapse").toLowerCase()}`));
  }

  async #record(type) {
    const { frameMs } = this, blobs = await Promise.all(this.frames.map((_, i) => this.#fetch(i)));
    const bitmaps = await Promise.all(blobs.map((blob) => createImageBitmap(blob)));
    // A video has even sides.
    const [width, height] = ["width", "height"].map((side) => 2 * Math.ceil(bitmaps.at(-1)[side]));
    const canvas = createElement("canvas", { width, height }), context = canvas.getContext("2d");
    const stream = canvas.captureStream(), chunks = [];
    const recorder = new MediaRecorder(stream, { mimeType: type, videoBitsPerSecond: 4e6 });
    recorder.ondataavailable = ({ data }) => chunks.push(data);
    const stopped = new Promise((resolve, reject) => {
      Object.assign(recorder, { onstop: resolve, onerror: reject });
    });
    recorder.start();
    for (const bitmap of bitmaps) {
      context.drawImage(bitmap, 0, 0, width, height);
      const pause = bitmap === bitmaps.at(-1) ? LAST_FRAME_MS : frameMs;
      await new Promise((done) => setTimeout(done, pause));
    }
    recorder.stop();
    await stopped;
    const blob = new Blob(chunks, { type: "video/mp4" });
    if (!blob.size) throw new Error("empty");
    return blob;
  }
}
