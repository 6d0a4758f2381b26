// A typed client: openapi-fetch with the types that generate.mjs writes, plus what no generator can know.
import createClient, { type Client } from "openapi-fetch";
import type { components, paths } from "./schema.js";

export type Job = components["schemas"]["JobResource"];
export type Problem = components["schemas"]["Problem"];
export type Impasto = Client<paths>;

/** An answer that is no success: `code` is stable, `message` says what to do. */
export class ImpastoError extends Error {
  readonly code: Problem["code"];
  constructor(problem: Problem) {
    super(problem.detail);
    this.code = problem.code;
  }
}

/** A client of the service at this URL; an empty key is not sent. */
export function connect(url: string, key = ""): Impasto {
  const headers: HeadersInit = key ? { Authorization: `Bearer ${key}` } : {};
  return createClient<paths>({ baseUrl: url, headers, querySerializer: { array: { style: "form", explode: true } } });
}

/** For `bodySerializer`: a form in which a list is a field that is sent several times. */
export function toForm(body: object): FormData {
  const form = new FormData();
  for (const [name, value] of Object.entries(body)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== undefined && one !== null) form.append(name, one instanceof Blob ? one : String(one));
    }
  }
  return form;
}

/** The data of an answer. Throws ImpastoError for a refusal. */
export async function ask<T>(answer: Promise<{ data?: T; error?: Problem }>): Promise<T> {
  const { data, error } = await answer;
  if (error) throw new ImpastoError(error);
  return data as T;
}

/** Follows the job by long polls until it has ended. */
export async function waitForJob(
  service: Impasto, jobId: string, onChange: (job: Job) => void = () => {}, signal?: AbortSignal,
): Promise<Job> {
  let tag: string | undefined;
  for (;;) {
    const answer = await service.GET("/v1/jobs/{job_id}", {
      params: {
        path: { job_id: jobId },
        header: tag === undefined ? {} : { "if-none-match": tag, prefer: "wait=20" },
      },
      signal,
    });
    if (answer.response.status === 304) continue;
    if (answer.error) throw new ImpastoError(answer.error);
    tag = answer.response.headers.get("ETag") ?? undefined;
    const job = answer.data as Job;
    onChange(job);
    if (job.status !== "queued" && job.status !== "running") return job;
  }
}
