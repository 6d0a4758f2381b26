// The service over HTTP: the caller's key, its refusals in words, pictures from memory. Knows no route and no page.

export class Refusal extends Error {
  constructor(problem, answer) {
    super(problem.detail ?? `The service answered ${answer.status}.`);
    this.code = problem.code ?? "unknown";
    this.status = answer.status;
    this.waitSeconds = Number(answer.headers.get("Retry-After")) || null;
  }
}

// An API key stays in this tab, or on this device if its owner says so. An <img> cannot send it: so pictures are fetched
// here, too, and shown from memory.
const SLOT = "impasto key";
let unlock = () => Promise.reject(new Error("nobody can be asked for a key"));
let unlocking = null;

export const key = {
  get: () => sessionStorage.getItem(SLOT) ?? localStorage.getItem(SLOT),
  set(text, stays) {
    key.forget();
    (stays ? localStorage : sessionStorage).setItem(SLOT, text.replace(/[^!-~]/g, ""));
  },
  forget() {
    sessionStorage.removeItem(SLOT);
    localStorage.removeItem(SLOT);
  },
  askedBy(asking) { unlock = asking; },
};

// The answer, be it 2xx or 304. Throws Refusal, an Error with the code unreachable, AbortError.
export async function ask(address, { headers = {}, ...options } = {}) {
  for (;;) {
    const own = key.get();
    const answer = await reach(address, { ...options, headers: own ? { ...headers, Authorization: `Bearer ${own}` } : headers });
    if (answer.ok || answer.status === 304) return answer;
    if (answer.status !== 401) throw new Refusal(await problemOf(answer), answer);
    await (unlocking ??= unlock(Boolean(own)).finally(() => { unlocking = null; }));
  }
}

async function reach(address, options) {
  try {
    return await fetch(address, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw Object.assign(new Error("The service does not answer. This page keeps trying."), { code: "unreachable" });
  }
}

async function problemOf(answer) {
  try { return await answer.json(); } catch { return {}; }
}

export const tell = (method, address, body, headers = {}) => ask(address, {
  method,
  ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  headers: body === undefined ? headers : { "Content-Type": "application/json", ...headers },
});

export const read = async (address, options) => (await ask(address, options)).json();

export const blob = async (address, options) => (await ask(address, options)).blob();
