// The paintings of whoever uses this browser, newest first, as it remembers them. Forgets none unless it is asked to.

import { at, make, say, show, shown } from "./dom.js";
import { device } from "./storage.js";
import { blob, read, tell } from "./api.js";
import { gone } from "./job-stream.js";

const SLOT = "impasto shelf";
const MOST = 60;

export const TITLES = { queued: "Waiting", running: "Painting", succeeded: "Done", failed: "It did not work", canceled: "Stopped", expired: "Too late" };

const remembered = () => {
  try {
    const kept = JSON.parse(device.get(SLOT));
    return Array.isArray(kept) ? kept.filter((one) => /^job_[a-z2-7]{26}$/.test(one?.id)) : [];
  } catch { return []; }
};

const keep = (kept) => device.set(SLOT, JSON.stringify(kept.slice(0, MOST)));

export function remember(id, names = null) {
  const kept = remembered(), before = kept.find((one) => one.id === id);
  if (before && !names) return;
  keep([{ id, names: names ?? before?.names ?? null }, ...kept.filter((one) => one.id !== id)]);
}

// Here and at the service; also what the service has no more.
export async function forget(id) {
  await tell("DELETE", `/v1/jobs/${id}`).catch((error) => { if (!isGone(error)) throw error; });
  keep(remembered().filter((one) => one.id !== id));
}

// What the pictures of a job were called here: {content, styles}, or null.
export const namesOf = (id) => remembered().find((one) => one.id === id)?.names ?? null;

export function draw() {
  const kept = remembered();
  show(at("bare"), !kept.length);
  const eye = new IntersectionObserver((seen) => {
    for (const { target, isIntersecting } of seen) if (isIntersecting) { eye.unobserve(target); fill(target); }
  }, { rootMargin: "200px" });
  at("paintings-kept").replaceChildren(...kept.map(({ id, names }) => card(id, names)));
  for (const item of at("paintings-kept").children) eye.observe(item);
}

function card(id, names) {
  const title = names ? `${names.content} as ${names.styles.join(" and ")}` : "A painting";
  const span = (className, textContent = "") => make("span", { className, textContent });
  const item = make("li", {}, make("a", { href: `/j/${id}`, "data-here": "" }, span("thumb"), span("caption", title), span("about")),
    make("button", { className: "quiet remove", "aria-label": `Delete: ${title}`, textContent: "✕", onclick: () => remove(item, title) }));
  return Object.assign(item, { job: id });
}

const mark = (item, words) => (item.querySelector(".about").textContent = words);
const isGone = ({ status }) => status === 404 || status === 410;

async function fill(item) {
  try {
    const job = await read(`/v1/jobs/${item.job}`);
    mark(item, about(job));
    const { result, preview } = job.links;
    if (!result && (!preview || gone(job))) return;
    item.querySelector(".thumb").replaceChildren(shown(await blob(result ? `${result}?format=webp&width=384` : preview)));
  } catch (error) { mark(item, isGone(error) ? "No longer kept" : error.message); }
}

function about(job) {
  if (gone(job)) return "No longer kept";
  if (job.pinned) return "Kept for good";
  return job.status === "succeeded" && job.expires_at ? `Until ${new Date(job.expires_at).toLocaleDateString()}` : TITLES[job.status];
}

async function remove(item, title) {
  if (!confirm(`Delete “${title}”, picture and all?`)) return;
  try { await forget(item.job); } catch (error) { return say(mark(item, error.message)); }
  const next = item.nextElementSibling ?? item.previousElementSibling;
  item.remove();
  show(at("bare"), !remembered().length);
  (next?.querySelector("a") ?? at("main")).focus();
}
