// Small bar charts of the operator's page, as SVG: two series per hour, drawn over each other.

import { language } from "./text.js";

const WIDTH = 420, HEIGHT = 100, TOP = 14, BOTTOM = 14;

function createSvg(tag, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

// hours: those of the service. series: [[class, hour => number or null], …], the higher one first.
// format: of a number. label: for screen readers.
export function drawBars(svg, hours, series, format, label) {
  const highest = Math.max(0, ...hours.flatMap((hour) => series.map(([, get]) => get(hour) ?? 0)));
  const step = WIDTH / hours.length, scale = (HEIGHT - TOP - BOTTOM) / (highest || 1);
  const bars = hours.flatMap((hour, index) => series.map(([name, get]) => {
    const value = get(hour) ?? 0, height = value && Math.max(1, value * scale);
    const bar = createSvg("rect", {
      class: `bar-${name}`, x: index * step + 1, y: HEIGHT - BOTTOM - height,
      width: Math.max(1, step - 2), height,
    });
    const time = formatHour(hour.start);
    bar.append(createSvg("title", {}, `${time}: ${format(value)}`));
    return bar;
  }));
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("aria-label", label);
  const y = HEIGHT - BOTTOM;
  svg.replaceChildren(
    createSvg("line", { class: "axis", x1: 0, x2: WIDTH, y1: y, y2: y }), ...bars,
    createSvg("text", { x: 2, y: 10 }, highest ? format(highest) : ""),
    createSvg("text", { x: 2, y: HEIGHT - 3 }, formatHour(hours[0].start)),
    createSvg("text", { x: WIDTH - 2, y: HEIGHT - 3, "text-anchor": "end" }, formatHour(hours.at(-1).start)));
}

const formatHour = (start) =>
  new Date(start).toLocaleTimeString(language, { hour: "2-digit", minute: "2-digit" });
