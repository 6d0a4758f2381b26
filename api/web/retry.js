// Waiting, and trying again what may work later.

const MOST_SECONDS = 8;  // between two tries

// Until it works, or waiting mends nothing. troubled(words): before each pause, and without words when it works again.
export async function persist(act, { signal, troubled = () => {}, until = isFinal } = {}) {
  for (let tries = 0; ; tries++) {
    try {
      const done = await act();
      if (tries) troubled("");
      return done;
    } catch (error) {
      signal?.throwIfAborted();
      if (until(error)) throw error;
      troubled(`${error.message} This page keeps trying.`);
      await rest(error.waitSeconds ?? Math.min(MOST_SECONDS, 2 ** tries / 2), signal);
    }
  }
}

const isFinal = (error) => error.code !== "unreachable" && ![429, 502, 503, 504].includes(error.status);

// Waits, but not longer than until somebody looks again or the network is back.
export function rest(seconds, signal) {
  return new Promise((wake, fail) => {
    const over = new AbortController(), options = { signal: over.signal };
    const end = (act) => { clearTimeout(timer); over.abort(); act(); };
    const timer = setTimeout(() => end(wake), seconds * 1000);
    const abort = () => end(() => fail(signal.reason));
    if (signal?.aborted) return abort();
    signal?.addEventListener("abort", abort, options);
    addEventListener("online", () => end(wake), options);
    document.addEventListener("visibilitychange", () => { if (!document.hidden) end(wake); }, options);
  });
}
