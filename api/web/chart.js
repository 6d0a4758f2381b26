// The losses of a run, logarithmic, each on a scale of its own: how far the picture is from photo and painting.

import { show } from "./dom.js";
import { tab } from "./storage.js";

const WIDE = 300, HIGH = 80;
const SLOT = "impasto losses";  // of the last job that this tab has seen, for a reload

export class Chart {
  constructor(root) {
    Object.assign(this, { root, points: [] });
    addEventListener("pagehide", () => tab.set(SLOT, JSON.stringify({ id: this.id, points: this.points })));
  }

  of(id) {
    const kept = JSON.parse(tab.get(SLOT));
    Object.assign(this, { id, points: kept?.id === id ? kept.points : [] });
    this.draw();
  }

  add({ iteration, iterations, loss: { content, style } }) {
    if (iteration < this.points.at(-1)?.iteration) this.points = [];  // another attempt
    if (iteration === this.points.at(-1)?.iteration) return;
    this.points.push({ iteration, iterations, content, style });
    this.draw();
  }

  draw() {
    show(this.root, this.points.length > 1);
    for (const line of this.root.querySelectorAll("polyline")) {
      const logs = this.points.map((point) => Math.log(point[line.id] || 1)), low = Math.min(...logs), span = Math.max(...logs) - low || 1;
      line.setAttribute("points", this.points.map(({ iteration, iterations }, i) =>
        `${WIDE * iteration / iterations},${HIGH * (0.95 - 0.9 * (logs[i] - low) / span)}`).join(" "));
    }
  }
}
