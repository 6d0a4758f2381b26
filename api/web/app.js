// The first page: uploads two pictures, polls the job, shows the picture so far and the result. Uses only the public API.

const at = (id) => document.getElementById(id);
const show = (id, visible) => { at(id).hidden = !visible; };
let links = null;
let followed = null;  // the job on the screen; an older one's answers are dropped

function describe(job) {
  if (job.status === "queued") return `Waiting; ${job.queue?.position ?? 0} before it.`;
  if (job.status === "running" && !job.progress) return "Starting.";
  if (job.status === "running") {
    const p = job.progress;
    return `Iteration ${p.iteration} of ${p.iterations}, about ${Math.ceil(p.seconds_left)} s left.`;
  }
  return job.error?.message ?? { succeeded: "Done.", canceled: "Stopped." }[job.status] ?? job.status;
}

function render(job) {
  const ended = !["queued", "running"].includes(job.status);
  links = job.links;
  show("job", true);
  at("words").textContent = describe(job);
  show("bar", !ended);
  if (job.progress) at("bar").value = job.progress.value; else at("bar").removeAttribute("value");
  const picture = job.links.result ?? (ended ? null : job.links.preview);
  show("picture", Boolean(picture));
  if (picture) {
    at("picture").src = `${picture}?v=${job.outputs[0]?.id ?? job.preview}`;
    at("picture").alt = job.links.result ? "The finished picture" : "The picture so far";
  }
  show("download", Boolean(job.links.result));
  if (job.links.result) {
    at("download").href = job.links.result;
    at("download").download = `${job.id}.png`;
  }
  show("cancel", !ended);
  return ended;
}

async function follow(address) {
  followed = address;
  for (;;) {
    try {
      const answer = await fetch(address, { cache: "no-store" });
      const job = answer.ok ? await answer.json() : null;
      if (followed !== address) return;
      if (answer.status === 404) { history.replaceState(null, "", location.pathname); return; }
      if (job && render(job)) return;
    } catch { at("words").textContent = "The service does not answer; trying again."; }
    await new Promise((wake) => setTimeout(wake, 1000));
  }
}

at("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = at("form").querySelector("button");
  button.disabled = true;
  try {
    const answer = await fetch("/v1/jobs", { method: "POST", body: new FormData(at("form")) });
    const body = await answer.json();
    show("job", true);
    if (!answer.ok) {
      at("words").textContent = body.detail;
      for (const id of ["bar", "picture", "download", "cancel"]) show(id, false);
      return;
    }
    history.replaceState(null, "", `#${body.id}`);
    render(body);
    follow(body.links.self);
  } catch {
    show("job", true);
    at("words").textContent = "The service does not answer.";
  } finally { button.disabled = false; }
});

at("cancel").addEventListener("click", () => fetch(links.cancel, { method: "POST" }));

// A reload finds the job again.
if (/^#job_[a-z2-7]+$/.test(location.hash)) follow(`/v1/jobs/${location.hash.slice(1)}`);
