// The second screen: one job, from waiting to the end, and what its owner can do with it.

import { Chart } from "./chart.js";
import { Compare } from "./compare.js";
import { commandFor } from "./curl.js";
import { at, duration, saved, say, show } from "./element.js";
import { Reel } from "./frames.js";
import { blob, Refusal, tell } from "./service.js";
import * as shelf from "./shelf.js";
import { ended, watch } from "./watch.js";

const TITLES = { queued: "Waiting", running: "Painting", succeeded: "Done", failed: "It did not work", canceled: "Stopped", expired: "Too late" };
const EXTENSIONS = { png: "png", jpeg: "jpg", webp: "webp" };

export class Easel {
  // again(job, how): back to the studio with it. gone(): it is deleted.
  constructor({ again, gone }) {
    Object.assign(this, { again, gone, job: null });
    this.compare = new Compare(at("stage"), at("curtain"), at("blend"));
    this.chart = new Chart(at("chart"));
    this.reel = new Reel(at("reel"), (url) => this.compare.frame(url));
    this.#wire();
  }

  #wire() {
    const on = (id, act) => at(id).addEventListener("click", () => this.#try(act));
    on("stop", () => { at("stop").disabled = true; return this.#change("POST", this.job.links.cancel); });
    on("download", () => this.#download());
    on("again", () => this.again(this.job, {}));
    on("as-photo", () => this.again(this.job, { as: "photo" }));
    on("as-painting", () => this.again(this.job, { as: "painting" }));
    on("pin", () => this.#change("PATCH", this.job.links.self, { pinned: !this.job.pinned }));
    on("forget", () => this.#forget());
    on("curl", async () => { at("command").textContent = await commandFor(this.job, shelf.namesOf(this.job.id)); at("copy").textContent = "Copy"; at("sheet").showModal(); });
    on("close", () => at("sheet").close());
    on("copy", () => copied());
    on("zoom", () => { this.compare.zoom(); at("zoom").setAttribute("aria-pressed", this.compare.zoomed); });
    at("blend").addEventListener("input", () => { at("blended").textContent = `${at("blend").value} %`; });
    at("steering").addEventListener("input", () => this.#tellStrength());
    at("steering").addEventListener("change", () => this.#steer());
  }

  async #try(act) {
    try { await act(); } catch (error) { this.#trouble(error.message); }
  }

  async open(id) {
    this.close();
    const { signal } = this.closing = new AbortController();
    this.#clear();
    try {
      await watch(`/v1/jobs/${encodeURIComponent(id)}`, {
        signal, seen: (job) => { if (!signal.aborted) this.seen(job); }, troubled: (error) => this.#trouble(error?.message ?? ""),
      });
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 404) shelf.forget(id);
      at("state").textContent = error.status === 404 ? "Not here any more" : TITLES.failed;
      at("facts").textContent = error.status === 404 ? "It was deleted, or it has expired." : error.message;
      show(at("stage"), false);
    }
  }

  close() { this.closing?.abort(); }

  #clear() {
    Object.assign(this, { job: null, picture: null, told: null, unsteerable: false });
    this.compare.clear();
    this.reel.clear();
    this.chart.clear();
    at("state").textContent = "One moment";
    for (const id of ["facts", "pace", "until"]) at(id).textContent = "";
    for (const id of ["progress", "steer", "stop", "after", "actions", "comparing", "trouble"]) show(at(id), false);
    at("zoom").setAttribute("aria-pressed", "false");
    at("blended").textContent = "100 %";
    for (const id of ["waiting", "stage"]) show(at(id), true);
  }

  #trouble(words) {
    at("trouble").textContent = words;
    show(at("trouble"), Boolean(words));
  }

  seen(job) {
    const before = this.job, within = at("stop").contains(document.activeElement);
    if (before?.version > job.version) return;  // an answer that was overtaken
    this.job = job;
    if (!before) { shelf.remember(job.id); at("steering").value = job.input.spec.strength; this.#tellStrength(); }
    this.#words(job);
    this.#progress(job);
    this.#buttons(job);
    this.#picture(job);
    if (ended(job)) this.reel.of(job);
    if (ended(job) && within) at("state").focus({ preventScroll: true });
  }

  #words(job) {
    const stopping = job.cancel_requested && !ended(job);
    at("state").textContent = stopping ? "Stopping" : TITLES[job.status];
    at("facts").textContent = stopping ? "It keeps what is painted so far." : facts(job);
    at("until").textContent = until(job);
    const share = Math.round(100 * (job.progress?.value ?? 0));
    document.title = (job.status === "running" ? `${share} % · ` : `${TITLES[job.status]} · `) + "Impasto";
    const quarter = job.status === "running" ? Math.floor(share / 25) : 0;  // oftener would drown everything else
    const news = `${at("state").textContent}${quarter ? ` ${quarter * 25} %` : ""}`;
    if (news !== this.told) say(this.told = news);
  }

  #progress(job) {
    const bar = at("progress");
    show(bar, !ended(job));
    const share = job.status === "running" && job.progress ? Math.round(100 * job.progress.value) : null;
    bar.classList.toggle("unsure", share === null);
    if (share === null) bar.removeAttribute("aria-valuenow"); else bar.setAttribute("aria-valuenow", share);
    bar.firstElementChild.style.width = share === null ? "" : `${share}%`;
    at("pace").textContent = ended(job) ? "" : pace(job);
    if (job.progress) this.chart.add(job.progress);
  }

  #buttons(job) {
    const over = ended(job), here = Boolean(job.links.result);
    show(at("stop"), !over);
    at("stop").disabled = job.cancel_requested;
    at("stop").textContent = job.progress ? "Stop and keep this one" : "Never mind";
    show(at("after"), over && here);
    show(at("actions"), over);
    for (const id of ["as-photo", "as-painting", "pin"]) show(at(id), here);
    show(at("again"), !gone(job));
    at("pin").setAttribute("aria-pressed", job.pinned);
    show(at("steer"), Boolean(job.progress) && !over && !job.cancel_requested && !this.unsteerable);
  }

  // The newest there is, once; the finished one with the photo beneath.
  async #picture(job) {
    const address = job.links.result ?? (job.links.preview && !gone(job) ? job.links.preview : null);
    const name = job.links.result ? job.outputs[0].id : job.preview;
    show(at("waiting"), !address && !ended(job));
    if (!address || this.picture === name) return;
    this.picture = name;
    try {
      const [painted, photo] = await Promise.all([blob(address), job.links.result ? photoOf(job) : null]);
      if (this.picture !== name || this.job?.id !== job.id) return;
      const words = job.links.result ? "The painted picture" : "The picture so far";
      this.compare.show({ painted: held(painted, 0), photo: photo && held(photo, 1), words });
      show(at("comparing"), Boolean(photo));
    } catch (error) {
      if (this.picture === name) this.picture = null;  // the next news tries again
      if (ended(job)) this.#trouble(error.message);
    }
  }

  #tellStrength() {
    const words = `${Math.round(100 * at("steering").value)} %`;
    at("steered").textContent = words;
    at("steering").setAttribute("aria-valuetext", words);
  }

  async #steer() {
    try {
      await tell("PATCH", this.job.links.self, { spec: { strength: Number(at("steering").value) } });
    } catch (error) {
      if (!(error instanceof Refusal) || ended(this.job)) return;
      this.unsteerable = true;  // a service that cannot, or a run that is about to end
      show(at("steer"), false);
    }
  }

  async #change(method, address, body) {
    this.seen(await (await tell(method, address, body)).json());
  }

  async #download() {
    const format = at("format").value, name = `impasto-${this.job.id.slice(4, 12)}.${EXTENSIONS[format]}`;
    const whole = at("blend").value === "100" || !at("stage").classList.contains("compares");
    const picture = whole ? await blob(`${this.job.links.result}?format=${format}`) : await this.compare.mixed(`image/${format}`);
    saved(picture, name);
  }

  async #forget() {
    if (!confirm("Delete this painting and its pictures from the service?")) return;
    await tell("DELETE", this.job.links.self);
    shelf.forget(this.job.id);
    this.gone();
  }
}

const gone = (job) => ended(job) && !job.links.result && job.outputs.length > 0;

const photoOf = (job) => blob(`/v1/images/${job.input.content}`).catch(() => null);

// The memory of the picture before is given back.
const holding = [];
function held(bytes, slot) {
  const old = holding[slot];
  if (old) setTimeout(() => URL.revokeObjectURL(old), 2000);  // it may still be on the screen
  return (holding[slot] = URL.createObjectURL(bytes));
}

function facts(job) {
  const { spec } = job.input, out = job.outputs[0];
  if (job.error) return job.error.message;
  if (gone(job)) return "Its pictures are no longer kept.";
  if (job.status === "queued") {
    const { position = 0, start_seconds: start = null } = job.queue ?? {};
    return `${position ? `${position} before it` : "It is next"}${start ? `, in about ${duration(start)}` : ""}.`;
  }
  if (job.status === "running") return `${spec.size} px, strength ${Math.round(spec.strength * 100)} %`;
  if (!out) return { canceled: "It was stopped before anything was painted." }[job.status] ?? "";
  const took = job.started_at && job.completed_at ? `, in ${duration((Date.parse(job.completed_at) - Date.parse(job.started_at)) / 1000)}` : "";
  return `${out.width} × ${out.height} px${took}${job.status === "canceled" ? ", stopped early" : ""}.`;
}

function pace(job) {
  const p = job.progress;
  if (job.status !== "running") return "";
  if (!p) return "Setting up the canvas.";
  const left = p.seconds_left === null ? "" : `, about ${duration(p.seconds_left)} left`;
  return `Iteration ${p.iteration} of ${p.iterations}${left}`;
}

function until(job) {
  if (!job.links.result) return "";
  if (job.pinned) return "Kept for good.";
  return job.expires_at ? `Kept until ${new Date(job.expires_at).toLocaleString([], { dateStyle: "long", timeStyle: "short" })}.` : "";
}

async function copied() {
  getSelection().selectAllChildren(at("command"));
  const done = await navigator.clipboard?.writeText(at("command").textContent).then(() => true, () => false);
  at("copy").textContent = done ? "Copied" : "Press Ctrl+C";  // without https only the user may write there
}
