// The form of the parameters: four with labels of their own, the others under their API names.
// Ranges, defaults and descriptions come from the OpenAPI document.

import { createElement, formatDuration, setValueText, setVisible } from "./dom.js";
import { canonicalize, getDefault } from "./schema.js";

// isPower: the slider's value is the logarithm to base 2, so that its steps are equal factors.
const MAIN_PARAMETERS = {
  strength: { label: "Strength", step: 0.05, format: (value) => `${Math.round(value * 100)} %` },
  style_scale: {
    label: "Brush", step: 0.25, isPower: true, format: (value) => `${Number(value.toFixed(2))}×`,
  },
  size: {
    label: "Size",
    sizes: {
      256: "tiny", 384: "small", 512: "medium", 768: "large", 1024: "very large", 2048: "huge",
    },
  },
  preserve_color: {
    label: "Colors",
    names: {
      none: "the painting’s", luminance: "the photo’s", match: "matched to the photo",
      histogram: "matched by histogram",
    },
  },
};
// Other parts of the page set these: the pickers, the masks, the weights, the presets.
const EXCLUDED = [
  "style_weights", "content", "styles", "masks", "style_masks", "init_image", "from", "preset",
];
const UNSUPPORTED_VALUES = { init: ["picture"] };  // it needs an image that this form cannot send

export class ParameterForm extends EventTarget {
  // main, more: the elements for the four parameters, and for the others.
  constructor(main, more, { parameters, options }) {
    super();
    this.controls = {};
    for (const [name, appearance] of Object.entries(MAIN_PARAMETERS)) {
      let create = createSlider;
      if (appearance.sizes) create = createSizeSelect;
      else if (appearance.names) create = createSelect;
      main.append(this.#addControl(name, parameters[name], "spec", create, appearance));
    }
    for (const [group, schemas] of [["spec", parameters], ["options", options]]) {
      for (const [name, schema] of Object.entries(schemas)) {
        if (MAIN_PARAMETERS[name] || EXCLUDED.includes(name)) continue;
        more.append(this.#addControl(name, schema, group, createInput, {}));
      }
    }
    for (const control of Object.values(this.controls)) control.set(control.value);
    // Another objective has other defaults; what the user chose stays.
    let { value: objective } = this.controls.objective;
    this.controls.objective.element.addEventListener("input", () => {
      const unchanged = Object.values(this.controls).filter(
        ({ schema, value }) => canonicalize(value) === canonicalize(getDefault(schema, objective)));
      objective = this.controls.objective.value;
      for (const control of unchanged) {
        if (control !== this.controls.objective) this.#setValue(control, null);
      }
      this.notifyChange();
    });
    const details = more.closest("details");
    // Open the details for a value that is out of range: the browser cannot show it while closed.
    more.addEventListener("invalid", () => { details.open = true; }, true);
  }

  // A control keeps the value that it was given, to the last digit, until the user changes it: a
  // slider may have no such position.
  #addControl(name, schema, group, create, appearance) {
    const value = getDefault(schema);
    const control = { ...create(name, schema, appearance), group, schema, value };
    this.controls[name] = control;
    control.element.addEventListener("input", () => {
      control.value = control.get() ?? this.#getDefault(control);
      this.notifyChange();
    });
    return control.element;
  }

  #getDefault({ schema }) { return getDefault(schema, this.controls.objective.value); }

  #setValue(control, value) {
    control.value = value ?? this.#getDefault(control);
    control.set(control.value);
  }

  notifyChange() { this.dispatchEvent(new Event("change")); }

  // The values that differ from the defaults: {spec: {…}, …options}.
  get changes() {
    const changes = { spec: {} };
    for (const [name, control] of Object.entries(this.controls)) {
      if (canonicalize(control.value) === canonicalize(this.#getDefault(control))) continue;
      (control.group === "spec" ? changes.spec : changes)[name] = control.value;
    }
    return changes;
  }

  // Sets the parameters of a spec; those that it does not name get their defaults.
  setSpec(spec) {
    const { objective } = this.controls;
    this.#setValue(objective, spec.objective ?? getDefault(objective.schema));
    for (const [name, control] of Object.entries(this.controls)) {
      if (control.group === "spec") this.#setValue(control, spec[name]);
    }
    this.notifyChange();
  }

  // Shows one button per preset; the one that equals the current parameters is pressed.
  showPresets(root, presets) {
    const all = [{ name: "standard", description: "The defaults.", spec: {} }, ...presets];
    const hint = createElement("p", { className: "hint" });
    const buttons = all.map(({ name, spec, description }) => createElement("button", {
      type: "button", textContent: name[0].toUpperCase() + name.slice(1).replaceAll("-", " "),
      title: description, onclick: () => this.setSpec(spec) }));
    const update = () => {
      const current = canonicalize(this.changes.spec);
      const active = all.find(({ spec }) => canonicalize(spec) === current);
      buttons.forEach((button, i) => button.setAttribute("aria-pressed", all[i] === active));
      hint.textContent = active?.description ?? "Custom parameters.";
    };
    root.replaceChildren(createElement("div", { className: "row" }, ...buttons), hint);
    this.addEventListener("change", update);
    update();
    setVisible(root, true);
  }

  // Shows the operator's limits on one job, and lets the fields keep them.
  showLimits(root, { max_size: size, max_iterations: iterations, max_job_seconds: seconds }) {
    const { size: sizeControl, iterations: iterationsControl } = this.controls;
    for (const option of sizeControl.element.querySelectorAll("option")) {
      if (Number(option.value) > size) option.remove();
    }
    sizeControl.element.querySelector("input").max = size;
    iterationsControl.element.querySelector("input").max = iterations;
    const duration = seconds ? `, ${formatDuration(seconds)}` : "";
    root.textContent =
      `At most: ${size} px, ${iterations} iterations at one scale${duration}.`;
    setVisible(root, true);
  }
}

// Each create function below returns {element, get(), set(value)}; get returns null for no value.

const wrapWithLabel = ({ description }, htmlFor, label, ...children) =>
  createElement("div", { className: "parameter", title: description },
    createElement("label", { htmlFor }, ...label), ...children);

const createOption = ([value, textContent]) => createElement("option", { value, textContent });

const createSelectElement = (id, options) =>
  createElement("select", { id }, ...options.map(createOption));

function createSlider(name, schema, { label, step, isPower, format }) {
  const toPosition = isPower ? Math.log2 : Number;
  const [min, max] = [schema.minimum, schema.maximum].map(toPosition);
  const input = createElement("input", { type: "range", id: `parameter-${name}`, min, max, step });
  const get = () => (isPower ? 2 ** input.value : Number(input.value));
  const set = (value) => {
    input.value = toPosition(value);
    setValueText(input, format(value));
  };
  input.addEventListener("input", () => setValueText(input, format(get())));
  const output = createElement("output", { htmlFor: input.id });
  return { get, set, element: wrapWithLabel(schema, input.id, [label, output], input) };
}

function createSelect(name, schema, { label, names }) {
  const options = schema.enum.map((value) => [value, names[value] ?? value]);
  const select = createSelectElement(`parameter-${name}`, options);
  const set = (value) => { select.value = value; };
  const element = wrapWithLabel(schema, select.id, [label], select);
  return { set, get: () => select.value, element };
}

// A select with usual sizes, and a number field for any other.
function createSizeSelect(name, schema, { label, sizes }) {
  const { minimum: min, maximum: max } = schema;
  const options = Object.entries(sizes).filter(([px]) => px >= min && px <= max)
    .map(([px, size]) => [px, `${size} · ${px} px`]);
  const select = createSelectElement("parameter-size", [...options, ["other", "other …"]]);
  const number = createElement("input", {
    type: "number", id: "parameter-size-px", required: true, min, max,
    "aria-label": "Size, long side in px" });
  // A disabled field is not validated, so it cannot block the form while it is hidden.
  const update = () => { number.hidden = number.disabled = select.value !== "other"; };
  select.addEventListener("change", update);
  return {
    set: (value) => {
      number.value = value;
      select.value = sizes[value] ? value : "other";
      update();
    },
    get: () => Number(select.value === "other" ? number.value : select.value),
    element: wrapWithLabel(schema, select.id, [label], select, number),
  };
}

// A checkbox, select or field for any other parameter, with its description.
function createInput(name, schema) {
  const id = `parameter-${name}`, hintId = `${id}-hint`;
  const limits = { ...schema, ...schema.anyOf?.[0] };  // anyOf: the type, or null
  const isBoolean = limits.type === "boolean", isInteger = limits.type === "integer";
  const isNumber = isInteger || limits.type === "number";
  const options = schema.enum?.filter((value) => !UNSUPPORTED_VALUES[name]?.includes(value))
    .map((value) => [value, value]);
  let input = null;
  if (options) input = createSelectElement(id, options);
  else if (isBoolean) input = createElement("input", { id, type: "checkbox" });
  else input = createElement("input", { id, type: isNumber ? "number" : "text" });
  if (isNumber) {
    Object.assign(input, {
      step: isInteger ? 1 : "any", min: limits.minimum ?? 0, max: limits.maximum ?? "" });
  }
  input.setAttribute("aria-describedby", hintId);
  const set = (value) => {
    if (isBoolean) input.checked = value;
    else input.value = formatValue(value);
    // A value of an earlier job may not be among the options.
    if (options && input.value !== value) {
      input.append(createElement("option", { value, textContent: value, selected: true }));
    }
  };
  const get = () => {
    if (isBoolean) return input.checked;
    if (input.value === "") return null;
    return isNumber ? Number(input.value) : input.value;
  };
  const hint = createElement("p", {
    id: hintId, className: "hint", textContent: schema.description });
  const label = createElement("code", { textContent: name });
  return { get, set, element: wrapWithLabel(schema, id, [label], input, hint) };
}

// An object as name=value pairs, as the API takes it in a form field.
function formatValue(value) {
  if (value === null || typeof value !== "object") return value ?? "";
  return Object.entries(value).map((pair) => pair.join("=")).join(",");
}
