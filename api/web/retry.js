// Repeats an action that fails for a reason that may pass, with growing pauses.

import { sendForJson } from "./api.js";
import { t } from "./text.js";

const MAX_PAUSE_SECONDS = 8;

// Calls the action until it succeeds, or fails with an error for which isFinal is true.
// onError(message) is called before each pause, and with "" when the action succeeds again.
export async function retry(action, { signal, onError = () => {}, isFinal = cannotPass } = {}) {
  for (let tries = 0; ; tries++) {
    try {
      const result = await action();
      if (tries) onError("");
      return result;
    } catch (error) {
      signal?.throwIfAborted();
      if (isFinal(error)) throw error;
      onError(t("keepsTrying", { message: error.message }));
      await sleep(error.retryAfter ?? Math.min(MAX_PAUSE_SECONDS, 2 ** tries / 2), signal);
    }
  }
}

// Sends a POST that creates something, until the service answers; by its key it happens only once.
export function create(address, body, { key = createKey(), ...options }) {
  return retry(() => sendForJson("POST", address, body, { "Idempotency-Key": key }), options);
}

export const createKey = () => crypto.getRandomValues(new Uint32Array(4)).join("-");

const TRANSIENT_STATUS = [429, 502, 503, 504];

const cannotPass = (error) =>
  error.code !== "unreachable" && !TRANSIENT_STATUS.includes(error.status);

// Sleeps so many seconds, or less if the tab becomes visible or the network is back.
export function sleep(seconds, signal) {
  return new Promise((resolve, reject) => {
    const listeners = new AbortController(), options = { signal: listeners.signal };
    const end = (settle) => { clearTimeout(timer); listeners.abort(); settle(); };
    const timer = setTimeout(() => end(resolve), seconds * 1000);
    const abort = () => end(() => reject(signal.reason));
    if (signal?.aborted) return abort();
    signal?.addEventListener("abort", abort, options);
    addEventListener("online", () => end(resolve), options);
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) end(resolve);
    }, options);
  });
}
