// The form of the parameters: the main ones in front, the others in groups. Ranges, defaults and
// descriptions come from the service; labels and names of values from the dictionary.

import { byId, createElement, listen, makeRoving, setValueText, setVisible } from "./dom.js";
import { canonicalize, form, gallery, getDefault } from "./schema.js";
import { formatDuration, formatNumber, formatPercent, t, tOr } from "./text.js";
import { createThumbnail } from "./thumbnail.js";

// isPower: the slider's value is the logarithm to base 2, so that its steps are equal factors.
const MAIN_PARAMETERS = {
  strength: { step: 0.05, format: formatPercent },
  style_scale: { step: 0.25, isPower: true, format: (value) => `${formatNumber(value, 2)}×` },
  preserve_color: {},
  quality: {},
  size: {},
};
const SIZES = [256, 384, 512, 768, 1024, 2048];
// In this order; what is in no other group is in the last.
const GROUPS = {
  areas: ["regions", "style_frame", "seamless", "transparency", "background"],
  balance: ["content_weight", "style_weight", "tv_weight"],
  start: ["init", "seed", "iterations", "scales", "optimizer"],
  network: ["objective", "model", "pooling", "content_layers", "style_layers"],
  job: [],
};
const ELSEWHERE = ["style_weights"];  // another part of the page sets it
const UNSUPPORTED = "picture";  // a value of init that needs an image, which this form cannot send

export const labelOf = (name) => tOr(`parameter.${name}`, name);

// The value of a parameter in words, as its control shows it.
export const describeValue = (name, value) => {
  if (name === "style_weights") return value.map(formatPercent).join(" + ");
  const format = MAIN_PARAMETERS[name]?.format;
  return format ? format(value) : String(nameValue(name, formatValue(value)));
};

export const nameValue = (name, value) => tOr(`value.${name}.${value}`, value);

export class ParameterForm extends EventTarget {
  constructor() {
    super();
    const { parameters, options } = form, more = byId("more-parameters");
    this.controls = {};
    for (const [name, appearance] of Object.entries(MAIN_PARAMETERS)) {
      let create = createSlider;
      if (name === "size") create = createSizeSelect;
      else if (parameters[name].enum) create = createSelect;
      byId("main-parameters").append(this.#addControl(name, create, appearance));
    }
    const placed = [...Object.keys(MAIN_PARAMETERS), ...ELSEWHERE, ...Object.values(GROUPS).flat()];
    const others = Object.keys({ ...parameters, ...options }).filter((name) => !placed.includes(name));
    for (const [group, known] of Object.entries({ ...GROUPS, job: others })) {
      const names = known.filter((name) => parameters[name] ?? options[name]);
      more.append(createElement("details", { id: `group-${group}` },
        createElement("summary", { textContent: t(`group.${group}`) }),
        createElement("div", { className: "fields" },
          ...names.map((name) => this.#addControl(name, createInput)))));
    }
    for (const control of Object.values(this.controls)) control.set(control.value);
    // Another objective has other defaults; what the user chose stays.
    let { value: objective } = this.controls.objective;
    listen(this.controls.objective.element, "input", () => {
      const unchanged = Object.values(this.controls).filter(
        ({ schema, value }) => canonicalize(value) === canonicalize(getDefault(schema, objective)));
      objective = this.controls.objective.value;
      for (const control of unchanged) {
        if (control !== this.controls.objective) this.#setValue(control, null);
      }
      this.notifyChange();
    });
    this.#showPresets();
    this.#showLimits();
    // Open the group of a value that is out of range: the browser cannot show it while closed.
    listen(more, "invalid", ({ target }) => { target.closest("details").open = true; }, true);
  }

  // A control keeps the value that it was given, to the last digit, until the user changes it: a
  // slider may have no such position.
  #addControl(name, create, appearance) {
    const group = form.parameters[name] ? "spec" : "options";
    const schema = form.parameters[name] ?? form.options[name], value = getDefault(schema);
    const control = { ...create(name, schema, appearance), group, schema, value };
    this.controls[name] = control;
    listen(control.element, "input", () => {
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
    this.#setGroup("spec", spec);
    this.notifyChange();
  }

  setOptions(options) { this.#setGroup("options", options); }

  #setGroup(group, values) {
    for (const [name, control] of Object.entries(this.controls)) {
      if (control.group === group) this.#setValue(control, values[name]);
    }
  }

  focus(name) {
    const field = this.controls[name]?.element.querySelector("input, select");
    field?.closest("details")?.setAttribute("open", "");
    field?.focus();
    field?.scrollIntoView({ block: "center" });  // not under the bar
  }

  get hasRegions() { return this.controls.regions.value === "auto"; }

  toggleRegions() {
    this.#setValue(this.controls.regions, this.hasRegions ? null : "auto");
    this.notifyChange();
  }

  // Shows one button per preset; the one that equals the current parameters is pressed.
  #showPresets() {
    const all = [{ name: "standard", description: "", spec: {} }, ...form.presets];
    const root = byId("presets"), hint = createElement("p", { className: "hint" });
    const describe = ({ name, description }) => tOr(`preset.${name}.hint`, description);
    const buttons = all.map((preset, i) => createElement("button", {
      type: "button", title: describe(preset), onclick: () => this.setSpec(preset.spec) },
    createElement("span", { className: "thumb" }, createThumbnail(gallery.length + i)),
    tOr(`preset.${preset.name}`, preset.name)));
    const update = () => {
      const current = canonicalize(this.changes.spec);
      const active = all.find(({ spec }) => canonicalize(spec) === current);
      buttons.forEach((button, i) => { button.ariaPressed = all[i] === active; });
      hint.textContent = active ? describe(active) : t("customSettings");
    };
    const strip = createElement("div", {
      className: "chips", role: "toolbar", ariaLabel: t("presets") }, ...buttons);
    root.replaceChildren(strip, hint);
    makeRoving(strip);
    listen(this, "change", update);
    update();
    setVisible(root, true);
  }

  // Shows the operator's limits on one job. The schemas have those of the single fields; a quality
  // is more iterations. The default stays: the service lowers its iterations.
  #showLimits() {
    const { max_size: size, max_iterations: iterations, max_job_seconds: seconds } = form.limits;
    const root = byId("job-limits"), { element, schema } = this.controls.quality;
    for (const option of element.querySelectorAll("option")) {
      if (option.value === schema.default || schema.iterations[option.value] <= iterations) continue;
      option.disabled = true;
      option.textContent = t("overIterations", { name: option.textContent, iterations });
    }
    root.textContent = seconds
      ? t("limitsWithTime", { size, iterations, duration: formatDuration(seconds) })
      : t("limits", { size, iterations });
    setVisible(root, true);
  }
}

// Each create function below returns {element, get(), set(value)}; get returns null for no value.

const wrapWithLabel = (name, { description }, htmlFor, label, ...children) =>
  createElement("div", {
    className: `parameter ${name}`, title: tOr(`parameter.${name}.hint`, description) },
  createElement("label", { htmlFor }, ...label), ...children);

const createSelectElement = (id, options) => createElement("select", { id },
  ...options.map(([value, textContent]) => createElement("option", { value, textContent })));

function createSlider(name, schema, { step, isPower, format }) {
  const toPosition = isPower ? Math.log2 : Number;
  const [min, max] = [schema.minimum, schema.maximum].map(toPosition);
  const input = createElement("input", { type: "range", id: `parameter-${name}`, min, max, step });
  const get = () => (isPower ? 2 ** input.value : Number(input.value));
  const show = (value) => setValueText(input, format(value));
  const set = (value) => {
    input.value = toPosition(value);
    show(value);
  };
  listen(input, "input", () => show(get()));
  const output = createElement("output", { htmlFor: input.id });
  const element = wrapWithLabel(name, schema, input.id, [labelOf(name), output], input);
  return { get, set, element };
}

function createSelect(name, schema) {
  const options = schema.enum.map((value) => [value, nameValue(name, value)]);
  const select = createSelectElement(`parameter-${name}`, options);
  const set = (value) => { select.value = value; };
  const element = wrapWithLabel(name, schema, select.id, [labelOf(name)], select);
  return { set, get: () => select.value, element };
}

// A select with usual sizes and a low maximum, and a number field for any other.
function createSizeSelect(name, schema) {
  const { minimum: min, maximum: max } = schema;
  const sizes = SIZES.filter((px) => px >= min && px <= max);
  if (max < SIZES.at(-1) && !sizes.includes(max)) sizes.push(max);
  const options = sizes.map((px) => [px, t("sizePx", { size: px })]);
  const select = createSelectElement("parameter-size", [...options, ["other", t("otherSize")]]);
  const number = createElement("input", {
    type: "number", id: "parameter-size-px", required: true, min, max,
    ariaLabel: t("sizeField") });
  // A disabled field is not validated, so it cannot block the form while it is hidden.
  const update = () => { number.hidden = number.disabled = select.value !== "other"; };
  listen(select, "change", update);
  return {
    set: (value) => {
      number.value = value;
      select.value = sizes.includes(value) ? value : "other";
      update();
    },
    get: () => Number(select.value === "other" ? number.value : select.value),
    element: wrapWithLabel(name, schema, select.id, [labelOf(name)], select, number),
  };
}

// A checkbox, select or field for any other parameter, with its identifier and description.
function createInput(name, schema) {
  const id = `parameter-${name}`, hintId = `${id}-hint`;
  const limits = { ...schema, ...schema.anyOf?.[0] };  // anyOf: the type, or null
  const isBoolean = limits.type === "boolean", isInteger = limits.type === "integer";
  const isNumber = isInteger || limits.type === "number";
  const options = schema.enum?.filter((value) => value !== UNSUPPORTED)
    .map((value) => [value, nameValue(name, value)]);
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
      const textContent = nameValue(name, value);
      input.append(createElement("option", { value, textContent, selected: true }));
    }
  };
  const get = () => {
    if (isBoolean) return input.checked;
    if (input.value === "") return null;
    return isNumber ? Number(input.value) : input.value;
  };
  const hint = createElement("p", {
    id: hintId, className: "hint", textContent: tOr(`parameter.${name}.hint`, schema.description) });
  const label = [labelOf(name), createElement("code", { textContent: name })];
  return { get, set, element: wrapWithLabel(name, schema, id, label, input, hint) };
}

// An object as name=value pairs, as the API takes it in a form field.
function formatValue(value) {
  if (value === null || typeof value !== "object") return value ?? "";
  return Object.entries(value).map((pair) => pair.join("=")).join(",");
}
