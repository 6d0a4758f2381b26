// What the service takes, as it says itself: every parameter, preset and limit is defined once, and not here. Asked once.

import { read } from "./api.js";

const answers = {};

function once(address) {
  return answers[address] ??= read(address).catch((error) => { delete answers[address]; throw error; });
}

// The body of POST /v1/jobs: {parameters: {size: {…}, …}, wishes: {priority: {…}, …}}.
export async function submission() {
  const { paths } = await once("/openapi.json");
  const { spec, ...rest } = paths["/v1/jobs"].post.requestBody.content["application/json"].schema.properties;
  return { parameters: spec.properties, wishes: rest };
}

export const presets = async () => (await once("/v1/presets")).presets;

export const limits = async () => (await once("/v1/system")).limits;
