"""Runs the service at a steady load for long, with everything that callers do. Nothing may grow.

    python tests/campaigns/soak.py --seed 1 --minutes 30 --load 0.7
    python tests/campaigns/soak.py --seed 1 --minutes 30 --rate 0.1 --apis 3 --workers 8 --s3
    python tests/campaigns/soak.py --seed 1 --minutes 2 --load 0.7 --without release

First the campaign measures the throughput: jobs per second while some always wait. Then callers
arrive at `load` times that rate, or at `rate` jobs per second. All retention times are a tenth of
the run, so that as much is deleted as is created: those of days (results, records, uploads,
idempotency keys) and those of minutes (blobs between writing and publishing). With --s3, the
pictures are in a bucket, and each process has a cache of its own, as on a host of its own.
"""

import os
import random
import statistics
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import httpx2
import kills
import psutil
import redis
from fleet import Fleet, patch_on_import
from history import History, events, report_violations
from s3_server import CREDENTIALS, S3Server

from core.jobs.models import Status

THROUGHPUT_JOBS = 40
SAMPLE_SECONDS = 5.0
RETENTION_SHARE = 0.1  # of the run
WARM_UP_SHARE = 0.3  # of the run, until the first records expire
TIMEOUT_SECONDS = 300.0  # a job that has not ended then counts as lost
PARAMETERS = kills.PARAMETERS[:2]
CACHE_GB = "0.0001"  # of each process with a bucket: full before the warm-up ends

# Allowed growth from the first third after the warm-up to the last: a share, plus a constant.
BOUNDS: dict[str, tuple[float, float]] = {
    "rss_mb": (0.05, 8.0),
    "fds": (0.0, 8.0),
    "threads": (0.0, 4.0),
    "store_mb": (0.1, 1.0),
    "store_keys": (0.2, 60.0),
    "files": (0.2, 60.0),
    "data_mb": (0.2, 4.0),
    "bucket_objects": (0.2, 60.0),
}

CONTROLS = {
    # Keeps every response forever.
    "release": (
        "import functools, starlette.responses as r\n"
        "stock, kept = r.Response.__init__, []\n"
        "@functools.wraps(stock)\n"  # FastAPI reads its parameters
        "def init(self, content=None, *args, **more):\n"
        "    stock(self, content, *args, **more)\n"
        "    kept.append((bytes(self.body) + b' ') * 20)\n"
        "r.Response.__init__ = init\n"
    ),
    # Never deletes a blob.
    "garbage-collector": (
        "import core.jobs.store as s\ns.JobStore.mark_deleting = lambda self: []\n"
    ),
}


def _scale_retention(seconds: float) -> str:
    """Code for `changed` that scales the fixed retention times and shrinks the caches.

    seconds: the time for which blobs and idempotency keys are kept.
    """
    return (
        patch_on_import("api.job_feed", "module.MAX_CACHED = 50")
        + patch_on_import("api.http.image_response", "module._cache = module.create_cache(200_000)")
        + "import core.jobs.serialization, core.jobs.store as s\n"
        f"core.jobs.serialization.REPLAY_SECONDS = {seconds}\n"
        "stock = s.JobStore.reserve\n"
        "def reserve(self, digest, keep=0, owner=s.ANY_OWNER, **more):\n"
        f"    stock(self, digest, {seconds}, owner, **more)\n"
        "s.JobStore.reserve = reserve\n"
    )


class Caller(threading.Thread):
    """A caller that submits one job and uses the API as callers do."""

    def __init__(self, url: str, history: History, key: str, rng: random.Random) -> None:
        super().__init__(daemon=True)
        self._url, self._history, self._key, self._rng = url, history, key, rng

    def run(self) -> None:
        self._http = httpx2.Client(base_url=self._url, timeout=30, trust_env=False)
        with self._http, suppress(httpx2.HTTPError):
            self._use_service()

    def _request(self, method: str, path: str, **request: Any) -> httpx2.Response:
        while True:
            answer = self._http.request(method, path, **request)
            if answer.status_code >= 500:
                self._history.record("failed", method=method, path=path, status=answer.status_code)
            if answer.status_code not in (429, 503):
                return answer
            time.sleep(0.5)

    def _use_service(self) -> None:
        photo = kills.picture(1, 96, 72, self._rng.randbytes(8_000).hex())
        headers = {"Idempotency-Key": self._key}
        if self._rng.random() < 0.5:
            ids = [
                self._request("POST", "/v1/images", files={"image": ("a.png", data)}).json()["id"]
                for data in (photo, kills.PAINTING)
            ]
            body = {"content": ids[0], "styles": ids[1:], "spec": self._rng.choice(PARAMETERS)}
            answer = self._request("POST", "/v1/jobs", json=body, headers=headers)
        else:
            files = {"content": ("a.png", photo), "style": ("b.png", kills.PAINTING)}
            answer = self._request(
                "POST", "/v1/jobs", files=files, data=self._rng.choice(PARAMETERS), headers=headers
            )
        if answer.status_code != 202:
            self._history.record("refused", status=answer.status_code, text=answer.text[:200])
            return
        self._follow_job(answer.json()["links"]["self"])

    def _follow_job(self, path: str) -> None:
        choice = self._rng.random()
        if choice < 0.1:
            self._request("POST", f"{path}/cancel")
        elif choice < 0.2:
            self._request("DELETE", path)
            self._history.record("job", status="deleted")
            return
        until, job = time.monotonic() + TIMEOUT_SECONDS, {"status": "queued", "links": {}}
        while not Status(job["status"]).has_ended and time.monotonic() < until:
            job = self._request("GET", path).json()
            if "preview" in job["links"]:
                self._request("GET", job["links"]["preview"])
            time.sleep(0.3)
        for kind in ("png", "jpeg") if "result" in job["links"] else ():
            answer = self._request("GET", job["links"]["result"], params={"format": kind})
            if answer.status_code != 200 and answer.json()["code"] != "result_gone":
                self._history.record("lost", status=answer.status_code, text=answer.text[:200])
        self._request("GET", "/v1/jobs")
        self._history.record("job", status=job["status"])
        if self._rng.random() < 0.3:
            self._request("DELETE", path)


class Gauge(threading.Thread):
    """Measures everything that may grow, at a fixed interval."""

    def __init__(
        self,
        fleet: Fleet,
        history: History,
        every: float,
        stopped: threading.Event,
        count_objects: Callable[[], int] | None,
    ) -> None:
        """count_objects: returns the number of objects in the bucket."""
        super().__init__(daemon=True)
        self._fleet, self._history, self._every, self._stopped = fleet, history, every, stopped
        self._count_objects = count_objects

    def run(self) -> None:
        while not self._stopped.wait(self._every):
            with suppress(redis.RedisError, psutil.Error):
                self._history.record("sample", **self._measure())

    def _measure(self) -> dict[str, Any]:
        sample: dict[str, Any] = {}
        for name, process in self._processes():
            with process.oneshot():
                sample[f"{name} rss_mb"] = round(process.memory_info().rss / 1e6, 2)
                sample[f"{name} fds"] = process.num_fds()
                sample[f"{name} threads"] = process.num_threads()
        with self._fleet.redis() as client:
            sample["store_mb"] = round(client.info("memory")["used_memory"] / 1e6, 3)
            sample["store_keys"] = client.dbsize()
        folders = (self._fleet.data, self._fleet.folder / "hosts")
        sizes = [_file_size(path) for folder in folders for path in folder.rglob("*")]
        sample["files"], sample["data_mb"] = len(sizes), round(sum(sizes) / 1e6, 3)
        if self._count_objects is not None:
            sample["bucket_objects"] = self._count_objects()
        return sample

    def _processes(self) -> Any:
        for api in self._fleet.apis:
            yield api.name, psutil.Process(api.pid)
        yield "valkey", psutil.Process(self._fleet.valkey.pid)
        for worker in self._fleet.workers:
            yield worker.name, psutil.Process(worker.pid)
            for child in worker.children():
                yield f"{worker.name}'s child", child


def _file_size(path: Path) -> int:
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
    rate: float | None = None,
    apis: int = 1,
    workers: int = 2,
    s3: bool = False,
) -> None:
    """Run the campaign and write the history.

    loose: factor on the allowed growth, for a run that is too short to reach a steady state.
    """
    rng, stopped = random.Random(seed), threading.Event()
    retention = RETENTION_SHARE * minutes * 60
    days = str(retention / 86_400)
    settings = {
        "API_RESULT_RETENTION_DAYS": days,
        "API_JOB_RETENTION_DAYS": days,
        "API_UPLOAD_RETENTION_HOURS": str(retention / 3600),
    }
    changed = _scale_retention(retention) + CONTROLS.get(without or "", "")
    with ExitStack() as stack:
        count_objects = None
        if s3:
            bucket = stack.enter_context(S3Server())
            url = bucket.create_bucket()
            settings |= {"BLOBS_URL": url, "BLOBS_CACHE_GB": CACHE_GB}
            settings["WORKER_CHECKPOINT_SECONDS"] = "2"  # the default; each is an upload
            stack.enter_context(patch.dict(os.environ, CREDENTIALS))
            count_objects = partial(bucket.count_keys, url)
        fleet = stack.enter_context(
            Fleet(
                folder,
                apis=apis,
                workers=workers,
                hosts=s3,
                tiny=True,
                changed=changed,
                WORKER_PREVIEW_SECONDS="0.1",
                **settings,
            )
        )
        throughput = rate / load if rate else _measure_throughput(fleet)
        history.record(
            "begin",
            seed=seed,
            minutes=minutes,
            load=load,
            throughput=throughput,
            loose=loose,
            without=without,
        )
        gauge = Gauge(fleet, history, every, stopped, count_objects)
        gauge.start()
        _run_callers(fleet, history, rng, minutes * 60, load * throughput)
        stopped.set()
        gauge.join()
    history.record("end")


def _measure_throughput(fleet: Fleet) -> float:
    """Jobs per second while some always wait, including the callers' polls."""
    with tempfile.TemporaryDirectory() as folder:
        unused = History(Path(folder) / "history")
        began = time.monotonic()
        callers = [
            Caller(url, unused, f"throughput-{number}", random.Random(number))
            for number, url in zip(range(THROUGHPUT_JOBS), cycle(fleet.urls), strict=False)
        ]
        with ThreadPoolExecutor(8) as pool:
            for caller in callers:
                pool.submit(caller.run)
        return THROUGHPUT_JOBS / (time.monotonic() - began)


def _run_callers(
    fleet: Fleet, history: History, rng: random.Random, seconds: float, rate: float
) -> None:
    """Start callers at random times, `rate` per second on average; then wait for all of them.

    A new caller does not wait for earlier ones (open loop).
    """
    callers: list[Caller] = []
    began, due = time.monotonic(), 0.0
    while (due := due + rng.expovariate(rate)) < seconds:
        time.sleep(max(0.0, began + due - time.monotonic()))
        callers = [caller for caller in callers if caller.is_alive()]
        own = random.Random(rng.random())
        caller = Caller(own.choice(fleet.urls), history, f"soak-{due}", own)
        caller.start()
        history.record("arrived", active=len(callers))
        callers.append(caller)
    until = time.monotonic() + TIMEOUT_SECONDS
    for caller in callers:
        caller.join(max(0.0, until - time.monotonic()))


# ---------------------------------------------------------------------- the checker


def medians_of_thirds(file: Path) -> dict[str, tuple[float, float, float]]:
    """The medians of each figure in the three thirds after the warm-up."""
    samples = [*events(file, "sample")]
    values_of: dict[str, list[float]] = defaultdict(list)
    for sample in samples[round(WARM_UP_SHARE * len(samples)) :]:
        for name, value in sample.items():
            if name not in ("at", "event"):
                values_of[name].append(value)
    medians: dict[str, tuple[float, float, float]] = {}
    for name, values in values_of.items():
        if len(values) >= 3:
            first, middle, last = map(statistics.median, _split_in_three(values))
            medians[name] = (first, middle, last)
    return medians


def _split_in_three(values: list[float]) -> list[list[float]]:
    size = len(values) // 3
    return [values[:size], values[size : 2 * size], values[-size:]]


def violations(file: Path) -> list[str]:
    """Check the history; return a sentence per violation."""
    begin, found = next(events(file, "begin"), None), []
    if begin is None or not any(events(file, "end")):
        return ["the campaign did not come to its end"]
    medians = medians_of_thirds(file)
    if not medians:
        found.append("nothing was measured")
    for name, (first, _, last) in medians.items():
        share, constant = BOUNDS[name.rpartition(" ")[2]]
        if last - first > begin["loose"] * (share * first + constant):
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
    found += [
        f"a result was answered {event['status']}: {event['text']}"
        for event in events(file, "lost")
    ]
    jobs = Counter(event["status"] for event in events(file, "job"))
    arrived = len([*events(file, "arrived")])
    if sum(jobs.values()) != arrived:
        found.append(f"{arrived} callers arrived, {sum(jobs.values())} finished")
    found += [
        f"{count} jobs ended as {status}"
        for status, count in jobs.items()
        if status not in _EXPECTED
    ]
    return found


_EXPECTED = ("succeeded", "canceled", "deleted")


def summarize(file: Path) -> dict[str, Any]:
    """The rows of the table that the command prints."""
    begin = next(events(file, "begin"))
    rows: dict[str, Any] = {
        "throughput, jobs per second": round(begin["throughput"], 2),
        "callers": len([*events(file, "arrived")]),
        "callers at once, maximum": max(
            (event["active"] for event in events(file, "arrived")), default=0
        ),
        "jobs": dict(Counter(event["status"] for event in events(file, "job"))),
        "503": len([*events(file, "failed")]),
        "samples": len([*events(file, "sample")]),
    }
    medians = sorted(medians_of_thirds(file).items())
    rows |= {f"{name}, medians of thirds": row for name, row in medians}
    return rows | _describe_memory(file)


def _describe_memory(file: Path) -> dict[str, str]:
    """The resident memory of each process: at the start and the end, and its slope."""
    samples = [*events(file, "sample")]
    warm = samples[round(WARM_UP_SHARE * len(samples)) :]
    rows = {}
    for name in sorted(samples[-1] if samples else ()):
        points = [(sample["at"] / 3600, sample[name]) for sample in warm if name in sample]
        if name.endswith("rss_mb") and len(points) > 1:
            slope = statistics.linear_regression(*zip(*points, strict=True)).slope
            first = next(sample[name] for sample in samples if name in sample)
            rows[f"{name}, first; after the warm-up; last; slope"] = (
                f"{first:.1f}; {points[0][1]:.1f}; {points[-1][1]:.1f}; {slope:+.1f} MB/h"
            )
    return rows


@click.command()
@click.option("--seed", default=1)
@click.option("--minutes", default=30.0)
@click.option("--load", default=0.7, help="Share of the throughput.")
@click.option("--every", default=SAMPLE_SECONDS, help="Seconds between two samples.")
@click.option("--loose", default=1.0, help="Factor on the allowed growth.")
@click.option("--history", "file", type=click.Path(path_type=Path), default=None)
@click.option("--without", type=click.Choice([*CONTROLS]), default=None)
@click.option("--rate", type=float, help="Jobs per second, instead of a share.")
@click.option("--apis", default=1, help="API processes.")
@click.option("--workers", default=2)
@click.option("--s3", is_flag=True, help="Pictures in a bucket; each process has its own cache.")
def main(
    seed: int,
    minutes: float,
    load: float,
    every: float,
    loose: float,
    file: Path | None,
    without: str | None,
    rate: float | None,
    apis: int,
    workers: int,
    s3: bool,
) -> None:
    """Run the campaign, print its figures, check its history."""
    with tempfile.TemporaryDirectory(prefix="impasto-soak-") as folder:
        history = History(file or Path(folder) / "history.jsonl")
        options = {
            "minutes": minutes,
            "load": load,
            "every": every,
            "loose": loose,
            "without": without,
            "rate": rate,
            "apis": apis,
            "workers": workers,
            "s3": s3,
        }
        campaign(Path(folder) / "fleet", history, seed=seed, **options)
        for name, value in summarize(history.file).items():
            click.echo(f"| {name} | {value} |")
        report_violations(violations(history.file))


if __name__ == "__main__":
    main()
