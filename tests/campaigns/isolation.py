"""Does one client see anything of another's? Every route, with another's ids and unknown ids.

python tests/campaigns/isolation.py --seed 1 [--count 1000] [--history FILE] [--without owners]

The owner has jobs in every state, uploads, results, previews and an idempotency key. The other
client has an API key of its own. Each response about the owner's resources must equal, byte by
byte, the response about a resource that does not exist. It must change nothing, and must not take
longer. The comparison covers status, headers and body, except the date and the request id.
"""

import json
import random
import statistics
import tempfile
import time
from base64 import b32encode
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import click
from history import report_violations
from keyed_api import KeyedApi
from PIL import Image

from core import errors
from core.auth.api_keys import ApiKeyStore
from core.images import codec
from core.jobs.models import JobProgress, ModelUsed, Output
from core.jobs.store import JobStore
from core.storage.blobs import Blobs, digest_of

# The API without its checks of the owner.
CONTROLS = {
    "owners": (
        "import asyncio, api.job_feed as l, core.jobs.store as s\n"
        "get, call, read = l.JobFeed.get, s.JobStore._call, s.JobStore._read\n"
        "async def read_any(self, job_id, owner):\n"
        "    future = asyncio.get_running_loop().create_future()\n"
        "    self._request_read(job_id).append(future)\n"
        "    snapshot = await future\n"
        "    return await get(self, job_id, snapshot.job.owner if snapshot else owner)\n"
        "def ignore_owner(self, name, *args, **named):\n"
        "    by_owner = ('cancel', 'update_spec', 'set_pinned', 'delete')\n"
        "    return call(self, name, *(('',) + args[1:] if name in by_owner else args), **named)\n"
        "frames = s.JobStore.list_frames\n"
        "s.JobStore.list_frames = lambda self, job_id, owner='': frames(self, job_id)\n"
        "s.JobStore._read = lambda self, job_ids, owner, *known: read(self, job_ids, '', *known)\n"
        "s.JobStore.is_owner = lambda self, owner, digest: True\n"
        "async def refuse(self, job_id, owner):\n"  # a stream of another's job would not end
        "    raise s.errors.JobNotFound()\n"
        "l.JobFeed.get, l.JobFeed.subscribe, s.JobStore._call = read_any, refuse, ignore_owner"
    )
}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
BODIES = {
    "/v1/jobs/{job_id}": {"spec": {"tv_weight": 1}, "pinned": True},
    "/v1/jobs/{job_id}/retry": {"spec": {"size": 64}},
}
IGNORED_HEADERS = {"date", "x-request-id"}
UPLOAD = "POST picture"  # recorded, not checked: the client has the same bytes already
UPLOAD_PX = 700  # of noise, 1.5 MB: writing it takes a part of the time
MIN_T, MIN_DIFFERENCE = 5.0, 0.05  # a difference in time that is significant and not small
REPEATS = 3
PROGRESS = JobProgress(
    value=0.5,
    scale=1,
    scales=1,
    iteration=1,
    iterations=2,
    iterations_per_second=1.0,
    seconds_left=1.0,
    loss={},
)

Response = dict[str, Any]
Record = Callable[..., None]


class Client:
    """A client with an API key and one connection."""

    def __init__(self, port: int, secret: str) -> None:
        self.secret = secret
        self._connection = HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Response:
        """Send a request and return the status, headers and body of the response."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for again in (False, True):
            try:
                self._connection.request(
                    method, path, body, {"Authorization": f"Bearer {self.secret}", **named}
                )
                response = self._connection.getresponse()
                text = response.read().decode("latin-1")
                break
            except (HTTPException, OSError):
                self._connection.close()
                if again:
                    raise
        kept = sorted(
            (name.lower(), value)
            for name, value in response.getheaders()
            if name.lower() not in IGNORED_HEADERS
        )
        return {"status": response.status, "headers": kept, "body": text}

    def send(self, method: str, path: str, body: Any, **headers: str) -> Response:
        """Send a JSON body."""
        return self.ask(
            method, path, json.dumps(body).encode(), content_type="application/json", **headers
        )

    def upload(self, picture: bytes) -> Response:
        """Upload a picture as a form."""
        head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        return self.ask(
            "POST",
            "/v1/images",
            head + picture + b"\r\n--b--\r\n",
            content_type="multipart/form-data; boundary=b",
        )

    def submit(self, digest: str, **fields: Any) -> Response:
        """Submit a job whose content and style are the same picture."""
        key = fields.pop("key", None)
        headers = {"idempotency_key": key} if key else {}
        return self.send(
            "POST",
            "/v1/jobs",
            {"content": digest, "styles": [digest], "spec": {"size": 64}, **fields},
            **headers,
        )


class Setup:
    """The service, its two clients, and the resources of the owner."""

    def __init__(self, api: KeyedApi, seed: int) -> None:
        self.random = random.Random(seed)
        keys = ApiKeyStore(api.redis_url)
        created = [keys.create(name) for name in ("owner", "other")]
        self.owner, self.other = (Client(api.port, secret) for _, secret in created)
        self.key_ids = {"owner": created[0][0].id}
        keys.close()
        self._store, self._blobs = JobStore(api.redis_url), Blobs(api.folder / "data" / "blobs")
        # The owner has uploaded these bytes; another client may have them, too.
        self.bytes = self.picture()
        self.upload = str(json.loads(self.owner.upload(self.bytes)["body"])["id"])
        self.digests = {"upload": self.upload}
        self.jobs: dict[str, str] = {}
        self._make_jobs()
        self.etags = {
            job: dict(self.owner.ask("GET", f"/v1/jobs/{job}")["headers"])["etag"]
            for job in self.ids
        }

    @property
    def ids(self) -> list[str]:
        """The ids of the owner's jobs."""
        return list(self.jobs.values())

    def picture(self, side: int = 64) -> bytes:
        """Return a new random picture."""
        return codec.encode(
            Image.frombytes("RGB", (side, side), self.random.randbytes(side * side * 3))
        )

    def upload_new(self, client: Client) -> str:
        """Upload a new picture for the client and return its digest."""
        return str(json.loads(client.upload(self.picture())["body"])["id"])

    def unknown_id(self, like: str) -> str:
        """Return an id of the same form that does not exist."""
        if like.startswith("sha256:"):
            return digest_of(self.random.randbytes(32))
        return (
            like.partition("_")[0]
            + "_"
            + b32encode(self.random.randbytes(16)).decode().rstrip("=").lower()
        )

    def _submit(self, **fields: Any) -> str:
        return str(json.loads(self.owner.submit(self.upload, **fields)["body"])["id"])

    def _make_jobs(self) -> None:
        store = self._store
        store.record_model_weights("auto", "0")
        self.jobs["deleted"] = self._submit(key="of-the-owner")
        self._run(self.jobs["deleted"], "deleted")
        store.expire_early(1)
        store.expire_due(1e6)
        for state in ("succeeded", "failed", "canceled"):
            self.jobs[state] = self._submit()
            if state == "succeeded":
                self._run(self.jobs[state], state)
            elif state == "failed":
                store.claim(state, "worker")
                store.fail(self.jobs[state], state, errors.Diverged())
            else:
                store.cancel(self.jobs[state])
        reused = json.loads(self.owner.submit(self.upload, reuse=True)["body"])
        self.jobs["reused"], self.reused = (
            reused["id"],
            reused["reused_from"] == self.jobs["succeeded"],
        )
        self.jobs["expired"] = self._submit(deadline_seconds=0.001)
        time.sleep(0.01)
        store.reap_expired_leases()
        self.jobs["running"] = self._submit()
        store.claim("running", "worker")
        store.renew(self.jobs["running"], "running")
        self.digests["preview"] = self._store_picture()
        store.lease_seconds = 3600
        store.renew(self.jobs["running"], "running")
        store.report_progress(self.jobs["running"], "running", PROGRESS, self.digests["preview"])
        self.jobs["queued"] = self._submit()
        body = {"contents": [self.upload], "styles": [self.upload], "spec": {"size": 64}}
        self.batches = {
            "queued": str(json.loads(self.owner.send("POST", "/v1/batches", body)["body"])["id"])
        }

    def _store_picture(self) -> str:
        data = self.picture()
        self._store.reserve(digest_of(data))
        return self._blobs.put(data)

    def _run(self, job: str, state: str) -> None:
        self._store.claim(state, "worker")
        digest = self.digests[f"result of {state}"] = self._store_picture()
        output = Output(id=digest, content_type="image/png", width=64, height=64, size_bytes=1)
        self._store.succeed(job, state, output, ModelUsed(name="vgg16", sha256="0"), {})

    def close(self) -> None:
        """Close the store's connections."""
        self._store.close()


def operations(setup: Setup) -> Iterator[tuple[str, str]]:
    """Yield (method, path) for every path of the OpenAPI document with an id, and every method."""
    document = json.loads(setup.other.ask("GET", "/openapi.json")["body"])
    for path in document["paths"]:
        if "{" in path:
            yield from ((method, path) for method in METHODS)


def pairs(setup: Setup) -> Iterator[tuple[str, str, Callable[[str], Response]]]:
    """Yield (name, an id of the owner, how the other client requests an id)."""
    for method, path in operations(setup):
        placeholder = path[path.index("{") : path.index("}") + 1]
        resources = {
            "{job_id}": setup.jobs,
            "{batch_id}": setup.batches,
            "{digest}": setup.digests,
            "{key_id}": setup.key_ids,
        }[placeholder]
        for state, real in resources.items():
            yield (
                f"{method} {path} {state}",
                real,
                _request_by_id(setup, method, path, placeholder, real),
            )
    ways: dict[str, Callable[[str], Any]] = {
        "content": lambda digest: {"content": digest, "styles": [own]},
        "styles": lambda digest: {"content": own, "styles": [own, digest]},
        "masks": lambda digest: {"content": own, "styles": [own], "masks": [digest]},
        "style_masks": lambda digest: {"content": own, "styles": [own], "style_masks": [digest]},
        "from": lambda digest: {"from": digest},
        "init_image": lambda digest: {
            "content": own,
            "styles": [own],
            "init_image": digest,
            "spec": {"init": "picture"},
        },
    }
    own = setup.upload_new(setup.other)
    for name, real in setup.digests.items():
        for field, body in ways.items():
            yield f"POST /v1/jobs {field}={name}", real, _submit_json(setup, body)
        yield f"POST /v1/batches contents={name}", real, _submit_batch(setup, own)
        yield f"POST /v1/jobs form content={name}", real, _submit_form(setup, own)


def _request_by_id(
    setup: Setup, method: str, path: str, placeholder: str, real: str
) -> Callable[[str], Response]:
    def ask(name: str) -> Response:
        address = path.replace(placeholder, name).replace("{index}", "0")
        if method in ("POST", "PATCH") and path in BODIES:
            return setup.other.send(method, address, BODIES[path])
        return setup.other.ask(method, address, if_none_match=setup.etags.get(real, '"1"'))

    return ask


def _submit_json(setup: Setup, body: Callable[[str], Any]) -> Callable[[str], Response]:
    return lambda digest: setup.other.send("POST", "/v1/jobs", body(digest))


def _submit_batch(setup: Setup, own: str) -> Callable[[str], Response]:
    return lambda digest: setup.other.send(
        "POST", "/v1/batches", {"contents": [digest], "styles": [own]}
    )


def _submit_form(setup: Setup, own: str) -> Callable[[str], Response]:
    def ask(digest: str) -> Response:
        parts = [("content", digest), ("style", own)]
        text = "".join(
            f'--b\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n' for n, v in parts
        )
        return setup.other.ask(
            "POST",
            "/v1/jobs",
            f"{text}--b--\r\n".encode(),
            content_type="multipart/form-data; boundary=b",
        )

    return ask


def run(seed: int, count: int, history: Path, without: str | None) -> None:
    """Run the campaign against a service of its own."""
    no_limits = {"API_REQUESTS_PER_MINUTE": "100000000", "API_SUBMISSIONS_PER_MINUTE": "100000000"}
    with tempfile.TemporaryDirectory() as folder, history.open("w") as out:

        def record(kind: str, **facts: Any) -> None:
            out.write(json.dumps({kind: facts}) + "\n")

        with KeyedApi(Path(folder), CONTROLS[without] if without else "", **no_limits) as api:
            setup = Setup(api, seed)
            record("reuse", works=setup.reused)
            before = _read_owned(setup)
            _compare_lists(setup, record)
            _compare_timings(setup, count, record)
            _guess_ids(setup, count, record)
            _compare_pairs(setup, record)
            after = _read_owned(setup)
            for name, response in before.items():
                record("owned", name=name, before=response, after=after[name])
            setup.close()
        secrets = [setup.owner.secret.encode(), setup.other.secret.encode()]
        for path in Path(folder).rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                record("file", name=path.name, secret=any(secret in data for secret in secrets))


def _read_owned(setup: Setup) -> dict[str, Response]:
    """Return what the owner sees. HEAD of a picture extends its reservation, which is invisible."""
    paths = {f"GET {state}": ("GET", f"/v1/jobs/{job}") for state, job in setup.jobs.items()}
    paths |= {
        f"HEAD {name}": ("HEAD", f"/v1/images/{digest}") for name, digest in setup.digests.items()
    }
    paths["list"] = ("GET", "/v1/jobs")
    responses = {name: setup.owner.ask(*request) for name, request in paths.items()}
    # The owner's place in the queue may change when the other client submits.
    for response in responses.values():
        response["headers"] = [
            pair for pair in response["headers"] if pair[0] not in ("etag", "content-length")
        ]
        response["body"] = _without_queue(response["body"])
    return responses


def _without_queue(text: str) -> str:
    body = json.loads(text) if text else {}
    for job in body.get("jobs", [body]):
        job.pop("queue", None)
    return json.dumps(body)


def _compare_pairs(setup: Setup, record: Record) -> None:
    """Compare every pair, in random order, deletions last; the order within a pair is random."""
    every = list(pairs(setup))
    setup.random.shuffle(every)
    # A deletion that succeeds would hide the violations of later requests.
    every.sort(key=lambda pair: pair[0].startswith("DELETE"))
    for name, real, ask in every:
        names = [("foreign", real), ("unknown", setup.unknown_id(real))]
        setup.random.shuffle(names)
        responses = {which: _without_id(ask(made), made) for which, made in names}
        record("pair", name=name, leaks=_find_leaks(setup, responses["foreign"], real), **responses)
    own = setup.upload_new(setup.other)
    _compare_submissions(
        setup,
        record,
        "Idempotency-Key",
        lambda key: setup.other.submit(own, key=key),
        "of-the-owner",
        "unused",
    )

    # A client with the same picture may not learn that another client has used it in a job.
    setup.other.upload(setup.bytes)
    _compare_submissions(
        setup,
        record,
        "reuse",
        lambda digest: setup.other.submit(digest, reuse=True),
        setup.upload,
        own,
    )


def _without_id(response: Response, name: str) -> Response:
    """Return the response with the requested id replaced: it may repeat the id."""
    return json.loads(json.dumps(response).replace(name, "ID"))  # type: ignore[no-any-return]


def _find_leaks(setup: Setup, response: Response, requested: str = "") -> list[str]:
    """Return the owner's ids that the response contains."""
    return [
        name
        for name in (*setup.ids, *setup.digests.values())
        if name != requested and name in json.dumps(response)
    ]


def _compare_submissions(
    setup: Setup,
    record: Record,
    name: str,
    submit: Callable[[str], Response],
    owners_value: str,
    unused_value: str,
) -> None:
    """Compare two submissions, without the fields that differ between any two."""
    responses = {}
    for which, value in (("foreign", owners_value), ("unknown", unused_value)):
        response = submit(value)
        job = json.loads(response["body"])
        headers = [
            pair for pair in response["headers"] if pair[0] not in ("location", "content-length")
        ]
        fields = {
            key: job.get(key)
            for key in ("status", "code", "reused_from", "retried_from", "outputs")
        }
        responses[which] = {
            "status": response["status"],
            "headers": headers,
            "body": json.dumps(fields),
        }
        leaks = _find_leaks(setup, response)
    record("pair", name=name, leaks=leaks, **responses)


def _compare_lists(setup: Setup, record: Record) -> None:
    """Compare the other client's lists, from every cursor, before and after it has jobs."""
    queries = ["", *(f"?status={state}" for state in ("queued", "running", "succeeded", "expired"))]
    queries += [f"?cursor={cursor}" for cursor in (1, 3, 8, 2**53)] + ["?limit=1", "?limit=100"]
    for query in queries:
        response = setup.other.ask("GET", f"/v1/jobs{query}")
        record(
            "list",
            name=f"empty {query}",
            foreign=len(json.loads(response["body"])["jobs"]),
            leaks=_find_leaks(setup, response),
        )
    own = setup.upload_new(setup.other)
    mine = [json.loads(setup.other.submit(own)["body"])["id"] for _ in range(3)]
    for query in queries:
        response = setup.other.ask("GET", f"/v1/jobs{query}")
        listed = [job["id"] for job in json.loads(response["body"])["jobs"]]
        foreign = len([job for job in listed if job not in mine])
        record("list", name=f"own {query}", foreign=foreign, leaks=_find_leaks(setup, response))
    following = json.loads(setup.other.ask("GET", "/v1/jobs?limit=1")["body"])["next"]
    record("cursor", next=following, expected="/v1/jobs?limit=1&cursor=3")


def _compare_timings(setup: Setup, count: int, record: Record) -> None:
    """Time the same request for the owner's id and for an unknown one, in random order.

    A difference counts only if it is there again each time: other load can cause it once.
    """
    job, digest = setup.jobs["succeeded"], setup.digests["upload"]
    requests: dict[str, tuple[str, Callable[[str], Response]]] = {
        "GET job": (job, lambda name: setup.other.ask("GET", f"/v1/jobs/{name}")),
        "GET result": (job, lambda name: setup.other.ask("GET", f"/v1/jobs/{name}/result")),
        "POST cancel": (job, lambda name: setup.other.ask("POST", f"/v1/jobs/{name}/cancel")),
        "GET picture": (digest, lambda name: setup.other.ask("GET", f"/v1/images/{name}")),
        "HEAD picture": (digest, lambda name: setup.other.ask("HEAD", f"/v1/images/{name}")),
    }
    for name, (real, ask) in requests.items():
        for _ in range(REPEATS):
            timing = _compare_times(*_time_requests(setup, count, real, ask))
            if not _is_distinguishable(timing):
                break
        record("timing", name=name, **timing)
    record("timing", name=UPLOAD, **_compare_times(*_time_uploads(setup, max(10, count // 10))))


def _time_requests(
    setup: Setup, count: int, real: str, ask: Callable[[str], Response]
) -> tuple[list[float], list[float]]:
    seconds: dict[bool, list[float]] = {True: [], False: []}
    unknown = setup.unknown_id(real)
    for foreign in setup.random.sample([True, False] * count, 2 * count):
        requested = real if foreign else unknown
        began = time.perf_counter()
        ask(requested)
        seconds[foreign].append(time.perf_counter() - began)
    return seconds[True], seconds[False]


def _time_uploads(setup: Setup, count: int) -> tuple[list[float], list[float]]:
    """Time uploads of pictures that the owner has uploaded before, and of new ones."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for foreign in setup.random.sample([True, False] * count, 2 * count):
        picture = setup.picture(UPLOAD_PX)
        setup.owner.upload(picture if foreign else setup.picture(UPLOAD_PX))
        began = time.perf_counter()
        setup.other.upload(picture)
        seconds[foreign].append(time.perf_counter() - began)
    return seconds[True], seconds[False]


def _compare_times(foreign: list[float], unknown: list[float]) -> dict[str, float]:
    """Return the medians in ms, and Welch's t without the slowest tenth of each."""
    trimmed = [sorted(times)[: max(2, len(times) * 9 // 10)] for times in (foreign, unknown)]
    means, squares = [
        [f(times) for times in trimmed] for f in (statistics.fmean, statistics.variance)
    ]
    error = sum(square / len(times) for square, times in zip(squares, trimmed, strict=True)) ** 0.5
    medians = [1000 * statistics.median(times) for times in (foreign, unknown)]
    return {
        "foreign_ms": medians[0],
        "unknown_ms": medians[1],
        "t": (means[0] - means[1]) / error if error else 0.0,
    }


def _guess_ids(setup: Setup, count: int, record: Record) -> None:
    hits = 0
    for _ in range(count):
        hits += setup.other.ask("GET", f"/v1/jobs/{setup.unknown_id('job_')}")["status"] != 404
    record("guesses", count=count, hits=hits)


def violations(history: Path) -> list[str]:
    """Return the violations that the history shows."""
    found, kinds = [], set()
    for line in history.read_text().splitlines():
        ((kind, seen),) = json.loads(line).items()
        kinds.add(kind)
        found += [f"{seen.get('name', kind)}: {wrong}" for wrong in _check(kind, seen)]
    missing = {"pair", "list", "timing", "guesses", "owned", "file"} - kinds
    return found + [f"the history has no entry of kind {kind}" for kind in sorted(missing)]


def _check(kind: str, seen: dict[str, Any]) -> Iterator[str]:
    if kind == "pair" and seen["foreign"] != seen["unknown"]:
        yield (
            f"owner's id: {seen['foreign']['status']}, unknown id: {seen['unknown']['status']}, "
            "or different contents"
        )
    if seen.get("leaks"):
        yield f"contains {seen['leaks']}"
    if kind == "list" and seen["foreign"]:
        yield f"contains {seen['foreign']} jobs of another client"
    if kind == "cursor" and seen["next"] != seen["expected"]:
        yield f"{seen['next']} counts jobs of other clients"
    if kind == "owned" and seen["before"] != seen["after"]:
        yield "changed by another client"
    if kind == "reuse" and not seen["works"]:
        yield "does not work for the owner, so the comparison proves nothing"
    if kind == "guesses" and seen["hits"]:
        yield f"{seen['hits']} hits"
    if kind == "file" and seen["secret"]:
        yield "contains the secret of a key"
    if kind == "timing" and seen["name"] != UPLOAD and _is_distinguishable(seen):
        yield f"differs in time: {seen['foreign_ms']:.2f} and {seen['unknown_ms']:.2f} ms"


def _is_distinguishable(timing: dict[str, Any]) -> bool:
    return (
        abs(timing["t"]) > MIN_T
        and abs(timing["foreign_ms"] / timing["unknown_ms"] - 1) > MIN_DIFFERENCE
    )


@click.command()
@click.option("--seed", default=1, show_default=True)
@click.option(
    "--count", default=1000, show_default=True, help="Guessed ids, and timed requests of each kind."
)
@click.option(
    "--history", type=click.Path(path_type=Path), default=Path("isolation.jsonl"), show_default=True
)
@click.option(
    "--without",
    type=click.Choice(list(CONTROLS)),
    help="Remove this guard: there must be violations.",
)
def main(seed: int, count: int, history: Path, without: str | None) -> None:
    """Run the campaign and check its history; exit code 1 if there are violations."""
    run(seed, count, history, without)
    entries = [json.loads(line) for line in history.read_text().splitlines()]
    pair_count = sum("pair" in entry for entry in entries)
    print(f"seed {seed}: {pair_count} pairs of responses, {count} guesses")
    for timing in (entry["timing"] for entry in entries if "timing" in entry):
        print(
            f"{timing['name']:13} owner's id {timing['foreign_ms']:.2f} ms, "
            f"unknown id {timing['unknown_ms']:.2f} ms, t = {timing['t']:.1f}"
        )
    report_violations(violations(history))


if __name__ == "__main__":
    main()
