"""A long day: the service at a steady load, with all that callers do, and pictures that expire. Nothing may grow.

python tests/campaigns/soak.py --seed 1 --minutes 30 --load 0.7
python tests/campaigns/soak.py --seed 1 --minutes 2 --load 0.7 --without letting-go

First its pace is measured: jobs a second when there are always some waiting. Then callers come at that times the load.
What is kept for days (results, records, uploads, idempotency keys) or minutes (blobs between writing and publishing) is
kept for a tenth of the run, so that as much goes as comes.
"""

import random
import statistics
import tempfile
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import httpx2
import kills
import psutil
import redis
from fleet import Fleet, patch_on_import
from history import History, events, report_violations

from core.jobs.models import Status

PACE_JOBS = 40
SAMPLE_SECONDS = 5.0
KEEP_SHARE = 0.1  # of the run
WARM_UP_SHARE = 0.3  # of the run, until what is kept has begun to go
PATIENCE_SECONDS = 120.0
PARAMETERS = kills.PARAMETERS[:2]

# What may be added from the first third after the warm-up to the last: a share, and so much more.
BOUNDS: dict[str, tuple[float, float]] = {
    "rss_mb": (0.05, 8.0),
    "fds": (0.0, 8.0),
    "threads": (0.0, 4.0),
    "store_mb": (0.1, 1.0),
    "store_keys": (0.2, 60.0),
    "files": (0.2, 60.0),
    "data_mb": (0.2, 4.0),
}

CONTROLS = {
    # Every answer with a picture is kept for ever.
    "letting-go": (
        "import functools, starlette.responses as r\n"
        "stock, kept = r.Response.__init__, []\n"
        "@functools.wraps(stock)\n"  # FastAPI reads its parameters
        "def init(self, content=None, *args, **more):\n"
        "    stock(self, content, *args, **more)\n"
        "    kept.append((bytes(self.body) + b' ') * 20)\n"
        "r.Response.__init__ = init\n"
    ),
    # Nothing is ever deleted.
    "janitor": "import core.jobs.store as s; s.JobStore.mark_deleting = lambda self: []\n",
}


def _scaled(keep_seconds: float) -> str:
    """For `changed`: what the code keeps for a fixed time, it keeps for so long; and what it remembers, less of it."""
    return (
        patch_on_import("api.job_feed", "module.MAX_CACHED = 50")
        + patch_on_import("api.http.image_response", "module._shelf = module.Shelf(200_000)")
        + "import core.jobs.serialization, core.jobs.store as s\n"
        f"core.jobs.serialization.REPLAY_SECONDS = {keep_seconds}\n"
        "stock_hold = s.JobStore.reserve\n"
        "def hold(self, digest, keep=0, owner=s.ANY_OWNER, **more):\n"
        f"    stock_hold(self, digest, {keep_seconds}, owner, **more)\n"
        "s.JobStore.reserve = hold\n"
    )


class Caller(threading.Thread):
    """One who comes, does what callers do with one job, and goes."""

    def __init__(self, url: str, history: History, key: str, dice: random.Random) -> None:
        super().__init__(daemon=True)
        self._url, self._history, self._key, self._dice = url, history, key, dice

    def run(self) -> None:
        self._http = httpx2.Client(base_url=self._url, timeout=30, trust_env=False)
        with self._http, suppress(httpx2.HTTPError):
            self._visit()

    def _ask(self, method: str, path: str, **request: Any) -> httpx2.Response:
        while True:
            answer = self._http.request(method, path, **request)
            if answer.status_code >= 500:
                self._history.record("failed", method=method, path=path, status=answer.status_code)
            if answer.status_code != 503:
                return answer
            time.sleep(0.5)

    def _visit(self) -> None:
        photo = kills.picture(1, 96, 72, self._dice.randbytes(8_000).hex())
        headers = {"Idempotency-Key": self._key}
        if self._dice.random() < 0.5:
            ids = [
                self._ask("POST", "/v1/images", files={"image": ("a.png", data)}).json()["id"]
                for data in (photo, kills.PAINTING)
            ]
            body = {"content": ids[0], "styles": ids[1:], "spec": self._dice.choice(PARAMETERS)}
            answer = self._ask("POST", "/v1/jobs", json=body, headers=headers)
        else:
            files = {"content": ("a.png", photo), "style": ("b.png", kills.PAINTING)}
            answer = self._ask(
                "POST", "/v1/jobs", files=files, data=self._dice.choice(PARAMETERS), headers=headers
            )
        if answer.status_code != 202:
            self._history.record("refused", status=answer.status_code, text=answer.text[:200])
            return
        self._follow(answer.json()["links"]["self"])

    def _follow(self, path: str) -> None:
        whim = self._dice.random()
        if whim < 0.1:
            self._ask("POST", f"{path}/cancel")
        elif whim < 0.2:
            self._ask("DELETE", path)
            self._history.record("job", status="deleted")
            return
        until, job = time.monotonic() + PATIENCE_SECONDS, {"status": "queued", "links": {}}
        while not Status(job["status"]).has_ended and time.monotonic() < until:
            job = self._ask("GET", path).json()
            if "preview" in job["links"]:
                self._ask("GET", job["links"]["preview"])
            time.sleep(0.3)
        for kind in ("png", "jpeg") if "result" in job["links"] else ():
            self._ask("GET", job["links"]["result"], params={"format": kind})
        self._ask("GET", "/v1/jobs")
        self._history.record("job", status=job["status"])
        if self._dice.random() < 0.3:
            self._ask("DELETE", path)


class Gauge(threading.Thread):
    """Looks at everything that may grow, over and over."""

    def __init__(self, fleet: Fleet, history: History, every: float, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self._fleet, self._history, self._every, self._over = fleet, history, every, over

    def run(self) -> None:
        while not self._over.wait(self._every):
            with suppress(redis.RedisError, psutil.Error):
                self._history.record("sample", **self._seen())

    def _seen(self) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for name, process in self._processes():
            with process.oneshot():
                seen[f"{name} rss_mb"] = round(process.memory_info().rss / 1e6, 2)
                seen[f"{name} fds"] = process.num_fds()
                seen[f"{name} threads"] = process.num_threads()
        with self._fleet.redis() as client:
            seen["store_mb"] = round(client.info("memory")["used_memory"] / 1e6, 3)
            seen["store_keys"] = client.dbsize()
        sizes = [_size(path) for path in self._fleet.data.rglob("*")]
        seen["files"], seen["data_mb"] = len(sizes), round(sum(sizes) / 1e6, 3)
        return seen

    def _processes(self) -> Any:
        yield "api", psutil.Process(self._fleet.api.pid)
        yield "valkey", psutil.Process(self._fleet.valkey.pid)
        for worker in self._fleet.workers:
            yield worker.name, psutil.Process(worker.pid)
            for child in worker.children():
                yield f"{worker.name}'s child", child


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def campaign(
    folder: Path,
    history: History,
    *,
    seed: int,
    minutes: float,
    load: float,
    every: float = SAMPLE_SECONDS,
    loose: float = 1.0,
    without: str | None = None,
) -> None:
    """Run it and tell the history. loose: how many times what is bound may be more, in a run too short to settle."""
    dice, over = random.Random(seed), threading.Event()
    keep = KEEP_SHARE * minutes * 60
    days = str(keep / 86_400)
    settings = {
        "API_RESULT_RETENTION_DAYS": days,
        "API_JOB_RETENTION_DAYS": days,
        "API_UPLOAD_RETENTION_HOURS": str(keep / 3600),
    }
    changed = _scaled(keep) + CONTROLS.get(without or "", "")
    fleet = Fleet(folder, tiny=True, changed=changed, WORKER_PREVIEW_SECONDS="0.1", **settings)
    with fleet:
        pace = _pace(fleet)
        history.record(
            "begin", seed=seed, minutes=minutes, load=load, pace=pace, loose=loose, without=without
        )
        gauge = Gauge(fleet, history, every, over)
        gauge.start()
        _come(fleet, history, dice, minutes * 60, load * pace)
        over.set()
        gauge.join()
    history.record("end")


def _pace(fleet: Fleet) -> float:
    """Jobs a second, callers' looks and all, when some always wait."""
    with tempfile.TemporaryDirectory() as folder:
        aside = History(Path(folder) / "aside")
        began = time.monotonic()
        callers = [
            Caller(fleet.url, aside, f"pace-{number}", random.Random(number))
            for number in range(PACE_JOBS)
        ]
        with ThreadPoolExecutor(8) as pool:
            for caller in callers:
                pool.submit(caller.run)
        return PACE_JOBS / (time.monotonic() - began)


def _come(fleet: Fleet, history: History, dice: random.Random, seconds: float, rate: float) -> None:
    """Callers come as they like, so many a second on average, whatever becomes of those before."""
    callers: list[Caller] = []
    began, due = time.monotonic(), 0.0
    while (due := due + dice.expovariate(rate)) < seconds:
        time.sleep(max(0.0, began + due - time.monotonic()))
        callers = [caller for caller in callers if caller.is_alive()]
        caller = Caller(fleet.url, history, f"soak-{due}", random.Random(dice.random()))
        caller.start()
        history.record("came", with_them=len(callers))
        callers.append(caller)
    until = time.monotonic() + PATIENCE_SECONDS
    for caller in callers:
        caller.join(max(0.0, until - time.monotonic()))


# ---------------------------------------------------------------------- the judge


def thirds(file: Path) -> dict[str, tuple[float, float, float]]:
    """Of all that was seen after the warm-up, the medians of three thirds."""
    samples = [*events(file, "sample")]
    seen: dict[str, list[float]] = defaultdict(list)
    for sample in samples[round(WARM_UP_SHARE * len(samples)) :]:
        for name, value in sample.items():
            if name not in ("at", "event"):
                seen[name].append(value)
    return {
        name: tuple(statistics.median(part) for part in _in_three(values))  # type: ignore[misc]
        for name, values in seen.items()
        if len(values) >= 3
    }


def _in_three(values: list[float]) -> list[list[float]]:
    size = len(values) // 3
    return [values[:size], values[size : 2 * size], values[-size:]]


def violations(file: Path) -> list[str]:
    """What must not be, by the history alone."""
    begin, found = next(events(file, "begin"), None), []
    if begin is None or not any(events(file, "end")):
        return ["the campaign did not come to its end"]
    seen = thirds(file)
    if not seen:
        found.append("nothing was measured")
    for name, (first, _, last) in seen.items():
        share, more = BOUNDS[name.rpartition(" ")[2]]
        if last - first > begin["loose"] * (share * first + more):
            found.append(f"{name} grew from {first:g} to {last:g}")
    found += [
        f"{event['method']} {event['path']} was answered {event['status']}"
        for event in events(file, "failed")
        if event["status"] != 503
    ]
    found += [
        f"a submission was answered {event['status']}: {event['text']}"
        for event in events(file, "refused")
    ]
    jobs = Counter(event["status"] for event in events(file, "job"))
    came = len([*events(file, "came")])
    if sum(jobs.values()) != came:
        found.append(f"{came} callers came, {sum(jobs.values())} went content")
    found += [
        f"{count} jobs ended as {status}" for status, count in jobs.items() if status not in _GOOD
    ]
    return found


_GOOD = ("succeeded", "canceled", "deleted")


def figures(file: Path) -> dict[str, Any]:
    """What the table shows."""
    begin = next(events(file, "begin"))
    shown: dict[str, Any] = {
        "pace, jobs a second": round(begin["pace"], 2),
        "callers": len([*events(file, "came")]),
        "of them at once, most": max(
            (event["with_them"] for event in events(file, "came")), default=0
        ),
        "jobs": dict(Counter(event["status"] for event in events(file, "job"))),
        "503": len([*events(file, "failed")]),
        "samples": len([*events(file, "sample")]),
    }
    return shown | {f"{name}, medians of thirds": row for name, row in sorted(thirds(file).items())}


@click.command()
@click.option("--seed", default=1)
@click.option("--minutes", default=30.0)
@click.option("--load", default=0.7, help="Share of the pace.")
@click.option("--every", default=SAMPLE_SECONDS, help="Seconds between two samples.")
@click.option("--loose", default=1.0, help="How many times as much as bound may be added.")
@click.option("--history", "file", type=click.Path(path_type=Path), default=None)
@click.option("--without", type=click.Choice([*CONTROLS]), default=None)
def main(
    seed: int,
    minutes: float,
    load: float,
    every: float,
    loose: float,
    file: Path | None,
    without: str | None,
) -> None:
    """Soak and measure."""
    with tempfile.TemporaryDirectory(prefix="impasto-soak-") as folder:
        history = History(file or Path(folder) / "history.jsonl")
        options = {
            "minutes": minutes,
            "load": load,
            "every": every,
            "loose": loose,
            "without": without,
        }
        campaign(Path(folder) / "fleet", history, seed=seed, **options)
        for name, value in figures(history.file).items():
            click.echo(f"| {name} | {value} |")
        report_violations(violations(history.file))


if __name__ == "__main__":
    main()
