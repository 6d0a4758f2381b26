// Shows how long a job will take, before it is submitted. Shows nothing if the service cannot
// estimate it.

import { sendJson } from "./api.js";
import { formatDuration, t } from "./text.js";

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

// The time until the result, with what is ahead of it.
function describe({ seconds, queue, refused }) {
  if (refused) return refused.message;
  if (!Number.isFinite(seconds)) return "";
  const duration = formatDuration(seconds + (queue.start_seconds ?? 0)), n = queue.position;
  return n ? t("readyInAfter", { duration, n }) : t("readyIn", { duration });
}
