// What this service can do, as its own OpenAPI document says: its knobs, and which routes it has. Nothing is told twice.

import { read } from "./service.js";

let document_ = null;

const contract = () => (document_ ??= read("/openapi.json").catch((error) => { document_ = null; throw error; }));

export async function has(method, path) {
  return Boolean((await contract()).paths[path]?.[method]);
}

// The body that POST /v1/jobs takes as JSON, by names: {spec: {size: {…}, …}, priority: {…}, …}.
export async function submission() {
  const body = (await contract()).paths["/v1/jobs"].post.requestBody;
  const { spec, ...rest } = body.content["application/json"].schema.properties;
  return { knobs: spec.properties, wishes: rest };
}

// Whether a running job takes new knobs.
export async function steers() {
  const { paths, components } = await contract();
  const schema = paths["/v1/jobs/{job_id}"]?.patch?.requestBody?.content["application/json"].schema ?? {};
  const named = schema.$ref ? components.schemas[schema.$ref.split("/").pop()] : schema;
  return Boolean(named?.properties?.spec);
}
