// The texts of the page in the user's language: one dictionary per language, looked up by key.

import english from "./text-en.js";

export const language = "en";
const dictionary = english;
const plurals = new Intl.PluralRules(language);

// Returns the text of a key with its {values}. A text may depend on the number n.
export function t(key, values = {}) {
  let text = dictionary[key];
  if (text === undefined) return key;
  if (typeof text === "object") text = text[plurals.select(values.n)] ?? text.other;
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

// Returns the text of a key, or the other text if the dictionary does not have the key.
export const tOr = (key, other) => (key in dictionary ? t(key) : other);

// Fills elements that name a key: data-text for the content, data-label for aria-label and
// data-tip for the title.
export function translatePage(root = document) {
  for (const element of root.querySelectorAll("[data-text]")) {
    element.textContent = t(element.dataset.text);
  }
  for (const element of root.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", t(element.dataset.label));
  }
  for (const element of root.querySelectorAll("[data-tip]")) element.title = t(element.dataset.tip);
  document.documentElement.lang = language;
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
