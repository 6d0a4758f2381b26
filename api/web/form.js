// The parameters: four in plain words, the others under their names. Ranges, defaults and sentences are the contract's.

import { make, show, valued } from "./dom.js";

// A slider of brush sizes goes in even factors: it turns a power of two.
const PLAIN = {
  strength: { label: "Strength", step: 0.05, words: (value) => `${Math.round(value * 100)} %` },
  style_scale: { label: "Brush", step: 0.25, power: true, words: (value) => `${Number(value.toFixed(2))}×` },
  size: { label: "Size", sizes: { 256: "tiny", 384: "small", 512: "medium", 768: "large", 1024: "very large", 2048: "huge" } },
  preserve_color: { label: "Colors", names: { none: "the painting’s", luminance: "the photo’s", match: "tuned to the photo", histogram: "tuned shade by shade" } },
};
const ELSEWHERE = ["style_weights", "content", "styles", "masks", "init_image", "from", "preset"];  // wells, masks, sliders, presets
const NEEDS_MORE = { init: ["picture"] };  // what this page does not send by itself

// The same for values that are the same.
const text = (value) => (value?.constructor === Object
  ? `{${Object.keys(value).sort().map((name) => `${name}:${text(value[name])}`)}}` : JSON.stringify(value));

export class Parameters extends EventTarget {
  constructor(plain, more, { parameters, wishes }) {
    super();
    this.controls = {};
    for (const [name, look] of Object.entries(PLAIN)) {
      plain.append(this.#add(name, parameters[name], "spec", look.sizes ? sizes : look.names ? choice : slider, look));
    }
    const rest = (named, group) => Object.entries(named).filter(([name]) => !PLAIN[name] && !ELSEWHERE.includes(name))
      .map(([name, schema]) => this.#add(name, schema, group, named_, {}));
    more.append(...rest(parameters, "spec"), ...rest(wishes, "wishes"));
    for (const { set, preset } of Object.values(this.controls)) set(preset);
    const drawer = more.closest("details");
    more.addEventListener("invalid", () => { drawer.open = true; }, true);  // else nobody could see what is wrong
  }

  // A parameter has the value that it was given, to the last digit, until somebody turns it.
  #add(name, schema, group, shape, look) {
    const preset = schema.default ?? null, control = { ...shape(name, schema, look), group, preset, value: preset };
    this.controls[name] = control;
    control.element.addEventListener("input", () => { control.value = control.get() ?? preset; this.changed(); });
    return control.element;
  }

  changed() { this.dispatchEvent(new Event("change")); }

  // What differs from the defaults: {spec: {…}, …wishes}.
  get chosen() {
    const said = { spec: {} };
    for (const [name, { group, preset, value }] of Object.entries(this.controls)) {
      if (text(value) !== text(preset)) (group === "spec" ? said.spec : said)[name] = value;
    }
    return said;
  }

  // Those that a spec does not name go back to their defaults.
  set(spec) {
    for (const [name, control] of Object.entries(this.controls)) {
      if (control.group === "spec") control.set(control.value = spec[name] ?? control.preset);
    }
    this.changed();
  }

  // A row of buttons, one for each preset; pressed is the one that the parameters agree with.
  offer(root, presets) {
    const all = [{ name: "standard", description: "Neither too little nor too much.", spec: {} }, ...presets];
    const hint = make("p", { className: "hint" });
    const buttons = all.map(({ name, spec, description }) => make("button", {
      type: "button", textContent: name[0].toUpperCase() + name.slice(1).replaceAll("-", " "), title: description, onclick: () => this.set(spec) }));
    const mark = () => {
      const now = all.find(({ spec }) => text(spec) === text(this.chosen.spec));
      buttons.forEach((button, i) => button.setAttribute("aria-pressed", all[i] === now));
      hint.textContent = now?.description ?? "Parameters of your own.";
    };
    root.replaceChildren(make("div", { className: "row" }, ...buttons), hint);
    this.addEventListener("change", mark);
    mark();
    show(root, true);
  }
}

const labeled = ({ description }, htmlFor, words, ...parts) =>
  make("div", { className: "parameter", title: description }, make("label", { htmlFor }, ...words), ...parts);

function slider(name, schema, { label, step, power, words }) {
  const scaled = power ? Math.log2 : Number;
  const input = make("input", { type: "range", id: `parameter-${name}`, min: scaled(schema.minimum), max: scaled(schema.maximum), step });
  const get = () => (power ? 2 ** input.value : Number(input.value));
  input.addEventListener("input", () => valued(input, words(get())));
  return {
    get,
    set: (value) => { input.value = scaled(value); valued(input, words(value)); },
    element: labeled(schema, input.id, [label, make("output", { htmlFor: input.id })], input),
  };
}

const picker = (id, options) => make("select", { id }, ...Object.entries(options).map(([value, textContent]) => make("option", { value, textContent })));

function choice(name, schema, { label, names }) {
  const select = picker(`parameter-${name}`, Object.fromEntries(schema.enum.map((value) => [value, names[value] ?? value])));
  const set = (value) => { select.value = value; };
  return { set, get: () => select.value, element: labeled(schema, select.id, [label], select) };
}

function sizes(name, schema, { label, sizes: words }) {
  const fitting = Object.entries(words).filter(([px]) => px >= schema.minimum && px <= schema.maximum);
  const select = picker("parameter-size", Object.fromEntries([...fitting.map(([px, word]) => [px, `${word} · ${px} px`]), ["other", "other …"]]));
  const exact = make("input", { type: "number", id: "parameter-size-px", required: true, min: schema.minimum, max: schema.maximum, "aria-label": "Size, long side in px" });
  const follow = () => { exact.hidden = exact.disabled = select.value !== "other"; };  // it bars no submission
  select.addEventListener("change", follow);
  return {
    set: (value) => { exact.value = value; select.value = words[value] ? value : "other"; follow(); },
    get: () => Number(select.value === "other" ? exact.value : select.value),
    element: labeled(schema, select.id, [label], select, exact),
  };
}

function named_(name, schema) {
  const id = `parameter-${name}`, hint = `${id}-hint`;
  const limits = { ...schema, ...schema.anyOf?.[0] }, kind = limits.type, isNumber = ["integer", "number"].includes(kind);
  const options = schema.enum?.filter((value) => !NEEDS_MORE[name]?.includes(value)).map((value) => [value, value]);
  const input = options ? picker(id, Object.fromEntries(options)) : make("input", { id, type: kind === "boolean" ? "checkbox" : isNumber ? "number" : "text" });
  if (isNumber) Object.assign(input, { step: kind === "integer" ? 1 : "any", min: limits.minimum ?? 0, max: limits.maximum ?? "" });
  input.setAttribute("aria-describedby", hint);
  const set = (value) => {
    if (kind === "boolean") input.checked = value;
    else input.value = value && typeof value === "object" ? Object.entries(value).map((pair) => pair.join("=")).join(",") : value ?? "";
    if (options && input.value !== value) input.append(make("option", { value, textContent: value, selected: true }));  // an earlier job's
  };
  const get = () => {
    if (kind === "boolean") return input.checked;
    return input.value === "" ? null : isNumber ? Number(input.value) : input.value;
  };
  const words = make("p", { id: hint, className: "hint", textContent: schema.description });
  return { get, set, element: labeled(schema, id, [make("code", { textContent: name })], input, words) };
}
