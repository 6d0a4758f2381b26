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
      ? describeError(problem) : t("answeredStatus", { status: response.status }));
    this.code = problem.code ?? "unknown";
    this.parameter = problem.parameter;
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
export const request = (address, { headers, ...options } = {}) => sendWithKey((keyHeaders) =>
  fetchWithTimeout(address, { ...options, headers: { ...headers, ...keyHeaders } }));

// send(headers): returns a response.
async function sendWithKey(send) {
  for (;;) {
    const key = apiKey.get();
    const response = await send(key ? { Authorization: `Bearer ${key}` } : {});
    if (response.ok || response.status === 304) return response;
    if (response.status !== 401) {
      throw new ApiError(await response.json().catch(() => ({})), response);
    }
    if (apiKey.get() === key) await waitForKey(Boolean(key));  // else there is another by now
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

async function readBody(kind, response, signal) {
  try {
    return await response[kind]();
  } catch {  // the connection broke in the middle of the body, or a proxy has answered
    signal?.throwIfAborted();
    throw createUnreachableError();
  }
}

// As `sendJson`; returns the JSON of the response.
export const sendForJson = async (...request) => readBody("json", await sendJson(...request));

export const getJson = async (address, options = {}) =>
  readBody("json", await request(address, options), options.signal);

// Fetches an image: <img> cannot send the key. The browser may cache it, and revalidates it.
export const getBlob = async (address, options = {}) =>
  readBody("blob", await request(address, { cache: "no-cache", ...options }), options.signal);

// Uploads a file as a field of a form, and reports the share that is sent: fetch cannot. Returns
// the JSON of the response. An upload may take any time.
export async function upload(address, field, file, onProgress) {
  const form = new FormData();
  form.append(field, file, "picture");
  const send = (keyHeaders) => new Promise((resolve, reject) => {
    const call = new XMLHttpRequest();
    call.open("POST", resolveAddress(address));
    for (const pair of Object.entries(keyHeaders)) call.setRequestHeader(...pair);
    call.upload.onprogress = ({ loaded, total }) => onProgress(loaded / (total || 1));
    call.onerror = () => reject(createUnreachableError());
    call.onload = () => {
      const headers = { "Retry-After": call.getResponseHeader("Retry-After") ?? "" };
      resolve(new Response(call.responseText, { status: call.status, headers }));
    };
    call.send(form);
  });
  return readBody("json", await sendWithKey(send));
}
