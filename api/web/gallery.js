// Pictures of our own to begin with; samples/draw.py drew them and wrote their index.

import { make } from "./dom.js";
import { Picture } from "./picture.js";

export function hang(root, kind, well, all) {
  const frames = all.filter((one) => one.kind === kind).map((one) => frame(one, well));
  root.replaceChildren(...frames);
  well.addEventListener("change", () => {
    for (const item of frames) item.firstChild.setAttribute("aria-pressed", chosen(well, item.address) !== undefined);
  });
}

const chosen = (well, address) => well.pictures.find((picture) => picture.source === address);

function frame({ name, title, words }, well) {
  const address = `/web/gallery/${name}.jpg`;
  const choose = async () => {
    const there = chosen(well, address);
    if (there && well.mixing && well.pictures.length > 1) return well.remove(there);
    if (there) return;
    const turn = well.turn = {};
    try {
      const picture = await Picture.at(address, title);
      if (well.mixing ? !chosen(well, address) : well.turn === turn) well.put([picture]);
    } catch (error) { well.refuse(error.message); }
  };
  const image = make("img", { src: `/web/gallery/${name}-small.jpg`, alt: words, width: 192, height: 144 });
  const item = make("li", {}, make("button", { type: "button", onclick: choose, "aria-pressed": "false" },
    image, make("span", { textContent: title })));
  item.address = address;
  return item;
}
