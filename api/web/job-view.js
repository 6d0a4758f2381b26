// The second screen: one job, from the queue to its end, and what its owner can do with it.

import { getBlob, sendJson } from "./api.js";
import { LossChart } from "./chart.js";
import { ComparisonView } from "./compare.js";
import { buildCommand } from "./curl.js";
import {
  announce, byId, downloadBlob, formatDuration, setText, setValueText, setVisible, showError,
} from "./dom.js";
import { FramePlayer } from "./frames.js";
import { addEntry, deleteJob, STATUS_TITLES } from "./history.js";
import { followJob, hasEnded, hasExpiredImages } from "./job-stream.js";
import { retry } from "./retry.js";

const PREVIEW_TIMEOUT_SECONDS = 60;

export class JobView {
  // onReuse(job, options): opens the submit view with the job. onDeleted(): the job is deleted.
  constructor({ onReuse, onDeleted }) {
    this.onDeleted = onDeleted;
    this.showError = (message) => showError(byId("job-error"), message);
    this.comparison = new ComparisonView(byId("stage"));
    this.chart = new LossChart(byId("chart"));
    this.frames = new FramePlayer(byId("frames"), {
      onFrame: (frame) => this.comparison.showFrame(frame),
      onError: (error) => this.showError(error.message),
    });
    const onClick = (id, action) =>
      byId(id).addEventListener("click", () => this.#run(action));
    onClick("stop", () => this.#cancel());
    onClick("download", () => this.#download());
    onClick("reuse", () => onReuse(this.job));
    onClick("as-photo", () => onReuse(this.job, { as: "photo" }));
    onClick("as-painting", () => onReuse(this.job, { as: "painting" }));
    onClick("pin", () => this.#change("PATCH", this.job.links.self, { pinned: !this.job.pinned }));
    onClick("delete", () => this.#delete());
    onClick("show-command", () => this.#showCommand());
    onClick("close-command", () => byId("command-dialog").close());
    onClick("copy", copyCommand);
    onClick("timelapse", () => this.frames.downloadTimelapse());
    byId("strength").addEventListener("input", () => this.#showStrength());
    byId("strength").addEventListener("change", () => this.#updateStrength());
  }

  // Runs an action of the user. Its error is not shown if another job is open by then.
  async #run(action) {
    const { signal } = this.closing;
    this.showError();
    try {
      await action();
    } catch (error) {
      if (signal.aborted) return;
      this.showError(error.message);
      byId("stop").disabled = false;
    }
  }

  async open(id) {
    this.close();
    const { signal } = this.closing = new AbortController();
    this.#clear(id);
    const onJob = (job) => this.showJob(job);
    try {
      await followJob(`v1/jobs/${id}`, { signal, onJob, onError: this.showError });
    } catch (error) {
      if (signal.aborted) return;
      this.#clear(id);
      if (error.status === 404) {
        setText("status", "Not found");
        setText("details", "It was deleted, it has expired, or it belongs to another key.");
      } else {
        setText("status", STATUS_TITLES.failed);
        setText("details", error.message);
      }
      announce(byId("status").textContent);
      for (const part of ["stage", "chart"]) setVisible(byId(part), false);
    }
  }

  close() { this.closing?.abort(); }

  #clear(id) {
    // picture: the name of the image that is shown. announced: the last text for screen readers.
    Object.assign(this, { id, job: null, picture: null, announced: null, isSpecLocked: false });
    this.comparison.clear();
    this.frames.clear();
    this.chart.open(id);
    this.showError();
    setText("status", "Loading");
    document.title = "Impasto";
    for (const part of ["details", "progress-text", "retention"]) setText(part, "");
    const hidden = [
      "progress", "strength-control", "stop", "result-controls", "actions", "compare-controls"];
    for (const part of hidden) setVisible(byId(part), false);
    for (const part of ["placeholder", "stage"]) setVisible(byId(part), true);
  }

  showJob(job) {
    const previous = this.job, { signal } = this.closing;
    if (signal.aborted || this.id !== job.id) return;  // another job is open by now
    if (previous?.version > job.version) return;  // a newer state has overtaken this one
    const stopHasFocus = document.activeElement === byId("stop");
    this.job = job;
    if (!previous) {
      addEntry(job.id);
      byId("strength").value = job.input.spec.strength;
      this.#showStrength();
    }
    this.#showTexts(job);
    this.#showProgress(job);
    this.#showButtons(job);
    this.#showPicture(signal);
    if (!hasEnded(job)) return;
    this.frames.open(job, signal);
    if (stopHasFocus) byId("status").focus({ preventScroll: true });  // the button is hidden now
  }

  #showTexts(job) {
    const isStopping = job.cancel_requested && !hasEnded(job);
    const title = STATUS_TITLES[job.status], status = isStopping ? "Stopping" : title;
    setText("status", status);
    setText("details", isStopping ? "The picture so far is kept." : describeJob(job));
    setText("retention", describeRetention(job));
    const isRunning = job.status === "running";
    const percent = isRunning ? Math.round(100 * (job.progress?.value ?? 0)) : null;
    document.title = `${isRunning ? `${percent} %` : title} · Impasto`;
    // A screen reader that reads every percent would say nothing else.
    const quarter = Math.floor(percent / 25);
    const text = quarter ? `${status} ${quarter * 25} %` : status;
    if (text === this.announced) return;
    this.announced = text;
    announce(text);
  }

  #showProgress(job) {
    const bar = byId("progress");
    setVisible(bar, !hasEnded(job));
    if (job.status === "running" && job.progress) bar.value = Math.round(100 * job.progress.value);
    else bar.removeAttribute("value");
    setText("progress-text", describeProgress(job));
    if (job.progress) this.chart.addPoint(job.progress);
  }

  #showButtons(job) {
    const isOver = hasEnded(job), hasResult = Boolean(job.links.result);
    setVisible(byId("stop"), !isOver);
    byId("stop").disabled = job.cancel_requested;
    setText("stop", job.progress ? "Stop and keep this picture" : "Cancel");
    setVisible(byId("result-controls"), isOver && hasResult);
    setVisible(byId("actions"), isOver);
    for (const id of ["as-photo", "as-painting", "pin"]) setVisible(byId(id), hasResult);
    setVisible(byId("reuse"), !hasExpiredImages(job));
    byId("pin").setAttribute("aria-pressed", job.pinned);
    const canUpdate = job.progress && !isOver && !job.cancel_requested && !this.isSpecLocked;
    setVisible(byId("strength-control"), canUpdate);
  }

  // Downloads one picture at a time. When it is shown, the newest is next, if that is another.
  async #showPicture(signal) {
    setVisible(byId("placeholder"), !this.picture && !hasEnded(this.job));
    if (this.fetching === signal) return;
    this.fetching = signal;
    try {
      while (!signal.aborted && await this.#showNewest(signal));
    } catch (error) {
      if (!signal.aborted) this.showError(error.message);
    }
    if (this.fetching === signal) this.fetching = null;
  }

  // Shows the newest picture. Returns false if it is shown already, or if there is none. The result
  // is fetched until that succeeds; a preview that fails is skipped.
  async #showNewest(signal) {
    const { job } = this, { result, preview } = job.links;
    const name = result ? job.outputs[0].id : preview && !hasExpiredImages(job) && job.preview;
    if (!name || name === this.picture) return false;
    if (result) {
      await retry(() => this.#showResult(job, signal), { signal, onError: this.showError });
    } else {
      const timeout = AbortSignal.timeout(PREVIEW_TIMEOUT_SECONDS * 1000);
      const blob = await getBlob(preview, { signal: AbortSignal.any([signal, timeout]) })
        .catch(() => null);
      // Without a preview, wait for the next state, unless the result has come meanwhile.
      if (signal.aborted || !blob) return Boolean(this.job.links.result);
      this.comparison.show(blob, "The picture so far");
    }
    this.picture = name;
    setVisible(byId("placeholder"), false);
    return true;
  }

  async #showResult(job, signal) {
    const [result, photo] = await Promise.all([
      getBlob(job.links.result, { signal }),
      getBlob(`v1/images/${job.input.content}`, { signal }).catch(() => null),
    ]);
    signal.throwIfAborted();
    this.comparison.show(result, "The result", photo);
    setVisible(byId("compare-controls"), photo);
  }

  #showStrength() {
    setValueText(byId("strength"), `${Math.round(100 * byId("strength").value)} %`);
  }

  // Sends one update at a time, and then the latest value; repeats it after a network failure.
  async #updateStrength() {
    const { job, closing: { signal } } = this;
    if (this.updating === signal) return;
    this.updating = signal;
    let sent = null;
    const send = () => {
      sent = byId("strength").value;
      return sendJson("PATCH", job.links.self, { spec: { strength: Number(sent) } });
    };
    try {
      while (!signal.aborted && sent !== byId("strength").value) {
        await retry(send, { signal, onError: this.showError });
      }
    } catch (error) {
      if (!signal.aborted && !hasEnded(this.job)) {
        this.isSpecLocked = [404, 405, 409].includes(error.status);  // the run is about to end
        if (this.isSpecLocked) setVisible(byId("strength-control"), false);
        else this.showError(error.message);
      }
    }
    if (this.updating === signal) this.updating = null;
  }

  async #change(method, address, body) {
    this.showJob(await (await sendJson(method, address, body)).json());
  }

  #cancel() {
    byId("stop").disabled = true;
    return this.#change("POST", this.job.links.cancel);
  }

  async #download() {
    const { job } = this, format = byId("format").value;
    const isBlended = byId("blend").value < 100 && this.comparison.hasPhoto;
    const blob = isBlended
      ? await this.comparison.encodeBlend(`image/${format}`)
      : await getBlob(`${job.links.result}?format=${format}`);
    downloadBlob(blob, job);
  }

  async #delete() {
    const { job, closing: { signal } } = this;
    if (!confirm("Delete this painting and its pictures from the service?")) return;
    await deleteJob(job.id);
    if (!signal.aborted) this.onDeleted();
  }

  async #showCommand() {
    setText("command", await buildCommand(this.job));
    setText("copy", "Copy");
    byId("command-dialog").showModal();
  }
}

function describeJob(job) {
  const { spec } = job.input, output = job.outputs[0];
  if (job.error) return job.error.message;
  if (hasExpiredImages(job)) return "Its pictures have been deleted.";
  if (job.status === "queued") return describeQueue(job.queue ?? {});
  if (job.status === "running") {
    return `${spec.size} px, strength ${Math.round(spec.strength * 100)} %`;
  }
  if (!output) return job.status === "canceled" ? "It was stopped before it had a picture." : "";
  const parts = [`${output.width} × ${output.height} px`];
  if (job.started_at && job.completed_at) {
    const seconds = (Date.parse(job.completed_at) - Date.parse(job.started_at)) / 1000;
    parts.push(`in ${formatDuration(seconds)}`);
  }
  if (job.status === "canceled") parts.push("stopped early");
  return `${parts.join(", ")}.`;
}

// start_seconds is null while no worker runs, and missing if nothing is known.
function describeQueue({ position, start_seconds: start }) {
  let text = position ? `${position} before this one` : "Next in the queue";
  if (start) text += `, starts in about ${formatDuration(start)}`;
  else if (start === null) text += ", starts when a worker is free";
  return `${text}.`;
}

function describeProgress({ status, progress }) {
  if (status !== "running") return "";
  if (!progress) return "Preparing.";
  const { iteration, iterations, seconds_left: left } = progress;
  const text = `Iteration ${iteration} of ${iterations}`;
  return left === null ? text : `${text}, about ${formatDuration(left)} left`;
}

function describeRetention(job) {
  if (!job.links.result) return "";
  if (job.pinned) return "Kept forever.";
  if (!job.expires_at) return "";
  const options = { dateStyle: "long", timeStyle: "short" };
  return `Kept until ${new Date(job.expires_at).toLocaleString([], options)}.`;
}

// navigator.clipboard exists only on HTTPS and on loopback.
function copyCommand() {
  getSelection().selectAllChildren(byId("command"));
  setText("copy", document.execCommand("copy") ? "Copied" : "Press Ctrl+C");
}
