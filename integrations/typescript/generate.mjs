// Writes the types of a service: node generate.mjs http://127.0.0.1:8000/openapi.json schema.ts
import { writeFile } from "node:fs/promises";
import openapiTS, { astToString } from "openapi-typescript";
import ts from "typescript";

const [source, target] = process.argv.slice(2);
const type = (name) => ts.factory.createTypeReferenceNode(name);
const picture = ts.factory.createUnionTypeNode([type("Blob"), type("string")]);

const nodes = await openapiTS(new URL(source), {
  // What has a default may be left out of a request; answers have every field.
  defaultNonNullable: false,
  // A file in a form may be a digest instead; a file in an answer is a Blob.
  transform: (schema, { path }) =>
    schema.format === "binary" ? (path?.includes("/responses/") ? type("Blob") : picture) : undefined,
});
await writeFile(target, astToString(nodes));
