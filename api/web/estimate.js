// Shows how long a job will take, before it is submitted. Shows nothing if the service cannot
// estimate it.

import { sendForJson } from "./api.js";
import { setText } from "./dom.js";
import { describeError, formatDuration, t } from "./text.js";

const DEBOUNCE_MS = 400;  // a slider that moves must not send a request per step

let timer = null, current = null;

// body: that of POST /v1/jobs, with sizes in place of images; null if they are not known.
export function showEstimate(body) {
  clearTimeout(timer);
  current = body;
  if (!body) setText("estimate", "");
  else timer = setTimeout(() => request(body), DEBOUNCE_MS);
}

async function request(body) {
  let text = "";
  try {
    text = describe(await sendForJson("POST", "v1/estimate", body));
  } catch (error) {
    // A wrong parameter is named by the submission.
    if (!error.parameter && [422, 503].includes(error.status)) text = error.message;
  }
  if (current === body) setText("estimate", text);  // else a newer request runs
}

// The time until the result, with what is ahead of it.
function describe({ seconds, queue, refused }) {
  if (refused) return describeError({ ...refused, detail: refused.message });
  if (!Number.isFinite(seconds)) return "";
  const { position: n, start_seconds: start } = queue;
  if (n && start === null) return t("queue.ahead", { n });
  const duration = formatDuration(seconds + (start ?? 0));
  return n ? t("readyInAfter", { duration, n }) : t("readyIn", { duration });
}
