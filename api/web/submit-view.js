// The first screen: a photo, paintings, parameters, and one button. Ends with a job's address.

import * as contract from "./schema.js";
import { at, complain } from "./dom.js";
import { Forecast } from "./estimate.js";
import { hang } from "./gallery.js";
import { receive } from "./drop-paste.js";
import { Parameters } from "./form.js";
import { Masks } from "./mask.js";
import { persist } from "./retry.js";
import { Picture } from "./picture.js";
import { read, tell } from "./api.js";
import { Shares } from "./style-weights.js";
import { remember } from "./history.js";
import { Well } from "./image-picker.js";

export class Studio {
  // painted(id): where to go with a new job.
  constructor(painted) {
    this.painted = painted;
    this.photo = new Well(at("photo"), { noun: "Photo" });
    this.painting = new Well(at("painting"), { noun: "Painting", most: Infinity });  // until the service says
    this.wells = [this.photo, this.painting];
    this.shares = new Shares(at("shares"), this.painting);
    this.masks = new Masks(this.photo, this.painting);
    this.forecast = new Forecast(at("forecast"));
    this.parameters = this.first = null;  // first: a picture to begin with, of an earlier job
    at("mixing").addEventListener("change", () => this.mix(at("mixing").checked));
    at("compose").addEventListener("submit", (event) => { event.preventDefault(); this.submit(); });
    receive(this.photo, this.painting, () => !at("studio").hidden);
    for (const source of [...this.wells, this.shares, this.masks]) source.addEventListener("change", () => this.changed());
    for (const well of this.wells) well.addEventListener("sent", () => this.foresee());
    this.changed();
  }

  // What needs the service: once it answers.
  async open() {
    const troubled = (words) => complain(at("down"), words);
    this.opening ??= persist(() => this.#furnish(), { troubled });
    try {
      await this.opening;
    } catch (error) {
      this.opening = null;
      troubled(error.message);
      throw error;
    }
    this.foresee();
  }

  // All is fetched before anything is put up: so it is put up once, however often that fails.
  async #furnish() {
    const [pictures, known] = await Promise.all([read("/web/gallery/index.json"), contract.submission()]);
    this.painting.most = known.wishes.styles.maxItems;
    hang(at("photos"), "photo", this.photo, pictures);
    hang(at("paintings"), "painting", this.painting, pictures);
    this.parameters = new Parameters(at("plain"), at("more"), known);
    this.parameters.addEventListener("change", () => this.changed());
    persist(contract.presets).then((all) => this.parameters.offer(at("presets"), all), () => {});  // a page without them will do
  }

  mix(on) {
    this.painting.mixing = on;
    if (!on && this.painting.pictures.length > 1) this.painting.put(this.painting.pictures.slice(0, 1), { beside: false });
    this.painting.changed();
  }

  changed() {
    at("mixing").checked = this.painting.mixing;
    complain(at("refusal"));
    this.foresee();
  }

  get pictures() { return this.wells.flatMap((well) => well.pictures); }

  // As it is chosen now, but for the pictures themselves.
  get wish() {
    const { spec, ...wishes } = this.parameters?.chosen ?? { spec: {} };
    const weights = this.shares.weights;
    return {
      spec: weights ? { ...spec, style_weights: weights } : spec, ...wishes,
      ...(spec.init === "picture" && this.first && { init_image: this.first }),
    };
  }

  foresee() {
    const missing = this.wells.filter((well) => !well.ready).map((well) => `a ${well.noun.toLowerCase()}`);
    const sizes = this.pictures.map(({ width, height }) => width && { width, height });
    const [content, ...styles] = sizes;
    if (missing.length) this.forecast.of(null, `Still missing: ${missing.join(" and ")}.`);
    else this.forecast.of(sizes.every(Boolean) ? { ...this.wish, content, styles } : null, "");
  }

  async submit() {
    const empty = this.wells.find((well) => !well.ready);
    if (empty) {
      empty.refuse(`Choose a ${empty.noun.toLowerCase()} first, or take one of ours below.`);
      return empty.button.focus();
    }
    at("paint").disabled = true;
    try {
      const [photo, ...paintings] = this.pictures.map((picture) => picture.name);
      const job = await this.#send(this.pictures, this.wish);
      remember(job.id, { content: photo, styles: paintings });
      this.painted(job);
    } catch (error) {
      complain(at("refusal"), error.message);
    } finally { at("paint").disabled = false; }
  }

  // Pictures that the service has let go of are sent again.
  // Where the answer is lost, the same is asked again: its key makes it the same job.
  async #send(pictures, wish) {
    const once = crypto.getRandomValues(new Uint32Array(4)).join("-");
    const until = ({ code, status }) => code !== "unreachable" && (code !== "unknown" || status < 500);
    for (let tries = 0; ; tries++) {
      const [masks, content, ...styles] = await Promise.all([this.masks.digests(), ...pictures.map((picture) => picture.send())]);
      const body = { content, styles, ...wish, ...(masks && { masks }) };
      const submit = async () => (await tell("POST", "/v1/jobs", body, { "Idempotency-Key": once + tries })).json();
      try {
        return await persist(submit, { until, troubled: (words) => complain(at("refusal"), words) });
      } catch (error) {
        if (error.code !== "image_not_found" || tries) throw error;
        pictures.forEach((picture) => picture.forget());
        this.masks.sent.clear();
      }
    }
  }

  // With the pictures and parameters of a job, or with its result in place of one of them.
  async prepare(job, { as = null, names = null } = {}) {
    if (as) {
      const result = await Picture.known(job.outputs[0].id, "my painting");
      return as === "photo" ? this.photo.put([result]) : this.painting.put([result], { beside: false });
    }
    const { content, styles, masks, init_image: first, spec } = job.input;
    const [photo, ...paintings] = await Promise.all([content, ...styles].map((digest, i) =>
      Picture.known(digest, i ? names?.styles[i - 1] ?? `painting ${i}` : names?.content ?? "photo")));
    this.painting.mixing = paintings.length > 1;
    this.photo.put([photo]);
    this.painting.put(paintings, { beside: false });
    if (paintings.length > 1) this.shares.set(paintings, spec.style_weights);
    this.first = first;
    this.parameters?.set(spec);
    await this.masks.carry(masks);
  }
}
