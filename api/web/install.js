// Registers the service worker, and takes a picture that another program has shared with the
// installed page: the page gets it as if the user had pasted it.

import { ROOT } from "./api.js";
import { t } from "./text.js";
import { showToast } from "./toast.js";

const SHARED_TIMEOUT_MS = 10_000;

// With Trusted Types, the address of a worker must come from a policy. This one knows one address.
const rules = { createScriptURL: () => new URL("sw.js", ROOT).href };
const policy = globalThis.trustedTypes?.createPolicy("service-worker", rules) ?? rules;

// Browsers have it only where the connection is safe: with TLS, or on this machine.
const { serviceWorker } = navigator;

export function install() {
  if (!serviceWorker) return;
  if (document.readyState === "complete") register();
  else addEventListener("load", register);  // the page itself comes first
  let last = serviceWorker.controller;
  serviceWorker.addEventListener("controllerchange", () => {
    if (last) showToast(t("newVersion"), { action: t("reload"), onAction: () => location.reload() });
    last = serviceWorker.controller;
  });
  // A page that stays open does not navigate, so the browser would look for a version once a day.
  document.addEventListener("visibilitychange", async () => {
    if (!document.hidden) (await serviceWorker.getRegistration(ROOT))?.update().catch(() => {});
  });
  if (new URLSearchParams(location.search).has("shared")) takeSharedPicture();
}

function register() {
  serviceWorker.register(policy.createScriptURL(""), { scope: ROOT.pathname })
    .catch(() => {});  // the page works without it, as in a private window
}

async function takeSharedPicture() {
  history.replaceState(history.state, "", location.pathname);
  const { active } = await serviceWorker.ready;
  const picture = await new Promise((resolve) => {
    serviceWorker.onmessage = ({ data }) => resolve(data.sharedPicture);
    active.postMessage("send shared picture");
    setTimeout(resolve, SHARED_TIMEOUT_MS, null);
  });
  if (!(picture instanceof File)) return;
  dispatchEvent(Object.assign(new Event("paste", { cancelable: true }), {
    clipboardData: { files: [picture] } }));
}
