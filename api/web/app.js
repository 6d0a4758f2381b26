// The key's field, and which of the two screens an address shows.

import { at, show } from "./element.js";
import { Easel } from "./easel.js";
import { key } from "./service.js";
import * as shelf from "./shelf.js";
import { Studio } from "./studio.js";

key.askedBy((refused) => new Promise((done) => {
  at("key-words").textContent = refused ? "This key is not known here. Try another." : "This service asks for an API key.";
  show(at("lock"), true);
  at("key").focus();
  at("lock").onsubmit = (event) => {
    event.preventDefault();
    key.set(at("key").value, at("key-stays").checked);
    at("key").value = "";
    show(at("lock"), false);
    done();
  };
}));

const go = (address, { focus = true } = {}) => {
  if (address !== location.pathname + location.hash) history.pushState(null, "", address);
  route({ focus });
};

const studio = new Studio((job) => go(`/j/${job.id}`));
const easel = new Easel({
  again: async (job, how) => { await studio.open(); await studio.prepare(job, { names: shelf.namesOf(job.id), ...how }); go("/"); },
  gone: () => go("/"),
});

function route({ focus }) {
  const id = /^\/j\/([^/]+)$/.exec(location.pathname)?.[1];
  show(at("easel"), Boolean(id));
  show(at("studio"), !id);
  document.title = "Impasto";
  if (id) easel.open(decodeURIComponent(id));
  else {
    easel.close();
    shelf.draw();
    if (focus) scrollTo(0, 0);
    const aim = () => { if (location.hash === "#shelf") at("shelf").scrollIntoView(); };
    studio.open().then(aim, () => setTimeout(() => route({ focus: false }), 3000));  // the service is starting again
  }
  if (focus) (id ? at("state") : at("main")).focus({ preventScroll: true });
}

// Links within the page change its address, not the page.
document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[data-here]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  go(link.getAttribute("href"));
});
addEventListener("popstate", () => route({ focus: true }));
route({ focus: false });
