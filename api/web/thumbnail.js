// The small pictures of samples and presets. One image has all of them, one below the other, so that
// one request loads them. samples/reveal.py makes it and defines its order and sizes.

import { createElement } from "./dom.js";
import { form, gallery } from "./schema.js";

const WIDTH = 112, HEIGHT = 84, MARGIN = 2;
const ROWS = gallery.length + 1 + form.presets.length;  // the standard is before the presets

export function createThumbnail(row, alt = "") {
  const image = createElement("img", {
    src: new URL("gallery/thumbnails.avif", import.meta.url).href,
    alt, width: WIDTH, height: HEIGHT, draggable: false });  // a drag would take the whole image
  const step = HEIGHT + 2 * MARGIN, hidden = ROWS * step - HEIGHT;
  Object.assign(image.style, {
    height: "auto", aspectRatio: "4/3", objectFit: "cover",
    objectPosition: `0 ${100 * (row * step + MARGIN) / hidden}%` });
  return image;
}
