// Helpers for elements of the page. All text is set as text: nothing here parses HTML.

import { t } from "./text.js";

export const byId = (id) => document.getElementById(id);

// Creates an element from its tag, its properties or attributes, and its children.
export function createElement(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// Shows a blob in an <img> and returns it. Its URL stays valid until the image shows another one,
// so that the user can save it.
export function showBlob(blob, alt = "", image = createElement("img")) {
  hideBlob(image);
  image.blobUrl = URL.createObjectURL(blob);
  return Object.assign(image, { alt, src: image.blobUrl });
}

export function hideBlob(image) {
  if (image.blobUrl) URL.revokeObjectURL(image.blobUrl);
  image.blobUrl = null;
  image.removeAttribute("src");
}

// Encodes a canvas as a blob. A browser that does not support a type encodes PNG.
export async function encodeCanvas(canvas, type, quality) {
  const blob = await new Promise((done) => canvas.toBlob(done, type, quality));
  if (!blob) throw new Error(t("tooLargeToSave"));
  return blob;
}

// target: an element, or its id.
const find = (target) => (typeof target === "string" ? byId(target) : target);

// types: with spaces between them.
export function listen(target, types, action, options) {
  for (const type of types.split(" ")) find(target).addEventListener(type, action, options);
}

export const onClick = (id, action) => listen(id, "click", action);

export const setText = (id, text) => { byId(id).textContent = text; };

// target: an element, or ids with spaces between them.
export function setVisible(target, visible) {
  const elements = typeof target === "string" ? target.split(" ").map(byId) : [target];
  for (const element of elements) element.hidden = !visible;
}

// message: what follows an empty line is folded.
export function showError(target, message = "") {
  const [text, ...detail] = message.split("\n\n");
  find(target).replaceChildren(text, ...detail.map((one) => createElement("details", {},
    createElement("summary", { textContent: t("more") }), one)));
  setVisible(target, message);
}

// Sets the text of a slider's value, for screen readers and for its <output>. The style sheet
// draws the part of the track before the thumb.
export function setValueText(input, text) {
  input.ariaValueText = text;
  const { min, max, value } = input, low = Number(min || 0), high = Number(max || 100);
  input.style.setProperty("--filled", `${100 * (value - low) / (high - low || 1)}%`);
  const output = document.querySelector(`output[for=${input.id}]`);
  if (output) output.textContent = text;
}

// Makes the elements the children of another one, in this order. What is in its place already
// stays, so that it keeps the focus.
export function setChildren(root, elements) {
  for (const child of [...root.children]) if (!elements.includes(child)) child.remove();
  elements.forEach((element, i) => {
    if (root.children[i] !== element) root.insertBefore(element, root.children[i] ?? null);
  });
}

// The direction of a key, as x and y.
export const ARROWS = {
  ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
};

export const announce = (text) => setText("announcement", text);

// Makes one Tab stop of several buttons; arrow keys, Home and End move between them.
export function makeRoving(root) {
  const getAll = () => [...root.querySelectorAll("button, summary")];
  const getButtons = () => getAll().filter((button) => button.offsetParent && !button.disabled);
  const update = (current) => {
    for (const button of getAll()) button.tabIndex = button === current ? 0 : -1;
  };
  listen(root, "focusin", ({ target }) => update(target));
  listen(root, "keydown", (event) => {
    if (event.altKey) return;  // the browser goes back
    const buttons = getButtons(), index = buttons.indexOf(document.activeElement);
    const next = {
      ArrowRight: index + 1, ArrowDown: index + 1, ArrowLeft: index - 1, ArrowUp: index - 1,
      Home: 0, End: buttons.length - 1,
    }[event.key];
    if (next === undefined || index < 0) return;
    event.preventDefault();
    buttons[(next + buttons.length) % buttons.length].focus();
  });
  // While the buttons are hidden, any of them may be the stop.
  const reset = () => {
    const visible = getButtons(), buttons = visible.length ? visible : getAll();
    if (buttons.includes(document.activeElement)) return;
    update(buttons.find((button) => button.ariaPressed === "true") ?? buttons[0]);
  };
  new MutationObserver(reset).observe(root, { childList: true, subtree: true });
  reset();
  return reset;
}

export function downloadBlob(blob, name) {
  const href = URL.createObjectURL(blob);
  createElement("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);  // the browser may still be reading it
}
