// Used by tests/e2e/test_typescript.py against a real service: IMPASTO_URL, PHOTO, PAINTING.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { env } from "node:process";
import { test } from "node:test";
import { ask, connect, ImpastoError, toForm, waitForJob, type Job } from "./client.js";

const service = connect(env["IMPASTO_URL"] ?? "");
const [photo, painting] = await Promise.all(
  [env["PHOTO"], env["PAINTING"]].map(async (path) => new Blob([await readFile(path ?? "")])),
) as [Blob, Blob];

test("files are submitted as a form, the job is followed, and the result is a picture", async () => {
  const body = { content: photo, style: [painting, painting], size: 64, iterations: 40, scales: 1, style_weights: "0.7,0.3" };
  const job = await ask(service.POST("/v1/jobs", { body, bodySerializer: toForm }));
  const seen: Job["status"][] = [];
  const ended = await waitForJob(service, job.id, (state) => seen.push(state.status));
  const path = { job_id: job.id };
  const picture = await ask(service.GET("/v1/jobs/{job_id}/result", { params: { path, query: { format: "webp" } }, parseAs: "blob" }));

  assert.equal(job.status, "queued");
  assert.equal(seen.at(-1), "succeeded");
  assert.deepEqual(ended.input.spec["style_weights"], [0.7, 0.3]);
  assert.equal(ended.outputs[0]?.width, 64);
  assert.equal(Buffer.from(await picture.slice(8, 12).arrayBuffer()).toString(), "WEBP");
});

test("an upload's digest is submitted as JSON, steered and canceled", async () => {
  const upload = (image: Blob) => ask(service.POST("/v1/images", { body: { image }, bodySerializer: toForm }));
  const [content, style] = await Promise.all([upload(photo), upload(painting)]);
  const body = {
    content: content.id, styles: [style.id], spec: { size: 96, iterations: 2000, scales: 1, style_layers: { relu1_1: 1 } },
  };
  const job = await ask(service.POST("/v1/jobs", { body, params: { header: { "idempotency-key": randomUUID() } } }));
  const params = { path: { job_id: job.id } };
  const steered = await ask(service.PATCH("/v1/jobs/{job_id}", { params, body: { spec: { strength: 0.9 } } }));
  await ask(service.POST("/v1/jobs/{job_id}/cancel", { params }));
  const ended = await waitForJob(service, job.id);
  const listed = await ask(service.GET("/v1/jobs", { params: { query: { status: ["canceled", "failed"], limit: 5 } } }));

  assert.equal(steered.input.spec["strength"], 0.9);
  assert.equal(ended.status, "canceled");
  assert.equal(listed.jobs[0]?.id, job.id);
});

test("a refusal is a typed problem", async () => {
  const sent = ask(service.POST("/v1/jobs", { body: { content: photo, style: [painting], size: 7 }, bodySerializer: toForm }));

  await assert.rejects(sent, (error) => error instanceof ImpastoError && error.code === "bad_spec" && /size/.test(error.message));
});

// What the types refuse. An unused @ts-expect-error fails the compilation.
export function refused(): unknown[] {
  return [
    // @ts-expect-error: a job needs pictures, or a result
    service.POST("/v1/jobs", { body: { size: 64 }, bodySerializer: toForm }),
    // @ts-expect-error: no such value
    service.POST("/v1/jobs", { body: { from: photo, quality: "best" }, bodySerializer: toForm }),
    // @ts-expect-error: no such code
    new ImpastoError({ type: "", title: "", status: 400, code: "no_such_code", detail: "" }),
    // @ts-expect-error: no such route
    service.GET("/v1/paintings"),
  ];
}
