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

export const show = (element, visible) => { element.hidden = !visible; };

export const write = (id, words) => { at(id).textContent = words; };

// Is there when it has words.
export function complain(element, words = "") {
  element.textContent = words;
  show(element, words);
}

// What a slider stands for, in words.
export function valued(input, words) {
  input.setAttribute("aria-valuetext", words);
  const output = document.querySelector(`output[for=${input.id}]`);
  if (output) output.textContent = words;
}

// What a screen reader says. The same words twice are said once.
export function say(words) {
  if (at("said").textContent !== words) write("said", words);
}

export function saved(bytes, name) {
  const href = URL.createObjectURL(bytes);
  make("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
}

export function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.ceil(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}
