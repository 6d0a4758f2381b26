// The service over HTTP: the caller's key, its refusals in words, pictures from memory. Knows no route and no page.

import { device, tab } from "./storage.js";

const SILENCE_SECONDS = 40;  // without an answer; then the line is dead, as after sleep

export class Refusal extends Error {
  constructor(problem, answer) {
    super(problem.detail ?? `The service answered ${answer.status}.`);
    this.code = problem.code ?? "unknown";
    this.status = answer.status;
    this.waitSeconds = Number(answer.headers.get("Retry-After")) || null;
  }
}

// An API key stays in this tab, or on this device if its owner says so. An <img> cannot send it: pictures are fetched here, too.
const SLOT = "impasto key";
let unlock = null, unlocking = null;

export const key = {
  get: () => tab.get(SLOT) ?? device.get(SLOT),
  set(text, stays) {
    key.forget();
    (stays ? device : tab).set(SLOT, text.replace(/[^!-~]/g, ""));
  },
  forget() {
    tab.forget(SLOT);
    device.forget(SLOT);
  },
  askedBy(asking) { unlock = asking; },
};

// The answer, be it 2xx or 304. Throws Refusal, an Error with the code unreachable, AbortError.
export async function ask(address, { headers = {}, ...options } = {}) {
  for (;;) {
    const own = key.get();
    const answer = await reach(address, { ...options, headers: own ? { ...headers, Authorization: `Bearer ${own}` } : headers });
    if (answer.ok || answer.status === 304) return answer;
    if (answer.status !== 401) throw new Refusal(await answer.json().catch(() => ({})), answer);
    await (unlocking ??= unlock(Boolean(own)).finally(() => { unlocking = null; }));
  }
}

async function reach(address, options) {
  const silence = new AbortController(), signals = [silence.signal, options.signal].filter(Boolean);
  const sending = options.body instanceof FormData;  // an upload may take as long as it takes
  const timer = sending ? null : setTimeout(() => silence.abort(), SILENCE_SECONDS * 1000);
  try {
    return await fetch(address, { cache: "no-store", ...options, signal: AbortSignal.any(signals) });
  } catch {
    options.signal?.throwIfAborted();
    throw unreachable();
  } finally { clearTimeout(timer); }
}

const unreachable = () => Object.assign(new Error("The service does not answer."), { code: "unreachable" });

export const tell = (method, address, body, headers = {}) => ask(address, {
  method, ...(body && { body: JSON.stringify(body) }), headers: { ...(body && { "Content-Type": "application/json" }), ...headers },
});

async function body(kind, address, options) {
  const answer = await ask(address, options);
  try { return await answer[kind](); } catch { options.signal?.throwIfAborted(); throw unreachable(); }  // cut off
}

export const read = (address, options = {}) => body("json", address, options);

// A picture. The browser may keep it, and asks whether it is still the same.
export const blob = (address, options = {}) => body("blob", address, { cache: "no-cache", ...options });
