// The second screen: one job, from waiting to the end, and what its owner can do with it.

import { Chart } from "./chart.js";
import { Compare } from "./compare.js";
import { commandFor } from "./curl.js";
import { at, complain, duration, saved, say, show, valued, write } from "./dom.js";
import { Reel } from "./frames.js";
import { persist } from "./retry.js";
import { blob, tell } from "./api.js";
import * as shelf from "./history.js";
import { ended, gone, watch } from "./job-stream.js";

const PREVIEW_SECONDS = 60;  // then its download has died

export class Easel {
  // again(job, how): back to the studio with it. gone(): it is deleted.
  constructor({ again, gone }) {
    this.gone = gone;
    this.troubled = (words) => complain(at("trouble"), words);
    this.compare = new Compare(at("stage"));
    this.chart = new Chart(at("chart"));
    this.reel = new Reel(at("reel"), { shown: (picture) => this.compare.frame(picture), troubled: (error) => this.troubled(error.message) });
    const on = (id, act) => at(id).addEventListener("click", () => this.#try(act));
    on("stop", () => { at("stop").disabled = true; return this.#change("POST", this.job.links.cancel); });
    on("download", () => this.#download());
    on("again", () => again(this.job));
    on("as-photo", () => again(this.job, { as: "photo" }));
    on("as-painting", () => again(this.job, { as: "painting" }));
    on("pin", () => this.#change("PATCH", this.job.links.self, { pinned: !this.job.pinned }));
    on("forget", () => this.#forget());
    on("curl", () => this.#tellCommand());
    on("close", () => at("sheet").close());
    on("copy", copied);
    on("timelapse", () => this.reel.save());
    at("steering").addEventListener("input", () => this.#tellStrength());
    at("steering").addEventListener("change", () => this.#steer());
  }

  // What comes back when another job is open is none of its business.
  async #try(act) {
    const { signal } = this.closing;
    this.troubled();
    try {
      await act();
    } catch (error) {
      if (signal.aborted) return;
      this.troubled(error.message);
      at("stop").disabled = false;
    }
  }

  async open(id) {
    this.close();
    const { signal } = this.closing = new AbortController();
    this.#clear(id);
    try {
      await watch(`/v1/jobs/${id}`, { signal, seen: (job) => this.seen(job), troubled: this.troubled });
    } catch (error) {
      if (signal.aborted) return;
      const lost = error.status === 404;
      this.#clear(id);
      write("state", lost ? "Not here any more" : shelf.TITLES.failed);
      write("facts", lost ? "It was deleted, it has expired, or it is another key’s." : error.message);
      say(at("state").textContent);
      for (const part of ["stage", "chart"]) show(at(part), false);
    }
  }

  close() { this.closing?.abort(); }

  #clear(id) {
    Object.assign(this, { id, job: null, picture: null, told: null, unsteerable: false });
    this.compare.clear();
    this.reel.clear();
    this.chart.of(id);
    this.troubled();
    write("state", "One moment");
    document.title = "Impasto";
    for (const part of ["facts", "pace", "until"]) write(part, "");
    for (const part of ["progress", "steer", "stop", "after", "actions", "comparing"]) show(at(part), false);
    for (const part of ["waiting", "stage"]) show(at(part), true);
  }

  seen(job) {
    const before = this.job, within = document.activeElement === at("stop"), { signal } = this.closing;
    if (signal.aborted || this.id !== job.id || before?.version > job.version) return;  // of another job, or overtaken
    this.job = job;
    if (!before) { shelf.remember(job.id); at("steering").value = job.input.spec.strength; this.#tellStrength(); }
    this.#words(job);
    this.#progress(job);
    this.#buttons(job);
    this.#picture(signal);
    if (ended(job)) this.reel.of(job, signal);
    if (ended(job) && within) at("state").focus({ preventScroll: true });
  }

  #words(job) {
    const stopping = job.cancel_requested && !ended(job);
    const state = stopping ? "Stopping" : shelf.TITLES[job.status];
    write("state", state);
    write("facts", stopping ? "It keeps what is painted so far." : facts(job));
    write("until", until(job));
    const share = job.status === "running" ? Math.round(100 * (job.progress?.value ?? 0)) : null;
    document.title = `${share === null ? shelf.TITLES[job.status] : `${share} %`} · Impasto`;
    const quarter = Math.floor(share / 25);  // oftener would drown everything else
    const news = quarter ? `${state} ${quarter * 25} %` : state;
    if (news !== this.told) say(this.told = news);
  }

  #progress(job) {
    const bar = at("progress");
    show(bar, !ended(job));
    if (job.status === "running" && job.progress) bar.value = Math.round(100 * job.progress.value);
    else bar.removeAttribute("value");
    write("pace", pace(job));
    if (job.progress) this.chart.add(job.progress);
  }

  #buttons(job) {
    const over = ended(job), here = Boolean(job.links.result);
    show(at("stop"), !over);
    at("stop").disabled = job.cancel_requested;
    write("stop", job.progress ? "Stop and keep this one" : "Never mind");
    show(at("after"), over && here);
    show(at("actions"), over);
    for (const id of ["as-photo", "as-painting", "pin"]) show(at(id), here);
    show(at("again"), !gone(job));
    at("pin").setAttribute("aria-pressed", job.pinned);
    show(at("steer"), job.progress && !over && !job.cancel_requested && !this.unsteerable);
  }

  // One download at a time: it is shown, and then the newest is fetched, if that is another.
  async #picture(signal) {
    show(at("waiting"), !this.picture && !ended(this.job));
    if (this.fetching === signal) return;
    this.fetching = signal;
    try {
      while (!signal.aborted && await this.#newest(signal));
    } catch (error) {
      if (!signal.aborted) this.troubled(error.message);
    }
    if (this.fetching === signal) this.fetching = null;
  }

  // False: it is shown already, or there is none. The finished one is tried for until it is here.
  async #newest(signal) {
    const { job } = this, { result, preview } = job.links;
    const name = result ? job.outputs[0].id : preview && !gone(job) && job.preview;
    if (!name || name === this.picture) return false;
    if (result) await persist(() => this.#finished(job, signal), { signal, troubled: this.troubled });
    else {
      const late = AbortSignal.any([signal, AbortSignal.timeout(PREVIEW_SECONDS * 1000)]), painted = await blob(preview, { signal: late }).catch(() => null);
      if (signal.aborted || !painted) return Boolean(this.job.links.result);  // the next news tries again
      this.compare.show(painted, "The picture so far");
    }
    this.picture = name;
    show(at("waiting"), false);
    return true;
  }

  async #finished(job, signal) {
    const [painted, photo] = await Promise.all([
      blob(job.links.result, { signal }), blob(`/v1/images/${job.input.content}`, { signal }).catch(() => null)]);
    signal.throwIfAborted();
    this.compare.show(painted, "The painted picture", photo);
    show(at("comparing"), photo);
  }

  #tellStrength() { valued(at("steering"), `${Math.round(100 * at("steering").value)} %`); }

  // One at a time, then the latest; through lost networks and restarts.
  async #steer() {
    const { job, closing: { signal } } = this;
    if (this.steering === signal) return;
    this.steering = signal;
    let told = null;
    const tellLatest = () => tell("PATCH", job.links.self, { spec: { strength: Number(told = at("steering").value) } });
    try {
      while (!signal.aborted && told !== at("steering").value) await persist(tellLatest, { signal, troubled: this.troubled });
    } catch (error) {
      if (!signal.aborted && !ended(this.job)) {
        this.unsteerable = [404, 405, 409].includes(error.status);  // a run that is about to end
        if (this.unsteerable) show(at("steer"), false);
        else this.troubled(error.message);
      }
    }
    if (this.steering === signal) this.steering = null;
  }

  async #change(method, address, body) { this.seen(await (await tell(method, address, body)).json()); }

  async #download() {
    const { job } = this, format = at("format").value;
    const mixes = at("blend").value < 100 && at("stage").classList.contains("compares");
    const picture = mixes ? await this.compare.mixed(`image/${format}`) : await blob(`${job.links.result}?format=${format}`);
    saved(picture, job);
  }

  async #forget() {
    const { job, closing: { signal } } = this;
    if (!confirm("Delete this painting and its pictures from the service?")) return;
    await shelf.forget(job.id);
    if (!signal.aborted) this.gone();
  }

  async #tellCommand() {
    write("command", await commandFor(this.job));
    write("copy", "Copy");
    at("sheet").showModal();
  }
}

function facts(job) {
  const { spec } = job.input, out = job.outputs[0];
  if (job.error) return job.error.message;
  if (gone(job)) return "Its pictures are no longer kept.";
  if (job.status === "queued") {
    const { position, start_seconds: start } = job.queue ?? {};
    return `${position ? `${position} before it` : "It is next"}${start ? `, in about ${duration(start)}` : start === null ? ", and begins when a worker is free" : ""}.`;
  }
  if (job.status === "running") return `${spec.size} px, strength ${Math.round(spec.strength * 100)} %`;
  if (!out) return job.status === "canceled" ? "It was stopped before anything was painted." : "";
  const took = job.started_at && job.completed_at ? `, in ${duration((Date.parse(job.completed_at) - Date.parse(job.started_at)) / 1000)}` : "";
  return `${out.width} × ${out.height} px${took}${job.status === "canceled" ? ", stopped early" : ""}.`;
}

function pace({ status, progress }) {
  if (status !== "running") return "";
  if (!progress) return "Setting up the canvas.";
  const left = progress.seconds_left === null ? "" : `, about ${duration(progress.seconds_left)} left`;
  return `Iteration ${progress.iteration} of ${progress.iterations}${left}`;
}

function until(job) {
  if (!job.links.result) return "";
  if (job.pinned) return "Kept for good.";
  return job.expires_at ? `Kept until ${new Date(job.expires_at).toLocaleString([], { dateStyle: "long", timeStyle: "short" })}.` : "";
}

function copied() {
  getSelection().selectAllChildren(at("command"));
  write("copy", document.execCommand("copy") ? "Copied" : "Press Ctrl+C");
}
