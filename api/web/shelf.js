// The paintings of whoever uses this browser, newest first, as it remembers them.

import { at, make, show } from "./element.js";
import { blob, read, Refusal, tell } from "./service.js";

const SLOT = "impasto shelf";
const MOST = 60;

const remembered = () => {
  try {
    const kept = JSON.parse(localStorage.getItem(SLOT));
    return Array.isArray(kept) ? kept.filter((one) => /^job_[a-z2-7]{26}$/.test(one?.id)) : [];
  } catch { return []; }
};

const keep = (kept) => localStorage.setItem(SLOT, JSON.stringify(kept.slice(0, MOST)));

export function remember(id, names = null) {
  const kept = remembered(), before = kept.find((one) => one.id === id);
  if (before && !names) return;
  keep([{ id, names: names ?? before?.names ?? null }, ...kept.filter((one) => one.id !== id)]);
}

export const forget = (id) => keep(remembered().filter((one) => one.id !== id));

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
  const caption = make("span", { className: "caption", textContent: title });
  const item = make("li", {}, make("a", { href: `/j/${id}`, "data-here": "" }, make("span", { className: "thumb" }), caption, make("span", { className: "about" })),
    make("button", { type: "button", className: "quiet remove", "aria-label": `Delete: ${title}`, textContent: "✕", onclick: () => remove(item) }));
  item.job = id;
  return item;
}

async function fill(item) {
  try {
    const job = await read(`/v1/jobs/${item.job}`);
    item.querySelector(".about").textContent = about(job);
    if (!job.links.preview) return;
    const url = URL.createObjectURL(await blob(job.links.preview));
    item.querySelector(".thumb").replaceChildren(make("img", { src: url, alt: "", onload: () => URL.revokeObjectURL(url) }));
  } catch (error) {
    if (!(error instanceof Refusal)) return;
    item.querySelector(".about").textContent = "no longer kept";
    if (error.code === "job_not_found") { forget(item.job); item.remove(); show(at("bare"), !remembered().length); }
  }
}

const STATES = { queued: "waiting", running: "being painted", failed: "failed", canceled: "stopped", expired: "came too late" };

function about(job) {
  if (job.pinned) return "kept for good";
  if (STATES[job.status]) return STATES[job.status];
  return job.expires_at ? `until ${new Date(job.expires_at).toLocaleDateString()}` : "";
}

async function remove(item) {
  const name = item.querySelector(".caption").textContent;
  if (!confirm(`Delete “${name}”, picture and all?`)) return;
  try { await tell("DELETE", `/v1/jobs/${item.job}`); } catch (error) { if (!(error instanceof Refusal)) return; }
  forget(item.job);
  const next = item.nextElementSibling ?? item.previousElementSibling;
  item.remove();
  show(at("bare"), !remembered().length);
  (next?.querySelector("a") ?? at("main")).focus();
}
