"""One caller floods the queue: the others' jobs are accepted and start in fair turns.

python tests/campaigns/floods.py --seed 1 --seconds 60
python tests/campaigns/floods.py --seed 1 --seconds 20 --without turns
"""

import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import httpx2
from fleet import Fleet
from history import History, events, percentile, report_violations
from kills import PAINTING, PARAMETERS, PHOTO

from core.auth.api_keys import ApiKeyStore

FLOODERS = 32  # connections of the flooder
# Jobs of the flood that may start while another caller's job waits: the one whose turn it is, and
# the next one of the worker.
OVERTAKEN = 2
STORE_MIB = 100
PER_MINUTE = 120  # submissions per key; low, so that a slow machine reaches the limit too
TIMEOUT_SECONDS = 60.0
CONTROLS = {
    # First come, first served, instead of fair turns.
    "turns": (
        "import core.jobs.store as s\n"
        "stock = s.load_library\n"
        "def load_library():\n"
        "    version, code = stock()\n"
        "    loose = code.replace('class, round, number)', 'class, 0, number)')\n"
        "    assert loose != code\n"
        "    return version + 'x', loose.replace(version, version + 'x')\n"
        "s.load_library = load_library"
    )
}


class Owner:
    """A caller with an API key."""

    def __init__(self, url: str, secret: str) -> None:
        headers = {"Authorization": f"Bearer {secret}"}
        limits = httpx2.Limits(max_connections=FLOODERS)
        self.http = httpx2.AsyncClient(
            base_url=url, headers=headers, timeout=60, trust_env=False, limits=limits
        )
        self.order: dict[str, Any] = {}

    async def upload(self, seed: int) -> None:
        """Upload the pictures once, for all jobs."""
        sent = [
            await self.http.post("/v1/images", files={"image": data}) for data in (PHOTO, PAINTING)
        ]
        content, style = (answer.json()["id"] for answer in sent)
        self.order = {
            "content": content,
            "styles": [style],
            "spec": random.Random(seed).choice(PARAMETERS),
        }

    async def submit(self) -> httpx2.Response:
        return await self.http.post("/v1/jobs", json=self.order)

    async def wait_for(
        self, job_id: str, condition: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while True:
            job: dict[str, Any] = (await self.http.get(f"/v1/jobs/{job_id}")).json()
            if condition(job) or time.monotonic() > deadline:
                return job
            await asyncio.sleep(0.05)


async def _honest(owner: Owner, history: History, when: str) -> None:
    answer = await owner.submit()
    if answer.status_code != 202:
        history.record("honest", when=when, status=answer.status_code)
        return
    job = await owner.wait_for(answer.json()["id"], lambda job: bool(job["completed_at"]))
    facts = {name: job[name] for name in ("created_at", "started_at", "completed_at")}
    history.record("honest", when=when, status=202, ended=job["status"], **facts)


async def _flood(owner: Owner, history: History, until: float) -> None:
    while time.monotonic() < until:
        answer = await owner.submit()
        wait = answer.headers.get("Retry-After", "")
        history.record(
            "flood", status=answer.status_code, wait=int(wait) if wait.isdigit() else None
        )


async def _run(url: str, secrets: list[str], history: History, seed: int, seconds: float) -> None:
    flooder, *others = (Owner(url, secret) for secret in secrets)
    for owner in (flooder, *others):
        await owner.upload(seed)
    for owner in others:
        await _honest(owner, history, "before")
    until = time.monotonic() + seconds
    floods = [asyncio.create_task(_flood(flooder, history, until)) for _ in range(FLOODERS)]
    while time.monotonic() < until:
        await asyncio.gather(*(_honest(owner, history, "during") for owner in others))
    await asyncio.gather(*floods)
    following: str | None = "/v1/jobs?limit=100"
    while following:
        page = (await flooder.http.get(following)).json()
        for job in page["jobs"]:
            if job["started_at"]:
                history.record("started", at_time=job["started_at"])
        following = page["next"]
    for owner in (flooder, *others):
        await owner.http.aclose()


def campaign(
    folder: Path, history: History, *, seed: int, seconds: float, without: str | None = None
) -> None:
    """Run the campaign and write its history."""
    history.record("begin", seed=seed, seconds=seconds, without=without)
    fleet = Fleet(
        folder,
        workers=1,
        tiny=True,
        changed=CONTROLS.get(without or "", ""),
        API_KEYS="required",
        API_SUBMISSIONS_PER_MINUTE=str(PER_MINUTE),
        API_MAX_WAIT_SECONDS="600",  # the limit per minute is under test
    )
    with fleet, fleet.redis() as store:
        keys = ApiKeyStore(f"redis://127.0.0.1:{fleet.store_port}/0")
        secrets = [keys.create(name)[1] for name in ("flooder", "first", "second")]
        keys.close()
        asyncio.run(_run(fleet.url, secrets, history, seed, seconds))
        history.record("end", store_mib=store.info("memory")["used_memory_peak"] / 2**20)


def overtaken(file: Path) -> list[int]:
    """For each job of the others: how many of the flooder's jobs started while it waited."""
    starts = [event["at_time"] for event in events(file, "started")]
    waits = [
        (event["created_at"], event["started_at"])
        for event in events(file, "honest")
        if "started_at" in event
    ]
    return [
        sum(created < start < (started or "9") for start in starts) for created, started in waits
    ]


def violations(file: Path) -> list[str]:
    """Return the violations that the history shows."""
    found: list[str] = []
    found += [
        f"a job of another {event['when']} the flood: {event['status']} {event.get('ended')}"
        for event in events(file, "honest")
        if event["status"] != 202 or event["ended"] != "succeeded"
    ]
    found += [
        f"{count} jobs of the flood overtook another caller's"
        for count in overtaken(file)
        if count > OVERTAKEN
    ]
    for event in events(file, "flood"):
        if event["status"] != 202 and (event["status"] != 429 or not event["wait"]):
            found.append(f"the flooder got {event['status']}, to wait {event['wait']} s")
    if not any(event["status"] == 429 for event in events(file, "flood")):
        found.append("the flooder was never rate limited")
    if not any(event["when"] == "during" for event in events(file, "honest")):
        found.append("no other caller submitted a job")
    ends = [*events(file, "end")]
    found += [
        f"the store grew to {event['store_mib']:.0f} MiB"
        for event in ends
        if event["store_mib"] > STORE_MIB
    ]
    return found if ends else [*found, "the campaign did not finish"]


@click.command()
@click.option("--seed", default=1)
@click.option("--seconds", default=60.0)
@click.option("--history", "file", type=click.Path(path_type=Path), default=None)
@click.option("--without", type=click.Choice([*CONTROLS]), default=None)
def main(seed: int, seconds: float, file: Path | None, without: str | None) -> None:
    """Flood the queue and check the other callers' jobs."""
    with tempfile.TemporaryDirectory(prefix="impasto-floods-") as folder:
        history = History(file or Path(folder) / "history.jsonl")
        campaign(Path(folder) / "fleet", history, seed=seed, seconds=seconds, without=without)
        answers = Counter(event["status"] for event in events(history.file, "flood"))
        click.echo(f"| the flooder's responses | {dict(answers)} |")
        before = [float(count) for count in overtaken(history.file)]
        click.echo(
            f"| others' jobs | {len(before)}; overtaken by p50 {percentile(before, 0.5):.0f} |"
        )
        for event in events(history.file, "end"):
            click.echo(f"| the store, max | {event['store_mib']:.0f} MiB |")
        report_violations(violations(history.file))


if __name__ == "__main__":
    main()
