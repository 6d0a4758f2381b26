// An element of the page, from its name, properties and children. Text is text: nothing here reads HTML.

export const at = (id) => document.getElementById(id);

export function make(kind, properties = {}, ...children) {
  const element = document.createElement(kind);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// A picture from memory. Its address is given back as soon as it is shown.
export function shown(bytes, alt = "", image = make("img")) {
  const src = URL.createObjectURL(bytes), done = () => URL.revokeObjectURL(src);
  return Object.assign(image, { alt, onload: done, onerror: done, src });
}

// What is on a canvas, as a file. A browser that cannot write a type writes PNG.
export async function written(canvas, type, quality) {
  const bytes = await new Promise((done) => canvas.toBlob(done, type, quality));
  if (!bytes) throw new Error("This browser cannot write a picture that large.");
  return bytes;
}

export const show = (element, visible) => { element.hidden = !visible; };

export const write = (id, words) => { at(id).textContent = words; };

export function complain(element, words = "") {
  element.textContent = words;
  show(element, words);
}

export function valued(input, words) {
  input.setAttribute("aria-valuetext", words);
  const output = document.querySelector(`output[for=${input.id}]`);
  if (output) output.textContent = words;
}

// What a screen reader says, once.
export function say(words) {
  if (at("said").textContent !== words) write("said", words);
}

export function saved(bytes, { id }) {
  const href = URL.createObjectURL(bytes), kind = bytes.type.replace("image/", "").replace("jpeg", "jpg");
  make("a", { href, download: `impasto-${id.slice(4, 12)}.${kind}` }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
}

export function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.ceil(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}
