// Helpers for elements of the page. All text is set as text: nothing here parses HTML.

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

// Shows a blob in an <img> and returns it. The blob's URL is revoked as soon as it has loaded.
export function showBlob(blob, alt = "", image = createElement("img")) {
  const src = URL.createObjectURL(blob);
  const revoke = () => URL.revokeObjectURL(src);
  return Object.assign(image, { alt, onload: revoke, onerror: revoke, src });
}

// Encodes a canvas as a blob. A browser that does not support a type encodes PNG.
export async function encodeCanvas(canvas, type, quality) {
  const blob = await new Promise((done) => canvas.toBlob(done, type, quality));
  if (!blob) throw new Error("This browser cannot save a picture of this size.");
  return blob;
}

export const setVisible = (element, visible) => { element.hidden = !visible; };

export const setText = (id, text) => { byId(id).textContent = text; };

// Shows an error message, or hides the element if there is none.
export function showError(element, message = "") {
  element.textContent = message;
  setVisible(element, message);
}

// Sets the text of a slider's value, for screen readers and for its <output>.
export function setValueText(input, text) {
  input.setAttribute("aria-valuetext", text);
  const output = document.querySelector(`output[for=${input.id}]`);
  if (output) output.textContent = text;
}

// Makes a screen reader say the text, once.
export function announce(text) {
  if (byId("announcement").textContent !== text) setText("announcement", text);
}

// Starts the download of a blob, named after its job.
export function downloadBlob(blob, { id }) {
  const href = URL.createObjectURL(blob);
  const extension = blob.type.replace("image/", "").replace("jpeg", "jpg");
  createElement("a", { href, download: `impasto-${id.slice(4, 12)}.${extension}` }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);  // the browser may still be reading it
}

export function formatDuration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.ceil(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}
