// A message at the edge of the page that goes by itself, with one action at most.

import { announce, byId, createElement, setVisible } from "./dom.js";

let current = null;

// Shows the message; calls onAction if the user takes the action, else onEnd. A newer message ends
// an older one.
export function showToast(text, { seconds = 6, action = "", onAction, onEnd = () => {} } = {}) {
  endToast();
  const root = byId("toast");
  const end = (callback) => {
    if (current !== toast) return;
    clearTimeout(timer);
    current = null;
    setVisible(root, false);
    callback?.();
  };
  const timer = setTimeout(() => end(onEnd), seconds * 1000);
  const toast = current = { end, onEnd };
  root.replaceChildren(createElement("span", { textContent: text }));
  if (action) {
    root.append(createElement("button", {
      type: "button", className: "subtle", textContent: action, onclick: () => end(onAction) }));
  }
  setVisible(root, true);
  announce(text);
}

// Ends the message that is shown as if its time were over.
export const endToast = () => current?.end(current.onEnd);
