// Follows a job to its end, by events or by asking; through sleep, lost networks and restarts. Knows no page.

import { ask, Refusal } from "./service.js";

const SILENCE_SECONDS = 40;  // the service says something oftener; then the line is dead
const MOST_SECONDS = 8;  // between two tries

export const ended = (job) => !["queued", "running"].includes(job.status);

// seen(job), troubled(error or null). Resolves with the ended job; rejects with a Refusal that no waiting mends.
export async function watch(address, { seen, troubled, signal }) {
  let job = null, tag = null, tries = 0, deaf = false;
  for (;;) {
    let pause = 1;
    try {
      const answer = await ask(address, { signal, headers: tag ? { "If-None-Match": tag } : {} });
      pause = Number(answer.headers.get("Retry-After")) || 1;
      tries = 0;
      troubled(null);
      if (answer.status !== 304) {
        tag = answer.headers.get("ETag");
        job = await answer.json();
        seen(job);
      }
      if (ended(job)) return job;
      if (job.links.events && !deaf) deaf = await listen(job, seen, signal);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      if (error instanceof Refusal && error.status < 500 && error.status !== 429) throw error;
      troubled(error);
      pause = error.waitSeconds ?? Math.min(MOST_SECONDS, 2 ** tries++ / 2);
    }
    await rest(pause, signal);
  }
}

// Waits, but not longer than until somebody looks again or the network is back.
function rest(seconds, signal) {
  return new Promise((wake, fail) => {
    const stop = new AbortController();
    const timer = setTimeout(done, seconds * 1000);
    function done() { clearTimeout(timer); stop.abort(); wake(); }
    signal?.addEventListener("abort", () => { clearTimeout(timer); stop.abort(); fail(signal.reason); }, { once: true, signal: stop.signal });
    addEventListener("online", done, { signal: stop.signal });
    document.addEventListener("visibilitychange", () => { if (!document.hidden) done(); }, { signal: stop.signal });
  });
}

// Server-sent events, by hand: an EventSource cannot send a key. True: this service has none.
async function listen(job, seen, signal) {
  const silence = new AbortController();
  const quit = () => silence.abort();
  signal?.addEventListener("abort", quit, { once: true });
  let timer = setTimeout(quit, SILENCE_SECONDS * 1000);
  try {
    const answer = await ask(job.links.events, { signal: silence.signal, headers: { Accept: "text/event-stream", "Last-Event-ID": String(job.version) } });
    if (!answer.headers.get("Content-Type")?.startsWith("text/event-stream")) return true;
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ;) {
      const { done, value } = await reader.read();
      if (done) return false;
      clearTimeout(timer);
      timer = setTimeout(quit, SILENCE_SECONDS * 1000);
      const events = (text + value).split(/\r?\n\r?\n/);
      text = events.pop();
      for (const event of events) job = heard(event, job, seen);
      if (ended(job)) return false;
    }
  } catch (error) {
    if (signal?.aborted) throw signal.reason;
    return error instanceof Refusal && [404, 405, 406].includes(error.status);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", quit);
    silence.abort();
  }
}

// An event carries the job, or what has changed of it.
function heard(event, job, seen) {
  const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
  if (!data) return job;
  const changed = { ...job, ...JSON.parse(data) };
  seen(changed);
  return changed;
}
