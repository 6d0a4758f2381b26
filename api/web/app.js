// The application: it chooses the screen for an address, and asks for the API key.

import { apiKey, resolveAddress, ROOT } from "./api.js";
import { byId, setText, setVisible } from "./dom.js";
import { getNames, renderHistory } from "./history.js";
import { JobView } from "./job-view.js";
import { SubmitView } from "./submit-view.js";

// The document's own address changes, so relative addresses keep their meaning only if they are
// made absolute now.
for (const link of document.querySelectorAll("a[href^='.'], link[rel=icon]")) link.href = link.href;

const updateForgetButton = () => setVisible(byId("forget-key"), apiKey.get());

apiKey.onRequired((wasRefused) => new Promise((resolve) => {
  setText("key-message", wasRefused
    ? "This key is not valid. Try another." : "This service needs an API key.");
  setVisible(byId("key-form"), true);
  byId("key").focus();
  byId("key-form").onsubmit = (event) => {
    event.preventDefault();
    apiKey.set(byId("key").value, byId("key-remember").checked);
    byId("key-form").reset();
    setVisible(byId("key-form"), false);
    updateForgetButton();
    resolve();
  };
}));
byId("forget-key").addEventListener("click", () => { apiKey.forget(); location.assign(ROOT); });
updateForgetButton();

let path = null;  // of the screen that is shown, relative to ROOT

const getPath = () => location.pathname.slice(ROOT.pathname.length);

const submitView = new SubmitView((job) => navigate(resolveAddress(`j/${job.id}`)));
const jobView = new JobView({
  async onReuse(job, options) {
    await submitView.open();
    await submitView.reuse(job, { names: getNames(job.id), ...options });
    navigate(ROOT.href);
  },
  onDeleted: () => navigate(ROOT.href),
});

function navigate(address) {
  if (address !== location.href) history.pushState(null, "", address);
  showScreen();
  scrollTo(0, 0);
  byId(path === "" ? "main" : "status").focus({ preventScroll: true });
}

function showScreen() {
  path = getPath();
  const id = /^j\/([^/]+)$/.exec(path)?.[1];
  setVisible(byId("job-view"), id);
  setVisible(byId("submit-view"), !id);
  if (id) return jobView.open(id);
  document.title = "Impasto";
  jobView.close();
  renderHistory();
  submitView.open()
    .then(() => { if (location.hash === "#history") byId("history").scrollIntoView(); })
    .catch(() => {});  // the view shows the error itself
}

// A local link changes the address without loading the page again.
document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[data-local-link]");
  const isModified = event.ctrlKey || event.metaKey || event.shiftKey || event.button;
  if (!link || isModified) return;
  event.preventDefault();
  navigate(link.href);
});
// A popstate with the same path is a jump within the page, such as by the skip link.
addEventListener("popstate", () => {
  if (getPath() !== path) navigate(location.href);
});
showScreen();
