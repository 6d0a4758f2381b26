// The jobs of this browser's user, newest first. The browser stores the list; an entry is removed
// only when the user deletes it.

import { getBlob, getJson, resolveAddress, sendJson } from "./api.js";
import { announce, byId, createElement, setVisible, showBlob } from "./dom.js";
import { hasExpiredImages } from "./job-stream.js";
import { deviceStorage } from "./storage.js";

const STORAGE_NAME = "impasto history";
const MAX_ENTRIES = 60;

export const STATUS_TITLES = {
  queued: "Waiting", running: "Painting", succeeded: "Done",
  failed: "Failed", canceled: "Stopped", expired: "Expired",
};

const loadEntries = () => {
  try {
    const entries = JSON.parse(deviceStorage.get(STORAGE_NAME));
    if (!Array.isArray(entries)) return [];
    return entries.filter((entry) => /^job_[a-z2-7]{26}$/.test(entry?.id));
  } catch { return []; }
};

const saveEntries = (entries) =>
  deviceStorage.set(STORAGE_NAME, JSON.stringify(entries.slice(0, MAX_ENTRIES)));

// names: {content, styles}, the file names of the inputs.
export function addEntry(id, names = null) {
  const entries = loadEntries(), known = entries.find((entry) => entry.id === id);
  if (known && !names) return;
  const others = entries.filter((entry) => entry.id !== id);
  saveEntries([{ id, names: names ?? known?.names ?? null }, ...others]);
}

// Deletes the job from the service and from the list, also if the service no longer has it.
export async function deleteJob(id) {
  await sendJson("DELETE", `v1/jobs/${id}`).catch((error) => {
    if (!isMissing(error)) throw error;
  });
  saveEntries(loadEntries().filter((entry) => entry.id !== id));
}

export const getNames = (id) => loadEntries().find((entry) => entry.id === id)?.names ?? null;

// Shows the list. Each job is fetched when its card comes near the visible part of the page.
export function renderHistory() {
  const entries = loadEntries();
  setVisible(byId("history-empty"), !entries.length);
  const observer = new IntersectionObserver((changes) => {
    for (const { target, isIntersecting } of changes) {
      if (!isIntersecting) continue;
      observer.unobserve(target);
      loadCard(target);
    }
  }, { rootMargin: "200px" });
  const cards = entries.map(({ id, names }) => createCard(id, names));
  byId("history-list").replaceChildren(...cards);
  for (const card of cards) observer.observe(card);
}

function createCard(id, names) {
  const title = names ? `${names.content} as ${names.styles.join(" and ")}` : "A painting";
  const span = (className, textContent = "") => createElement("span", { className, textContent });
  const link = createElement("a", { href: resolveAddress(`j/${id}`), "data-local-link": "" },
    span("thumbnail"), span("caption", title), span("status"));
  const button = createElement("button", {
    className: "subtle remove", "aria-label": `Delete: ${title}`, textContent: "✕",
    onclick: () => removeCard(card, title),
  });
  const card = Object.assign(createElement("li", {}, link, button), { job: id });
  return card;
}

const setStatus = (card, text) => (card.querySelector(".status").textContent = text);

const isMissing = ({ status }) => status === 404 || status === 410;

async function loadCard(card) {
  try {
    const job = await getJson(`v1/jobs/${card.job}`);
    setStatus(card, describeStatus(job));
    const { result, preview } = job.links;
    if (!result && (!preview || hasExpiredImages(job))) return;
    const image = await getBlob(result ? `${result}?format=webp&width=384` : preview);
    card.querySelector(".thumbnail").replaceChildren(showBlob(image));
  } catch (error) {
    setStatus(card, isMissing(error) ? "No longer available" : error.message);
  }
}

function describeStatus(job) {
  if (hasExpiredImages(job)) return "No longer available";
  if (job.pinned) return "Kept forever";
  if (job.status !== "succeeded" || !job.expires_at) return STATUS_TITLES[job.status];
  return `Until ${new Date(job.expires_at).toLocaleDateString()}`;
}

async function removeCard(card, title) {
  if (!confirm(`Delete “${title}” and its pictures?`)) return;
  try {
    await deleteJob(card.job);
  } catch (error) {
    return announce(setStatus(card, error.message));
  }
  const next = card.nextElementSibling ?? card.previousElementSibling;
  card.remove();
  setVisible(byId("history-empty"), !loadEntries().length);
  (next?.querySelector("a") ?? byId("main")).focus();
}
