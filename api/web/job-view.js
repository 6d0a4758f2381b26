// One job, from the queue to its end, on the canvas and in the panel; and what its owner can do
// with it.

import { getBlob, resolveAddress, sendForJson, sendJson } from "./api.js";
import { LossChart } from "./chart.js";
import { buildCommand } from "./curl.js";
import {
  announce, byId, downloadBlob, hideBlob, listen, setText, setValueText, setVisible, showBlob,
  showError,
} from "./dom.js";
import { labelOf, nameValue } from "./form.js";
import { FramePlayer } from "./frames.js";
import { nameFile, nameStatus, titleOf } from "./history.js";
import { followJob, hasEnded, hasExpiredImages, newestPicture } from "./job-stream.js";
import { closeLayer, openLayer } from "./layers.js";
import { fetchCopy, TILE_PX } from "./picture.js";
import { create, retry } from "./retry.js";
import { form, toRequest } from "./schema.js";
import { describeError, formatDate, formatDuration, formatNumber, formatPercent, t } from "./text.js";
import { showToast } from "./toast.js";
import { noteChange } from "./touch.js";

const PREVIEW_TIMEOUT_SECONDS = 60;
const MIN_KEPT_PX = 512;  // of a run that is finished early, if the painting has as much

export class JobView {
  // onReuse(job, kind): opens the editor with the job, or with its result as "photo" or "style".
  // onCreated(job, previous): a retry. onCanceled(job). onDelete(job). onChange(job): a newer state.
  // onPreview(job, blob). onMissing(id): the service does not have the job. Another job may be open
  // by then.
  // findPicture(digest): a blob that the page has, or null.
  constructor(viewer, callbacks) {
    Object.assign(this, { viewer, ...callbacks });
    this.showError = (message) => showError("job-error", message);
    this.chart = new LossChart();
    this.frames = new FramePlayer({
      onFrame: (frame) => this.viewer.showFrame(frame),
      onError: (error) => this.showError(error.message),
    });
    const onClick = (id, action) => listen(id, "click", () => this.#run(id, action));
    onClick("stop", () => this.#cancel());
    onClick("cancel", async () => {
      const { job } = this;
      await this.#cancel();
      this.onCanceled(job);
    });
    onClick("download", async () => { await this.#download(); showToast(t("saved")); });
    onClick("share", () => this.#share());
    setText("share", t(navigator.canShare ? "share" : "copyImage"));
    onClick("reuse", () => this.onReuse(this.job));
    onClick("as-photo", () => this.onReuse(this.job, "photo"));
    onClick("as-style", () => this.onReuse(this.job, "style"));
    onClick("another", () => {
      const [seed] = crypto.getRandomValues(new Uint32Array(1));
      return this.#retry({ spec: { seed } });
    });
    onClick("continue", () => this.#continue());
    onClick("pin", () => this.#change("PATCH", this.job.links.self, { pinned: !this.job.pinned }));
    onClick("delete", () => this.onDelete(this.job));
    onClick("show-command", () => this.#showCommand());
    listen("close-command", "click", closeDialog);
    listen("command-dialog", "close", () => closeLayer(closeDialog));
    onClick("copy", copyCommand);
    onClick("timelapse", () => this.frames.downloadTimelapse());
    onClick("notify", () => this.#askToNotify());
    listen("strength", "input", () => this.#showStrength());
    listen("strength", "change", () => this.#updateStrength());
  }

  // Runs an action of the user, named by its button: many clicks are one action. Its error is not
  // shown if another job is open by then.
  async #run(name, action) {
    const { closing: { signal } } = this, button = byId(name);
    if (button.ariaBusy) return;
    button.ariaBusy = true;
    this.showError();
    try {
      await action();
    } catch (error) {
      if (signal.aborted) return;
      if (error.code === "job_not_found") return this.#showMissing(error);  // as by another tab
      this.showError(error.message);
      if (this.job) this.#showButtons(this.job);
    } finally { button.ariaBusy = null; }
  }

  async open(id) {
    const { signal } = this.closing = new AbortController();
    this.#clear(id);
    const onJob = (job) => this.showJob(job);
    try {
      await followJob(`v1/jobs/${id}`, { signal, onJob, onError: this.showError });
    } catch (error) {
      if (!signal.aborted) this.#showMissing(error);
    }
  }

  #showMissing(error) {
    const { id } = this, isMissing = error.status === 404;
    this.#showNothing(id, t(isMissing ? "status.missing" : "failed"),
      isMissing ? t("missingHint") : error.message);
    if (isMissing) this.onMissing(id);
  }

  // While the message about it offers to undo.
  showDeleted(id) { this.#showNothing(id, t("deleted")); }

  #showNothing(id, status, details = "") {
    this.close();
    this.#clear(id);
    this.viewer.clear();
    setText("status", status);
    document.title = `${status} · Impasto`;
    setText("details", details);
    setText("canvas-title", t("tagline"));
    byId("stage").classList.add("empty");
    announce(status);
    setVisible("chart", false);
  }

  close() {
    this.closing?.abort();
    this.frames.clear();
    byId("stage").classList.remove("waiting", "empty");
    byId("stage").ariaBusy = null;
    setVisible("canvas-progress", false);
  }

  #clear(id) {
    // picture: the name of the image that is shown. announced: the last text for screen readers.
    Object.assign(this, { id, job: null, picture: null, announced: null, isSpecLocked: false });
    this.scales = null;  // of the run, as the service plans it
    for (const image of byId("job-styles").children) hideBlob(image);
    this.chart.open(id);
    this.showError();
    setText("status", t("loading"));
    setText("canvas-title", titleOf({ id }));
    document.title = "Impasto";
    for (const part of ["details", "progress-text", "retention", "settings"]) setText(part, "");
    setVisible("progress strength-control running-controls result-controls ended-controls", false);
    setVisible("continue-control job-styles", false);
  }

  showJob(job) {
    const previous = this.job, { signal } = this.closing;
    if (signal.aborted || this.id !== job.id) return;  // another job is open by now
    if (previous?.version > job.version) return;  // a newer state has overtaken this one
    if (!previous || hasEnded(previous) !== hasEnded(job)) noteChange();  // other buttons
    const hadFocus = byId("running-controls").contains(document.activeElement);
    this.job = job;
    if (!previous) {
      setText("canvas-title", titleOf(job));
      byId("strength").value = job.input.spec.strength;
      this.#showStrength(job.input.spec.strength);
      this.#showInputs(job, signal);
    }
    this.#showTexts(job);
    this.#showProgress(job);
    this.#showButtons(job);
    this.#showPicture(signal);
    this.onChange(job);
    if (previous && !hasEnded(previous) && hasEnded(job)) this.notify(job);
    if (!hasEnded(job)) return;
    this.frames.open(job, signal);
    if (hadFocus) byId("status").focus({ preventScroll: true });  // the button is hidden now
  }

  async #showInputs(job, signal) {
    const { viewer, loaded } = this, { content, styles, spec } = job.input;
    const load = async (digest, width) => this.findPicture(digest)
      ?? retry(() => fetchCopy(digest, width, { signal }), { signal }).catch(() => null);
    const show = (blob) => {
      if (signal.aborted || !blob) return;
      this.loaded = { content, blob };
      viewer.showPhoto(blob, t("thePhoto"), { isUnder: Boolean(viewer.result) });
    };
    const known = this.findPicture(content) ?? (loaded?.content === content && loaded.blob);
    // As sharp as the result, and as the screen.
    const width = Math.max(spec.size, Math.ceil(viewer.stage.clientWidth * devicePixelRatio));
    if (known) viewer.removePainting();
    else viewer.clear();
    this.photo = known ? show(known) : load(content, width).then(show);
    const blobs = await Promise.all(styles.map((digest) => load(digest, TILE_PX)));
    if (signal.aborted) return;
    const images = blobs.filter(Boolean).map((blob) => showBlob(blob, t("theStyle")));
    byId("job-styles").replaceChildren(...images);
    setVisible("job-styles", images.length);
  }

  #showTexts(job) {
    const isStopping = job.cancel_requested && !hasEnded(job);
    const title = nameStatus(job), status = isStopping ? t("status.stopping") : title;
    setText("status", status);
    setText("details", isStopping ? t("stoppingHint") : describeJob(job));
    byId("details").classList.toggle("error", Boolean(job.error));
    setText("settings", describeSettings(job));
    setText("retention", describeRetention(job));
    const isRunning = job.status === "running";
    const share = job.progress?.value ?? 0;
    document.title = `${isRunning ? formatPercent(share) : title} · Impasto`;
    // A screen reader that reads every percent would say nothing else.
    const quarter = isRunning ? Math.floor(share * 4) : 0;
    const text = quarter ? `${status} ${formatPercent(quarter / 4)}` : status;
    if (text === this.announced) return;
    this.announced = text;
    announce(text);
  }

  #showProgress(job) {
    for (const bar of [byId("progress"), byId("canvas-progress")]) {
      setVisible(bar, !hasEnded(job));
      if (job.status === "running" && job.progress) bar.value = Math.round(100 * job.progress.value);
      else bar.removeAttribute("value");
    }
    setText("progress-text", describeProgress(job));
    if (job.progress && !hasEnded(job)) this.chart.addPoint(job.progress);
  }

  #showButtons(job) {
    const isOver = hasEnded(job), hasResult = Boolean(job.links.result);
    const hasPicture = Boolean(job.progress && job.links.preview);
    setVisible("running-controls", !isOver);
    byId("cancel").disabled = job.cancel_requested;
    byId("stop").disabled = job.cancel_requested || !hasPicture;
    this.#showStopSize(job, hasPicture && !isOver);
    const canNotify = "Notification" in window && isSecureContext && Notification.permission !== "denied";
    setVisible("notify", canNotify && !isOver);
    byId("notify").ariaPressed = this.notifyId === job.id;
    setVisible("result-controls", hasResult);
    setVisible("ended-controls", isOver);
    setVisible("as-photo as-style pin", hasResult);
    setVisible("reuse another", !hasExpiredImages(job));
    setText("another", t(hasResult ? "another" : "tryAgain"));
    byId("another").classList.toggle("primary", !hasResult);
    const { size, quality } = job.input.spec, isEarly = hasResult && job.status !== "succeeded";
    const isDraft = hasResult && !isEarly && quality === "draft";
    setVisible("continue-control", isEarly || isDraft);
    setText("continue", t(isDraft ? "paintLarge" : "continue"));
    const hint = hasResult && isFullSize(job.outputs[0], size) ? "continueFull" : "continueHint";
    setText("continue-hint", t(isDraft ? "draftHint" : hint, { size }));
    byId("pin").ariaPressed = job.pinned;
    const canUpdate = job.progress && !isOver && !job.cancel_requested && !this.isSpecLocked;
    setVisible("strength-control", canUpdate);
  }

  // Says which size the user gets by finishing now: that of the current scale, or of the first one
  // that is large enough.
  async #showStopSize(job, isShown) {
    setVisible("stop-hint", isShown);
    if (!isShown) return;
    this.scales ??= sendForJson("POST", "v1/estimate", toRequest(job.input)).catch(() => null);
    const { scales } = await this.scales ?? {}, current = this.job?.progress?.scale;
    if (!scales || !current) return setText("stop-hint", "");
    const last = scales.at(-1), isKept = ({ width, height }) => Math.max(width, height) >= MIN_KEPT_PX;
    const size = scales.slice(current - 1).find(isKept) ?? last;
    const key = size === last ? "stopFullSize" : "stopSize";
    setText("stop-hint", t(key, { ...size, full: t("pixels", last) }));
  }

  // Downloads one picture at a time. When it is shown, the newest is next, if that is another.
  async #showPicture(signal) {
    const stage = byId("stage");
    stage.classList.toggle("waiting", !this.picture && !hasEnded(this.job));
    if (this.fetching === signal) return;
    this.fetching = signal;
    if (hasEnded(this.job)) {
      stage.ariaBusy = true;
      setVisible("canvas-progress", true);
    }
    try {
      while (!signal.aborted && await this.#showNewest(signal));
    } catch (error) {
      if (!signal.aborted) this.showError(error.message);
    }
    if (signal.aborted) return;
    this.fetching = stage.ariaBusy = null;
    setVisible("canvas-progress", !hasEnded(this.job));
  }

  // Shows the newest picture. Returns false if it is shown already, or if there is none. The result
  // is fetched until that succeeds; a preview that fails is skipped.
  async #showNewest(signal) {
    const { job } = this, picture = hasExpiredImages(job) ? null : newestPicture(job);
    if (!picture || picture.name === this.picture) return false;
    const { name, address } = picture;
    if (job.links.result) {
      const fetchResult = () => getBlob(address, { signal });
      if (!this.viewer.result) this.#showSmall(`${address}?format=webp&width=${TILE_PX}`, signal);
      const blob = await retry(fetchResult, { signal, onError: this.showError });
      signal.throwIfAborted();
      await this.viewer.showPainting(blob, titleOf(job));
      signal.throwIfAborted();
    } else {
      const timeout = AbortSignal.timeout(PREVIEW_TIMEOUT_SECONDS * 1000);
      const blob = await getBlob(address, { signal: AbortSignal.any([signal, timeout]) })
        .catch(() => null);
      // Without a preview, wait for the next state, unless the result has come meanwhile.
      if (signal.aborted || !blob) return Boolean(this.job.links.result);
      await this.viewer.showPainting(blob, t("pictureSoFar"), { isFinal: false });
      signal.throwIfAborted();
      this.onPreview(job, blob);
    }
    this.picture = name;
    byId("stage").classList.remove("waiting");
    return true;
  }

  // A small copy of the result is here much earlier.
  async #showSmall(address, signal) {
    const blob = await getBlob(address, { signal }).catch(() => null);
    if (blob && !this.viewer.result) this.viewer.showPainting(blob, titleOf(this.job));
  }

  #showStrength(share = byId("strength").value) {
    setValueText(byId("strength"), formatPercent(share));
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
        if (this.isSpecLocked) setVisible("strength-control", false);
        else this.showError(error.message);
      }
    }
    if (this.updating === signal) this.updating = null;
  }

  async #change(method, address, body) {
    this.showJob(await sendForJson(method, address, body));
  }

  #cancel() {
    for (const id of ["stop", "cancel"]) byId(id).disabled = true;
    return this.#change("POST", this.job.links.cancel);
  }

  async #retry(body) {
    const { job, closing: { signal }, showError: onError } = this;
    this.onCreated(await create(job.links.retry, body, { signal, onError }), job);
  }

  // Goes on from a painting that was finished early, or repeats a draft in full quality.
  #continue() {
    const { status, input: { spec } } = this.job, { size, quality } = form.parameters;
    if (status !== "succeeded") return this.#retry({ continue: true });
    return this.#retry({
      spec: { quality: quality.default, size: Math.max(spec.size, size.default) } });
  }

  // The picture as it is shown, without a request where possible: a browser lets the page share
  // only for a short time after a click.
  async #encode(format) {
    const { viewer, job, closing: { signal } } = this;
    const type = `image/${format}`, isBlend = byId("blend").value < 100;
    const isShown = this.picture === job.outputs[0].id && (isBlend || viewer.result.type === type);
    const result = isShown ? viewer.result : await getBlob(`${job.links.result}?format=${format}`);
    if (!isBlend) return result;
    await this.photo;
    signal.throwIfAborted();  // another photo is on the canvas
    return viewer.hasPhoto ? viewer.encodeBlend(result, type) : result;
  }

  async #download() {
    const { job } = this, blob = await this.#encode(byId("format").value);
    downloadBlob(blob, nameFile(job, blob.type));
  }

  // To another app where the browser can; else as a copied image, or as a copied link.
  async #share() {
    const { job } = this, image = this.#encode("png");
    if (navigator.canShare) {
      const blob = await image, { type } = blob;
      const file = new File([blob], nameFile(job, type), { type });
      const data = { files: [file], title: titleOf(job) };
      if (navigator.canShare(data)) {
        return navigator.share(data).catch((error) => {
          if (error.name !== "AbortError") throw error;
        });
      }
    }
    try {
      await navigator.clipboard.write([new ClipboardItem({ "image/png": image })]);
      showToast(t("imageCopied"));
    } catch {
      const copied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
      showToast(copied ? t("linkCopied") : t("cannotShare", { link: location.href }));
    }
  }

  async #askToNotify() {
    const { id } = this, isOn = this.notifyId === id;
    const isAllowed = !isOn && await Notification.requestPermission() === "granted";
    this.notifyId = isAllowed ? id : null;
    if (this.job) this.#showButtons(this.job);
  }

  // Says that the job has ended, if the user wants that: also where another one is open.
  notify(job) {
    const { id } = job;
    if (this.notifyId !== id || !document.hidden) return;
    this.notifyId = null;
    const data = resolveAddress(`j/${id}`), options = { body: titleOf(job), tag: id, data };
    const title = nameStatus(job);
    try {
      const notification = new Notification(title, options);
      notification.onclick = () => { window.focus(); notification.close(); };
    } catch {  // Android allows only the service worker to notify
      navigator.serviceWorker?.ready.then((worker) => worker.showNotification(title, options));
    }
  }

  #showCommand() {
    setText("command", buildCommand(this.job));
    setText("copy", t("copy"));
    byId("command-dialog").showModal();
    openLayer(closeDialog);
  }
}

// A seamless painting lacks some pixels.
const isFullSize = ({ width, height }, size) => Math.max(width, height) > 0.95 * size;

const closeDialog = () => byId("command-dialog").close();

function describeJob(job) {
  const output = job.outputs[0];
  if (job.error) return describeError({ ...job.error, detail: job.error.message });
  if (hasExpiredImages(job)) return t("picturesDeleted");
  if (job.status === "queued") return describeQueue(job.queue ?? {});
  if (job.status === "running") return "";
  if (!output) return job.status === "canceled" ? t("stoppedBefore") : "";
  const size = t("pixels", output);
  if (!job.started_at || !job.completed_at) return size;
  const seconds = (Date.parse(job.completed_at) - Date.parse(job.started_at)) / 1000;
  return t("sizeAndTime", { size, duration: formatDuration(seconds) });
}

// The settings that a user chooses, in words, and what the run left out by itself.
function describeSettings({ input: { spec, masks, style_masks }, progress }) {
  const parts = [
    t("settings.strength", { percent: formatPercent(spec.strength) }),
    t("settings.brush", { scale: formatNumber(spec.style_scale, 2) }),
    t("sizePx", { size: spec.size }),
    ...["quality", "preserve_color"]
      .filter((name) => spec[name] !== form.parameters[name].default)
      .map((name) => t("pictureNamed", { kind: labelOf(name), name: nameValue(name, spec[name]) })),
    masks.length || style_masks.length ? t("settings.masks") : "",
    progress?.style_crops?.some(Boolean) ? t("settings.frameLeftOut") : "",
  ];
  return parts.filter(Boolean).join(" · ");
}

function describeQueue({ position, start_seconds: start, waits_for: missing, has_worker = true }) {
  if (missing) return t(missing === "pool" ? "queue.noPool" : "queue.noMemory");
  if (!has_worker) return t("queue.noWorker");
  const duration = start ? formatDuration(start) : "";
  const key = position ? "queue.ahead" : "queue.next";
  return t(duration ? `${key}In` : key, { n: position, duration });
}

function describeProgress({ status, progress }) {
  if (status !== "running") return "";
  if (!progress) return t("preparing");
  const percent = formatPercent(progress.value), left = progress.seconds_left;
  return left === null ? t("progress", { ...progress, percent })
    : t("progressLeft", { ...progress, percent, duration: formatDuration(left) });
}

function describeRetention(job) {
  if (!job.links.result) return "";
  if (job.pinned) return t("keptForever");
  if (!job.expires_at) return "";
  const date = formatDate(job.expires_at, { dateStyle: "long", timeStyle: "short" });
  return t("keptUntil", { date });
}

// navigator.clipboard exists only on HTTPS and on loopback.
function copyCommand() {
  getSelection().selectAllChildren(byId("command"));
  setText("copy", document.execCommand("copy") ? t("copied") : t("pressCopy"));
}
