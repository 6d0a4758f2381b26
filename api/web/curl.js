// A job as the command that submits it again, with pictures that the service has. Knows how a shell quotes.

import { submission } from "./schema.js";
import { key } from "./api.js";

export async function commandFor({ input: { spec, masks, init_image, ...pictures } }) {
  const { parameters } = await submission();
  const differs = ([name, value]) => value !== null && JSON.stringify(value) !== JSON.stringify(parameters[name]?.default);
  const body = {
    ...pictures, ...(masks.length && { masks }), ...(init_image && { init_image }),
    spec: Object.fromEntries(Object.entries(spec).filter(differs)),
  };
  const told = JSON.stringify(body, null, 1).replaceAll("'", "'\\''");
  const auth = key.get() ? ['-H "Authorization: Bearer $IMPASTO_KEY"'] : [];
  return ["curl", ...auth, "-H 'Content-Type: application/json'", `-d '${told}'`, `${location.origin}/v1/jobs`].join(" \\\n  ");
}
