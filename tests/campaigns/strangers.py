"""What one caller can learn of another: every route and verb, asked for another's ids and for unknown ones.

python tests/campaigns/strangers.py --seed 1 [--count 1000] [--history FILE] [--without owners]

The owner has jobs in every state, uploads, results, previews, an idempotency key. The stranger has a key of their own.
Each answer about the owner's must be, byte by byte, that about something that does not exist; must change nothing; and
must not take longer. The rest of an answer but date and request id is compared: status, headers, body.
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

# The API as if it had forgotten whose a job or a picture is.
CONTROLS = {
    "owners": (
        "import api.job_feed as l, core.jobs.store as s\n"
        "see, step = l.JobFeed.get, s.JobStore._step\n"
        "async def anybodys(self, job_id, owner):\n"
        "    sight = await self._ask(job_id)\n"
        "    return await see(self, job_id, sight.job.owner if sight else owner)\n"
        "def blind(self, name, *args):\n"
        "    if name == 'is_owner': return 1\n"
        "    by_owner = ('read_jobs', 'list_frames', 'cancel', 'update_spec', 'set_pinned', 'delete')\n"
        "    return step(self, name, *(('',) + args[1:] if name in by_owner else args))\n"
        "async def nobodys(self, job_id, owner):\n"  # a stream would not end
        "    raise s.errors.JobNotFound()\n"
        "l.JobFeed.get, l.JobFeed.subscribe, s.JobStore._step = anybodys, nobodys, blind"
    )
}
VERBS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
BODIES = {
    "/v1/jobs/{job_id}": {"spec": {"tv_weight": 1}, "pinned": True},
    "/v1/jobs/{job_id}/retry": {"spec": {"size": 64}},
}
UNTOLD = {"date", "x-request-id"}
UPLOAD = "POST picture"  # told, not report_violations: who sends the very bytes has them already
UPLOAD_PX = 700  # of noise: 1.5 MB, so that writing it takes some of the time
SURE_T, MUCH = 5.0, 0.05  # a difference in time that is no chance, and not small
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

Answer = dict[str, Any]
Tell = Callable[..., None]


class Caller:
    """Somebody with a key, and one connection."""

    def __init__(self, port: int, secret: str) -> None:
        self.secret = secret
        self._line = HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """Status, headers and body of the answer."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for again in (False, True):
            try:
                self._line.request(
                    method, path, body, {"Authorization": f"Bearer {self.secret}", **named}
                )
                answer = self._line.getresponse()
                text = answer.read().decode("latin-1")
                break
            except (HTTPException, OSError):
                self._line.close()
                if again:
                    raise
        told = sorted(
            (name.lower(), value)
            for name, value in answer.getheaders()
            if name.lower() not in UNTOLD
        )
        return {"status": answer.status, "headers": told, "body": text}

    def send(self, method: str, path: str, what: Any, **headers: str) -> Answer:
        """The same with JSON."""
        return self.ask(
            method, path, json.dumps(what).encode(), content_type="application/json", **headers
        )

    def upload(self, picture: bytes) -> Answer:
        """A picture as a form."""
        head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        return self.ask(
            "POST",
            "/v1/images",
            head + picture + b"\r\n--b--\r\n",
            content_type="multipart/form-data; boundary=b",
        )

    def submit(self, digest: str, **more: Any) -> Answer:
        """A job of one picture with itself."""
        key = more.pop("key", None)
        headers = {"idempotency_key": key} if key else {}
        return self.send(
            "POST",
            "/v1/jobs",
            {"content": digest, "styles": [digest], "spec": {"size": 64}, **more},
            **headers,
        )


class Scene:
    """The service, its two callers, and what the owner has."""

    def __init__(self, api: KeyedApi, seed: int) -> None:
        self.chance = random.Random(seed)
        keys = ApiKeyStore(api.redis_url)
        self.owner, self.stranger = (
            Caller(api.port, keys.create(name)[1]) for name in ("owner", "stranger")
        )
        keys.close()
        self._store, self._blobs = JobStore(api.redis_url), Blobs(api.folder / "data" / "blobs")
        self.bytes = self.picture()  # what the owner has uploaded, and anybody else may have, too
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
        """Of the owner's jobs."""
        return list(self.jobs.values())

    def picture(self, side: int = 64) -> bytes:
        """One that nobody has sent before."""
        return codec.encode(
            Image.frombytes("RGB", (side, side), self.chance.randbytes(side * side * 3))
        )

    def uploaded(self, who: Caller) -> str:
        """The digest of a new picture of theirs."""
        return str(json.loads(who.upload(self.picture())["body"])["id"])

    def unknown(self, like: str) -> str:
        """An id of the same form that nobody has."""
        if like.startswith("sha256:"):
            return digest_of(self.chance.randbytes(32))
        return (
            like.partition("_")[0]
            + "_"
            + b32encode(self.chance.randbytes(16)).decode().rstrip("=").lower()
        )

    def _submitted(self, **more: Any) -> str:
        return str(json.loads(self.owner.submit(self.upload, **more)["body"])["id"])

    def _make_jobs(self) -> None:
        store = self._store
        store.record_model_weights("auto", "0")
        self.jobs["gone"] = self._submitted(key="of-the-owner")
        self._paint(self.jobs["gone"], "gone")
        store.expire_early(1)
        store.expire_due(1e6)
        for state in ("succeeded", "failed", "canceled"):
            self.jobs[state] = self._submitted()
            if state == "succeeded":
                self._paint(self.jobs[state], state)
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
        self.jobs["expired"] = self._submitted(deadline_seconds=0.001)
        time.sleep(0.01)
        store.reap_expired_leases()
        self.jobs["running"] = self._submitted()
        store.claim("running", "worker")
        store.renew(self.jobs["running"], "running")
        self.digests["preview"] = self._kept()
        store.lease_seconds = 3600
        store.renew(self.jobs["running"], "running")
        store.report_progress(self.jobs["running"], "running", PROGRESS, self.digests["preview"])
        self.jobs["queued"] = self._submitted()
        body = {"contents": [self.upload], "styles": [self.upload], "spec": {"size": 64}}
        self.batches = {
            "queued": str(json.loads(self.owner.send("POST", "/v1/batches", body)["body"])["id"])
        }

    def _kept(self) -> str:
        data = self.picture()
        self._store.reserve(digest_of(data))
        return self._blobs.put(data)

    def _paint(self, job: str, state: str) -> None:
        self._store.claim(state, "worker")
        digest = self.digests[f"result of {state}"] = self._kept()
        output = Output(id=digest, content_type="image/png", width=64, height=64, size_bytes=1)
        self._store.succeed(job, state, output, ModelUsed(name="vgg16", sha256="0"), {})

    def close(self) -> None:
        """Give the store's connections back."""
        self._store.close()


def operations(scene: Scene) -> Iterator[tuple[str, str]]:
    """(method, path) of every address in the OpenAPI document that has an id, with every verb."""
    document = json.loads(scene.stranger.ask("GET", "/openapi.json")["body"])
    for path in document["paths"]:
        if "{" in path:
            yield from ((verb, path) for verb in VERBS)


def pairs(scene: Scene) -> Iterator[tuple[str, str, Callable[[str], Answer]]]:
    """(name, an id of the owner's, how the stranger asks for an id)."""
    for verb, path in operations(scene):
        place = path[path.index("{") : path.index("}") + 1]
        things = {"{job_id}": scene.jobs, "{batch_id}": scene.batches, "{digest}": scene.digests}[
            place
        ]
        for state, real in things.items():
            yield f"{verb} {path} {state}", real, _asking(scene, verb, path, place, real)
    ways: dict[str, Callable[[str], Any]] = {
        "content": lambda digest: {"content": digest, "styles": [own]},
        "styles": lambda digest: {"content": own, "styles": [own, digest]},
        "masks": lambda digest: {"content": own, "styles": [own], "masks": [digest]},
        "from": lambda digest: {"from": digest},
        "init_image": lambda digest: {
            "content": own,
            "styles": [own],
            "init_image": digest,
            "spec": {"init": "picture"},
        },
    }
    own = scene.uploaded(scene.stranger)
    for name, real in scene.digests.items():
        for field, body in ways.items():
            yield f"POST /v1/jobs {field}={name}", real, _naming(scene, body)
        yield f"POST /v1/batches contents={name}", real, _batching(scene, own)
        yield f"POST /v1/jobs form content={name}", real, _form(scene, own)


def _asking(scene: Scene, verb: str, path: str, place: str, real: str) -> Callable[[str], Answer]:
    def ask(name: str) -> Answer:
        address = path.replace(place, name).replace("{index}", "0")
        if verb in ("POST", "PATCH") and path in BODIES:
            return scene.stranger.send(verb, address, BODIES[path])
        return scene.stranger.ask(verb, address, if_none_match=scene.etags.get(real, '"1"'))

    return ask


def _naming(scene: Scene, body: Callable[[str], Any]) -> Callable[[str], Answer]:
    return lambda digest: scene.stranger.send("POST", "/v1/jobs", body(digest))


def _batching(scene: Scene, own: str) -> Callable[[str], Answer]:
    return lambda digest: scene.stranger.send(
        "POST", "/v1/batches", {"contents": [digest], "styles": [own]}
    )


def _form(scene: Scene, own: str) -> Callable[[str], Answer]:
    def ask(digest: str) -> Answer:
        parts = [("content", digest), ("style", own)]
        text = "".join(
            f'--b\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n' for n, v in parts
        )
        return scene.stranger.ask(
            "POST",
            "/v1/jobs",
            f"{text}--b--\r\n".encode(),
            content_type="multipart/form-data; boundary=b",
        )

    return ask


def run(seed: int, count: int, history: Path, without: str | None) -> None:
    """All of it against a service of its own."""
    plenty = {"API_REQUESTS_PER_MINUTE": "100000000", "API_SUBMISSIONS_PER_MINUTE": "100000000"}
    with tempfile.TemporaryDirectory() as folder, history.open("w") as out:

        def tell(kind: str, **what: Any) -> None:
            out.write(json.dumps({kind: what}) + "\n")

        with KeyedApi(Path(folder), CONTROLS[without] if without else "", **plenty) as api:
            scene = Scene(api, seed)
            tell("reuse", works=scene.reused)
            before = _owned(scene)
            _lists(scene, tell)
            _timings(scene, count, tell)
            _guesses(scene, count, tell)
            _asks(scene, tell)
            after = _owned(scene)
            for name, answer in before.items():
                tell("owned", name=name, before=answer, after=after[name])
            scene.close()
        secrets = [scene.owner.secret.encode(), scene.stranger.secret.encode()]
        for path in Path(folder).rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                tell("file", name=path.name, secret=any(secret in data for secret in secrets))


def _owned(scene: Scene) -> dict[str, Answer]:
    """What the owner sees. HEAD of a picture renews its hold, which nobody can see."""
    paths = {f"GET {state}": ("GET", f"/v1/jobs/{job}") for state, job in scene.jobs.items()}
    paths |= {
        f"HEAD {name}": ("HEAD", f"/v1/images/{digest}") for name, digest in scene.digests.items()
    }
    paths["list"] = ("GET", "/v1/jobs")
    answers = {name: scene.owner.ask(*way) for name, way in paths.items()}
    for answer in answers.values():  # as the owner's place may change when the stranger submits
        answer["headers"] = [
            pair for pair in answer["headers"] if pair[0] not in ("etag", "content-length")
        ]
        answer["body"] = _without_queue(answer["body"])
    return answers


def _without_queue(text: str) -> str:
    body = json.loads(text) if text else {}
    for job in body.get("jobs", [body]):
        job.pop("queue", None)
    return json.dumps(body)


def _asks(scene: Scene, tell: Tell) -> None:
    """Every pair, in a random order; which of the two is first is chance as well."""
    every = list(pairs(scene))
    scene.chance.shuffle(every)
    for name, real, ask in every:
        names = [("foreign", real), ("unknown", scene.unknown(real))]
        scene.chance.shuffle(names)
        answers = {which: _plain(ask(made), made) for which, made in names}
        tell("pair", name=name, leaks=_leaks(scene, answers["foreign"], real), **answers)
    own = scene.uploaded(scene.stranger)
    _same(
        scene,
        tell,
        "Idempotency-Key",
        lambda key: scene.stranger.submit(own, key=key),
        "of-the-owner",
        "of-nobody",
    )

    scene.stranger.upload(
        scene.bytes
    )  # whoever has the picture may not learn that somebody had it painted
    _same(
        scene,
        tell,
        "reuse",
        lambda digest: scene.stranger.submit(digest, reuse=True),
        scene.upload,
        own,
    )


def _plain(answer: Answer, name: str) -> Answer:
    """The answer, if it repeats the id that was asked for, without it."""
    return json.loads(json.dumps(answer).replace(name, "ID"))  # type: ignore[no-any-return]


def _leaks(scene: Scene, answer: Answer, asked: str = "") -> list[str]:
    """What of the owner's the answer names."""
    return [
        name
        for name in (*scene.ids, *scene.digests.values())
        if name != asked and name in json.dumps(answer)
    ]


def _same(
    scene: Scene, tell: Tell, name: str, submit: Callable[[str], Answer], theirs: str, nobodys: str
) -> None:
    """Two submissions, told by all that does not differ between any two."""
    answers = {}
    for which, value in (("foreign", theirs), ("unknown", nobodys)):
        answer = submit(value)
        job = json.loads(answer["body"])
        headers = [
            pair for pair in answer["headers"] if pair[0] not in ("location", "content-length")
        ]
        told = {
            key: job.get(key)
            for key in ("status", "code", "reused_from", "retried_from", "outputs")
        }
        answers[which] = {"status": answer["status"], "headers": headers, "body": json.dumps(told)}
        leaks = _leaks(scene, answer)
    tell("pair", name=name, leaks=leaks, **answers)


def _lists(scene: Scene, tell: Tell) -> None:
    """A stranger's lists before and after they have jobs, from every cursor; and what a submission answers."""
    queries = ["", *(f"?status={state}" for state in ("queued", "running", "succeeded", "expired"))]
    queries += [f"?cursor={cursor}" for cursor in (1, 3, 8, 2**53)] + ["?limit=1", "?limit=100"]
    for query in queries:
        answer = scene.stranger.ask("GET", f"/v1/jobs{query}")
        tell(
            "list",
            name=f"empty {query}",
            foreign=len(json.loads(answer["body"])["jobs"]),
            leaks=_leaks(scene, answer),
        )
    own = scene.uploaded(scene.stranger)
    mine = [json.loads(scene.stranger.submit(own)["body"])["id"] for _ in range(3)]
    for query in queries:
        answer = scene.stranger.ask("GET", f"/v1/jobs{query}")
        listed = [job["id"] for job in json.loads(answer["body"])["jobs"]]
        foreign = len([job for job in listed if job not in mine])
        tell("list", name=f"own {query}", foreign=foreign, leaks=_leaks(scene, answer))
    following = json.loads(scene.stranger.ask("GET", "/v1/jobs?limit=1")["body"])["next"]
    tell("cursor", next=following, expected="/v1/jobs?limit=1&cursor=3")


def _timings(scene: Scene, count: int, tell: Tell) -> None:
    """The same question for another's and for nothing, in turns by chance."""
    job, digest = scene.jobs["succeeded"], scene.digests["upload"]
    estimate_requests: dict[str, tuple[str, Callable[[str], Answer]]] = {
        "GET job": (job, lambda name: scene.stranger.ask("GET", f"/v1/jobs/{name}")),
        "GET result": (job, lambda name: scene.stranger.ask("GET", f"/v1/jobs/{name}/result")),
        "POST cancel": (job, lambda name: scene.stranger.ask("POST", f"/v1/jobs/{name}/cancel")),
        "GET picture": (digest, lambda name: scene.stranger.ask("GET", f"/v1/images/{name}")),
        "HEAD picture": (digest, lambda name: scene.stranger.ask("HEAD", f"/v1/images/{name}")),
    }
    for name, (real, ask) in estimate_requests.items():
        took: dict[bool, list[float]] = {True: [], False: []}
        unknown = scene.unknown(real)
        for foreign in scene.chance.sample([True, False] * count, 2 * count):
            asked = real if foreign else unknown
            began = time.perf_counter()
            ask(asked)
            took[foreign].append(time.perf_counter() - began)
        tell("timing", name=name, **_compared(took[True], took[False]))
    tell("timing", name=UPLOAD, **_compared(*_uploads(scene, max(10, count // 10))))


def _uploads(scene: Scene, count: int) -> tuple[list[float], list[float]]:
    """Of pictures that the owner has sent before, and of new ones."""
    took: dict[bool, list[float]] = {True: [], False: []}
    for foreign in scene.chance.sample([True, False] * count, 2 * count):
        picture = scene.picture(UPLOAD_PX)
        scene.owner.upload(picture if foreign else scene.picture(UPLOAD_PX))
        began = time.perf_counter()
        scene.stranger.upload(picture)
        took[foreign].append(time.perf_counter() - began)
    return took[True], took[False]


def _compared(foreign: list[float], unknown: list[float]) -> dict[str, float]:
    """Medians in ms, and Welch's t of the times, the slowest tenth of each left out."""
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


def _guesses(scene: Scene, count: int, tell: Tell) -> None:
    hits = 0
    for _ in range(count):
        hits += scene.stranger.ask("GET", f"/v1/jobs/{scene.unknown('job_')}")["status"] != 404
    tell("guesses", count=count, hits=hits)


def violations(history: Path) -> list[str]:
    """What must not have been: by the history alone."""
    found, kinds = [], set()
    for line in history.read_text().splitlines():
        ((kind, seen),) = json.loads(line).items()
        kinds.add(kind)
        found += [f"{seen.get('name', kind)}: {wrong}" for wrong in _wrong(kind, seen)]
    missing = {"pair", "list", "timing", "guesses", "owned", "file"} - kinds
    return found + [f"the history tells nothing of {kind}" for kind in sorted(missing)]


def _wrong(kind: str, seen: dict[str, Any]) -> Iterator[str]:
    if kind == "pair" and seen["foreign"] != seen["unknown"]:
        yield f"another's {seen['foreign']['status']}, unknown {seen['unknown']['status']}, or not the same words"
    if seen.get("leaks"):
        yield f"names {seen['leaks']}"
    if kind == "list" and seen["foreign"]:
        yield f"{seen['foreign']} of another's jobs"
    if kind == "cursor" and seen["next"] != seen["expected"]:
        yield f"{seen['next']} counts others' jobs"
    if kind == "owned" and seen["before"] != seen["after"]:
        yield "changed by a stranger"
    if kind == "reuse" and not seen["works"]:
        yield "does not work for the owner, so that it proves nothing"
    if kind == "guesses" and seen["hits"]:
        yield f"{seen['hits']} hits"
    if kind == "file" and seen["secret"]:
        yield "holds a key's secret"
    if kind == "timing" and seen["name"] != UPLOAD and _tells(seen):
        yield f"tells by its time: {seen['foreign_ms']:.2f} and {seen['unknown_ms']:.2f} ms"


def _tells(timing: dict[str, Any]) -> bool:
    return abs(timing["t"]) > SURE_T and abs(timing["foreign_ms"] / timing["unknown_ms"] - 1) > MUCH


@click.command()
@click.option("--seed", default=1, show_default=True)
@click.option(
    "--count", default=1000, show_default=True, help="Guesses, and timed requests of each kind."
)
@click.option(
    "--history", type=click.Path(path_type=Path), default=Path("strangers.jsonl"), show_default=True
)
@click.option(
    "--without",
    type=click.Choice(list(CONTROLS)),
    help="Take this guard out: there must be violations.",
)
def main(seed: int, count: int, history: Path, without: str | None) -> None:
    """Run, judge, tell; exit code 1 if there are violations."""
    run(seed, count, history, without)
    entries = [json.loads(line) for line in history.read_text().splitlines()]
    print(
        f"seed {seed}: {sum('pair' in entry for entry in entries)} pairs of answers, {count} guesses"
    )
    for timing in (entry["timing"] for entry in entries if "timing" in entry):
        print(
            "{name:13} another's {foreign_ms:.2f} ms, unknown {unknown_ms:.2f} ms, t = {t:.1f}".format(
                **timing
            )
        )
    report_violations(violations(history))


if __name__ == "__main__":
    main()
