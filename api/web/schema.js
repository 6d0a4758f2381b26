// The parameters, presets and limits of the service, as it reports them. Each is fetched once, and
// none is defined here.

import { getJson } from "./api.js";

const responses = {};

function fetchOnce(address) {
  responses[address] ??= getJson(address).catch((error) => {
    delete responses[address];  // the next call tries again
    throw error;
  });
  return responses[address];
}

// The body of POST /v1/jobs: {parameters: {size: {…}, …}, options: {priority: {…}, …}}.
export async function getSubmissionSchema() {
  const { paths } = await fetchOnce("openapi.json");
  const body = paths["/v1/jobs"].post.requestBody.content["application/json"].schema;
  const { spec, ...options } = body.properties;
  return { parameters: spec.properties, options };
}

// The default of a parameter; it may depend on the objective.
export const getDefault = (schema, objective) =>
  (objective === "gatys" ? schema.default_gatys : undefined) ?? schema.default ?? null;

export const getPresets = async () => (await fetchOnce("v1/presets")).presets;

export const getLimits = async () => (await fetchOnce("v1/system")).limits;

// Text that is equal for equal values, whatever the order of an object's properties.
export const canonicalize = (value) => {
  if (value?.constructor !== Object) return JSON.stringify(value);
  const names = Object.keys(value).sort();
  return `{${names.map((name) => `${name}:${canonicalize(value[name])}`)}}`;
};
