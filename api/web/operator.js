// The operator's page: it shows the answers of /v1/operator and sends the operator's actions. All
// text is set as text. Rows stay while their data change, so that focus stays too.

import { apiKey, request, ROOT, sendJson } from "./api.js";
import { byId, createElement, setText, setVisible, showError } from "./dom.js";
import { drawBars } from "./operator-chart.js";
import { tr, translateDocument } from "./operator-text.js";
import { addLanguageSwitch, language, loadTexts } from "./text.js";

const POLL_MS = 3000, SLOW_MS = 30_000;  // of status and queue; of hours and keys
const CONFIRM_MS = 5000;
const PAGE_JOBS = 50;
let limit = PAGE_JOBS, names = {}, hours = null;
let clockSkew = 0;  // ms, of this machine's clock against the service's

const formatNumber = (value) => value.toLocaleString(language);
const formatBytes = (bytes) => (bytes < 1e9
  ? `${Math.round(bytes / 1e6)} MB` : `${(bytes / 1e9).toFixed(bytes < 1e10 ? 1 : 0)} GB`);
const formatTime = (text) => (text ? new Date(text).toLocaleString(language) : tr("never"));
const nameOwner = (id) => names[id] ?? id;

const join = (parts) => parts.join(language === "en" ? ", " : "，");

function formatSeconds(seconds) {
  if (seconds === null) return "–";
  if (seconds < 90) return tr("{n} s", { n: seconds.toFixed(seconds < 10 ? 1 : 0) });
  return seconds < 5400
    ? tr("{n} min", { n: Math.round(seconds / 60) }) : tr("{n} h", { n: (seconds / 3600).toFixed(1) });
}

// ------------------------------------------------------------------ the key

apiKey.onRequired((wasRefused) => askForKey(wasRefused
  ? tr("This key is not valid. Enter the key of an operator.")
  : ""));

function askForKey(text) {
  showError(byId("key-error"), text);
  setVisible(byId("key-form"), true);
  setVisible(byId("service"), false);
  byId("key").focus();
  return new Promise((resolve) => {
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      apiKey.set(byId("key").value, false);
      byId("key-form").reset();
      setVisible(byId("key-form"), false);
      resolve();
    };
  });
}

byId("forget-key").addEventListener("click", () => { apiKey.forget(); location.reload(); });

// ------------------------------------------------------------------ actions

// Sends an action; then shows what it has changed.
async function act(address, body) {
  showError(byId("action-error"));
  try {
    await sendJson("POST", `v1/operator/${address}`, body);
  } catch (error) { showError(byId("action-error"), error.message); }
  await update();
}

// about: what the button acts on, for screen readers.
function createButton(text, about, onclick) {
  const button = createElement("button", { type: "button", onclick });
  setButtonText(button, tr(text), about);
  return button;
}

function setButtonText(button, text, about) {
  button.textContent = text;
  button.setAttribute("aria-label", `${text} ${about}`);
}

// A button for what cannot be undone: the second click within some seconds does it.
function createSafeButton(text, about, onclick) {
  let timer = null;
  const button = createButton(text, about, () => {
    if (timer) {
      reset();
      onclick();
      return;
    }
    setButtonText(button, tr("{text}: sure?", { text: tr(text) }), about);
    timer = setTimeout(reset, CONFIRM_MS);
  });
  function reset() {
    clearTimeout(timer);
    timer = null;
    setButtonText(button, tr(text), about);
  }
  button.className = "danger";
  return button;
}

byId("intake").addEventListener("click", () => act(`intake/${byId("intake").value}`));
byId("more").addEventListener("click", () => { limit = Math.min(100, limit + PAGE_JOBS); update(); });
byId("hide-secret").addEventListener("click", () => {
  setText("secret", "");
  setVisible(byId("secret-box"), false);
});
byId("new-key").addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = {
    name: byId("new-name").value.trim(), priority: byId("new-priority").value,
    admin: byId("new-admin").checked, pool: byId("new-pool").value.trim() || null,
  };
  try {
    const { secret } = await (await sendJson("POST", "v1/operator/keys", body)).json();
    setText("secret", secret);
    setVisible(byId("secret-box"), true);
    byId("new-key").reset();
    showError(byId("action-error"));
  } catch (error) { showError(byId("action-error"), error.message); }
  await updateSlowly();
});

// ------------------------------------------------------------------ tables

// Shows one row per item. items: [{id, cells: [text, …], className}]. createActions(id): the
// buttons of a new row.
function showRows(id, items, createActions = () => []) {
  const body = byId(id).tBodies[0], rows = new Map([...body.rows].map((row) => [row.dataset.id, row]));
  const shown = items.map((item) => {
    const row = rows.get(item.id) ?? createRow(item, createActions(item.id));
    item.cells.forEach((text, index) => {
      if (row.cells[index].textContent !== text) row.cells[index].textContent = text;
    });
    row.className = item.className ?? "";
    return row;
  });
  // Only what moves is touched: an element that is moved loses the focus.
  for (const row of body.querySelectorAll("tr")) if (!shown.includes(row)) row.remove();
  shown.forEach((row, index) => {
    if (body.rows[index] !== row) body.insertBefore(row, body.rows[index] ?? null);
  });
  setVisible(byId(id), items.length);
  const empty = document.getElementById(`no-${id}`);
  if (empty) setVisible(empty, !items.length);
}

function createRow({ id, cells }, actions) {
  const row = createElement("tr", {}, ...cells.map(() => createElement("td")));
  row.dataset.id = id;
  if (actions.length) row.append(createElement("td", {}, ...actions));
  return row;
}

function showFigures(figures) {
  byId("figures").replaceChildren(...figures.map(([name, value]) => createElement(
    "div", {}, createElement("dt", { textContent: tr(name) }), createElement("dd", { textContent: value }))));
}

function showStatus(status) {
  const { intake_paused_at: paused, disk, expiry, workers } = status;
  setText("intake-state", paused
    ? tr("Paused since {time}", { time: formatTime(paused) }) : tr("Accepts jobs"));
  byId("intake").value = paused ? "resume" : "pause";
  byId("intake").textContent = paused
    ? tr("Accept jobs again") : tr("Pause: accept no new jobs");
  const total = hours?.total;
  showFigures([
    ["Waiting", formatNumber(status.queued)],
    ["Running", formatNumber(status.running)],
    ["Workers", formatNumber(workers.filter(({ name }) => name).length)],
    ["One job takes", formatSeconds(status.average_job_seconds)],
    ["Wait, median", formatSeconds(total?.wait_p50_seconds ?? null)],
    ["Wait, 95 %", formatSeconds(total?.wait_p95_seconds ?? null)],
    ["Ended, 24 h", total ? formatNumber(total.succeeded + total.failed + total.canceled + total.expired) : "–"],
    ["Failed, 24 h", total ? formatNumber(total.failed) : "–"],
    ["Disk free", disk.total_bytes === null ? tr("a bucket") : tr("{free} of {total}", {
      free: formatBytes(disk.free_bytes), total: formatBytes(disk.total_bytes) })],
    ["Quota", disk.quota_bytes ? formatBytes(disk.quota_bytes) : tr("none")],
    ["Results kept", formatNumber(expiry.with_pictures)],
    ["Expire in 24 h", formatNumber(expiry.expiring_within_a_day)],
    ["Pictures in use", formatNumber(expiry.pictures)],
    ["Webhooks waiting", formatNumber(status.webhooks_pending)],
  ]);
  showRows("workers", workers.map(({ id, name, info, pools, suspension, job_id: job, owner, progress }) => ({
    id: `${id} ${name}`,
    className: suspension ? "suspended" : "",
    cells: [
      id || name, info ? `${info.device}, ${info.precision}` : suspension?.device ?? "",
      info?.network ?? "", info?.max_size_px ? tr("{n} px", { n: info.max_size_px }) : "",
      join(pools.map((pool) => pool || tr("all"))), describeState(suspension, name),
      job ? join([job, nameOwner(owner)]) : tr("idle"),
      progress === null ? "" : `${Math.round(100 * progress)}${language === "en" ? " " : ""}%`,
    ],
  })), (row) => {
    const [id] = row.split(" ");
    return id ? [
      createButton("Pause", id, () => act("workers/pause", { id })),
      createSafeButton("Drain", id, () => act("workers/drain", { id })),
      createButton("Resume", id, () => act("workers/resume", { id })),
    ] : [];
  });
}

function describeState(suspension, name) {
  if (!suspension) return tr("active");
  const { kind, reason } = suspension;
  const states = {
    paused: tr("paused"), out_of_service: tr("out of service"),
    draining: name ? tr("draining") : tr("drained"),
  };
  const state = states[kind];
  return reason ? tr("{state}: {reason}", { state, reason: tr(reason) }) : state;
}

function showQueue({ jobs, total }) {
  const now = Date.now() - clockSkew;
  showRows("queue", jobs.map((job) => ({
    id: job.id,
    cells: [
      String(job.position + 1), job.id, nameOwner(job.owner), tr(job.priority),
      job.size ? tr("{n} px", { n: job.size }) : "", formatSeconds(Math.max(0, (now - Date.parse(job.created_at)) / 1000)),
    ],
  })), (id) => [
    createButton("First", id, () => act(`jobs/${id}/move`, { to: "first" })),
    createButton("Last", id, () => act(`jobs/${id}/move`, { to: "last" })),
    createSafeButton("Cancel", id, () => act(`jobs/${id}/cancel`)),
  ]);
  setVisible(byId("more"), total > jobs.length && limit < 100);
}

function showHours() {
  const { total } = hours;
  drawBars(byId("jobs-chart"), hours.hours, [
    ["succeeded", (hour) => hour.succeeded + hour.failed], ["failed", (hour) => hour.failed],
  ], formatNumber, tr("Last 24 hours: {succeeded} jobs succeeded, {failed} failed.", total));
  drawBars(byId("waits-chart"), hours.hours, [
    ["p95", (hour) => hour.wait_p95_seconds], ["p50", (hour) => hour.wait_p50_seconds],
  ], formatSeconds, tr("Last 24 hours: the median wait was {p50}, 95 % waited at most {p95}.", {
    p50: formatSeconds(total.wait_p50_seconds), p95: formatSeconds(total.wait_p95_seconds) }));
  showRows("failures", Object.entries(total.failures).sort((a, b) => b[1] - a[1])
    .map(([code, count]) => ({ id: code, cells: [code, formatNumber(count)] })));
}

function showKeys({ keys, limits }) {
  names = Object.fromEntries(keys.map(({ key }) => [key.id, key.name]));
  setText("limits", tr("Limits of each key: {submissions} submissions and {requests} other requests a minute, {jobs} unfinished jobs, {uploads} uploads, {bytes}.", {
    submissions: formatNumber(limits.submissions_per_minute), requests: formatNumber(limits.requests_per_minute),
    jobs: formatNumber(limits.max_jobs), uploads: formatNumber(limits.max_uploads),
    bytes: formatBytes(limits.max_upload_bytes) }));
  showRows("keys", keys.map(({ key, usage }) => ({
    id: key.id,
    className: key.revoked ? "revoked" : "",
    cells: [
      key.name, key.id, join([tr(key.priority), key.pool, key.admin && tr("operator")].filter(Boolean)), formatTime(key.last_used_at),
      formatNumber(usage.queued), formatNumber(usage.running), formatNumber(usage.jobs),
      join([formatNumber(usage.uploads), formatBytes(usage.upload_bytes)]),
    ],
  })), (id) => [createSafeButton("Revoke", id, () => revoke(id))]);
  for (const { key } of keys) {
    const row = byId("keys").querySelector(`tr[data-id="${CSS.escape(key.id)}"]`);
    row.querySelector("button").disabled = key.revoked;
  }
}

async function revoke(id) {
  await act(`keys/${id}/revoke`);
  await updateSlowly();
}

// ------------------------------------------------------------------ polling

async function read(part) {
  const response = await request(`v1/operator/${part}`), date = Date.parse(response.headers.get("Date"));
  if (date) clockSkew = Date.now() - date;
  return response.json();
}

async function show(action) {
  try {
    await action();
    showError(byId("error"));
    setVisible(byId("service"), true);
    setVisible(byId("forget-key"), true);
  } catch (error) {
    showError(byId("error"), error.message);
    if (error.code !== "admin_required") return;
    setVisible(byId("service"), false);
    apiKey.forget();
    await askForKey(tr("This key may not operate the service. Enter the key of an operator."));
    await updateSlowly();
  }
}

async function update() {
  await show(async () => {
    const [status, queue] = await Promise.all([read("status"), read(`queue?limit=${limit}`)]);
    showStatus(status);
    showQueue(queue);
  });
}

async function updateSlowly() {
  await show(async () => {
    const [counts, keys] = await Promise.all([read("hours"), read("keys")]);
    hours = counts;
    showHours();
    showKeys(keys);
  });
}

async function poll(action, pauseMs) {
  for (;;) {
    if (!document.hidden) await action();
    await new Promise((done) => setTimeout(done, pauseMs));
  }
}

for (const link of document.querySelectorAll("a.brand")) link.href = ROOT.href;
start();
async function start() {
  await loadTexts();
  translateDocument();
  addLanguageSwitch(byId("language"));
  await updateSlowly();
  poll(update, POLL_MS);
  setTimeout(() => poll(updateSlowly, SLOW_MS), SLOW_MS);
}
