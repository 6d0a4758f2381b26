// A chart of a run's losses: logarithmic, each on its own scale.

import { setVisible } from "./dom.js";
import { tabStorage } from "./storage.js";

const WIDTH = 300, HEIGHT = 80;  // the viewBox
const STORAGE_NAME = "impasto losses";  // of the last job in this tab, to survive a reload

export class LossChart {
  constructor(root) {
    Object.assign(this, { root, points: [] });
    addEventListener("pagehide", () =>
      tabStorage.set(STORAGE_NAME, JSON.stringify({ id: this.id, points: this.points })));
  }

  // Starts the chart of a job, with the points that an earlier load of the page has stored.
  open(id) {
    const stored = JSON.parse(tabStorage.get(STORAGE_NAME));
    Object.assign(this, { id, points: stored?.id === id ? stored.points : [] });
    this.render();
  }

  addPoint({ iteration, iterations, loss: { content, style } }) {
    if (iteration < this.points.at(-1)?.iteration) this.points = [];  // another attempt has started
    if (iteration === this.points.at(-1)?.iteration) return;
    this.points.push({ iteration, iterations, content, style });
    this.render();
  }

  render() {
    setVisible(this.root, this.points.length > 1);
    for (const line of this.root.querySelectorAll("polyline")) {
      const logs = this.points.map((point) => Math.log(point[line.id] || 1));
      const low = Math.min(...logs), span = Math.max(...logs) - low || 1;
      line.setAttribute("points", this.points.map(({ iteration, iterations }, i) => {
        const x = WIDTH * iteration / iterations;
        const y = HEIGHT * (0.95 - 0.9 * (logs[i] - low) / span);
        return `${x},${y}`;
      }).join(" "));
    }
  }
}
