// A place for the photo, or for paintings. Takes pictures and tells of every change; knows not what they are for.

import { Picture } from "./picture.js";
import { make, say, show } from "./element.js";

export class Well extends EventTarget {
  constructor(root, { noun, most = 1 }) {
    super();
    Object.assign(this, { root, noun, most, pictures: [] });
    this.list = make("ul", { className: "chosen" });
    this.words = make("p", { className: "refusal", role: "alert", hidden: true });
    const named = noun.toLowerCase();
    const ways = [this.#way("files", `Choose a ${named}`), this.#way("camera", "Take one", { capture: "environment" })];
    root.querySelector("h2").after(make("div", { className: "mouth" }, this.list,
      make("div", { className: "choose" }, ...ways.flat(), make("p", { className: "or", textContent: "or drop or paste it here" }))), this.words);
    this.draw();
  }

  get ready() { return this.pictures.length > 0; }

  // A button, and the input that it opens.
  #way(kind, words, more = {}) {
    const input = make("input", { type: "file", className: kind, accept: "image/*", multiple: this.most > 1, hidden: true, "aria-label": words, ...more });
    input.addEventListener("change", () => { this.take([...input.files]); input.value = ""; });
    return [make("button", { type: "button", className: kind, textContent: words, onclick: () => input.click() }), input];
  }

  take(files) {
    const given = files.slice(0, this.most).map((file) => new Picture(file, file.name));
    if (given.length) this.put(given);
  }

  // In place of what is there, or beside it where several are mixed.
  put(pictures, { beside = this.mixing } = {}) {
    const before = this.pictures;
    this.pictures = (beside ? [...this.pictures, ...pictures] : pictures).slice(0, this.most);
    this.refuse("");
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
    try {
      await picture.send();
      if (this.pictures.includes(picture)) {
        this.draw();
        this.dispatchEvent(new Event("sent"));
        say(`${this.noun}: ${picture.name} is ready.`);
      }
    } catch (error) {
      if (error.code === "unreachable" || !this.pictures.includes(picture)) return;
      this.pictures = this.pictures.filter((other) => other !== picture);
      if (!this.ready) this.pictures = before;
      this.changed();
      this.refuse(`${picture.name}: ${error.message}`);
    }
  }

  refuse(words) {
    this.words.textContent = words;
    show(this.words, Boolean(words));
  }

  draw() {
    this.root.classList.toggle("full", this.ready);
    const verb = !this.ready ? "Choose a" : this.mixing ? "Add a" : "Another";
    this.root.querySelector("button.files").textContent = `${verb} ${this.noun.toLowerCase()}`;
    this.list.replaceChildren(...this.pictures.map((picture) => this.#card(picture)));
    show(this.list, this.ready);
  }

  #card(picture) {
    const about = [picture.width ? `${picture.width} × ${picture.height}` : "", picture.note].filter(Boolean).join(", ");
    return make("li", { className: picture.digest ? "" : "sending" },
      make("img", { src: picture.url, alt: `${this.noun}: ${picture.name}` }),
      make("p", {}, make("span", { className: "name", textContent: picture.name }),
        make("span", { className: "about", textContent: picture.digest ? about : "Sending…" })),
      make("button", { type: "button", className: "quiet remove", "aria-label": `Take ${picture.name} away`, textContent: "✕",
        onclick: () => { this.remove(picture); this.root.querySelector("button").focus(); } }));
  }
}
