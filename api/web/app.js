// The key's field, and which of the two screens an address shows.

import { at, show, write } from "./dom.js";
import { Easel } from "./job-view.js";
import { key } from "./api.js";
import * as shelf from "./history.js";
import { Studio } from "./submit-view.js";

const keyed = () => show(at("unlearn"), key.get());

key.askedBy((refused) => new Promise((done) => {
  write("key-words", refused ? "This key is not known here. Try another." : "This service asks for an API key.");
  show(at("lock"), true);
  at("key").focus();
  at("lock").onsubmit = (event) => {
    event.preventDefault();
    key.set(at("key").value, at("key-stays").checked);
    at("lock").reset();
    show(at("lock"), false);
    keyed();
    done();
  };
}));
at("unlearn").addEventListener("click", () => { key.forget(); location.assign("/"); });
keyed();

let path = null;

const studio = new Studio((job) => go(`/j/${job.id}`));
const easel = new Easel({
  again: async (job, how) => { await studio.open(); await studio.prepare(job, { names: shelf.namesOf(job.id), ...how }); go("/"); },
  gone: () => go("/"),
});

function go(address) {
  if (address !== location.pathname + location.hash) history.pushState(null, "", address);
  route();
  scrollTo(0, 0);
  at(path === "/" ? "main" : "state").focus({ preventScroll: true });
}

function route() {
  path = location.pathname;
  const id = /^\/j\/([^/]+)$/.exec(path)?.[1];
  show(at("easel"), id);
  show(at("studio"), !id);
  if (id) return easel.open(id);
  document.title = "Impasto";
  easel.close();
  shelf.draw();
  studio.open().then(() => { if (location.hash === "#shelf") at("shelf").scrollIntoView(); }, () => {});
}

// Links within the page change its address, not the page.
document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[data-here]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  go(link.getAttribute("href"));
});
addEventListener("popstate", () => { if (location.pathname !== path) go(location.pathname + location.hash); });  // else a place on it
route();
