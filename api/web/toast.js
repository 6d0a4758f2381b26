// Messages at the edge of the page that go by themselves, each with one action at most.

import { announce, byId, createElement } from "./dom.js";
import { noteChange } from "./touch.js";

const toasts = new Set();

// Shows the message; calls onAction if the user takes the action, else onEnd when its time is over.
// It stands beside those that offer an action, and replaces those that do not. Returns a function
// that takes it away before.
export function showToast(text, { seconds = 6, action = "", onAction, onEnd } = {}) {
  for (const toast of toasts) if (!toast.action) toast.close();
  const root = createElement("div", {}, createElement("span", { textContent: text }));
  const close = (callback) => {
    if (!toasts.delete(toast)) return;
    clearTimeout(timer);
    const hadFocus = root.contains(document.activeElement);
    root.remove();
    if (hadFocus) byId("main").focus({ preventScroll: true });
    callback?.();
  };
  const timer = setTimeout(() => close(onEnd), seconds * 1000);
  const toast = { action, close, onEnd };
  const onclick = () => {
    noteChange();  // the next message may take this place
    close(onAction);
  };
  if (action) {
    root.append(createElement("button", {
      type: "button", className: "subtle", textContent: action, onclick }));
  }
  toasts.add(toast);
  byId("toast").append(root);
  announce(text);
  return () => close();
}

// Ends all messages as if their time were over.
export function endToasts() { for (const toast of toasts) toast.close(toast.onEnd); }
