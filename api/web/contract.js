// What the service takes, as its own OpenAPI document says: every knob is defined once, and not here.

import { read } from "./service.js";

let asked = null;

// The body of POST /v1/jobs: {knobs: {size: {…}, …}, wishes: {priority: {…}, …}}.
export async function submission() {
  const { paths } = await (asked ??= read("/openapi.json").catch((error) => { asked = null; throw error; }));
  const { spec, ...rest } = paths["/v1/jobs"].post.requestBody.content["application/json"].schema.properties;
  return { knobs: spec.properties, wishes: rest };
}
