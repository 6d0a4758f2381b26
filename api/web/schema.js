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
  const { paths } = await fetchOnce("/openapi.json");
  const body = paths["/v1/jobs"].post.requestBody.content["application/json"].schema;
  const { spec, ...options } = body.properties;
  return { parameters: spec.properties, options };
}

export const getPresets = async () => (await fetchOnce("/v1/presets")).presets;

export const getLimits = async () => (await fetchOnce("/v1/system")).limits;
