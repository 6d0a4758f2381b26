// Follows a job to its end, by server-sent events or by polling. Survives sleep, network failures
// and restarts of the service. This module knows nothing about the page.

import { ApiError, request } from "./api.js";
import { retry, sleep } from "./retry.js";

const TIMEOUT_SECONDS = 40;  // the service sends something more often; then the connection is dead
const HIDDEN_POLL_SECONDS = 5;  // a browser has six connections to one host for all its tabs

export const hasEnded = (job) => !["queued", "running"].includes(job.status);

export const hasExpiredImages = (job) =>
  hasEnded(job) && !job.links.result && job.outputs.length > 0;

// The newest picture of a job: its name and its address, for a result with the query; or null.
export function newestPicture({ outputs, preview, links }, query = "") {
  if (links.result) return { name: outputs[0].id, address: links.result + query };
  return preview && links.preview ? { name: preview, address: links.preview } : null;
}

// Calls onJob(job) for each new state and onError(message) for each failure that may pass.
// Resolves when the job has ended; rejects with an ApiError that does not pass.
export async function followJob(address, { onJob, onError, signal }) {
  let job = null, etag = null, pause = 1;
  const update = (newest) => {
    // An exception here is an error of the page, not of the connection: it must not cause a retry.
    try { onJob(job = newest); } catch (error) { reportError(error); }
  };
  const poll = async () => {
    const response = await request(address, {
      signal, headers: etag ? { "If-None-Match": etag } : {},
    });
    pause = Number(response.headers.get("Retry-After")) || 1;
    if (response.status === 304) return;
    update(await response.json());
    etag = response.headers.get("ETag");
  };
  const isFinal = (error) =>
    error instanceof ApiError && error.status < 500 && error.status !== 429;
  for (;;) {
    await retry(poll, { signal, onError, isFinal });
    if (hasEnded(job)) return;
    if (document.hidden) pause = Math.max(pause, HIDDEN_POLL_SECONDS);
    else await readEvents(job, update, signal);
    await sleep(pause, signal);
  }
}

// Reads events until the stream ends or the tab is hidden. EventSource cannot send an API key.
async function readEvents(job, update, signal) {
  const connection = new AbortController(), options = { signal: connection.signal };
  const close = () => connection.abort();
  signal.addEventListener("abort", close, options);
  document.addEventListener("visibilitychange", close, options);
  let timer = setTimeout(close, TIMEOUT_SECONDS * 1000);
  try {
    const headers = { Accept: "text/event-stream", "Last-Event-ID": String(job.version) };
    const response = await request(job.links.events, { ...options, headers });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(close, TIMEOUT_SECONDS * 1000);
      const events = (text + value).split(/\r?\n\r?\n/);
      text = events.pop();
      for (const event of events) {
        const data = /^data:(.*)/m.exec(event)?.[1];
        if (data) update(job = { ...job, ...JSON.parse(data) });  // the job, or its changed fields
      }
      if (hasEnded(job)) return;
    }
  } catch {  // the poll that follows reports what is wrong, if anything is
  } finally {
    clearTimeout(timer);
    close();
  }
}
