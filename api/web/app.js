// The first page: uploads two pictures, polls the job, shows the picture so far and the result. Uses only the public API.

const at = (id) => document.getElementById(id);
const show = (id, visible) => { at(id).hidden = !visible; };
let links = null;
let followed = null;  // the job on the screen; an older one's answers are dropped

// A service may ask for an API key. It is kept for as long as this tab lives, and sent in a header, so pictures are
// fetched here, too, and shown from memory.
let asking = null;

async function ask(address, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem("key");
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    const answer = await fetch(address, { ...options, headers });
    if (answer.status !== 401) return answer;
    await (asking ??= newKey(Boolean(key)));
  }
}

function newKey(refused) {
  at("key-words").textContent = refused ? "This key is not known here." : "This service asks for an API key.";
  show("key-form", true);
  return new Promise((done) => at("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem("key", at("key").value.replace(/[^!-~]/g, ""));
    at("key").value = "";
    show("key-form", false);
    asking = null;
    done();
  }, { once: true }));
}

let shown = null;  // the picture on the screen, by its address and content

async function showPicture(address, name) {
  if (shown === name) return;
  shown = name;
  try {
    const answer = await ask(address);
    const bytes = answer.ok ? await answer.blob() : null;
    if (!bytes || shown !== name) return;
    URL.revokeObjectURL(at("picture").src);
    at("picture").src = at("download").href = URL.createObjectURL(bytes);
  } catch (error) { shown = null; throw error; }  // the next round tries again
}

function describe(job) {
  if (job.status === "queued") return `Waiting; ${job.queue?.position ?? 0} before it.`;
  if (job.status === "running" && !job.progress) return "Starting.";
  if (job.status === "running") {
    const p = job.progress;
    return `Iteration ${p.iteration} of ${p.iterations}, about ${Math.ceil(p.seconds_left)} s left.`;
  }
  return job.error?.message ?? { succeeded: "Done.", canceled: "Stopped." }[job.status] ?? job.status;
}

async function render(job) {
  const ended = !["queued", "running"].includes(job.status);
  links = job.links;
  show("job", true);
  at("words").textContent = describe(job);
  show("bar", !ended);
  if (job.progress) at("bar").value = job.progress.value; else at("bar").removeAttribute("value");
  const picture = job.links.result ?? (ended ? null : job.links.preview);
  show("picture", Boolean(picture));
  if (picture) {
    await showPicture(picture, `${picture} ${job.outputs[0]?.id ?? job.preview}`);
    at("picture").alt = job.links.result ? "The finished picture" : "The picture so far";
  }
  show("download", Boolean(job.links.result));
  at("download").download = `${job.id}.png`;
  show("cancel", !ended);
  return ended;
}

async function follow(address) {
  followed = address;
  for (;;) {
    try {
      const answer = await ask(address, { cache: "no-store" });
      const job = answer.ok ? await answer.json() : null;
      if (followed !== address) return;
      if (answer.status === 404) { history.replaceState(null, "", location.pathname); return; }
      if (job && await render(job)) return;
    } catch { at("words").textContent = "The service does not answer; trying again."; }
    await new Promise((wake) => setTimeout(wake, 1000));
  }
}

at("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = at("form").querySelector("button");
  button.disabled = true;
  try {
    const answer = await ask("/v1/jobs", { method: "POST", body: new FormData(at("form")) });
    const body = await answer.json();
    show("job", true);
    if (!answer.ok) {
      at("words").textContent = body.detail;
      for (const id of ["bar", "picture", "download", "cancel"]) show(id, false);
      return;
    }
    history.replaceState(null, "", `#${body.id}`);
    follow(body.links.self);
  } catch {
    show("job", true);
    at("words").textContent = "The service does not answer.";
  } finally { button.disabled = false; }
});

at("cancel").addEventListener("click", () => ask(links.cancel, { method: "POST" }));

// A reload finds the job again.
if (/^#job_[a-z2-7]+$/.test(location.hash)) follow(`/v1/jobs/${location.hash.slice(1)}`);
