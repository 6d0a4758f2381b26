// A chart of a run's losses: logarithmic, each on its own scale, with one line per size of the
// picture, because a loss begins anew with each size.

import { byId, setVisible } from "./dom.js";
import { tabStorage } from "./storage.js";

const WIDTH = 300, HEIGHT = 80;  // the viewBox
const STORAGE_NAME = "impasto losses";  // of the last job in this tab, to survive a reload

export class LossChart {
  constructor() {
    this.points = [];
    this.lines = { content: byId("content"), style: byId("style-loss") };
    addEventListener("pagehide", () =>
      tabStorage.set(STORAGE_NAME, JSON.stringify({ id: this.id, points: this.points })));
  }

  // Starts the chart of a job, with the points that an earlier load of the page has stored.
  open(id) {
    const stored = JSON.parse(tabStorage.get(STORAGE_NAME));
    Object.assign(this, { id, points: stored?.id === id ? stored.points : [] });
    this.render();
  }

  addPoint({ iteration, iterations, scale, loss: { content, style } }) {
    if (iteration < this.points.at(-1)?.iteration) this.points = [];  // another attempt has started
    if (iteration === this.points.at(-1)?.iteration) return;
    this.points.push({ iteration, iterations, scale, content, style });
    this.render();
  }

  render() {
    const { points } = this;
    setVisible("chart", points.length > 1);
    for (const [name, line] of Object.entries(this.lines)) {
      const logs = points.map((point) => Math.log(point[name] || 1));
      const low = Math.min(...logs), span = Math.max(...logs) - low || 1;
      line.setAttribute("d", points.map(({ iteration, iterations, scale }, i) => {
        const x = WIDTH * iteration / iterations;
        const y = HEIGHT * (0.95 - 0.9 * (logs[i] - low) / span);
        return `${scale === points[i - 1]?.scale ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
      }).join(""));
    }
  }
}
