// Pictures of our own to begin with; samples/draw.py drew them and wrote their index.

import { make } from "./element.js";
import { Picture } from "./picture.js";
import { read } from "./service.js";

export async function hang(root, kind, well) {
  const all = await read("/web/gallery/index.json", { cache: "default" });
  const frames = all.filter((one) => one.kind === kind).map((one) => frame(one, well));
  root.replaceChildren(...frames);
  const mark = () => frames.forEach((item) => {
    const chosen = well.pictures.some((picture) => picture.source === item.address);
    item.firstChild.setAttribute("aria-pressed", chosen);
  });
  well.addEventListener("change", mark);
}

function frame({ name, title, words }, well) {
  const address = `/web/gallery/${name}.jpg`;
  const choose = async () => {
    const there = well.pictures.find((picture) => picture.source === address);
    if (there && well.mixing && well.pictures.length > 1) return well.remove(there);
    if (!there) {
      try { well.put([await Picture.at(address, title)]); } catch (error) { well.refuse(error.message); }
    }
  };
  const image = make("img", { src: `/web/gallery/${name}-small.jpg`, alt: words, width: 192, height: 144 });
  const item = make("li", {}, make("button", { type: "button", onclick: choose, "aria-pressed": "false" },
    image, make("span", { textContent: title })));
  item.address = address;
  return item;
}
