"""Many clients repeat the same submissions and time out at random: each must create one job only.

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
        "def create(\n"
        "    self, job_id, job_input, options, limits, context\n"
        "):\n"
        "    without_key = context.model_copy(update={'idempotency_key': None})\n"
        "    return stock(self, job_id, job_input, options, limits, without_key)\n"
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
        history.record("timeout", key=number)
        return
    body = answer.json()
    history.record(
        "answer", key=number, status=answer.status_code, id=body.get("id"), code=body.get("code")
    )


async def _send_all(url: str, history: History, dice: random.Random, posts: int, keys: int) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        sent = [
            await client.post("/v1/images", files={"image": data}) for data in (PHOTO, PAINTING)
        ]
        content, style = (answer.json()["id"] for answer in sent)
        plan = iter([(dice.randrange(keys), 10 ** dice.uniform(-2, 1)) for _ in range(posts)])

        async def one() -> None:
            for number, seconds in plan:  # all clients take from the same iterator
                body = {"content": content, "styles": [style], "spec": {"iterations": number + 1}}
                await _post(client, history, number, body, seconds)

        await asyncio.gather(*(one() for _ in range(AT_ONCE)))
        for number in range(keys):  # once more, without a timeout
            body = {"content": content, "styles": [style], "spec": {"iterations": number + 1}}
            await _post(client, history, number, body, 60)
        other = {"content": content, "styles": [style], "spec": {"iterations": keys + 1}}
        await _post(client, history, 0, other, 60)
        next_page = "/v1/jobs?limit=100"
        while next_page is not None:
            page = (await client.get(next_page)).json()
            for job in page["jobs"]:
                history.record("job", id=job["id"], iterations=job["input"]["spec"]["iterations"])
            next_page = page["next"]


def campaign(
    history: History, *, seed: int, posts: int, keys: int, without: str | None = None
) -> None:
    """Run the campaign and write its history."""
    history.record("begin", seed=seed, posts=posts, keys=keys, without=without)
    # The rate limit of submissions would end the campaign early.
    with WatchedApi(CONTROLS.get(without or "", ""), API_SUBMISSIONS_PER_MINUTE="1000000") as api:
        asyncio.run(
            _send_all(f"http://127.0.0.1:{api.port}", history, random.Random(seed), posts, keys)
        )
    history.record("end")


def violations(file: Path) -> list[str]:
    """Return the violations that the history shows."""
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
            yield f"key {key}: the job of another key, or none"
    for key in set(range(begin["keys"])) - set(answers):
        yield f"key {key}: no answer"
    for key, codes in refused.items():
        # The only refusal must be that of the different request under the first key.
        if codes != ["idempotency_conflict"] or key != 0:
            yield f"key {key}: {codes}"
    if 0 not in refused:
        yield "a different request with the same key was accepted"
    if not any(events(file, "end")):
        yield "the campaign did not reach its end"


@click.command()
@click.option("--seed", default=1)
@click.option("--posts", default=10_000)
@click.option("--keys", default=100)
@click.option("--history", "file", type=click.Path(path_type=Path), default=None)
@click.option("--without", type=click.Choice([*CONTROLS]), default=None)
def main(seed: int, posts: int, keys: int, file: Path | None, without: str | None) -> None:
    """Run the campaign and check its history; exit code 1 if there are violations."""
    with tempfile.TemporaryDirectory(prefix="impasto-repeats-") as folder:
        history = History(file or Path(folder) / "history.jsonl")
        campaign(history, seed=seed, posts=posts, keys=keys, without=without)
        kinds = [json.loads(line)["event"] for line in history.file.read_text().splitlines()]
        click.echo(
            f"| {posts} posts | {kinds.count('timeout')} timeouts | {kinds.count('job')} jobs |"
        )
        report_violations(violations(history.file))


if __name__ == "__main__":
    main()
