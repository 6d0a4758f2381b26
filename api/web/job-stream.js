// Follows a job to its end, by events or by asking; through sleep, lost networks and restarts. Knows no page.

import { persist, rest } from "./retry.js";
import { ask, Refusal } from "./api.js";

const SILENCE_SECONDS = 40;  // the service says something oftener; then the line is dead
const UNSEEN_SECONDS = 5;  // between two looks while nobody sees the page: a browser has six lines for all its tabs

export const ended = (job) => !["queued", "running"].includes(job.status);

// Its pictures are no longer kept.
export const gone = (job) => ended(job) && !job.links.result && job.outputs.length > 0;

// seen(job), troubled(words). Resolves when the job has ended; rejects with a Refusal that no waiting mends.
export async function watch(address, { seen, troubled, signal }) {
  let job = null, tag = null, pause = 1;
  const told = (news) => { try { seen(job = news); } catch (error) { reportError(error); } };  // the page's fault, not the line's
  const look = async () => {
    const answer = await ask(address, { signal, headers: tag ? { "If-None-Match": tag } : {} });
    pause = Number(answer.headers.get("Retry-After")) || 1;
    if (answer.status === 304) return;
    told(await answer.json());
    tag = answer.headers.get("ETag");
  };
  const until = (error) => error instanceof Refusal && error.status < 500 && error.status !== 429;
  for (;;) {
    await persist(look, { signal, troubled, until });
    if (ended(job)) return;
    if (document.hidden) pause = Math.max(pause, UNSEEN_SECONDS);
    else await listen(job, told, signal);
    await rest(pause, signal);
  }
}

// Server-sent events, by hand: an EventSource cannot send a key. Until they break off, or nobody looks any more.
async function listen(job, seen, signal) {
  const line = new AbortController(), quit = () => line.abort(), options = { signal: line.signal };
  signal.addEventListener("abort", quit, options);
  document.addEventListener("visibilitychange", quit, options);
  let timer = setTimeout(quit, SILENCE_SECONDS * 1000);
  try {
    const answer = await ask(job.links.events, { ...options, headers: { Accept: "text/event-stream", "Last-Event-ID": String(job.version) } });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(quit, SILENCE_SECONDS * 1000);
      const events = (text + value).split(/\r?\n\r?\n/);
      text = events.pop();
      for (const event of events) {
        const data = /^data:(.*)/m.exec(event)?.[1];
        if (data) seen(job = { ...job, ...JSON.parse(data) });  // the job, or what changed
      }
      if (ended(job)) return;
    }
  } catch {  // a look tells what is wrong, if anything is
  } finally {
    clearTimeout(timer);
    quit();
  }
}
