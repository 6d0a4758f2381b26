// A job as the command that submits it again. Knows how a shell quotes.

import { submission } from "./contract.js";
import { key } from "./service.js";

const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

// To curl's -F itself ; , and " mean something, too.
const file = (field, name) => quoted(/[;,"\\]/.test(name) ? `${field}=@"${name.replace(/[\\"]/g, "\\$&")}"` : `${field}=@${name}`);

export async function commandFor(job, names) {
  const { spec, styles } = job.input, { knobs } = await submission();
  const told = Object.entries(spec).filter(([name, value]) => value && JSON.stringify(value) !== JSON.stringify(knobs[name]?.default) && (name !== "style_weights" || styles.length > 1));
  const parts = [file("content", names?.content ?? "photo.jpg"),
    ...styles.map((_, i) => file("style", names?.styles[i] ?? `painting${styles.length > 1 ? i + 1 : ""}.jpg`)),
    ...told.map(([name, value]) => quoted(`${name}=${typeof value === "object" ? JSON.stringify(value) : value}`))];
  const auth = key.get() ? ['-H "Authorization: Bearer $IMPASTO_KEY"'] : [];
  return ["curl", ...auth, ...parts.map((part) => `-F ${part}`), `${location.origin}/v1/jobs`].join(" \\\n  ");
}
