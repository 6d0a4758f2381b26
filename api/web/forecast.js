// How long it will take, before anything is sent. Says nothing where the service cannot tell.

import { duration } from "./element.js";
import { tell } from "./service.js";

const PATIENCE_MS = 400;  // a slider in motion asks nothing

export class Forecast {
  constructor(root) { this.root = root; }

  // body: as POST /v1/jobs takes it, or null; words: what to say without one.
  of(body, words) {
    clearTimeout(this.timer);
    const turn = this.turn = {};
    this.root.textContent = body ? this.root.dataset.last ?? "" : words;
    if (!this.none && body?.content && body.styles.every(Boolean)) this.timer = setTimeout(() => this.#ask(body, turn), PATIENCE_MS);
  }

  async #ask(body, turn) {
    let words = "";
    try {
      words = told(await (await tell("POST", "/v1/estimate", body)).json());
    } catch (error) {
      this.none = [404, 405].includes(error.status);
      if (error.status === 422) words = error.message;
    }
    if (this.turn !== turn) return;
    this.root.dataset.last = this.root.textContent = words;
  }
}

function told({ seconds, queue }) {
  const parts = [];
  if (Number.isFinite(seconds)) parts.push(`About ${duration(seconds)} of painting`);
  if (queue?.position) parts.push(`${queue.position} before you`);
  return parts.join(", ");
}
