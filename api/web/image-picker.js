// A place for the photo, or for paintings. Takes pictures and tells of every change; knows not what they are for.

import { Picture } from "./picture.js";
import { complain, make, say, show, shown } from "./dom.js";
import { persist } from "./retry.js";

export class Well extends EventTarget {
  constructor(root, { noun, most = 1 }) {
    super();
    Object.assign(this, { root, noun, most, mixing: false, pictures: [], cards: new WeakMap() });
    this.list = make("ul", { className: "chosen" });
    this.words = make("p", { className: "refusal", role: "alert", hidden: true });
    const ways = [this.#way("files", { multiple: most > 1 }), this.#way("camera", { capture: "environment" })].flat();
    this.button = ways[0];
    root.querySelector("h2").after(make("div", { className: "mouth" }, this.list,
      make("div", { className: "choose" }, ...ways, make("p", { className: "or", textContent: "or drop or paste it here" }))), this.words);
    this.draw();
  }

  // A button, and what it opens. A camera is offered where there are fingers.
  #way(className, how) {
    const input = make("input", { type: "file", className, accept: "image/*", hidden: true, ...how });
    input.addEventListener("change", () => { this.take([...input.files]); input.value = ""; });
    return [make("button", { type: "button", className, textContent: "Camera", onclick: () => input.click() }), input];
  }

  get ready() { return this.pictures.length > 0; }

  take(files) {
    if (files.length) this.put(files.map((file) => new Picture(file, file.name)));
  }

  // In place of what is there, or beside it where several are mixed. Several at once are mixed.
  put(pictures, { beside = this.mixing } = {}) {
    const before = this.pictures;
    const all = beside ? [...before, ...pictures] : pictures;
    this.pictures = all.slice(0, this.most);
    this.mixing ||= this.pictures.length > 1;
    this.turn = null;
    this.refuse(all.length > this.most ? `No more than ${this.most}: the rest was left out.` : "");
    this.changed();
    for (const picture of pictures) this.#send(picture, before);
  }

  remove(picture) {
    this.pictures = this.pictures.filter((other) => other !== picture);
    this.changed();
  }

  changed() {
    this.draw();
    this.dispatchEvent(new Event("change"));
  }

  // A picture that the service refuses makes way for what was there before, and the reason stays.
  async #send(picture, before) {
    const here = () => this.pictures.includes(picture);
    const tell = (words) => { picture.trouble = words; this.draw(); };
    try {
      await persist(() => here() && picture.send(), { troubled: tell });
      if (!here()) return;
      this.draw();
      this.dispatchEvent(new Event("sent"));
      say(`${this.noun}: ${picture.name} is ready.`);
    } catch (error) {
      if (!here()) return;
      this.pictures = this.pictures.filter((other) => other !== picture);
      if (!this.ready) this.pictures = before;
      this.changed();
      this.refuse(`${picture.name}: ${error.message}`);
    }
  }

  refuse(words) { complain(this.words, words); }

  // A card that is there already stays, and whoever stands on it.
  draw() {
    this.root.classList.toggle("full", this.ready);
    const verb = !this.ready ? "Choose a" : this.mixing ? "Add a" : "Another";
    this.button.textContent = `${verb} ${this.noun.toLowerCase()}`;
    const cards = this.pictures.map((picture) => this.#card(picture)), there = [...this.list.children];
    for (const card of there) if (!cards.includes(card)) card.remove();
    for (const card of cards) if (!there.includes(card)) this.list.append(card);
    show(this.list, this.ready);
  }

  #card(picture) {
    const { digest, width, height, name, trouble } = picture;
    const card = this.cards.get(picture) ?? make("li", {}, shown(picture.file, `${this.noun}: ${name}`),
      make("p", {}, make("span", { className: "name", textContent: name }), make("span", { className: "about" })),
      make("button", { type: "button", className: "quiet remove", "aria-label": `Take ${name} away`, textContent: "✕",
        onclick: () => { this.remove(picture); this.button.focus(); } }));
    this.cards.set(picture, card);
    card.className = digest ? "" : "sending";
    card.querySelector(".about").textContent = digest ? `${width} × ${height}` : trouble || "Sending…";
    return card;
  }
}
