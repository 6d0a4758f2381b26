"""The same submissions again and again, by many at once, whose patience ends at any moment: each is taken once.

python tests/campaigns/repeats.py --seed 1 --posts 10000 --keys 100
python tests/campaigns/repeats.py --seed 1 --posts 400 --keys 20 --without keys
"""

import asyncio
import json
import random
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import httpx2
from history import History, events, report_violations
from kills import PAINTING, PHOTO
from watched_api import WatchedApi

AT_ONCE = 50
CONTROLS = {
    "keys": (
        "import core.jobs.store as s\n"
        "stock = s.JobStore.create\n"
        "def create(self, job_id, job_input, terms=s.SubmissionOptions(), limits=s.QueueLimits()):\n"
        "    loose = terms.model_copy(update={'idempotency_key': None})\n"
        "    return stock(self, job_id, job_input, loose, limits)\n"
        "s.JobStore.create = create"
    )
}


async def _post(
    client: httpx2.AsyncClient, history: History, number: int, body: dict[str, Any], seconds: float
) -> None:
    try:
        async with asyncio.timeout(seconds):
            answer = await client.post(
                "/v1/jobs", json=body, headers={"Idempotency-Key": f"key-{number}"}
            )
    except (TimeoutError, httpx2.HTTPError):
        history.record("unheard", key=number)
        return
    told = answer.json()
    history.record(
        "answer", key=number, status=answer.status_code, id=told.get("id"), code=told.get("code")
    )


async def _crowd(url: str, history: History, dice: random.Random, posts: int, keys: int) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        sent = [
            await client.post("/v1/images", files={"image": data}) for data in (PHOTO, PAINTING)
        ]
        content, style = (answer.json()["id"] for answer in sent)
        orders = iter([(dice.randrange(keys), 10 ** dice.uniform(-2, 1)) for _ in range(posts)])

        async def one() -> None:
            for number, seconds in orders:  # all take from the same
                body = {"content": content, "styles": [style], "spec": {"iterations": number + 1}}
                await _post(client, history, number, body, seconds)

        await asyncio.gather(*(one() for _ in range(AT_ONCE)))
        for number in range(keys):  # and once with patience
            body = {"content": content, "styles": [style], "spec": {"iterations": number + 1}}
            await _post(client, history, number, body, 60)
        other = {"content": content, "styles": [style], "spec": {"iterations": keys + 1}}
        await _post(client, history, 0, other, 60)
        following = "/v1/jobs?limit=100"
        while following is not None:
            page = (await client.get(following)).json()
            for job in page["jobs"]:
                history.record("job", id=job["id"], iterations=job["input"]["spec"]["iterations"])
            following = page["next"]


def campaign(
    history: History, *, seed: int, posts: int, keys: int, without: str | None = None
) -> None:
    """Run it and tell the history."""
    history.record("begin", seed=seed, posts=posts, keys=keys, without=without)
    # A limit of submissions a minute is not what is asked here.
    with WatchedApi(CONTROLS.get(without or "", ""), API_SUBMISSIONS_PER_MINUTE="1000000") as api:
        asyncio.run(
            _crowd(f"http://127.0.0.1:{api.port}", history, random.Random(seed), posts, keys)
        )
    history.record("end")


def violations(file: Path) -> list[str]:
    """What must not be, by the history alone."""
    return [*_violations(file)]


def _violations(file: Path) -> Iterator[str]:
    begin = next(events(file, "begin"))
    answers, refused = defaultdict(set), defaultdict(list)
    for event in events(file, "answer"):
        if event["status"] == 202:
            answers[event["key"]].add(event["id"])
        else:
            refused[event["key"]].append(event["code"])
    jobs = {event["id"]: event["iterations"] for event in events(file, "job")}
    if len(jobs) != begin["keys"]:
        yield f"{len(jobs)} jobs, not {begin['keys']}"
    for key, ids in answers.items():
        if len(ids) != 1:
            yield f"key {key}: {len(ids)} jobs"
        if {jobs.get(one) for one in ids} != {key + 1}:
            yield f"key {key}: the job of another, or none"
    for key in set(range(begin["keys"])) - set(answers):
        yield f"key {key}: never answered"
    for key, codes in refused.items():
        if (
            codes != ["idempotency_conflict"] or key != 0
        ):  # the one other request under the first key
            yield f"key {key}: {codes}"
    if 0 not in refused:
        yield "another request under the same key was taken"
    if not any(events(file, "end")):
        yield "the campaign did not come to its end"


@click.command()
@click.option("--seed", default=1)
@click.option("--posts", default=10_000)
@click.option("--keys", default=100)
@click.option("--history", "file", type=click.Path(path_type=Path), default=None)
@click.option("--without", type=click.Choice([*CONTROLS]), default=None)
def main(seed: int, posts: int, keys: int, file: Path | None, without: str | None) -> None:
    """Repeat and count."""
    with tempfile.TemporaryDirectory(prefix="impasto-repeats-") as folder:
        history = History(file or Path(folder) / "history.jsonl")
        campaign(history, seed=seed, posts=posts, keys=keys, without=without)
        told = [json.loads(line)["event"] for line in history.file.read_text().splitlines()]
        click.echo(
            f"| {posts} posts | {told.count('unheard')} unheard | {told.count('job')} jobs |"
        )
        report_violations(violations(history.file))


if __name__ == "__main__":
    main()
