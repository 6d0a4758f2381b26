// Shows how long a job will take, before it is submitted. Shows nothing if the service cannot
// estimate it.

import { sendJson } from "./api.js";
import { formatDuration } from "./dom.js";

const DEBOUNCE_MS = 400;  // a slider that moves must not send a request per step

export class Estimate {
  constructor(root) { this.root = root; }

  // body: that of POST /v1/jobs, with sizes in place of images. With null, the text is shown.
  update(body, text) {
    clearTimeout(this.timer);
    const current = this.current = {};
    if (!body) this.root.textContent = text;
    else this.timer = setTimeout(() => this.#request(body, current), DEBOUNCE_MS);
  }

  async #request(body, current) {
    let text = "";
    try {
      text = describe(await (await sendJson("POST", "v1/estimate", body)).json());
    } catch (error) {
      if ([422, 503].includes(error.status)) text = error.message;
    }
    if (this.current === current) this.root.textContent = text;  // else a newer request runs
  }
}

function describe({ seconds, queue, refused }) {
  if (refused) return refused.message;
  const parts = [];
  if (Number.isFinite(seconds)) parts.push(`Takes about ${formatDuration(seconds)}`);
  if (queue.position) parts.push(`${queue.position} before yours`);
  if (queue.start_seconds > 1) parts.push(`starts in ${formatDuration(queue.start_seconds)}`);
  return parts.join(", ");
}
