// The first screen: a photo, paintings, parameters, and a button that submits the job.

import { getJson, sendJson } from "./api.js";
import { byId, showError } from "./dom.js";
import { acceptDropsAndPastes } from "./drop-paste.js";
import { Estimate } from "./estimate.js";
import { ParameterForm } from "./form.js";
import { showGallery } from "./gallery.js";
import { addEntry } from "./history.js";
import { ImagePicker } from "./image-picker.js";
import { MaskEditor } from "./mask.js";
import { Picture } from "./picture.js";
import { retry } from "./retry.js";
import { getLimits, getPresets, getSubmissionSchema } from "./schema.js";
import { StyleWeights } from "./style-weights.js";

export class SubmitView {
  // onSubmitted(job): shows the new job.
  constructor(onSubmitted) {
    this.onSubmitted = onSubmitted;
    this.photo = new ImagePicker(byId("photo"), { label: "Photo" });
    // There is no maximum until the service reports it.
    this.painting = new ImagePicker(byId("painting"), { label: "Painting", max: Infinity });
    this.pickers = [this.photo, this.painting];
    this.styleWeights = new StyleWeights(byId("style-weights"), this.painting);
    this.masks = new MaskEditor(this.photo, this.painting);
    this.estimate = new Estimate(byId("estimate"));
    this.parameters = null;
    this.initImage = null;  // the digest of an earlier job's initial image
    this.styleMasks = new Map();  // the digests of an earlier job's, by painting
    const mixBox = byId("mix-paintings");
    mixBox.addEventListener("change", () => this.setMixing(mixBox.checked));
    byId("submit-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    acceptDropsAndPastes(this.photo, this.painting, () => !byId("submit-view").hidden);
    for (const source of [...this.pickers, this.styleWeights, this.masks]) {
      source.addEventListener("change", () => this.update());
    }
    for (const picker of this.pickers) {
      picker.addEventListener("uploaded", () => this.updateEstimate());
    }
    this.update();
  }

  // Loads what the service reports, once; repeats while the service does not answer.
  async open() {
    const onError = (message) => showError(byId("service-error"), message);
    this.loading ??= retry(() => this.#load(), { onError });
    try {
      await this.loading;
    } catch (error) {
      this.loading = null;
      onError(error.message);
      throw error;
    }
    this.updateEstimate();
  }

  // Fetches everything before it adds anything to the page: a retry must not add it twice.
  async #load() {
    const [gallery, schema] =
      await Promise.all([getJson("web/gallery/index.json"), getSubmissionSchema()]);
    this.painting.max = schema.options.styles.maxItems;
    showGallery(byId("gallery-photos"), "photo", this.photo, gallery);
    showGallery(byId("gallery-paintings"), "painting", this.painting, gallery);
    this.parameters = new ParameterForm(byId("main-parameters"), byId("more-parameters"), schema);
    this.parameters.addEventListener("change", () => this.update());
    retry(getPresets)
      .then((presets) => this.parameters.showPresets(byId("presets"), presets))
      .catch(() => {});  // the page works without presets
    retry(getLimits)
      .then((limits) => this.parameters.showLimits(byId("job-limits"), limits))
      .catch(() => {});  // then the service refuses what exceeds them
  }

  setMixing(isMixing) {
    this.painting.isMixing = isMixing;
    const { pictures } = this.painting;
    if (!isMixing && pictures.length > 1) {
      this.painting.setPictures(pictures.slice(0, 1), { append: false });
    }
    this.painting.notifyChange();
  }

  update() {
    byId("mix-paintings").checked = this.painting.isMixing;
    showError(byId("submit-error"));
    this.updateEstimate();
  }

  get pictures() { return this.pickers.flatMap((picker) => picker.pictures); }

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
    const missing = this.pickers.filter((picker) => !picker.hasPictures)
      .map((picker) => `a ${picker.label.toLowerCase()}`);
    if (missing.length) {
      return this.estimate.update(null, `Still missing: ${missing.join(" and ")}.`);
    }
    const sizes = this.pictures.map(({ width, height }) => width && { width, height });
    const [content, ...styles] = sizes;
    const isUploaded = sizes.every(Boolean);
    this.estimate.update(isUploaded ? { ...this.options, content, styles } : null, "");
  }

  async submit() {
    const empty = this.pickers.find((picker) => !picker.hasPictures);
    if (empty) {
      empty.showError(`Choose a ${empty.label.toLowerCase()} first, or take an example below.`);
      return empty.button.focus();
    }
    byId("submit-job").disabled = true;
    try {
      const [photo, ...paintings] = this.pictures.map((picture) => picture.name);
      const job = await this.#send(this.pictures, this.options);
      addEntry(job.id, { content: photo, styles: paintings });
      this.onSubmitted(job);
    } catch (error) {
      showError(byId("submit-error"), error.message);
    } finally { byId("submit-job").disabled = false; }
  }

  // If the response is lost, the request is repeated with its key: it is one job. If the service
  // has deleted an upload, all are uploaded again, once.
  async #send(pictures, options) {
    const key = crypto.getRandomValues(new Uint32Array(4)).join("-");
    const isFinal = ({ code, status }) =>
      code !== "unreachable" && (code !== "unknown" || status < 500);
    const onError = (message) => showError(byId("submit-error"), message);
    for (let tries = 0; ; tries++) {
      const [masks, content, ...styles] = await Promise.all(
        [this.masks.uploadMasks(), ...pictures.map((picture) => picture.upload())]);
      const styleMasks = pictures.slice(1).map((painting) => this.styleMasks.get(painting));
      const body = {
        content, styles, ...options,
        ...(masks && { masks }),
        ...(styleMasks.every(Boolean) && { style_masks: styleMasks }),
      };
      const headers = { "Idempotency-Key": key + tries };
      const submit = async () => (await sendJson("POST", "v1/jobs", body, headers)).json();
      try {
        return await retry(submit, { isFinal, onError });
      } catch (error) {
        if (!["image_not_found", "image_damaged"].includes(error.code) || tries) throw error;
        pictures.forEach((picture) => picture.forgetUpload());
        this.masks.forgetUploads();
        this.styleMasks.clear();  // only the service had them
      }
    }
  }

  // Takes the images and parameters of a job; or its result, as "photo" or "painting".
  // names: {content, styles}, the file names of the inputs.
  async reuse(job, { as = null, names = null } = {}) {
    if (as) {
      const result = await Picture.fromDigest(job.outputs[0].id, "my result");
      if (as === "photo") this.photo.setPictures([result]);
      else this.painting.setPictures([result], { append: false });
      return;
    }
    const { content, styles, masks, style_masks: styleMasks, init_image: initImage, spec } =
      job.input;
    const styleName = (i) => names?.styles[i] ?? `painting ${i + 1}`;
    const [photo, ...paintings] = await Promise.all([
      Picture.fromDigest(content, names?.content ?? "photo"),
      ...styles.map((digest, i) => Picture.fromDigest(digest, styleName(i))),
    ]);
    this.painting.isMixing = paintings.length > 1;
    this.photo.setPictures([photo]);
    this.painting.setPictures(paintings, { append: false });
    if (paintings.length > 1) this.styleWeights.setWeights(paintings, spec.style_weights);
    this.initImage = initImage;
    this.styleMasks = new Map(styleMasks.map((digest, i) => [paintings[i], digest]));
    this.parameters?.setSpec(spec);
    await this.masks.loadMasks(masks);
  }
}
