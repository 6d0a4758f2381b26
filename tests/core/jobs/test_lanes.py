"""Which worker gets which job: sizes, pools, fairness, suspensions, earlier versions."""

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from worker_reports import describe_worker

from core.jobs import store as store_module
from core.jobs.models import (
    NO_POOL,
    RECORD_FORMAT,
    Job,
    JobInput,
    SubmissionContext,
    SubmissionOptions,
    WorkerReport,
    new_job_id,
)
from core.jobs.serialization import sha256_hex
from core.jobs.store import KNOWN_SECONDS, JobStore
from core.redis_client import PREFIX
from core.style.limits import SIZE_CLASSES
from core.style.spec import StyleSpec

Submit = Callable[..., Job]
SMALL, LARGE = describe_worker(1024, name="small"), describe_worker(4096, name="large")


@pytest.fixture
def server(valkey: Any) -> Iterator[Any]:
    client = redis.Redis.from_url(valkey.url, decode_responses=True)
    yield client
    client.close()


@pytest.fixture
def submit(driver: Any, store: JobStore) -> Submit:
    """Queue a job of a size, an owner and a pool."""

    def create(
        size: int = 512, owner: str = "local", pool: str | None = None, **options: Any
    ) -> Job:
        for digest in (driver.CONTENT, driver.STYLE):
            store.reserve(digest, 600)
        spec = StyleSpec(size=size).model_dump()
        job_input = JobInput(content=driver.CONTENT, styles=[driver.STYLE], spec=spec)
        chosen = SubmissionOptions(pool=pool, **options)
        return store.create(new_job_id(), job_input, chosen, context=SubmissionContext(owner=owner))

    return create


@pytest.fixture
def claim(store: JobStore) -> Callable[[WorkerReport], str | None]:
    """Claim the next job as this worker; returns its id."""

    def claim_next(worker: WorkerReport) -> str | None:
        job = store.claim(new_job_id(), worker.id, worker)
        return job and job.id

    return claim_next


def _see(store: JobStore, *workers: WorkerReport) -> None:
    for worker in workers:
        store.heartbeat(worker.id, worker)


def test_the_constants_of_the_scripts_are_those_of_the_models() -> None:
    code = store_module.load_library()[1]

    sizes = re.search(r"local SIZES = \{ ([\d, ]+) \}", code)
    assert sizes is not None
    assert tuple(map(int, sizes[1].split(","))) == SIZE_CLASSES
    assert f"local FORMAT = {RECORD_FORMAT} " in code
    assert f"local KNOWN_MS = {KNOWN_SECONDS * 1000} " in code


def test_another_set_of_parameters_has_another_record_format() -> None:
    """A worker refuses parameters that it does not know, so it must leave such jobs to others.

    If you add or remove a parameter: raise RECORD_FORMAT (and FORMAT in lanes.lua) if this version
    was released or deployed with the old one, and put the new digest here.
    """
    names = " ".join(sorted(StyleSpec.model_fields))

    assert (RECORD_FORMAT, sha256_hex(names)[:12]) == (1, "9b4d3f9d5a23")


# ---------------------------------------------------------------------- sizes


def test_a_job_goes_only_to_a_worker_that_holds_it(
    store: JobStore, submit: Submit, claim: Any
) -> None:
    _see(store, SMALL, LARGE)
    big, small = submit(4096), submit(1024)

    assert [claim(SMALL), claim(SMALL)] == [small.id, None]
    assert claim(LARGE) == big.id


def test_the_oldest_big_job_comes_before_newer_small_ones(
    store: JobStore, submit: Submit, claim: Any
) -> None:
    _see(store, SMALL, LARGE)
    first = submit(512, "a")
    big = submit(3000, "b")
    later = [submit(512, owner).id for owner in "cde"]

    assert [claim(LARGE) for _ in range(5)] == [first.id, big.id, *later]


def test_a_job_that_no_known_worker_holds_goes_to_the_largest(
    store: JobStore, submit: Submit, claim: Any
) -> None:
    """Its planner says which size fits, as on a single machine."""
    _see(store, SMALL, LARGE)
    job = submit(8192)

    assert job.queue is not None
    assert job.queue.waits_for is None
    assert claim(SMALL) is None
    assert claim(LARGE) == job.id


def test_a_job_waits_for_a_larger_worker_that_was_there_within_the_hour(
    store: JobStore, submit: Submit, claim: Any, server: Any
) -> None:
    _see(store, SMALL, LARGE)
    key, now_ms = f"{PREFIX}sizes_of:", server.time()[0] * 1000
    server.zadd(key, {"4096": now_ms - 10_000})
    job = submit(2048)

    assert job.queue is not None
    assert (job.queue.waits_for, job.queue.start_seconds) == ("memory", None)
    assert claim(SMALL) is None
    server.zadd(key, {"4096": now_ms - 3_700_000})
    queue = store.get(job.id).queue
    assert queue is not None
    assert queue.waits_for is None
    assert claim(SMALL) == job.id


def test_a_worker_that_holds_less_after_a_restart_is_not_waited_for(
    store: JobStore, submit: Submit, claim: Any
) -> None:
    """A single machine would otherwise wait an hour for its own former memory."""
    _see(store, describe_worker(8192, name="w"))
    less = describe_worker(2048, name="w")
    store.announce(less)
    _see(store, less)

    job = submit(4096)
    assert claim(less) == job.id
    _see(store, LARGE)
    store.announce(less)
    submit(4096)
    assert claim(less) is None, "the size of another worker stays"


def test_a_job_that_its_worker_cannot_hold_is_released_to_a_larger_one(
    store: JobStore, submit: Submit, claim: Any, driver: Any
) -> None:
    _see(store, SMALL, LARGE)
    job, other = submit(1024), submit(1024)
    first, second = (store.claim(token, "w", SMALL) for token in "ab")
    assert first is not None
    assert second is not None
    assert store.release_to_larger(job.id, "a", SMALL)
    assert store.get(job.id).attempt == 0
    assert not store.release_to_larger(other.id, "stale", SMALL)

    assert claim(SMALL) is None
    assert claim(LARGE) == job.id
    driver.store.suspensions.suspend("large", "paused")
    assert store.release_to_larger(other.id, "b", SMALL), "a paused worker is known"


def test_without_a_larger_worker_a_job_is_not_released(
    store: JobStore, submit: Submit, claim: Any
) -> None:
    _see(store, SMALL, LARGE)
    job = submit(4096)
    store.claim("t", "w", LARGE)

    assert not store.release_to_larger(job.id, "t", LARGE)
    assert store.renew(job.id, "t") == "ok"
    assert claim(LARGE) is None


# ---------------------------------------------------------------------- pools


def test_a_job_of_a_pool_goes_only_to_its_workers(
    store: JobStore, submit: Submit, claim: Any
) -> None:
    job, plain = submit(pool="team=a"), submit()
    assert job.pool == "team=a"

    assert [claim(describe_worker(8192, NO_POOL, "team=b")) for _ in range(2)] == [plain.id, None]
    assert claim(describe_worker(8192, "team=a")) == job.id
    submit()
    assert claim(describe_worker(8192, "team=a")) is None, "it is dedicated to its pool"


def test_a_job_of_a_pool_without_workers_says_so(store: JobStore, submit: Submit) -> None:
    job = submit(pool="team=a")
    assert job.queue is not None
    assert job.queue.waits_for == "pool"

    worker = describe_worker(8192, "team=a")
    _see(store, worker)
    seen = store.get(job.id).queue
    assert seen is not None
    assert seen.waits_for is None
    store.suspensions.suspend(worker.id, "paused")
    store._redis.zadd(f"{PREFIX}sizes_of:team=a", {"8192": 1})  # its last heartbeat before that
    _see(store, worker)
    seen = store.get(job.id).queue
    assert seen is not None
    assert seen.waits_for == "pool"


def test_the_position_counts_the_jobs_of_the_same_pool(store: JobStore, submit: Submit) -> None:
    jobs = [submit(size, pool=pool) for size in (512, 2048) for pool in (None, "a", "a")]
    positions = [queue.position for job in jobs if (queue := store.get(job.id).queue)]

    assert positions == [0, 0, 1, 1, 2, 3]


def test_a_flood_in_one_pool_does_not_delay_another(submit: Submit, claim: Any) -> None:
    for _ in range(20):
        submit(owner="x", pool="a")
    in_a = describe_worker(8192, "a")
    for _ in range(10):
        claim(in_a)
    early = [submit(owner="y", pool="b").id for _ in range(3)]
    late = submit(owner="z", pool="b").id

    assert [claim(describe_worker(8192, "b")) for _ in range(4)] == [early[0], late, *early[1:]]


# ---------------------------------------------------------------------- fairness


def test_an_owner_of_many_big_jobs_delays_no_other_big_job(
    store: JobStore, submit: Submit, claim: Any
) -> None:
    """Although small workers have passed these jobs by, in many rounds."""
    _see(store, SMALL, LARGE)
    flood = [submit(4096, "x").id for _ in range(10)]
    for _ in range(20):
        submit(512, "small")
    for _ in range(20):
        claim(SMALL)
    late = [submit(4096, "z").id for _ in range(2)]

    order = [claim(LARGE) for _ in range(4)]
    assert order == [flood[0], late[0], flood[1], late[1]]


def test_where_every_worker_holds_every_job_sizes_do_not_change_the_order(
    submit: Submit, claim: Any
) -> None:
    """The rounds of one owner's jobs go through all sizes."""
    flood = [submit(size, "x").id for size in (4096, 4096, 4096, 512, 512)]
    late = submit(512, "y").id
    again = submit(2048, "y").id

    order = [claim(describe_worker()) for _ in range(7)]
    assert order == [flood[0], late, flood[1], again, *flood[2:]]


def test_what_an_owner_waits_for_in_one_pool_takes_no_turn_in_another(
    submit: Submit, claim: Any
) -> None:
    for _ in range(20):
        submit(owner="y", pool="a")
    flood = [submit(owner="x").id for _ in range(3)]
    late = [submit(owner="y").id for _ in range(2)]

    order = [claim(describe_worker()) for _ in range(5)]
    assert order == [flood[0], late[0], flood[1], late[1], flood[2]]


def test_small_jobs_of_an_owner_take_no_turn_from_its_big_job(
    store: JobStore, submit: Submit, claim: Any
) -> None:
    """Where few workers hold big jobs, their rounds are behind."""
    _see(store, SMALL, LARGE)
    flood = [submit(4096, "x").id for _ in range(3)]
    for _ in range(20):
        submit(512, "y")
    for _ in range(10):
        claim(SMALL)
    late = submit(4096, "y").id

    assert [claim(LARGE) for _ in range(3)] == [flood[0], late, flood[1]]


def _take_turns(claim: Any, worker: WorkerReport, owners: dict[str, str], count: int) -> str:
    """Claim so many jobs and return their owners."""
    return "".join(owners[claim(worker)] for _ in range(count))


@pytest.mark.parametrize("ahead", ["a", ""])
def test_a_worker_of_two_pools_serves_both_although_one_is_many_rounds_ahead(
    submit: Submit, claim: Any, ahead: str
) -> None:
    for _ in range(30):
        submit(owner="before", pool=ahead or None)
    for _ in range(30):
        claim(describe_worker(8192, ahead))
    owners = {submit(owner="x", pool="a").id: "x" for _ in range(10)}
    owners |= {submit(owner=owner).id: owner for owner in "yzyzyzyzyz"}

    order = _take_turns(claim, describe_worker(8192, "", "a"), owners, 15)[-12:]
    assert [order.count(owner) for owner in "xyz"] == [4, 4, 4]


def test_a_worker_of_two_pools_relieves_the_one_whose_owners_get_fewer_turns(
    submit: Submit, claim: Any
) -> None:
    """Its other workers serve the pool as often as this one claims, so it needs no more."""
    owners = {submit(owner="x", pool="a").id: "x" for _ in range(20)}
    owners |= {submit(owner="y").id: "y" for _ in range(10)}
    order = ""
    for _ in range(6):
        claim(describe_worker(8192, "a"))
        order += _take_turns(claim, describe_worker(8192, "", "a"), owners, 1)

    assert order == "yyyyyy"


def test_a_job_lets_each_owner_of_another_pool_have_one_turn_at_most(
    submit: Submit, claim: Any
) -> None:
    """And each pool one more, whatever other workers take and however far the rounds are apart."""
    rng = random.Random(2)
    pools = [NO_POOL, "a", "b"]
    mixed, others = describe_worker(4096, *pools), [describe_worker(4096, pool) for pool in pools]
    waiting: dict[str, tuple[str, Any]] = {}  # in the order of arrival: job -> owner, pool
    passed: dict[str, int] = {}  # how many claims of the mixed worker each first job has let pass
    most = 0
    for step in range(450):
        if step < 100 or step % 2:
            owner, pool = rng.choice("wxyz"), rng.choice(pools)
            waiting[submit(512, owner, pool or None).id] = (owner, pool)
        if step < 100:
            continue
        other = others[step // 60 % 3]  # each serves its pool alone for a while
        worker = rng.choice([mixed, other])
        job = claim(worker)
        if job is None:
            continue
        del waiting[job]
        passed.pop(job, None)
        if worker is mixed:
            for first in {key: job for job, key in reversed(waiting.items())}.values():
                passed[first] = passed.get(first, 0) + 1
                most = max(most, passed[first])

    assert len(pools) < most < 4 * len(pools) + len(pools)


def test_claims_of_a_version_that_compares_rounds_leave_no_lane_behind(
    submit: Submit, claim: Any, server: Any
) -> None:
    """It records the latest round and not when it began."""
    for _ in range(30):
        submit(owner="before", pool="a")
    for _ in range(30):
        claim(describe_worker(8192, "a"))
    server.delete(f"{PREFIX}round_begins")
    owners = {submit(owner="x", pool="a").id: "x" for _ in range(5)}
    owners |= {submit(owner="y").id: "y" for _ in range(5)}

    assert _take_turns(claim, describe_worker(8192, "", "a"), owners, 8) == "xyxyxyxy"


def test_many_places_of_other_lanes_are_not_all_read(
    driver: Any, submit: Submit, claim: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An owner of so many jobs elsewhere gets a later turn, but never an endless search."""
    driver.patch_library(monkeypatch, "local MAX_PASSED = 200", "local MAX_PASSED = 4")
    for _ in range(10):
        submit(owner="y", pool="a")
    flood = [submit(owner="x").id for _ in range(8)]
    late = submit(owner="y").id

    assert [claim(describe_worker()) for _ in range(9)] == [*flood[:7], late, *flood[7:]]


def test_a_claim_costs_the_same_however_many_jobs_of_others_come_first(
    store: JobStore, submit: Submit, server: Any
) -> None:
    _see(store, SMALL, LARGE)

    def count_commands() -> int:
        server.config_resetstat()
        assert store._call("claim", new_job_id(), "w", 5000, "w", '[""]', 1024) is not None
        stats = server.info("commandstats")
        return sum(row["calls"] for row in stats.values())

    counts = []
    for others in (1, 50):
        for _ in range(others):
            submit(4096)
            submit(pool="team=a")
        submit()
        counts.append(count_commands())
    assert counts[0] == counts[1]


# ---------------------------------------------------------------------- suspensions


def test_a_suspended_worker_gets_no_job_until_it_is_resumed(
    store: JobStore, submit: Submit, claim: Any
) -> None:
    job = submit()
    store.suspensions.suspend("small", "paused")
    assert claim(SMALL) is None
    assert not store.is_idle_with_backlog("small"), "it has asked, so it is not stalled"
    assert store.is_idle_with_backlog("silent")

    suspension = store.suspensions.get("small")
    assert suspension is not None
    assert (suspension.kind, suspension.release) == ("paused", False)
    store.suspensions.resume("small")
    assert store.suspensions.list() == {}
    assert claim(SMALL) == job.id


def test_a_suspension_of_a_later_version_is_a_pause(store: JobStore, server: Any) -> None:
    server.hset(f"{PREFIX}suspended", "w", '{"kind": "resting"}')

    assert store.suspensions.list()["w"].kind == "paused"


# ---------------------------------------------------------------------- other versions


def _forget_lanes(server: Any, *jobs: Job) -> None:
    """What an earlier version does: it queues jobs without a lane."""
    for job in jobs:
        place = server.hget(f"{PREFIX}job:{job.id}", "place")
        lane = server.hget(f"{PREFIX}job:{job.id}", "lane")
        server.zrem(f"{PREFIX}lane:{lane}", place)
        for name in (lane, "all"):
            server.hincrby(f"{PREFIX}lanes", name, -1)
        server.hdel(f"{PREFIX}job:{job.id}", "lane", "format")


def test_jobs_that_an_earlier_version_has_queued_are_claimed_in_their_order(
    store: JobStore, submit: Submit, claim: Any, server: Any
) -> None:
    _see(store, SMALL, LARGE)
    jobs = [submit(size) for size in (512, 4096, 512, 512)]
    _forget_lanes(server, jobs[1], jobs[2])

    assert [claim(SMALL), claim(SMALL), claim(LARGE)] == [jobs[0].id, jobs[2].id, jobs[1].id]
    assert server.hget(f"{PREFIX}lanes", "all") == "1"


def test_a_long_queue_of_an_earlier_version_is_entered_in_steps(
    driver: Any, submit: Submit, claim: Any, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.patch_library(monkeypatch, "local MAX_ENTERED = 100", "local MAX_ENTERED = 8")
    jobs = [submit() for _ in range(20)]
    server.delete(f"{PREFIX}lanes", f"{PREFIX}lane:/512")
    order = [claim(describe_worker()) for _ in jobs]

    assert order == [job.id for job in jobs]
    assert server.exists(f"{PREFIX}lanes", f"{PREFIX}lane:/512", f"{PREFIX}lanes_cursor") == 0


def test_a_place_that_stays_in_a_lane_of_a_later_version_makes_no_claim_search_the_queue(
    submit: Submit, claim: Any, server: Any, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job of that version was canceled by this one. Claims look again after a second."""
    jobs = [submit(owner="one") for _ in range(60)]
    server.zadd(f"{PREFIX}lane:later./512", {"3000": 0})
    for name in ("later./512", "all"):
        server.hincrby(f"{PREFIX}lanes", name, 1)
    order, reads = [], []
    for _ in jobs[:4]:
        before = server.info("commandstats")["cmdstat_hmget"]["calls"]
        order.append(claim(describe_worker()))
        reads.append(server.info("commandstats")["cmdstat_hmget"]["calls"] - before)
    driver.patch_library(monkeypatch, "local CHECK_MS = 1000", "local CHECK_MS = 0")
    _forget_lanes(server, *jobs[4:6])

    assert [*order, claim(describe_worker())] == [job.id for job in jobs[:5]]
    assert reads[0] > 60 > 4 * max(reads[1:])


def test_a_place_that_an_earlier_version_has_claimed_is_dropped(
    store: JobStore, submit: Submit, claim: Any, server: Any
) -> None:
    taken, moved, last = submit(), submit(), submit()
    place = server.hget(f"{PREFIX}job:{taken.id}", "place")
    for key in ("queue", "queue:local"):
        server.zrem(PREFIX + key, place)
    server.hset(f"{PREFIX}job:{taken.id}", "status", "running")
    old = server.hget(f"{PREFIX}job:{moved.id}", "place")
    new = f"9{1:010}{0:012}:{moved.id}"  # moved to the end by the operator
    for key in ("queue", "queue:local"):
        server.zrem(PREFIX + key, old)
        server.zadd(PREFIX + key, {new: 0})
    server.hset(f"{PREFIX}job:{moved.id}", "place", new)

    assert [claim(describe_worker()) for _ in range(3)] == [last.id, moved.id, None]
    assert server.exists(f"{PREFIX}lanes") == 0


def test_the_rebuild_sweeps_places_out_of_lanes_that_no_worker_serves(
    store: JobStore, submit: Submit, server: Any
) -> None:
    job = submit(pool="gone")
    server.zrem(f"{PREFIX}queue", server.hget(f"{PREFIX}job:{job.id}", "place"))
    server.hset(f"{PREFIX}job:{job.id}", "status", "canceled")
    store.rebuild_indexes()

    assert server.exists(f"{PREFIX}lanes", f"{PREFIX}lane:gone/512") == 0


def test_a_job_in_a_later_format_is_left_to_the_version_that_knows_it(
    store: JobStore, submit: Submit, claim: Any, server: Any, driver: Any
) -> None:
    later, job = submit(priority="high"), submit()
    _forget_lanes(server, later)
    server.hset(f"{PREFIX}job:{later.id}", "format", RECORD_FORMAT + 1)

    assert [claim(describe_worker()), claim(describe_worker())] == [job.id, None]
    assert store.get(later.id).status == "queued"
    # Its worker is lost twice: it gets a new place, and stays with its version.
    for number in range(2):
        place = server.hget(f"{PREFIX}job:{later.id}", "place")
        server.zrem(f"{PREFIX}queue", place)
        server.hset(f"{PREFIX}job:{later.id}", mapping={"status": "running", "token": "x"})
        server.zadd(f"{PREFIX}leases", {later.id: 1})
        assert store.reap_expired_leases() == (1, 0), number
    assert claim(describe_worker()) is None
    assert store.count_queued() == 1
    store.cancel(later.id)
    assert store.count_queued() == 0


def test_the_lanes_hold_every_queued_job_once_whatever_happens(
    driver: Any, store: JobStore, submit: Submit, server: Any
) -> None:
    rng = random.Random(1)
    workers = [
        describe_worker(size, *pools) for size in (512, 2048, 8192) for pools in ((), ("a", ""))
    ]
    running: dict[str, tuple[str, WorkerReport]] = {}
    _see(store, *workers)
    for step in range(250):
        action = rng.choice(["submit", "submit", "claim", "claim", "release", "larger", "cancel"])
        queued = [place[24:] for place in server.zrange(f"{PREFIX}queue", 0, -1)]
        if action == "submit":
            pool = rng.choice([None, None, "a", "b"])
            submit(rng.choice([256, 1024, 3000, 8192]), rng.choice("xyz"), pool)
        elif action == "claim":
            worker = rng.choice(workers)
            if job := store.claim(f"t{step}", "w", worker):
                assert job.pool in (None, *worker.pools)
                running[job.id] = (f"t{step}", worker)
        elif action == "cancel" and queued:
            store.cancel(rng.choice(queued))
        elif action == "submit" or not running:
            continue
        else:
            job_id = rng.choice([*running])
            token, worker = running.pop(job_id)
            if action == "release":
                store.release(job_id, token)
            elif not store.release_to_larger(job_id, token, worker):
                store.fail(job_id, token, driver.DIVERGED)
        lanes = server.hgetall(f"{PREFIX}lanes")
        counts = {
            key.removeprefix(f"{PREFIX}lane:"): server.zrange(key, 0, -1)
            for key in server.keys(f"{PREFIX}lane:*")
        }
        total, in_pools = int(lanes.pop("all", 0)), int(lanes.pop("in_pools", 0))
        assert {name: int(count) for name, count in lanes.items()} == {
            name: len(places) for name, places in counts.items()
        }
        places = sorted(place for lane in counts.values() for place in lane)
        assert places == server.zrange(f"{PREFIX}queue", 0, -1)
        assert total == len(places)
        assert in_pools == sum(len(lane) for name, lane in counts.items() if name[0] != "/")


def test_a_new_folder_of_scripts_is_listed() -> None:
    folder = Path(store_module.__file__).with_name("scripts")

    assert {path.stem for path in folder.glob("*.lua")} == {*store_module.SCRIPTS}
