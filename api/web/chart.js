// The losses of a run, logarithmic: how far the picture is from photo and painting.

import { drawn, make, show } from "./element.js";

const WIDE = 300, HIGH = 80;

export class Chart {
  constructor(root) { Object.assign(this, { root, points: [] }); }

  clear() { this.points = []; this.draw(); }

  add(progress) {
    const { iteration, loss } = progress;
    const last = this.points.at(-1);
    if (last && iteration < last.iteration) this.points = [];  // another attempt
    if (!last || iteration > last.iteration) { this.points.push({ iteration, ...loss }); this.draw(progress.iterations); }
  }

  draw(iterations = 1) {
    show(this.root, this.points.length > 1);
    if (this.points.length < 2) return;
    const logs = this.points.flatMap(({ content, style }) => [content, style]).filter((loss) => loss > 0).map(Math.log);
    const low = Math.min(...logs), high = Math.max(...logs, low + 0.1);
    const line = (name) => this.points.filter((point) => point[name] > 0).map((point) =>
      `${(WIDE * point.iteration / iterations).toFixed(1)},${(HIGH - 4 - (HIGH - 8) * (Math.log(point[name]) - low) / (high - low)).toFixed(1)}`).join(" ");
    const last = this.points.at(-1);
    const lines = ["content", "style"].map((name) => drawn("polyline", { class: name, points: line(name) }));
    const words = `Distance from the photo ${last.content.toPrecision(2)}, from the painting ${last.style.toPrecision(2)}`;
    this.root.replaceChildren(
      drawn("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none", role: "img", "aria-label": words }, ...lines),
      make("p", { className: "legend" }, ...[["content", "from the photo"], ["style", "from the painting"]].map(([name, text]) =>
        make("span", { className: name }, `${text} `, make("b", { textContent: last[name].toPrecision(2) })))));
  }
}
