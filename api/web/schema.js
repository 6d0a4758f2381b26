// The parameters, options, presets and limits of the service, as it reports them. None is defined
// here. The service puts them into the document; elsewhere they are fetched once.

import { getJson } from "./api.js";

let form = null;

// {parameters: {size: {…}, …}, options: {priority: {…}, …}, presets: […], limits: {…}}.
export function getForm() {
  const inDocument = document.getElementById("form")?.textContent;
  form ??= inDocument
    ? Promise.resolve(JSON.parse(inDocument))
    : getJson("v1/form").catch((error) => {
      form = null;  // the next call tries again
      throw error;
    });
  return form;
}

// The default of a parameter; it may depend on the objective.
export const getDefault = (schema, objective) =>
  (objective === "gatys" ? schema.default_gatys : undefined) ?? schema.default ?? null;

// Text that is equal for equal values, whatever the order of an object's properties.
export const canonicalize = (value) => {
  if (value?.constructor !== Object) return JSON.stringify(value);
  const names = Object.keys(value).sort();
  return `{${names.map((name) => `${name}:${canonicalize(value[name])}`)}}`;
};
