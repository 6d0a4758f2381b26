// The knobs: four in plain words, the others under their names. Ranges, defaults and sentences are the contract's.

import { make } from "./element.js";

// A slider of brush sizes goes in even factors: it turns a power of two.
const PLAIN = {
  strength: { label: "Strength", ends: ["a hint", "all brushwork"], step: 0.05, words: (value) => `${Math.round(value * 100)} %` },
  style_scale: { label: "Brush", ends: ["fine", "broad"], step: 0.25, power: true, words: (value) => `${Number(value.toFixed(2))}×` },
  size: { label: "Size", sizes: { 256: "tiny", 384: "small", 512: "medium", 768: "large", 1024: "very large", 2048: "huge" } },
  preserve_color: { label: "Colors", names: { none: "the painting’s", luminance: "the photo’s", match: "tuned to the photo", histogram: "tuned shade by shade" } },
};
const ELSEWHERE = ["style_weights", "content", "styles", "masks", "init_image", "from"];  // wells, masks, mixing sliders
const NEEDS_MORE = { init: ["picture"] };  // choices that need what this page does not send

export class Knobs extends EventTarget {
  constructor(plain, more, { knobs, wishes }) {
    super();
    this.controls = {};
    for (const [name, look] of Object.entries(PLAIN)) {
      if (knobs[name]) plain.append(this.#add(name, knobs[name], "spec", look.sizes ? sizes : look.names ? choice : slider, look));
    }
    const rest = (named, group) => Object.entries(named).filter(([name]) => !PLAIN[name] && !ELSEWHERE.includes(name))
      .map(([name, schema]) => this.#add(name, schema, group, named_, {}));
    more.append(...rest(knobs, "spec"), ...rest(wishes, "wishes"));
  }

  #add(name, schema, group, shape, look) {
    const control = shape(name, schema, look);
    this.controls[name] = { ...control, group, preset: schema.default ?? null };
    control.element.addEventListener("input", () => this.dispatchEvent(new Event("change")));
    return control.element;
  }

  // What differs from the defaults: {spec: {…}, …wishes}.
  get chosen() {
    const said = { spec: {} };
    for (const [name, { group, preset, get }] of Object.entries(this.controls)) {
      const value = get();
      if (value !== null && value !== preset) (group === "spec" ? said.spec : said)[name] = value;
    }
    return said;
  }

  // Those that a spec does not name go back to their defaults.
  set(spec = {}) {
    for (const [name, { set, preset }] of Object.entries(this.controls)) set(spec[name] ?? preset);
    this.dispatchEvent(new Event("change"));
  }
}

const labeled = ({ description }, htmlFor, words, ...parts) =>
  make("div", { className: "knob", title: description }, make("label", { htmlFor }, ...words), ...parts);

function slider(name, schema, { label, ends, step, power, words }) {
  const scaled = power ? Math.log2 : Number;
  const meant = power ? (text) => 2 ** Number(text) : Number;
  const input = make("input", { type: "range", id: `knob-${name}`, min: scaled(schema.minimum), max: scaled(schema.maximum), step, value: scaled(schema.default) });
  const told = make("output", { htmlFor: `knob-${name}` });
  const tell = () => { told.textContent = words(meant(input.value)); input.setAttribute("aria-valuetext", told.textContent); };
  input.addEventListener("input", tell);
  tell();
  return {
    get: () => meant(input.value),
    set: (value) => { input.value = scaled(value); tell(); },
    element: labeled(schema, input.id, [label, told], input,
      make("p", { className: "ends", "aria-hidden": "true" }, ...ends.map((end) => make("span", { textContent: end })))),
  };
}

function choice(name, schema, { label, names }) {
  const options = schema.enum.map((value) => make("option", { value, textContent: names[value] ?? value }));
  const select = make("select", { id: `knob-${name}` }, ...options);
  select.value = schema.default;
  return {
    get: () => select.value,
    set: (value) => { select.value = value; },
    element: labeled(schema, select.id, [label], select),
  };
}

function sizes(name, schema, { label, sizes: words }) {
  const fitting = Object.entries(words).filter(([px]) => px >= schema.minimum && px <= schema.maximum);
  const select = make("select", { id: "knob-size" },
    ...fitting.map(([px, word]) => make("option", { value: px, textContent: `${word} · ${px} px` })),
    make("option", { value: "other", textContent: "other …" }));
  const exact = make("input", { type: "number", id: "knob-size-px", min: schema.minimum, max: schema.maximum, value: schema.default, "aria-label": "Size, long side in px" });
  const follow = () => { exact.hidden = select.value !== "other"; };
  select.addEventListener("change", follow);
  const set = (value) => { exact.value = value; select.value = words[value] ? value : "other"; follow(); };
  set(schema.default);
  return {
    set,
    get: () => Number(select.value === "other" ? exact.value : select.value),
    element: labeled(schema, select.id, [label], select, exact),
  };
}

function named_(name, schema) {
  const id = `knob-${name}`, hint = `${id}-hint`;
  const kind = schema.type ?? schema.anyOf?.find((one) => one.type !== "null")?.type;
  const limits = { ...schema, ...schema.anyOf?.[0] };
  const input = make(schema.enum ? "select" : "input", { id, "aria-describedby": hint });
  if (schema.enum) {
    input.append(...schema.enum.filter((value) => !NEEDS_MORE[name]?.includes(value)).map((value) => make("option", { value, textContent: value })));
  } else if (kind === "boolean") input.type = "checkbox";
  else if (kind === "integer" || kind === "number") {
    Object.assign(input, { type: "number", step: kind === "integer" ? 1 : "any", min: limits.minimum ?? 0, max: limits.maximum ?? "" });
  } else Object.assign(input, { type: "text" });
  const set = (value) => {
    if (kind === "boolean") input.checked = Boolean(value);
    else input.value = value && typeof value === "object" ? Object.entries(value).map((pair) => pair.join("=")).join(",") : value ?? "";
  };
  set(schema.default);
  const before = input.value;
  const get = () => {
    if (kind === "boolean") return input.checked;
    if (input.value === before || input.value === "") return schema.default ?? null;
    return kind === "integer" || kind === "number" ? Number(input.value) : input.value;
  };
  const label = make("label", { htmlFor: id }, make("code", { textContent: name }));
  return { get, set, element: make("div", { className: `knob ${kind}` }, label, input, make("p", { id: hint, className: "hint", textContent: schema.description })) };
}
