// The service worker. The API serves it as sw.js and puts a line before it that sets VERSION, the
// hash of all files, and SHELL, the document and its files. So a new version is a new worker.
//
// It keeps the shell for times without a connection, and hands over a picture that another program
// has shared. Answers of the API and pictures never pass through it. A document comes from the
// service if that answers: the worker must not hide another version, nor another program.

const SCOPE = registration.scope;
const CACHES = `impasto ${SCOPE} `, CACHE = CACHES + VERSION;
// Code and style of a version: their addresses contain its hash.
const FILE = /^web-[^/]+\/.*\.(?:js|css|svg|woff2)$/;
const JOB_PAGE = /^j\/[^/]+$/;
let sharedPicture = null;  // until the page asks for it

addEventListener("install", (event) => {
  // Chromium drops what passes the worker of a page that is being left.
  event.addRoutes?.({ condition: { requestMethod: "DELETE" }, source: "network" });
  event.waitUntil(install());
});

async function install() {
  const cache = await caches.open(CACHE);
  const texts = /^zh/i.test(navigator.languages.find((tag) => /^(zh|en)\b/i.test(tag))) ? "zh" : "en";
  const paths = [...SHELL, `web-${VERSION}/text-${texts}.js`];
  await cache.addAll(paths.map((path) => new URL(path, SCOPE).href));
  // A job's page is the same document, one folder deeper: the API makes it like this, too.
  const document = await find("./"), html = await document.text();
  if (!html.includes(`web-${VERSION}/`)) {  // of another process, during an upgrade: try later
    await caches.delete(CACHE);
    throw new Error("another version");
  }
  const jobPage = new Response(html.replaceAll('="./', '="../'), { headers: document.headers });
  await cache.put(new URL("./j/-", SCOPE).href, jobPage);
  await skipWaiting();
}

addEventListener("activate", (event) => event.waitUntil(activate()));

async function activate() {
  for (const name of await caches.keys()) {
    if (name.startsWith(CACHES) && name !== CACHE) await caches.delete(name);
  }
  await clients.claim();
}

addEventListener("fetch", (event) => {
  const { request } = event;
  const path = request.url.slice(SCOPE.length).replace(/[?#].*$/, "");
  if (!request.url.startsWith(SCOPE)) return;
  if (request.method === "POST" && path === "share") event.respondWith(receiveShare(request));
  if (request.method !== "GET") return;
  if (FILE.test(path)) event.respondWith(getFile(request));
  const kept = JOB_PAGE.test(path) ? "./j/-" : !path && "./";
  if (kept && request.mode === "navigate") event.respondWith(getDocument(request, kept));
});

const find = async (address) =>
  (await caches.open(CACHE)).match(new URL(address, SCOPE).href, { ignoreVary: true });

async function getDocument(request, kept) {
  const response = await fetch(request).catch(() => null);
  if (response?.status < 500) return response;
  // Without a connection, or behind a proxy whose service is restarting.
  return await find(kept) ?? response ?? Response.error();
}

async function getFile(request) {
  const kept = await find(request.url);
  if (kept) return kept;
  const response = await fetch(request);
  const isOfThisVersion = request.url.startsWith(new URL(`web-${VERSION}/`, SCOPE).href);
  // Another process, of another version, answers with "no-store".
  const isKept = /immutable/.test(response.headers.get("Cache-Control"));
  if (isKept && isOfThisVersion) {
    const cache = await caches.open(CACHE);
    await cache.put(request, response.clone()).catch(() => {});  // the storage may be full
  }
  return response;
}

async function receiveShare(request) {
  sharedPicture = (await request.formData()).get("picture");
  return Response.redirect(new URL("./?shared", SCOPE).href, 303);
}

// Of a job that is done; data is the address of its page.
addEventListener("notificationclick", (event) => {
  event.notification.close();
  event.waitUntil(showPage(event.notification.data));
});

async function showPage(address) {
  const pages = await clients.matchAll({ type: "window" });
  const page = pages.find(({ url }) => url === address);
  await (page ? page.focus() : clients.openWindow(address));
}

addEventListener("message", ({ data, source }) => {
  if (data !== "send shared picture") return;
  source.postMessage({ sharedPicture });
  sharedPicture = null;
});
