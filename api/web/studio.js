// The first screen: a photo, paintings, knobs, and one button. Ends with a job's address.

import * as contract from "./contract.js";
import { at, say, show } from "./element.js";
import { Forecast } from "./forecast.js";
import { hang } from "./gallery.js";
import { receive } from "./intake.js";
import { Knobs } from "./knobs.js";
import { Masks } from "./mask.js";
import { Picture } from "./picture.js";
import { tell } from "./service.js";
import { Shares } from "./shares.js";
import { remember } from "./shelf.js";
import { Well } from "./well.js";

export class Studio {
  // painted(id): where to go with a new job.
  constructor(painted) {
    this.painted = painted;
    this.photo = new Well(at("photo"), { noun: "Photo" });
    this.painting = new Well(at("painting"), { noun: "Painting", most: 8 });
    this.shares = new Shares(at("shares"), this.painting);
    this.masks = new Masks(this.photo, this.painting);
    this.forecast = new Forecast(at("forecast"));
    this.knobs = null;
    at("mixing").addEventListener("change", () => this.mix(at("mixing").checked));
    at("compose").addEventListener("submit", (event) => { event.preventDefault(); this.submit(); });
    at("reset").addEventListener("click", () => this.knobs?.set());
    receive(this.photo, this.painting, () => !at("studio").hidden);
    for (const source of [this.photo, this.painting, this.shares, this.masks]) source.addEventListener("change", () => this.changed());
    for (const well of [this.photo, this.painting]) well.addEventListener("sent", () => this.foresee());
    this.changed();
  }

  // What needs the service: once it answers.
  async open() {
    if (!this.opening) {
      this.opening = Promise.all([
        hang(at("photos"), "photo", this.photo), hang(at("paintings"), "painting", this.painting),
        contract.submission().then((known) => {
          this.knobs = new Knobs(at("plain"), at("more"), known);
          this.knobs.addEventListener("change", () => this.changed());
        }),
      ]).catch((error) => { this.opening = null; throw error; });
    }
    await this.opening;
    this.foresee();
  }

  mix(on) {
    this.painting.mixing = at("mixing").checked = on;
    this.painting.draw();
    if (!on && this.painting.pictures.length > 1) this.painting.put(this.painting.pictures.slice(0, 1));
  }

  changed() {
    show(at("refusal"), false);
    this.foresee();
  }

  get body() {
    const { spec, ...wishes } = this.knobs?.chosen ?? { spec: {} };
    const weights = this.shares.weights;
    return {
      content: this.photo.pictures[0]?.digest, styles: this.painting.pictures.map((picture) => picture.digest),
      spec: weights ? { ...spec, style_weights: weights } : spec, ...wishes,
    };
  }

  foresee() {
    const missing = [this.photo.ready ? null : "a photo", this.painting.ready ? null : "a painting"].filter(Boolean);
    const sizes = [...this.photo.pictures, ...this.painting.pictures].map(({ width, height }) => width && { width, height });
    const [content, ...styles] = sizes;
    if (missing.length) this.forecast.of(null, `Still missing: ${missing.join(" and ")}.`);
    else this.forecast.of(sizes.every(Boolean) ? { ...this.body, content, styles } : null, "");
  }

  async submit() {
    const empty = [this.photo, this.painting].find((well) => !well.ready);
    if (empty) {
      empty.refuse(`Choose a ${empty.noun.toLowerCase()} first, or take one of ours below.`);
      return empty.root.querySelector("button").focus();
    }
    at("paint").disabled = true;
    say("Sending the pictures.");
    try {
      const job = await this.#send();
      remember(job.id, { content: this.photo.pictures[0].name, styles: this.painting.pictures.map((picture) => picture.name) });
      this.painted(job);
    } catch (error) {
      at("refusal").textContent = error.message;
      show(at("refusal"), true);
    } finally { at("paint").disabled = false; }
  }

  // As a rule, the pictures are there by now. Those that the service has let go of since are sent again.
  async #send() {
    const pictures = [...this.photo.pictures, ...this.painting.pictures];
    const once = crypto.getRandomValues(new Uint32Array(4)).join("-");
    for (let tries = 0; ; tries++) {
      const [masks] = await Promise.all([this.masks.digests(), ...pictures.map((picture) => picture.send())]);
      try {
        return await (await tell("POST", "/v1/jobs", { ...this.body, ...(masks && { masks }) }, { "Idempotency-Key": once + tries })).json();
      } catch (error) {
        if (error.code !== "image_not_found" || tries) throw error;
        pictures.forEach((picture) => picture.forget());
        this.masks.sent.clear();
      }
    }
  }

  // With the pictures and knobs of a job, or with its result in place of one of them.
  async prepare(job, { as = null, names = null } = {}) {
    const result = job.outputs[0] && await Picture.known(job.outputs[0].id, "my painting");
    if (as === "photo") return this.photo.put([result]);
    if (as === "painting") return this.painting.put([result], { beside: false });
    const { content, styles, spec } = job.input;
    const [photo, ...paintings] = await Promise.all([content, ...styles].map((digest, i) =>
      Picture.known(digest, i ? names?.styles[i - 1] ?? `painting ${i}` : names?.content ?? "photo")));
    this.mix(paintings.length > 1);
    this.photo.put([photo]);
    this.painting.put(paintings, { beside: false });
    if (paintings.length > 1) this.shares.set(paintings, spec.style_weights);
    this.knobs?.set(spec);
  }
}
