// The texts of the page in the user's language: one dictionary per language, looked up by key.

import { deviceStorage } from "./storage.js";

const STORAGE_NAME = "impasto language";
const LANGUAGES = { en: "English", "zh-CN": "中文" };

const supported = (tag) => (/^zh\b/i.test(tag) ? "zh-CN" : /^en\b/i.test(tag) && "en");

// What the user chose, else the first language of the browser that the page has.
export const language = supported(deviceStorage.get(STORAGE_NAME))
  || navigator.languages.map(supported).find(Boolean) || "en";

let dictionary = {};

// Loads the dictionary of the language, and no other. Nothing may ask for a text before.
export async function loadTexts() {
  const { default: texts } = await import(language === "en" ? "./text-en.js" : "./text-zh.js");
  dictionary = texts;
  explainInvalidFields();
}

// Returns the text of a key with its {values}.
export function t(key, values = {}) {
  return (dictionary[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

// save(): resolves when nothing is lost by a reload.
export function addLanguageSwitch(button, save) {
  const other = Object.keys(LANGUAGES).find((name) => name !== language);
  Object.assign(button, { textContent: LANGUAGES[other], lang: other });
  const [navigation] = performance.getEntriesByType("navigation"), shown = performance.now();
  button.addEventListener("click", async ({ timeStamp }) => {
    if (navigation?.type === "reload" && timeStamp < shown + 700) return;  // a second tap
    deviceStorage.set(STORAGE_NAME, other);
    await save?.();
    location.reload();
  });
}

// Returns the text of a key, or the other text if the dictionary does not have the key.
export const tOr = (key, other) => (key in dictionary ? t(key) : other);

// Returns the text of an error: by its reason, parameter or code, else what the service says.
export function describeError({ code, reason, parameter, detail }) {
  const keys = [`reason.${reason}`, parameter && !reason && "badValue", `code.${code}`];
  const key = keys.find((one) => one in dictionary) ?? "serviceSays";
  return t(key, { detail, name: tOr(`parameter.${parameter}`, parameter) });
}

// The browser's own words for an invalid field are in its language.
function describeInvalid({ validity, min, max, step }) {
  if (validity.valueMissing) return t("invalid.missing");
  if (validity.patternMismatch) return t("invalid.key");
  return t(step === "any" ? "invalid.number" : "invalid.integer", { min, max });
}

function explainInvalidFields() {
  const clear = ({ target }) => {
    for (const field of target.form?.elements ?? []) field.setCustomValidity("");
  };
  for (const type of ["click", "input"]) addEventListener(type, clear, true);
  addEventListener("invalid", ({ target }) => target.setCustomValidity(describeInvalid(target)), true);
}

// Fills elements that name a key: data-text for the content, data-label for aria-label and
// data-tip for the title. The document's description and manifest change with its language.
export function translatePage() {
  for (const element of document.querySelectorAll("[data-text], [data-label], [data-tip]")) {
    const { text, label, tip } = element.dataset;
    if (text) element.textContent = t(text);
    if (label) element.ariaLabel = t(label);
    if (tip) element.title = t(tip);
  }
  document.documentElement.lang = language;
  document.querySelector("meta[name=description]").content = t("tagline");
  const manifest = document.querySelector("link[rel=manifest]");
  if (language !== "en") manifest.href = manifest.href.replace(/\.\w+$/, `.${language}$&`);
}

export function formatDuration(seconds) {
  if (seconds < 90) return t("seconds", { n: Math.max(1, Math.ceil(seconds)) });
  if (seconds < 5400) return t("minutes", { n: Math.round(seconds / 60) });
  return t("hours", { n: formatNumber(seconds / 3600, 1) });
}

export const formatNumber = (value, digits = 0) =>
  value.toLocaleString(language, { maximumFractionDigits: digits });

export const formatPercent = (share) => t("percent", { n: Math.round(100 * share) });

export const formatDate = (text, options) => new Date(text).toLocaleString(language, options);
