// A well: a place on the page for the photo, or for paintings. It takes files, and tells of every change.
// It knows pictures; it does not know how they got here (intake.js), nor what is done with them.

import { Picture } from "./picture.js";
import { make, say, show } from "./element.js";

export class Well extends EventTarget {
  constructor(root, { noun, most = 1 }) {
    super();
    Object.assign(this, { root, noun, most, pictures: [] });
    this.list = root.querySelector(".chosen");
    this.words = root.querySelector(".words");
    for (const input of root.querySelectorAll("input[type=file]")) {
      input.addEventListener("change", () => { this.take([...input.files]); input.value = ""; });
    }
    for (const button of root.querySelectorAll("[data-opens]")) {
      button.addEventListener("click", () => root.querySelector(`input.${button.dataset.opens}`).click());
    }
    this.draw();
  }

  get ready() { return this.pictures.length > 0; }

  take(files) {
    const given = files.slice(0, this.most).map((file) => new Picture(file, file.name));
    if (given.length) this.put(given);
  }

  // In place of what is there, or beside it where several are mixed.
  put(pictures, { beside = this.mixing } = {}) {
    this.pictures = (beside ? [...this.pictures, ...pictures] : pictures).slice(0, this.most);
    this.refuse("");
    this.changed();
    for (const picture of pictures) this.#send(picture);
  }

  remove(picture) {
    this.pictures = this.pictures.filter((other) => other !== picture);
    this.changed();
  }

  changed() {
    this.draw();
    this.dispatchEvent(new Event("change"));
  }

  // A picture that the service refuses leaves again, and the reason stays.
  async #send(picture) {
    try {
      await picture.send();
      if (this.pictures.includes(picture)) {
        this.draw();
        this.dispatchEvent(new Event("sent"));
        say(`${this.noun}: ${picture.name} is ready.`);
      }
    } catch (error) {
      if (error.code === "unreachable" || !this.pictures.includes(picture)) return;
      this.remove(picture);
      this.refuse(`${picture.name}: ${error.message}`);
    }
  }

  refuse(words) {
    this.words.textContent = words;
    show(this.words, Boolean(words));
  }

  draw() {
    this.root.classList.toggle("full", this.ready);
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
