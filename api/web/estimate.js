// How long it will take, before anything is sent. Says nothing where the service cannot tell.

import { duration } from "./dom.js";
import { tell } from "./api.js";

const PATIENCE_MS = 400;  // a slider in motion asks nothing

export class Forecast {
  constructor(root) { this.root = root; }

  // body: as POST /v1/jobs takes it, with sizes for pictures; or null, and words to say instead.
  of(body, words) {
    clearTimeout(this.timer);
    const turn = this.turn = {};
    if (!body) this.root.textContent = words;
    else this.timer = setTimeout(() => this.#ask(body, turn), PATIENCE_MS);
  }

  async #ask(body, turn) {
    let words = "";
    try {
      words = told(await (await tell("POST", "/v1/estimate", body)).json());
    } catch (error) {
      if ([422, 503].includes(error.status)) words = error.message;
    }
    if (this.turn === turn) this.root.textContent = words;
  }
}

function told({ seconds, queue, refused }) {
  if (refused) return refused.message;
  const parts = [];
  if (Number.isFinite(seconds)) parts.push(`About ${duration(seconds)} of painting`);
  if (queue.position) parts.push(`${queue.position} before you`);
  if (queue.start_seconds > 1) parts.push(`begins in ${duration(queue.start_seconds)}`);
  return parts.join(", ");
}
