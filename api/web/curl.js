// Builds the curl command that submits a job again, with images that the service has.

import { apiKey, resolveAddress } from "./api.js";
import { canonicalize, form, getDefault, toRequest } from "./schema.js";

export function buildCommand({ input }) {
  const { spec, ...images } = toRequest(input), { parameters } = form;
  const isChanged = ([name, value]) => value !== null
    && canonicalize(value) !== canonicalize(getDefault(parameters[name] ?? {}, spec.objective));
  const body = { ...images, spec: Object.fromEntries(Object.entries(spec).filter(isChanged)) };
  const json = JSON.stringify(body, null, 1).replaceAll("'", "'\\''");  // quoted for a shell
  const authorization = apiKey.get() ? ['-H "Authorization: Bearer $IMPASTO_KEY"'] : [];
  const contentType = "-H 'Content-Type: application/json'";
  const url = resolveAddress("v1/jobs");
  return ["curl", ...authorization, contentType, `-d '${json}'`, url].join(" \\\n  ");
}
