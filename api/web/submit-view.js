// The editor: a photo, styles, parameters, and a button that submits the job.

import { sendJson } from "./api.js";
import { announce, byId, listen, onClick, setText, setVisible, showError } from "./dom.js";
import { loadDraft, saveDraft } from "./drafts.js";
import { showEstimate } from "./estimate.js";
import { ParameterForm } from "./form.js";
import { findSample, setNames } from "./history.js";
import { ImagePicker } from "./image-picker.js";
import { MaskEditor } from "./mask.js";
import { Picture } from "./picture.js";
import { create, retry } from "./retry.js";
import { form, gallery } from "./schema.js";
import { StyleWeights } from "./style-weights.js";
import { t } from "./text.js";
import { createThumbnail } from "./thumbnail.js";
import { showToast } from "./toast.js";

const SAVE_MS = 150;
const EMPTY_PRESETS = [0, 2, 5];  // whose pictures the empty filmstrip shows

const sampleAddress = (name) => new URL(`gallery/${name}`, import.meta.url).href;

const onError = (message) => showError("submit-error", message);

const isKeyMissing = () => !byId("key-form").hidden;

export class SubmitView {
  // onSubmitted(job): shows the new job. onTryAll(): drafts in all sample styles.
  constructor(viewer, { onSubmitted, onTryAll }) {
    Object.assign(this, { viewer, onSubmitted, isOpen: false });
    this.sending = null;  // ends the submission that runs
    // The first screen needs no request for an estimate: it comes with the first sign of the user.
    this.isInUse = false;
    this.photo = new ImagePicker(byId("photo"), { kind: "photo" });
    this.style = new ImagePicker(byId("style"), { kind: "style", max: form.limits.max_styles });
    this.pickers = [this.photo, this.style];
    this.styleWeights = new StyleWeights(this.style);
    this.masks = new MaskEditor(this.photo, this.style, () => viewer.ratio);
    this.parameters = null;
    this.initImage = null;  // the digest of an earlier job's initial image
    this.draft = null;  // {photo, style, blob} of "Try all" that the user has picked
    this.known = new Set();  // ids of own pictures that this tab has or had
    onClick("mix-styles", () => this.setMixing(!this.style.isMixing));
    onClick("try-all", onTryAll);
    onClick("auto-regions", () => this.parameters?.toggleRegions());
    onClick("cancel-submit", () => {
      this.stopSending();
      showError("submit-error");
      byId("submit-job").focus();
    });
    onClick("welcome-choose", () => this.photo.button.click());
    listen("submit-form", "submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    // The browser shows an invalid field only if its part of the form is visible.
    listen("submit-form", "invalid", () => showTab("adjust"), true);
    for (const button of document.querySelectorAll("#tabs button")) {
      listen(button, "click", () => showTab(button.dataset.tab));
    }
    listen(window, "pointermove pointerdown keydown", () => this.#startUse(), {
      once: true, passive: true });
    for (const source of [...this.pickers, this.styleWeights, this.masks]) {
      listen(source, "change", () => this.update());
    }
    for (const picker of this.pickers) {
      listen(picker, "render", () => this.showSending());
      listen(picker, "prepared uploaded", () => {
        this.showPicture();
        this.updateEstimate();
        this.#save();
      });
    }
  }

  async open() {
    this.isOpen = true;
    this.showPicture();
    await this.load();
    this.updateEstimate();
  }

  // Fills the form, once, with what the service reports and with the draft.
  load() { return this.loading ??= this.#load(); }

  close() {
    this.isOpen = false;
    this.masks.close();
    setVisible("welcome style-card", false);
  }

  async #load() {
    const ofKind = (kind) => gallery.filter((entry) => entry.kind === kind).map((entry) =>
      Picture.fromSample(entry, sampleAddress(`${entry.name}.jpg`), gallery.indexOf(entry)));
    this.parameters = new ParameterForm();
    this.photo.setSamples(ofKind("photo"));
    this.style.setSamples(ofKind("painting"));
    const empty = EMPTY_PRESETS.map((i) => createThumbnail(gallery.length + i));
    byId("history-empty").prepend(...empty);
    await this.#restoreDraft().catch(() => {});  // a damaged one
    listen(this.parameters, "change", () => this.update());
    this.update();
    this.isLoaded = true;
    this.showPicture();
  }

  setMixing(isMixing) {
    this.style.isMixing = isMixing;
    const { pictures } = this.style;
    if (!isMixing && pictures.length > 1) {
      this.style.setPictures(pictures.slice(0, 1), { append: false });
    }
    this.style.notifyChange();
  }

  update() {
    byId("mix-styles").ariaPressed = this.style.isMixing;
    byId("auto-regions").ariaPressed = this.parameters?.hasRegions ?? false;
    this.stopSending();  // what is on the screen now is something else
    showError("submit-error");
    this.showPicture();
    if (this.isLoaded) this.isInUse = true;
    this.updateEstimate();
    this.#save();
  }

  #startUse() {
    if (this.isInUse) return;
    this.isInUse = true;
    this.updateEstimate();
  }

  get pictures() { return this.pickers.flatMap((picker) => picker.pictures); }

  // Shows the photo on the canvas; for samples, the painting that they would become.
  showPicture() {
    const [photo] = this.photo.pictures, [style] = this.style.pictures, { viewer } = this;
    if (!this.isOpen || !this.isLoaded || !photo || !style) return;
    const shownStyle = this.masks.shownStyle, shown = shownStyle ?? photo;
    if (!shown.source && !shown.screen) return;  // the picker prepares it
    const isSample = Boolean(photo.source && style.source && this.style.pictures.length === 1
      && !this.masks.hasMasks && !this.masks.isOpen);
    const kind = t(shownStyle ? "style.title" : "photo.title");
    const ofSample = shownStyle ? shown.address : sampleAddress(`${photo.source}-photo.avif`);
    viewer.showPhoto(shown.source ? ofSample : shown.screen,
      t("pictureNamed", { kind, name: shown.words ?? shown.name }), shown);
    if (isSample) {
      const name = t("photoInStyle", { photo: photo.name, style: style.name });
      viewer.showPainting(sampleAddress(`${photo.source}-${style.source}.webp`), name, {
        isFinal: false }).then(() => { if (this.isOpen && viewer.hasPainting) viewer.reveal(); });
    } else if (!shownStyle && this.draft?.photo === photo && this.draft.style === style) {
      viewer.showPainting(this.draft.blob, t("pictureSoFar"), { isFinal: false });
    } else viewer.removePainting();
    this.#showStyleCard(!isSample && !this.masks.isOpen);
    setVisible("welcome", photo.source && !this.masks.isOpen);
    let title = t("photoInStyle", {
      photo: photo.title, style: this.style.pictures.map((one) => one.title).join(" + ") });
    if (photo.source && !this.pictures.some((one) => one.digest)) title = t("tagline");
    setText("canvas-title", this.masks.hint || title);
    this.masks.render();
  }

  // Shows the chosen styles in a corner of a photo whose painting does not exist yet.
  #showStyleCard(isShown) {
    const images = this.style.pictures.map((style) =>
      Object.assign(this.style.imageOf(style).cloneNode(), { alt: "" }));
    byId("style-card").replaceChildren(...images);
    setVisible("style-card", isShown);
  }

  // The body of the submission, without the images.
  get options() {
    const { spec, ...options } = this.parameters?.changes ?? { spec: {} };
    const weights = this.styleWeights.weights;
    return {
      spec: weights ? { ...spec, style_weights: weights } : spec,
      ...options,
      ...(spec.init === "picture" && this.initImage && { init_image: this.initImage }),
    };
  }

  updateEstimate() {
    if (!this.isOpen || !this.isInUse) return;
    const sizes = this.pictures.map(({ width, height }) => width && { width, height });
    const [content, ...styles] = sizes;
    const isKnown = sizes.length > 1 && sizes.every(Boolean);
    showEstimate(isKnown ? { ...this.options, content, styles } : null);
  }

  async submit() {
    await this.load();
    if (this.sending) return;
    if (isKeyMissing()) byId("key").focus();  // then the submission goes on by itself
    const { signal } = this.sending = new AbortController();
    this.showSending();
    announce(byId("sending-state").textContent);
    try {
      const [content, ...styles] = this.pictures.map(({ title }) => title);
      const job = await this.#send(this.pictures, this.options, signal);
      if (signal.aborted) return void await retry(() => sendJson("POST", job.links.cancel));
      setNames(job.id, { content, styles });
      this.stopSending();
      this.onSubmitted(job);
    } catch (error) {
      if (signal.aborted) return;
      this.stopSending();
      onError(error.message);
      if (error.parameter) showTab("adjust");
      this.parameters.focus(error.parameter);
    }
  }

  stopSending() {
    this.sending?.abort();
    this.sending = null;
    this.showSending();
  }

  showSending() {
    const isSending = byId("submit-job").disabled = Boolean(this.sending);
    window.onbeforeunload = isSending ? (event) => event.preventDefault() : null;
    const uploading = this.pictures.find(({ isReady }) => !isReady);
    setText("sending-state",
      isKeyMissing() ? t("keyRequired") : uploading?.describe() ?? t("preparing"));
    setVisible("sending", isSending);
    setVisible("estimate", !isSending);
  }

  // Uploads what is not uploaded yet, and submits. If the response is lost, the request is repeated
  // with its key: it is one job. If the service has deleted an upload, all are uploaded again, once.
  async #send(pictures, options, signal) {
    pictures[0].requireSide(options.spec.size ?? form.parameters.size.default);
    for (let tries = 0; ; tries++) {
      const [masks, content, ...styles] = await Promise.all([this.masks, ...pictures].map(
        (source) => retry(() => source.upload(), { signal, onError })));
      signal.throwIfAborted();
      const body = { content, styles, ...options, ...masks };
      try {
        return await create("v1/jobs", body, { signal, onError });
      } catch (error) {
        if (!["image_not_found", "image_damaged"].includes(error.code) || tries) throw error;
        pictures.forEach((picture) => picture.forgetUpload());
        this.masks.forgetUploads();
      }
    }
  }

  async useResult(job, kind) {
    await this.load();
    const result = await Picture.fromDigest(job.outputs[0].id, t("myResult"));
    if (kind === "photo") this.photo.setPictures([result]);
    else this.style.setPictures([result], { append: false });
  }

  // Takes the images and parameters of a job's input. names: {content, styles}, of the files.
  // isWanted(): asked when the images are here.
  async reuse({ content, styles, masks, style_masks: styleMasks, init_image: initImage, spec },
    names, isWanted = () => true) {
    await this.load();
    const styleName = (i) => names?.styles[i] ?? t("styleNumber", { n: i + 1 });
    const used = new Set();  // a style may be there twice, with two masks
    const find = (picker, digest, name) => {
      const sample = findSample(digest)?.name;
      const known = [...picker.own, ...picker.samples].find((picture) =>
        (picture.digest === digest || picture.source === sample) && !used.has(picture));
      used.add(known);
      return known ?? Picture.fromDigest(digest, name);
    };
    const [photo, ...chosen] = await Promise.all([
      find(this.photo, content, names?.content ?? t("photo.title")),
      ...styles.map((digest, i) => find(this.style, digest, styleName(i))),
    ]);
    if (!isWanted()) return;
    const undo = this.#remember();
    this.#choose(photo, chosen, chosen.length > 1, spec.style_weights);
    this.masks.clear();
    this.initImage = initImage;
    this.parameters.setSpec(spec);
    await this.masks.load({ photo: masks, style: styleMasks });
    this.update();
    if (undo) showToast(t("settingsReplaced"), { seconds: 10, action: t("undo"), onAction: undo });
  }

  // Returns a function that brings back the user's masks and settings; null if there are none.
  #remember() {
    const { masks, initImage, parameters: { changes } } = this, { state } = masks;
    const [[photo], styles] = this.pickers.map(({ pictures }) => pictures);
    const { isMixing } = this.style, weights = styles.map(({ weight }) => weight / 100);
    if (!masks.hasMasks && !Object.keys(changes.spec).length) return null;
    return () => {
      this.#choose(photo, styles, isMixing, weights);
      this.#setParameters(initImage, changes);
      masks.setMasks(state);
    };
  }

  #setParameters(initImage, { spec, ...options }) {
    this.initImage = initImage;
    this.parameters.setSpec(spec);
    this.parameters.setOptions(options);
  }

  // weights: those of several styles, with a sum of 1.
  #choose(photo, styles, isMixing, weights) {
    this.style.isMixing = isMixing;
    this.photo.setPictures([photo]);
    this.style.setPictures(styles, { append: false });
    if (styles.length > 1) this.styleWeights.setWeights(styles, weights);
  }

  // ---- the draft

  #save() {
    if (!this.isLoaded) return;
    this.saving ??= setTimeout(() => this.flush(), SAVE_MS);
  }

  // Saves now what waits to be saved, and resolves when all is saved.
  async flush() {
    if (this.saving) {
      clearTimeout(this.saving);
      this.saving = null;
      this.saved = this.#saveNow();
    }
    await this.saved;
    if (this.saving) await this.flush();
  }

  async #saveNow() {
    const masks = await this.masks.toBlobs();
    if (this.saving) return;  // a newer state follows
    const describe = ({ id, file, name, digest, width, height, isPhoto, slowSide }) =>
      ({ id, file, name, digest, width, height, isPhoto, slowSide });
    const own = this.pickers.map((picker) => picker.own.map(describe));
    for (const { id } of own.flat()) this.known.add(id);
    // Without the files: they are written only when pictures change.
    const text = JSON.stringify(own);
    if (text !== this.savedOwn) {
      const isOfOtherTab = ({ id }) => id && !this.known.has(id);
      saveDraft("own", (stored) =>
        own.map((items, i) => [...items, ...(stored?.[i] ?? []).filter(isOfOtherTab)]));
    }
    this.savedOwn = text;
    const refer = ({ id, weight }) => ({ id, weight });
    const [photo, styles] = this.pickers.map(({ pictures }) => pictures.map(refer));
    const { initImage, style: { isMixing }, parameters: { changes } } = this;
    await saveDraft("current", () => ({ photo, styles, isMixing, changes, initImage, masks }));
  }

  async #restoreDraft() {
    const [draft, own] = await Promise.all([loadDraft("current"), loadDraft("own")]);
    if (!draft) return;
    // The service may have deleted the upload meanwhile; then it is sent again.
    const create = (item) => {
      this.known.add(item.id);
      return Object.assign(new Picture(item.file, item.name), item);
    };
    own?.forEach((items, i) => this.pickers[i].restore(items.map(create)));
    const restore = ({ own, samples }, items) => items.map(({ id, weight }) => {
      const picture = [...own, ...samples].find((one) => one.id === id);
      return picture && Object.assign(picture, { weight });
    });
    const [photo] = restore(this.photo, draft.photo), styles = restore(this.style, draft.styles);
    const isWhole = photo && styles.every(Boolean);  // else a file is missing
    if (isWhole) this.#choose(photo, styles, draft.isMixing, styles.map(({ weight }) => weight / 100));
    this.isInUse = true;
    this.#setParameters(draft.initImage, draft.changes);
    if (isWhole) await this.masks.load(draft.masks);
  }
}

// On a narrow screen, one part of the form is shown at a time.
export function showTab(name) {
  byId("submit-form").dataset.tab = name;
  for (const button of document.querySelectorAll("#tabs button")) {
    button.ariaPressed = button.dataset.tab === name;
  }
}
