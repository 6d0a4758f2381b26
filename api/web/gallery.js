// Example photos and paintings; samples/draw.py has drawn them and written their index.

import { resolveAddress } from "./api.js";
import { createElement } from "./dom.js";
import { Picture } from "./picture.js";

export function showGallery(root, kind, picker, index) {
  const items = index.filter((entry) => entry.kind === kind)
    .map((entry) => createItem(entry, picker));
  root.replaceChildren(...items);
  picker.addEventListener("change", () => {
    for (const item of items) {
      const isChosen = findChosen(picker, item.address) !== undefined;
      item.firstChild.setAttribute("aria-pressed", isChosen);
    }
  });
}

const findChosen = (picker, address) =>
  picker.pictures.find((picture) => picture.source === address);

function createItem({ name, title, words }, picker) {
  const address = resolveAddress(`web/gallery/${name}.jpg`);
  const image = createElement("img", {
    src: resolveAddress(`web/gallery/${name}-small.jpg`), alt: words, width: 192, height: 144 });
  const button = createElement("button", {
    type: "button", onclick: () => toggleExample(picker, address, title), "aria-pressed": "false" },
  image, createElement("span", { textContent: title }));
  return Object.assign(createElement("li", {}, button), { address });
}

async function toggleExample(picker, address, title) {
  const chosen = findChosen(picker, address);
  if (chosen) {
    if (picker.isMixing && picker.pictures.length > 1) picker.removePicture(chosen);
    return;
  }
  const choice = picker.pendingChoice = {};
  try {
    const picture = await Picture.fromAddress(address, title);
    // While it loads, the user may have chosen another picture, or this one twice.
    const isLatest = picker.pendingChoice === choice;
    if (picker.isMixing ? !findChosen(picker, address) : isLatest) picker.setPictures([picture]);
  } catch (error) { picker.showError(error.message); }
}
