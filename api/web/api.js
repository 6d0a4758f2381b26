// Requests to the service: API key, errors, JSON and images. This module knows no route.

import { deviceStorage, tabStorage } from "./storage.js";
import { describeError, t } from "./text.js";

// Where the service is: a proxy may serve it under a path.
export const ROOT = new URL("..", import.meta.url);

// Makes an address absolute. Those of this page, such as "v1/jobs", are relative to the service.
export const resolveAddress = (address) => new URL(address, ROOT).href;

const TIMEOUT_SECONDS = 40;  // without a response; then the connection is dead, as after sleep

// A response that is an error; its message is a sentence for the user.
export class ApiError extends Error {
  constructor(problem, response) {
    super(problem.detail
      ? describeError(problem.code, problem.detail) : t("answeredStatus", { status: response.status }));
    this.code = problem.code ?? "unknown";
    this.status = response.status;
    this.retryAfter = Number(response.headers.get("Retry-After")) || null;
  }
}

// The API key. It stays in this tab, or on this device if the user chooses so.
const KEY_NAME = "impasto key";
let askForKey = null, pendingQuestion = null;

export const apiKey = {
  get: () => tabStorage.get(KEY_NAME) ?? deviceStorage.get(KEY_NAME),
  set(text, remember) {
    apiKey.forget();
    (remember ? deviceStorage : tabStorage).set(KEY_NAME, text.replace(/[^!-~]/g, ""));
  },
  forget() {
    tabStorage.remove(KEY_NAME);
    deviceStorage.remove(KEY_NAME);
  },
  // ask(wasRefused): resolves when the user has entered a key.
  onRequired(ask) { askForKey = ask; },
};

// All requests that were refused meanwhile wait for the same question.
async function waitForKey(wasRefused) {
  pendingQuestion ??= askForKey(wasRefused).finally(() => { pendingQuestion = null; });
  await pendingQuestion;
}

// Sends a request; returns the response if it is 2xx or 304. Asks for a key after 401.
// Throws ApiError, an Error with the code "unreachable", or AbortError.
export async function request(address, { headers = {}, ...options } = {}) {
  for (;;) {
    const key = apiKey.get();
    const allHeaders = key ? { ...headers, Authorization: `Bearer ${key}` } : headers;
    const response = await fetchWithTimeout(address, { ...options, headers: allHeaders });
    if (response.ok || response.status === 304) return response;
    if (response.status !== 401) {
      throw new ApiError(await response.json().catch(() => ({})), response);
    }
    await waitForKey(Boolean(key));
  }
}

async function fetchWithTimeout(address, options) {
  const timeout = new AbortController();
  const signals = [timeout.signal, options.signal].filter(Boolean);
  const timer = setTimeout(() => timeout.abort(), TIMEOUT_SECONDS * 1000);
  try {
    const signal = AbortSignal.any(signals);
    return await fetch(resolveAddress(address), { cache: "no-store", ...options, signal });
  } catch {
    options.signal?.throwIfAborted();
    throw createUnreachableError();
  } finally { clearTimeout(timer); }
}

const createUnreachableError = () =>
  Object.assign(new Error(t(navigator.onLine ? "unreachable" : "offline")), { code: "unreachable" });

export const sendJson = (method, address, body, headers = {}, options = {}) => request(address, {
  ...options,
  method,
  ...(body && { body: JSON.stringify(body) }),
  headers: { ...(body && { "Content-Type": "application/json" }), ...headers },
});

async function readBody(kind, address, options) {
  const response = await request(address, options);
  try {
    return await response[kind]();
  } catch {  // the connection broke in the middle of the body
    options.signal?.throwIfAborted();
    throw createUnreachableError();
  }
}

export const getJson = (address, options = {}) => readBody("json", address, options);

// Fetches an image: <img> cannot send the key. The browser may cache it, and revalidates it.
export const getBlob = (address, options = {}) =>
  readBody("blob", address, { cache: "no-cache", ...options });

// Uploads a file as a field of a form, and reports the share that is sent: fetch cannot. Returns
// the JSON of the response. An upload may take any time.
export async function upload(address, field, file, onProgress) {
  for (;;) {
    const key = apiKey.get();
    const { status, body, retryAfter } = await new Promise((resolve, reject) => {
      const call = new XMLHttpRequest(), form = new FormData();
      form.append(field, file, "picture");
      call.open("POST", resolveAddress(address));
      if (key) call.setRequestHeader("Authorization", `Bearer ${key}`);
      call.upload.onprogress = ({ loaded, total }) => onProgress(loaded / (total || 1));
      call.onerror = () => reject(createUnreachableError());
      call.onload = () => resolve({
        status: call.status, body: call.responseText,
        retryAfter: call.getResponseHeader("Retry-After") });
      call.send(form);
    });
    let json = {};
    try { json = JSON.parse(body); } catch { /* not from the service, but from a proxy */ }
    if (status >= 200 && status < 300) return json;
    if (status !== 401) {
      throw new ApiError(json, { status, headers: new Headers({ "Retry-After": retryAfter ?? "" }) });
    }
    await waitForKey(Boolean(key));
  }
}
