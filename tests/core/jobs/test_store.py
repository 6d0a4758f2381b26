"""The job store on a real Valkey: every step of a job's life, and every step that is refused."""

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
import redis

from core import errors
from core.jobs.models import (
    LOCAL_OWNER,
    MAX_ATTEMPTS,
    TRANSITIONS,
    Frame,
    Job,
    JobInput,
    JobProgress,
    ModelUsed,
    Output,
    QueueLimits,
    Status,
    SubmissionOptions,
    new_batch_id,
    new_job_id,
)
from core.jobs.store import JobStore, load_library
from core.redis_client import PREFIX
from core.style.spec import StyleSpec

CONTENT, STYLE, RESULT, PREVIEW = (f"sha256:{digit * 64}" for digit in "abcd")
INPUT = JobInput(content=CONTENT, styles=[STYLE], spec=StyleSpec().model_dump())
OUTPUT = Output(id=RESULT, content_type="image/png", width=4, height=3, size_bytes=9)
MODEL = ModelUsed(name="vgg16", sha256="0" * 64)
PROGRESS = JobProgress(
    value=0.5,
    scale=1,
    scales=2,
    iteration=5,
    iterations=10,
    iterations_per_second=2.0,
    seconds_left=3.0,
    loss={"total": 1.0},
)
DIVERGED = errors.Diverged()


def _create(store: JobStore) -> Job:
    store.reserve(CONTENT, 60)
    store.reserve(STYLE, 60)
    return store.create(new_job_id(), INPUT)


def _claimed(store: JobStore, token: str = "t") -> Job:
    job = store.claim(token, "worker")
    assert job is not None
    return job


def _expire_leases(url: str) -> None:
    """As if every lease had run out."""
    with redis.Redis.from_url(url) as client:
        for job_id in client.zrange(PREFIX + "leases", 0, -1):
            client.zadd(PREFIX + "leases", {job_id: 1})


def test_a_new_job_waits_with_its_input_and_its_place(store: JobStore) -> None:
    first, second = _create(store), _create(store)

    assert (first.status, first.version, first.attempt, first.input) == (Status.QUEUED, 1, 0, INPUT)
    assert [job.queue.position for job in (first, second) if job.queue] == [0, 1]
    assert store.get_load().queued == 2


def test_creating_the_same_id_again_changes_nothing(store: JobStore) -> None:
    job = _create(store)
    _claimed(store)

    assert store.create(job.id, INPUT).status is Status.RUNNING
    assert store.get_load().queued == 0


def test_jobs_are_claimed_in_the_order_of_their_arrival(store: JobStore) -> None:
    jobs = [_create(store) for _ in range(3)]

    assert [_claimed(store, token).id for token in "abc"] == [job.id for job in jobs]
    assert store.claim("d", "worker") is None


def test_a_claim_sent_twice_takes_one_job(store: JobStore) -> None:
    _create(store), _create(store)

    assert _claimed(store, "t").id == _claimed(store, "t").id
    assert store.get_load().queued == 1


def test_a_claim_that_is_sent_again_later_still_holds_its_job(valkey: Any) -> None:
    """Though its lease had been over by now; and never a second job, not even when the first has ended."""
    store = JobStore(valkey.url, lease_seconds=0.4)
    first, _ = _create(store), _create(store)
    for _ in range(3):
        assert _claimed(store, "t").id == first.id
        time.sleep(0.25)
        assert store.reap_expired_leases() == (0, 0)
    store.succeed(first.id, "t", OUTPUT, MODEL, {})

    assert store.claim("t", "worker") is None
    assert store.get_load().queued == 1
    store.close()


def test_eight_workers_at_once_take_each_job_once(store: JobStore, valkey: Any) -> None:
    jobs = {_create(store).id for _ in range(60)}
    taken: list[str] = []

    def worker(name: str) -> None:
        own = JobStore(valkey.url)
        while job := own.claim(f"{name}-{len(taken)}-{time.monotonic_ns()}", name):
            taken.append(job.id)
        own.close()

    threads = [threading.Thread(target=worker, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(taken) == 60
    assert set(taken) == jobs


def test_progress_shows_and_counts_as_a_change(store: JobStore) -> None:
    _create(store)
    job = _claimed(store)

    assert store.report_progress(job.id, "t", PROGRESS) == "ok"
    seen = store.get(job.id)
    assert seen.progress == PROGRESS
    assert seen.version > job.version


def test_success_keeps_the_result_and_is_safe_to_say_twice(store: JobStore) -> None:
    _create(store)
    job = _claimed(store)

    assert store.succeed(job.id, "t", OUTPUT, MODEL, {"run_seconds": 1.5}) == "ok"
    ended = store.get(job.id)
    assert store.succeed(job.id, "t", OUTPUT, MODEL, {"run_seconds": 1.5}) == "ok"

    assert (
        ended.status,
        ended.outputs,
        ended.model,
        ended.metrics["run_seconds"],
    ) == (Status.SUCCEEDED, [OUTPUT], MODEL, 1.5)
    assert store.get(job.id) == ended
    assert ended.completed_at is not None
    assert ended.started_at is not None
    assert ended.created_at <= ended.started_at <= ended.completed_at


def test_failure_keeps_the_code_and_the_sentence(store: JobStore) -> None:
    _create(store)
    job = _claimed(store)
    store.fail(job.id, "t", DIVERGED)

    error = store.get(job.id).error
    assert error is not None
    assert (error.code, error.message) == ("diverged", DIVERGED.message)


# Each step of the store that a job in some status may meet, and the status it leads to from each.
STEPS: dict[str, tuple[Callable[[JobStore, str], object], dict[Status, Status]]] = {
    "cancel": (
        lambda store, job_id: store.cancel(job_id),
        {Status.QUEUED: Status.CANCELED},  # a running one is only asked
    ),
    "claim": (lambda store, job_id: store.claim("new", "worker"), {Status.QUEUED: Status.RUNNING}),
    "succeed": (
        lambda store, job_id: store.succeed(job_id, "t", OUTPUT, MODEL, {}),
        {Status.RUNNING: Status.SUCCEEDED},
    ),
    "fail": (
        lambda store, job_id: store.fail(job_id, "t", DIVERGED),
        {Status.RUNNING: Status.FAILED},
    ),
    "end_canceled": (
        lambda store, job_id: store.end_canceled(job_id, "t"),
        {Status.RUNNING: Status.CANCELED},
    ),
    "release": (lambda store, job_id: store.release(job_id, "t"), {Status.RUNNING: Status.QUEUED}),
    "renew": (lambda store, job_id: store.renew(job_id, "t"), {}),
    "progress": (lambda store, job_id: store.report_progress(job_id, "t", PROGRESS), {}),
    "reap": (lambda store, job_id: store.reap_expired_leases(), {Status.RUNNING: Status.QUEUED}),
}
REACH: dict[Status, Callable[[JobStore, str], object]] = {
    Status.QUEUED: lambda store, job_id: None,
    Status.RUNNING: lambda store, job_id: store.claim("t", "worker"),
    Status.SUCCEEDED: lambda store, job_id: (
        store.claim("t", "worker"),
        store.succeed(job_id, "t", OUTPUT, MODEL, {}),
    ),
    Status.FAILED: lambda store, job_id: (
        store.claim("t", "worker"),
        store.fail(job_id, "t", DIVERGED),
    ),
    Status.CANCELED: lambda store, job_id: store.cancel(job_id),
}


@pytest.mark.parametrize(("status", "step"), list(itertools.product(REACH, STEPS)))
def test_every_step_from_every_status_leads_where_the_table_says(
    store: JobStore, valkey: Any, status: Status, step: str
) -> None:
    """Legal ones change the status, all others change nothing at all."""
    job = _create(store)
    REACH[status](store, job.id)
    _expire_leases(valkey.url)
    before = store.get(job.id)
    assert before.status is status

    do, leads = STEPS[step]
    do(store, job.id)

    after = store.get(job.id)
    assert after.status is leads.get(status, status)
    assert after.status is status or after.status in TRANSITIONS[status]
    if status.has_ended:
        assert after == before


def _raw_move(url: str, job_id: str, status: Status, to: Status) -> bool:
    """Try to end the job as `to` by the one function that takes any status."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        client.hset(f"{PREFIX}job:{job_id}", "token", "t")
        return (
            client.fcall(f"{load_library()[0]}_finish", 1, PREFIX, job_id, "t", to) == "ok"
            and status is not to
        )


@pytest.mark.parametrize(("status", "to"), list(itertools.product(REACH, Status)))
def test_the_servers_table_of_transitions_is_pythons(
    store: JobStore, valkey: Any, status: Status, to: Status
) -> None:
    job = _create(store)
    REACH[status](store, job.id)

    moved = _raw_move(valkey.url, job.id, status, to)

    # finish() serves running jobs only, whatever the table says.
    assert moved is (status is Status.RUNNING and to in TRANSITIONS[status])
    assert store.get(job.id).status is (to if moved else status)


@pytest.mark.parametrize(
    "step", ["renew", "progress", "succeed", "fail", "end_canceled", "release"]
)
def test_a_stale_token_is_refused_and_changes_nothing(
    store: JobStore, valkey: Any, step: str
) -> None:
    """A worker that was frozen beyond its lease wakes up after another has taken the job."""
    _create(store)
    job = _claimed(store, "t")
    _expire_leases(valkey.url)
    store.reap_expired_leases()
    again = _claimed(store, "fresh")
    assert again.id == job.id

    do, _ = STEPS[step]
    assert do(store, job.id) == "stale"
    assert store.get(job.id) == again


def test_a_lease_that_ran_out_puts_the_job_back_at_the_head(store: JobStore, valkey: Any) -> None:
    first, second = _create(store), _create(store)
    _claimed(store)
    _expire_leases(valkey.url)

    assert store.reap_expired_leases() == (1, 0)
    back = store.get(first.id)
    assert back.queue is not None
    assert (back.status, back.queue.position, back.attempt) == (Status.QUEUED, 0, 1)
    assert _claimed(store, "u").id == first.id
    assert store.get(first.id).attempt == 2
    assert _claimed(store, "v").id == second.id


def test_a_renewed_lease_does_not_run_out(valkey: Any) -> None:
    store = JobStore(valkey.url, lease_seconds=0.6)
    _create(store)
    job = _claimed(store)

    for _ in range(4):
        time.sleep(0.25)
        assert store.renew(job.id, "t") == "ok"
        assert store.reap_expired_leases() == (0, 0)
    time.sleep(0.7)
    assert store.reap_expired_leases() == (1, 0)
    assert store.renew(job.id, "t") == "stale"
    store.close()


def test_after_three_attempts_the_job_fails_as_worker_lost(store: JobStore, valkey: Any) -> None:
    job = _create(store)
    for attempt in range(MAX_ATTEMPTS):
        _claimed(store, str(attempt))
        _expire_leases(valkey.url)
        store.reap_expired_leases()

    ended = store.get(job.id)
    assert ended.error is not None
    assert (ended.status, ended.error.code, ended.attempt) == (
        Status.FAILED,
        "worker_lost",
        MAX_ATTEMPTS,
    )
    assert store.claim("one more", "worker") is None


def test_a_job_handed_back_keeps_its_place_and_the_attempt_does_not_count(store: JobStore) -> None:
    first, _ = _create(store), _create(store)
    _claimed(store)

    assert store.release(first.id, "t") == "ok"
    back = store.get(first.id)
    assert back.queue is not None
    assert (back.queue.position, back.attempt) == (0, 0)


def test_cancel_of_a_running_job_reaches_its_worker(store: JobStore) -> None:
    _create(store)
    job = _claimed(store)

    assert store.cancel(job.id).cancel_requested
    assert store.renew(job.id, "t") == "cancel"
    assert store.end_canceled(job.id, "t") == "ok"
    assert store.get(job.id).status is Status.CANCELED


@pytest.mark.parametrize("gone", ["lease ran out", "handed back"])
def test_a_canceled_job_whose_worker_is_gone_ends_as_canceled(
    store: JobStore, valkey: Any, gone: str
) -> None:
    _create(store)
    job = _claimed(store)
    store.cancel(job.id)
    if gone == "handed back":
        store.release(job.id, "t")
    else:
        _expire_leases(valkey.url)
        assert store.reap_expired_leases() == (0, 1)

    assert store.get(job.id).status is Status.CANCELED


def test_a_deleted_job_is_gone_and_its_worker_finds_out(store: JobStore) -> None:
    _create(store)
    job = _claimed(store)
    store.delete(job.id)
    store.delete(job.id)

    assert store.renew(job.id, "t") == "stale"
    assert store.succeed(job.id, "t", OUTPUT, MODEL, {}) == "stale"
    with pytest.raises(errors.JobNotFound):
        store.get(job.id)
    with pytest.raises(errors.JobNotFound):
        store.cancel(job.id)
    assert store.list_page(limit=10) == ([], None)


def test_the_list_is_newest_first_in_pages_and_by_status(store: JobStore) -> None:
    jobs = [_create(store) for _ in range(5)]
    _claimed(store)

    first, cursor = store.list_page(limit=3)
    second, end = store.list_page(limit=3, before=cursor)
    queued, _ = store.list_page(limit=10, statuses=[Status.QUEUED])

    assert [job.id for job in first + second] == [job.id for job in reversed(jobs)]
    assert end is None
    assert [job.id for job in queued] == [job.id for job in reversed(jobs[1:])]


# ---------------------------------------------------------------------- blobs in use


def test_blobs_of_a_job_are_kept_until_no_job_uses_them(store: JobStore, valkey: Any) -> None:
    one, two = _create(store), _create(store)
    _claimed(store)
    store.report_progress(one.id, "t", PROGRESS, PREVIEW)
    store.succeed(one.id, "t", OUTPUT, MODEL, {})
    assert store.mark_deleting() == []

    store.delete(one.id)
    assert set(store.mark_deleting()) == {RESULT, PREVIEW}
    store.delete(two.id)
    assert set(store.mark_deleting()) == {
        RESULT,
        PREVIEW,
    }  # the others are still held from their submission
    _end_holds(valkey.url)
    assert set(store.mark_deleting()) == {RESULT, PREVIEW, CONTENT, STYLE}


def test_a_preview_that_was_replaced_is_condemned(store: JobStore) -> None:
    _create(store)
    job = _claimed(store)
    store.report_progress(job.id, "t", PROGRESS, PREVIEW)
    store.report_progress(job.id, "t", PROGRESS, RESULT)

    assert store.mark_deleting() == [PREVIEW]


def _end_holds(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        for digest in client.zrange(PREFIX + "orphans", 0, -1):
            client.zadd(PREFIX + "orphans", {digest: 1})


def test_a_held_blob_is_safe_for_its_time_and_then_condemned_until_forgotten(
    store: JobStore,
) -> None:
    store.reserve(CONTENT, 60)
    store.reserve(STYLE, 0)
    time.sleep(0.01)

    assert store.mark_deleting() == [STYLE]
    assert store.mark_deleting() == [STYLE]
    store.confirm_deleted(STYLE)
    assert store.mark_deleting() == []


def test_taking_hold_of_a_blob_waits_while_its_old_file_is_deleted(store: JobStore) -> None:
    """Else the deletion would take the new file along."""
    store.reserve(STYLE, 0)
    time.sleep(0.01)
    store.mark_deleting()
    with pytest.raises(errors.Unavailable):
        store.reserve(STYLE)

    deletion = threading.Timer(0.3, store.confirm_deleted, [STYLE])
    deletion.start()
    began = time.monotonic()
    store.reserve(STYLE)
    assert time.monotonic() - began > 0.25
    deletion.join()


@pytest.mark.parametrize("state", ["never held", "hold is over", "condemned"])
def test_a_job_whose_picture_may_be_gone_is_refused(
    store: JobStore, valkey: Any, state: str
) -> None:
    store.reserve(CONTENT, 60)
    if state != "never held":
        store.reserve(STYLE, 60)
        _end_holds(valkey.url)
        store.reserve(CONTENT, 60)
    if state == "condemned":
        store.mark_deleting()

    with pytest.raises(errors.ImageNotFound):
        store.create(new_job_id(), INPUT)
    assert store.get_load().queued == 0


def test_holding_again_never_shortens(store: JobStore) -> None:
    store.reserve(CONTENT, 60)
    store.reserve(CONTENT, 0)
    time.sleep(0.01)

    assert store.mark_deleting() == []


# ---------------------------------------------------------------------- the server's own troubles


def test_one_process_leads(store: JobStore) -> None:
    assert store.acquire_leadership("a", 60)
    assert not store.acquire_leadership("b", 60)
    assert store.acquire_leadership("a", 0.001)
    time.sleep(0.01)
    assert store.acquire_leadership("b", 60)


def test_acknowledged_jobs_survive_kill_9_of_the_server(own_valkey: Any) -> None:
    store = JobStore(own_valkey.url)
    jobs = [_create(store) for _ in range(20)]
    _claimed(store)
    own_valkey.kill()

    with pytest.raises(errors.StoreUnavailable):
        store.get(jobs[0].id)
    own_valkey.start()

    assert [store.get(job.id).status for job in jobs] == [Status.RUNNING] + [Status.QUEUED] * 19
    assert store.renew(jobs[0].id, "t") == "ok"
    store.close()


def test_a_server_without_our_functions_is_taught_them(store: JobStore, valkey: Any) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.function_flush("SYNC")

    assert _create(store).status is Status.QUEUED


def test_a_server_that_keeps_another_versions_functions_runs_ours(
    store: JobStore, valkey: Any
) -> None:
    """It writes functions to its disk, and knows nothing of a new version of the program."""
    version, code = load_library()
    other = (
        code.replace(version, "impasto_other")
        .replace("return nil", "error('old')")
        .replace("'queued'", "'gone'")
    )
    with redis.Redis.from_url(valkey.url) as client:
        client.function_load(other, replace=True)

    job = _create(store)
    assert _claimed(store).id == job.id


def test_a_mistake_of_ours_does_not_look_like_an_outage(store: JobStore, valkey: Any) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.set(f"{PREFIX}leases", "not a zset")

    with pytest.raises(redis.ResponseError):
        store.reap_expired_leases()


# ---------------------------------------------------------------------- turns and classes


def _submit(
    store: JobStore, owner: str = "local", limits: QueueLimits | None = None, **terms: Any
) -> Job:
    store.reserve(CONTENT, 60)
    store.reserve(STYLE, 60)
    return store.create(
        new_job_id(), INPUT, SubmissionOptions(owner=owner, **terms), limits or QueueLimits()
    )


def _owners_in_order(store: JobStore) -> list[str]:
    """Who is claimed for, until the queue is empty."""
    order = []
    while job := store.claim(new_job_id(), "worker"):
        order.append(job.owner)
    return order


def test_a_thousand_jobs_of_one_do_not_delay_anothers_first(store: JobStore) -> None:
    for _ in range(1000):
        _submit(store, "anna")
    late = _submit(store, "ben")

    assert late.queue is not None
    assert late.queue.position == 1
    assert _owners_in_order(store)[:4] == ["anna", "ben", "anna", "anna"]


def test_callers_take_turns_in_the_order_of_their_arrival(store: JobStore) -> None:
    for owner in "aaabbc":
        _submit(store, owner)

    assert _owners_in_order(store) == list("abcaba")


def test_one_who_comes_again_and_again_does_not_push_in(store: JobStore) -> None:
    """A job at a time, each as the last is claimed: no more than every second turn."""
    for _ in range(10):
        _submit(store, "many")
    _submit(store, "again")
    order = []
    for number in range(10):
        job = _claimed(store, f"t{number}")
        order.append(job.owner)
        if job.owner == "again":
            _submit(store, "again")

    assert order == ["many", "again"] * 5


def test_jobs_that_were_canceled_cost_no_turns(store: JobStore) -> None:
    for job in [_submit(store, "a") for _ in range(50)]:
        store.cancel(job.id)
    for _ in range(3):
        _submit(store, "b")
    _submit(store, "a")

    assert _owners_in_order(store) == ["b", "a", "b", "b"]


def test_the_urgent_go_first_and_turns_are_taken_in_each_class(store: JobStore) -> None:
    for owner, priority in (
        ("a", "low"),
        ("b", "normal"),
        ("b", "normal"),
        ("a", "normal"),
        ("c", "high"),
    ):
        _submit(store, owner, priority=priority)

    assert _owners_in_order(store) == list("cbaba")


def test_a_busy_class_takes_no_turns_from_another(store: JobStore) -> None:
    """Else the second caller with low jobs, who comes late, would wait for all of the first's."""
    for _ in range(5):
        _submit(store, "a", priority="low")
    for _ in range(50):
        _submit(store, "x")
    _submit(store, "b", priority="low")

    assert _owners_in_order(store)[50:] == ["a", "b", "a", "a", "a", "a"]


def test_the_position_is_the_order_of_claims(store: JobStore) -> None:
    jobs = [
        _submit(store, owner, priority=priority)
        for owner in "aaabbc"
        for priority in ("normal", "high")
    ]
    places = {job.id: queue.position for job in jobs if (queue := store.get(job.id).queue)}
    claimed = [_claimed(store, f"t{number}").id for number in range(len(jobs))]

    assert sorted(places, key=places.__getitem__) == claimed


def test_the_expected_start_is_told_while_a_worker_lives(store: JobStore) -> None:
    first = _submit(store)
    assert first.queue is not None
    assert first.queue.start_seconds is None

    store.heartbeat("worker")
    _claimed(store)
    time.sleep(0.05)
    store.succeed(first.id, "t", OUTPUT, MODEL, {})
    _submit(store)
    _claimed(store, "u")
    soon, later = (job.queue.start_seconds for job in (_submit(store), _submit(store)) if job.queue)

    assert soon is not None
    assert later is not None
    assert 0.05 <= soon < later


def test_a_job_that_was_put_back_lets_nobody_push_in(store: JobStore) -> None:
    """It is of an early round; who comes now is of the present one."""
    for _ in range(6):
        _submit(store, "many")
    early = _claimed(store, "early")
    for number in range(3):
        _claimed(store, f"t{number}")
    store.release(early.id, "early")
    for _ in range(4):
        _submit(store, "new")

    assert _owners_in_order(store) == ["many", "new", "many", "new", "many", "new", "new"]


# ---------------------------------------------------------------------- deaths


def test_a_job_that_killed_two_workers_waits_for_the_others(store: JobStore) -> None:
    poison, *others = [_create(store) for _ in range(4)]
    _claimed(store, "a")
    store.requeue_jobs_of("worker")
    assert _claimed(store, "b").id == poison.id
    store.requeue_jobs_of("worker")

    assert [_claimed(store, token).id for token in "cdef"] == [job.id for job in (*others, poison)]


def test_a_job_that_killed_two_workers_waits_for_other_callers_too(store: JobStore) -> None:
    poison, other = _submit(store, "a"), _submit(store, "b")
    for token in ("t", "u"):
        assert _claimed(store, token).id == poison.id
        store.requeue_jobs_of("worker")

    assert [_claimed(store, token).id for token in "vw"] == [other.id, poison.id]


def test_who_got_further_has_not_died_in_vain(store: JobStore) -> None:
    """A long job on machines that come and go: only attempts in a row that bring nothing count."""
    job = _create(store)
    for attempt in range(10):
        token = f"t{attempt}"
        assert _claimed(store, token).id == job.id
        if attempt % 2:
            assert store.save_checkpoint(job.id, token, f"{job.id}.{attempt}") == "ok"
        store.requeue_jobs_of("worker")
    seen = store.get(job.id)

    assert (seen.status, seen.attempt, seen.checkpoint) == (Status.QUEUED, 10, f"{job.id}.9")


def test_the_dead_are_buried_with_their_own_jobs_only(store: JobStore) -> None:
    mine, other = _create(store), _create(store)
    store.claim("t", "dead")
    store.claim("u", "alive")

    assert store.requeue_jobs_of("dead") == 1
    assert (store.get(mine.id).status, store.get(other.id).status) == (
        Status.QUEUED,
        Status.RUNNING,
    )
    assert store.requeue_jobs_of("dead") == 0
    assert store.succeed(mine.id, "t", OUTPUT, MODEL, {}) == "stale"


def test_progress_stays_with_a_checkpoint_and_goes_without(store: JobStore) -> None:
    job = _create(store)
    for kept in (False, True):
        _claimed(store, f"t{kept}")
        store.report_progress(job.id, f"t{kept}", PROGRESS)
        if kept:
            store.save_checkpoint(job.id, f"t{kept}", "c")
        store.requeue_jobs_of("worker")
        assert store.get(job.id).progress == (PROGRESS if kept else None)


def test_a_stale_token_names_no_checkpoint(store: JobStore, valkey: Any) -> None:
    job = _create(store)
    _claimed(store)
    _expire_leases(valkey.url)
    store.reap_expired_leases()
    _claimed(store, "u")

    assert store.save_checkpoint(job.id, "t", "c") == "stale"
    assert store.get(job.id).checkpoint is None


# ---------------------------------------------------------------------- stopping


def test_a_cancel_wakes_the_worker_at_once(store: JobStore) -> None:
    job = _create(store)
    _claimed(store)
    cancel = threading.Timer(0.1, store.cancel, [job.id])
    cancel.start()
    began = time.monotonic()
    store.wait_for_signal("t", 0.9)

    assert time.monotonic() - began < 0.5
    cancel.join()


def test_a_canceled_job_keeps_the_picture_so_far(store: JobStore) -> None:
    job = _create(store)
    _claimed(store)
    store.cancel(job.id)
    store.reserve(RESULT, 0)
    assert store.end_canceled(job.id, "t", OUTPUT) == "ok"

    assert store.get(job.id).outputs == [OUTPUT]
    assert store.mark_deleting() == []


@pytest.mark.parametrize("begun", [False, True])
def test_a_deadline_ends_a_job(store: JobStore, valkey: Any, begun: bool) -> None:
    job = _submit(store, deadline_seconds=60)
    if begun:
        _claimed(store)
        assert store.renew(job.id, "t") == "ok"
    with redis.Redis.from_url(valkey.url) as client:  # a minute later
        client.hset(f"{PREFIX}job:{job.id}", "deadline_at", 1)
        client.zadd(PREFIX + "deadlines", {job.id: 1})
    store.reap_expired_leases()

    if begun:
        assert store.renew(job.id, "t") == "deadline_exceeded"
        began = time.monotonic()
        store.wait_for_signal("t", 0.9)  # it was woken
        assert time.monotonic() - began < 0.5
        assert store.fail(job.id, "t", errors.DeadlineExceeded(), OUTPUT) == "ok"
    ended = store.get(job.id)
    assert ended.status is (Status.FAILED if begun else Status.EXPIRED)
    assert ended.outputs == ([OUTPUT] if begun else [])


# ---------------------------------------------------------------------- once, and not too many


def test_the_same_key_gives_the_same_job(store: JobStore) -> None:
    first = _submit(store, idempotency_key="k")
    again = _submit(store, idempotency_key="k")
    others = _submit(store, "ben", idempotency_key="k")

    assert again == first
    assert others.id != first.id
    with pytest.raises(errors.IdempotencyConflict):
        _submit(store, idempotency_key="k", priority="high")
    store.delete(first.id)
    assert _submit(store, idempotency_key="k").id != first.id


def test_fifty_at_once_with_one_key_make_one_job(store: JobStore, valkey: Any) -> None:
    store.reserve(CONTENT, 60)
    store.reserve(STYLE, 60)
    ids: list[str] = []

    def submit() -> None:
        own = JobStore(valkey.url)
        ids.append(own.create(new_job_id(), INPUT, SubmissionOptions(idempotency_key="k")).id)
        own.close()

    threads = [threading.Thread(target=submit) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (len(ids), len(set(ids)), store.get_load().queued) == (50, 1, 1)


def test_one_may_have_so_many_and_all_together_so_many(store: JobStore) -> None:
    limits = QueueLimits(queued=3, per_owner=2)
    _submit(store, "a", limits)
    _submit(store, "a", limits)
    with pytest.raises(errors.QuotaExceeded) as quota:
        _submit(store, "a", limits)
    _submit(store, "b", limits)
    with pytest.raises(errors.QueueFull) as full:
        _submit(store, "b", limits)
    job = _claimed(store)
    with pytest.raises(errors.QuotaExceeded):  # what runs counts, too
        _submit(store, job.owner, limits)

    assert quota.value.retry_seconds >= 1
    assert full.value.retry_seconds >= 1
    store.end_canceled(job.id, "t")
    _submit(store, job.owner, limits)


def test_a_finished_result_answers_the_same_request(store: JobStore) -> None:
    store.record_model_weights("auto", MODEL.sha256)
    assert _submit(store, reuse=True).status is Status.QUEUED
    job = _claimed(store)
    store.reserve(RESULT, 0)
    store.succeed(job.id, "t", OUTPUT, MODEL, {"run_seconds": 3.0})
    same = _submit(store, reuse=True)

    assert (same.status, same.outputs, same.reused_from, same.attempt) == (
        Status.SUCCEEDED,
        [OUTPUT],
        job.id,
        0,
    )
    assert _submit(store).status is Status.QUEUED
    assert _submit(store, "ben", reuse=True).status is Status.QUEUED  # what others made is theirs
    store.delete(job.id)
    assert RESULT not in store.mark_deleting()
    assert _submit(store, reuse=True).status is Status.QUEUED


def test_an_expired_result_answers_nothing(store: JobStore, valkey: Any) -> None:
    store.record_model_weights("auto", MODEL.sha256)
    _ended_job(store, keep_seconds=60)
    assert _submit(store, reuse=True).status is Status.SUCCEEDED
    _time_passes(valkey.url)
    store.expire_due(60)

    assert _submit(store, reuse=True).status is Status.QUEUED


def test_another_network_answers_nothing(store: JobStore) -> None:
    _submit(store)
    store.succeed(_claimed(store).id, "t", OUTPUT, MODEL, {})
    store.record_model_weights("auto", "another")

    assert _submit(store, reuse=True).status is Status.QUEUED


# ---------------------------------------------------------------------- whose it is


def test_anothers_job_is_not_there(store: JobStore) -> None:
    job = _submit(store, "anna")
    for step in (store.get, store.cancel, store.set_pinned):
        with pytest.raises(errors.JobNotFound):
            step(job.id, "ben")
    store.delete(job.id, "ben")

    assert store.get(job.id, "anna").status is Status.QUEUED
    assert store.list_page(limit=10, owner="ben") == ([], None)
    assert store.list_page(limit=10, owner="anna")[0] == [job]


def test_an_owner_may_name_what_they_uploaded_or_use(store: JobStore) -> None:
    store.reserve(PREVIEW, 60, "anna")
    store.reserve(RESULT, 0, "anna")
    _submit(store, "anna")
    time.sleep(0.01)

    assert [store.is_owner("anna", digest) for digest in (PREVIEW, RESULT, CONTENT)] == [
        True,
        False,
        True,
    ]
    assert [store.is_owner("ben", digest) for digest in (PREVIEW, RESULT, CONTENT)] == [
        False,
        False,
        False,
    ]


def test_an_upload_counts_for_as_long_as_its_owner_may_name_it(store: JobStore) -> None:
    store.reserve(PREVIEW, 0.2, "anna", size_bytes=10, most_bytes=15)
    store.reserve(PREVIEW, 60, "anna")
    time.sleep(0.3)

    with pytest.raises(errors.QuotaExceeded):
        store.reserve(RESULT, 60, "anna", size_bytes=10, most_bytes=15)


def test_what_was_named_without_a_size_is_no_way_round_the_quota(store: JobStore) -> None:
    store.reserve(PREVIEW, 60, "anna")

    with pytest.raises(errors.QuotaExceeded):
        store.reserve(PREVIEW, 60, "anna", size_bytes=20, most_bytes=15)


# ---------------------------------------------------------------------- in the end


def _ended_job(store: JobStore, **terms: Any) -> Job:
    job = _submit(store, **terms)
    _claimed(store, job.id)
    store.reserve(RESULT, 0)
    store.succeed(job.id, job.id, OUTPUT, MODEL, {})
    return store.get(job.id)


def _time_passes(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        for index in ("expiry", "records"):
            for job_id in client.zrange(PREFIX + index, 0, -1):
                client.zadd(PREFIX + index, {job_id: 1})


def test_an_ended_job_loses_its_pictures_and_then_its_record(store: JobStore, valkey: Any) -> None:
    job = _ended_job(store, keep_seconds=60)
    assert job.expires_at is not None
    assert job.completed_at is not None
    assert (job.expires_at - job.completed_at).total_seconds() == 60
    assert store.expire_due(60) == 0

    _time_passes(valkey.url)
    assert store.expire_due(60) == 1
    bare = store.get(job.id)
    assert (bare.status, bare.images_deleted) == (Status.SUCCEEDED, True)
    assert bare.version > job.version
    _end_holds(valkey.url)
    assert set(store.mark_deleting()) == {CONTENT, STYLE, RESULT}

    _time_passes(valkey.url)
    store.expire_due(60)
    with pytest.raises(errors.JobNotFound):
        store.get(job.id)
    assert store.list_page(limit=10) == ([], None)


def test_a_pinned_job_stays(store: JobStore, valkey: Any) -> None:
    early, late = _ended_job(store, keep_seconds=60), _submit(store, keep_seconds=60)
    for job in (early, late):
        store.set_pinned(job.id)
        assert store.set_pinned(job.id).pinned
    store.cancel(late.id)
    _time_passes(valkey.url)

    assert store.expire_due(60) == 0
    assert store.get(late.id).expires_at is None
    for job in (early, late):
        assert store.set_pinned(job.id, pinned=False).expires_at is not None
    _time_passes(valkey.url)
    assert store.expire_due(60) == 2


def test_when_the_disk_is_too_full_the_oldest_go_first(store: JobStore) -> None:
    oldest, middle, _ = [_ended_job(store, keep_seconds=60 + number) for number in range(3)]

    assert store.expire_early(2) == 2
    assert store.expire_due(60) == 2
    assert [store.get(job.id).images_deleted for job in (oldest, middle)] == [True, True]
    assert store.expire_early(5) == 1


def test_what_is_kept_for_good_goes_only_when_the_disk_is_too_full_and_last(
    store: JobStore,
) -> None:
    oldest, newer = _ended_job(store), _ended_job(store)
    ending, pinned = _ended_job(store, keep_seconds=60), _ended_job(store)
    store.set_pinned(pinned.id)
    assert oldest.expires_at is None
    assert store.expire_due(60) == 0

    gone = []
    for _ in range(4):
        store.expire_early(1)
        store.expire_due(60)
        gone.append([store.get(job.id).images_deleted for job in (ending, oldest, newer, pinned)])
    assert gone == [
        [True, False, False, False],
        [True, True, False, False],
        *[[True, True, True, False]] * 2,
    ]
    store.set_pinned(pinned.id, pinned=False)
    assert store.expire_early(5) == 1


def test_a_job_pinned_while_it_runs_is_kept_when_it_has_ended(store: JobStore) -> None:
    job = _submit(store)
    _claimed(store)
    store.set_pinned(job.id)
    store.succeed(job.id, "t", OUTPUT, MODEL, {})

    assert store.expire_early(1) == 0


def test_nothing_stays_behind_of_deleted_jobs(store: JobStore, valkey: Any) -> None:
    """All keys but the counters and what ends by itself."""
    for owner in ("a", "b"):
        _submit(store, owner, deadline_seconds=60, keep_seconds=60, webhook="https://example.org")
        store.claim(owner, "worker")
    _submit(store, "a", keep_seconds=60)
    for owner in ("a", "b", "local"):
        for job in store.list_page(limit=10, owner=owner)[0]:
            store.delete(job.id)
    _end_holds(valkey.url)
    for digest in store.mark_deleting():
        store.confirm_deleted(digest)

    with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        left = [
            key.removeprefix(PREFIX) for key in client.keys(PREFIX + "*") if client.pttl(key) < 0
        ]
    assert set(left) == {"number", "entries"}


# ---------------------------------------------------------------------- the outbox


def _told(store: JobStore, webhook: str = "https://example.org/a", owner: str = LOCAL_OWNER) -> str:
    """An ended job with a webhook."""
    job = _submit(store, owner, webhook=webhook)
    store.cancel(job.id)
    return job.id


def _collected(store: JobStore, token: str, lease_seconds: float = 60) -> tuple[str, int] | None:
    found = store.claim_delivery(token, lease_seconds, 3)
    return found and (found[0].id, found[1])


def test_a_webhook_whose_job_is_deleted_as_it_is_collected_holds_up_no_other(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = _told(store), _told(store)
    read = store._read

    def deleted(job_ids: Sequence[str], owner: str) -> Any:
        store.delete(first)
        return read(job_ids, owner)

    monkeypatch.setattr(store, "_read", deleted)
    assert _collected(store, "t") is None
    monkeypatch.undo()
    assert _collected(store, "u") == (second, 1)


def test_an_owner_of_many_hosts_that_hang_hides_no_other(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fewer(monkeypatch, "LANES_AT_ONCE = 8, 1000", "LANES_AT_ONCE = 8, 5")
    for number in range(20):
        _told(store, f"https://host{number}.example/", owner="anna")
    time.sleep(0.005)
    other = _told(store, "https://host.example/", owner="bob")
    taken = [_collected(store, f"t{number}") for number in range(9)]

    assert taken[8] == (other, 1)
    assert _collected(store, "u") is None


def test_a_webhook_is_due_when_its_job_has_ended_however_it_ended(
    store: JobStore, valkey: Any
) -> None:
    jobs = [
        _submit(store, str(n), webhook="https://example.org", deadline_seconds=0.01 + n)
        for n in range(4)
    ]
    assert _collected(store, "t") is None
    time.sleep(0.02)
    store.reap_expired_leases()
    store.cancel(jobs[1].id)
    _claimed(store, "a")
    _claimed(store, "b")
    store.succeed(jobs[2].id, "a", OUTPUT, MODEL, {})
    store.fail(jobs[3].id, "b", DIVERGED)

    assert [_collected(store, f"t{n}") for n in range(4)] == [(job.id, 1) for job in jobs]
    ends = [store.get(job.id).status for job in jobs]
    assert ends == [Status.EXPIRED, Status.CANCELED, Status.SUCCEEDED, Status.FAILED]


def test_a_job_without_a_webhook_tells_nobody(store: JobStore) -> None:
    store.cancel(_create(store).id)

    assert _collected(store, "t") is None


def test_a_reused_result_is_told_as_well(store: JobStore) -> None:
    store.record_model_weights("auto", MODEL.sha256)
    _ended_job(store)
    job = _submit(store, reuse=True, webhook="https://example.org")

    assert job.status is Status.SUCCEEDED
    assert _collected(store, "t") == (job.id, 1)


def test_a_collect_sent_twice_takes_one_delivery(store: JobStore) -> None:
    first = _told(store)
    _told(store, "https://other.example")

    assert [_collected(store, "t"), _collected(store, "t")] == [(first, 1), (first, 1)]


def test_one_courier_at_a_time_goes_to_a_host_for_an_owner(store: JobStore) -> None:
    """However many wait for a host that is busy, another host's and another owner's are not held up."""
    busy = [_told(store) for _ in range(5)]
    other, anna = _told(store, "https://other.example/a"), _told(store, owner="anna")

    assert [_collected(store, token) for token in "abcd"] == [
        (busy[0], 1),
        (other, 1),
        (anna, 1),
        None,
    ]
    assert store.complete_delivery(busy[0], "a", "delivered")
    assert _collected(store, "e") == (busy[1], 1)


def test_what_is_settled_is_not_sent_again(store: JobStore) -> None:
    job_id = _told(store)
    _collected(store, "a")

    assert store.complete_delivery(job_id, "a", "delivered")
    assert not store.complete_delivery(job_id, "a", "delivered")
    assert _collected(store, "b") is None


def test_a_failed_one_comes_back_when_it_is_due_and_not_for_ever(
    store: JobStore, valkey: Any
) -> None:
    job_id = _told(store)
    for number in (1, 2, 3):
        assert _collected(store, str(number)) == (job_id, number)
        store.complete_delivery(job_id, str(number), "given_up", 60)
        assert _collected(store, f"early {number}") is None
        with redis.Redis.from_url(valkey.url) as client:  # now they are due
            for key in client.keys(PREFIX + "outbox*"):
                client.zadd(key, dict.fromkeys(client.zrange(key, 0, -1), 1))

    assert _collected(store, "4") is None, "a fourth try of three"


def test_a_dead_couriers_delivery_is_another_ones_after_the_lease(
    store: JobStore, valkey: Any
) -> None:
    """And what the first says when it turns out to be alive changes nothing."""
    job_id = _told(store)
    _collected(store, "frozen")
    assert _collected(store, "b") is None
    with redis.Redis.from_url(valkey.url) as client:  # the lease runs out
        client.zadd(
            PREFIX + "dispatchers", dict.fromkeys(client.zrange(PREFIX + "dispatchers", 0, -1), 1)
        )

    assert _collected(store, "b") == (job_id, 2)
    assert not store.complete_delivery(job_id, "frozen", "delivered")
    assert store.complete_delivery(job_id, "b", "given_up", 0)
    assert _collected(store, "c") == (job_id, 3)


def test_a_job_that_is_deleted_on_the_way_holds_nobody_up(store: JobStore) -> None:
    """Its lane is free as soon as its courier is back, and no sooner."""
    deleted, following = _told(store), _told(store)
    _collected(store, "a")
    store.delete(deleted)
    assert _collected(store, "b") is None

    assert not store.complete_delivery(deleted, "a", "delivered")
    assert _collected(store, "c") == (following, 1)


def test_a_late_courier_of_a_deleted_job_frees_no_lane_of_anothers(
    store: JobStore, valkey: Any
) -> None:
    deleted, following, _ = (_told(store) for _ in range(3))
    _collected(store, "frozen", 0.03)
    with redis.Redis.from_url(
        valkey.url
    ) as client:  # as if all happened in the millisecond in which the lease ends
        client.persist(f"{PREFIX}delivery_claim:frozen")
    store.delete(deleted)
    time.sleep(0.04)
    assert _collected(store, "b") == (following, 1)

    assert not store.complete_delivery(deleted, "frozen", "delivered")
    assert _collected(store, "c") is None


def test_eight_couriers_at_once_take_each_delivery_once(store: JobStore, valkey: Any) -> None:
    due = {_told(store, f"https://host-{n % 9}.example/") for n in range(60)}
    taken: list[str] = []

    def courier(name: str) -> None:
        own = JobStore(valkey.url)
        for number in itertools.count():
            found = own.claim_delivery(f"{name} {number}", 60, 3)
            if found:
                taken.append(found[0].id)
                own.complete_delivery(found[0].id, f"{name} {number}", "delivered")
            elif len(taken) >= 60 or number > 10_000:
                break
        own.close()

    threads = [threading.Thread(target=courier, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(taken) == 60
    assert set(taken) == due


def test_a_forgotten_job_is_not_told(store: JobStore, valkey: Any) -> None:
    waiting, taken = _told(store), _told(store, "https://other.example/")
    _collected(store, "a")
    _collected(store, "b")
    store.delete(waiting)
    store.delete(taken)

    assert not store.complete_delivery(taken, "b", "delivered")
    with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        assert client.keys(PREFIX + "outbox*") == []


# ---------------------------------------------------------------------- steering


def _stronger(job_input: JobInput) -> JobInput:
    return job_input.model_copy(update={"spec": {**job_input.spec, "strength": 0.9}})


def test_a_waiting_job_that_is_steered_is_the_job_that_was_submitted_so(store: JobStore) -> None:
    """Also for those who would take its result for theirs."""
    spec_updates = store.update_spec(_create(store).id, _stronger)
    _claimed(store)
    store.reserve(RESULT, 60)
    store.record_model_weights("auto", MODEL.sha256)
    store.succeed(spec_updates.id, "t", OUTPUT, MODEL, {})
    as_before, so = (
        store.create(new_job_id(), made, SubmissionOptions(reuse=True))
        for made in (INPUT, _stronger(INPUT))
    )

    assert (spec_updates.input.spec["strength"], spec_updates.version) == (0.9, 2)
    assert (as_before.reused_from, so.reused_from) == (None, spec_updates.id)


def test_a_picture_that_was_begun_otherwise_answers_nobody_else(store: JobStore) -> None:
    job = _create(store)
    _claimed(store)
    store.update_spec(job.id, _stronger)
    store.reserve(RESULT, 60)
    store.record_model_weights("auto", MODEL.sha256)
    assert store.succeed(job.id, "t", OUTPUT, MODEL, {}) == "ok"

    for made in (INPUT, _stronger(INPUT)):
        assert store.create(new_job_id(), made, SubmissionOptions(reuse=True)).reused_from is None
    store.delete(job.id)


def test_a_worker_hears_at_once_that_its_job_was_steered_and_until_it_knows(
    store: JobStore,
) -> None:
    job = _create(store)
    _claimed(store)
    assert store.renew(job.id, "t", 0) == "ok"
    store.update_spec(job.id, _stronger)

    assert store.wait_for_signal("t", 5)
    assert [store.renew(job.id, "t", known) for known in (0, 0, 1)] == [
        "spec_updated",
        "spec_updated",
        "ok",
    ]
    assert store.renew(job.id, "another", 0) == "stale"
    assert store.get(job.id).spec_update_count == 1
    store.cancel(job.id)
    assert store.renew(job.id, "t", 0) == "cancel"


def test_steering_to_where_it_is_changes_nothing(store: JobStore) -> None:
    job = _create(store)
    first = store.update_spec(job.id, _stronger)

    assert store.update_spec(job.id, _stronger) == first


def test_two_who_steer_at_once_both_have_their_way(store: JobStore) -> None:
    """Each changes a parameter of its own; the second sees what the first did."""
    job, between = _create(store), []

    def slowly(job_input: JobInput) -> JobInput:
        if not between:
            between.append(store.update_spec(job.id, _stronger))
        return job_input.model_copy(update={"spec": {**job_input.spec, "tv_weight": 2.0}})

    spec = store.update_spec(job.id, slowly).input.spec
    assert (spec["strength"], spec["tv_weight"]) == (0.9, 2.0)


def test_sealed_a_run_is_steered_no_more_unless_it_goes_on_elsewhere(store: JobStore) -> None:
    job = _create(store)
    _claimed(store)
    store.update_spec(job.id, _stronger)

    assert store.lock_spec(job.id, "t", 0) == "spec_updated"
    assert store.lock_spec(job.id, "another", 1) == "stale"
    assert store.lock_spec(job.id, "t", 1) == "ok"
    with pytest.raises(errors.JobAlreadyEnded):
        store.update_spec(job.id, lambda _: INPUT)
    store.release(job.id, "t")
    assert store.update_spec(job.id, lambda _: INPUT).input == INPUT


@pytest.mark.parametrize("end", ["ended", "being canceled", "gone", "somebody else's"])
def test_what_cannot_be_steered(store: JobStore, end: str) -> None:
    job = _create(store)
    if end == "being canceled":
        _claimed(store)
    if end in ("ended", "being canceled"):
        store.cancel(job.id)
    if end == "gone":
        store.delete(job.id)
    owner = "anna" if end == "somebody else's" else LOCAL_OWNER

    with pytest.raises(
        errors.JobNotFound if end in ("gone", "somebody else's") else errors.JobAlreadyEnded
    ):
        store.update_spec(job.id, _stronger, owner)


def test_steering_has_an_end(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.jobs.store.MAX_SPEC_UPDATES", 1)
    job = store.update_spec(_create(store).id, _stronger)

    with pytest.raises(errors.Conflict, match="1 times"):
        store.update_spec(job.id, lambda _: INPUT)


# ---------------------------------------------------------------------- frames


def _frame(iteration: int, digest: str = PREVIEW) -> Frame:
    return Frame(index=0, iteration=iteration, scale=1, seconds=iteration / 4, digest=digest)


def _keep_frame(store: JobStore, job: Job, iteration: int, token: str = "t") -> int:
    digest = f"sha256:{iteration:064}"
    store.reserve(digest, 60)
    return store.add_frame(job.id, token, _frame(iteration, digest))


def _uses(url: str) -> set[bytes]:
    with redis.Redis.from_url(url) as client:
        return {
            digest for digest in client.hkeys(PREFIX + "refs") if digest.startswith(b"sha256:00")
        }


def test_frames_are_thinned_out_where_there_are_too_many_and_keep_their_index(
    store: JobStore, valkey: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.jobs.store.MAX_FRAMES", 4)
    job = _create(store)
    _claimed(store)
    frame_thinnings = [_keep_frame(store, job, iteration) for iteration in range(8)]

    assert frame_thinnings == [0, 0, 0, 0, 1, 1, 2, 2]
    assert [(frame.index, frame.iteration) for frame in store.list_frames(job.id)] == [
        (0, 0),
        (4, 4),
        (6, 6),
        (7, 7),
    ]
    assert _uses(valkey.url) == {f"sha256:{number:064}".encode() for number in (0, 4, 6, 7)}
    assert ((seen := store.get(job.id)).frames, seen.frame_thinnings) == (8, 2)


def test_an_iteration_that_is_painted_again_has_one_frame(store: JobStore, valkey: Any) -> None:
    """The next attempt goes on from a checkpoint that is older than the newest frame."""
    job = _create(store)
    _claimed(store)
    store.save_checkpoint(job.id, "t", "c")
    for iteration in (1, 5, 9):
        _keep_frame(store, job, iteration)
    store.release(job.id, "t")
    _claimed(store, "u")
    _keep_frame(store, job, 5, "u")

    assert [frame.iteration for frame in store.list_frames(job.id)] == [1, 5]
    assert len(_uses(valkey.url)) == 2


@pytest.mark.parametrize("way", ["deleted", "expired", "begun again"])
def test_frames_go_with_their_job(store: JobStore, valkey: Any, way: str) -> None:
    job = _create(store)
    _claimed(store)
    _keep_frame(store, job, 1)
    if way == "deleted":
        store.delete(job.id)
    elif way == "begun again":
        store.release(job.id, "t")
    else:
        store.fail(job.id, "t", DIVERGED)
        with redis.Redis.from_url(valkey.url) as client:
            client.zadd(PREFIX + "expiry", {job.id: 1})
        assert store.expire_due(1000) == 1

    assert _uses(valkey.url) == set()
    with redis.Redis.from_url(valkey.url) as client:
        assert not client.exists(f"{PREFIX}frames:{job.id}")


def test_a_stale_worker_keeps_no_frame_and_a_stranger_sees_none(store: JobStore) -> None:
    job = _create(store)
    _claimed(store)
    _keep_frame(store, job, 1)

    assert _keep_frame(store, job, 2, "stale") == -1
    assert len(store.list_frames(job.id, LOCAL_OWNER)) == 1
    with pytest.raises(errors.JobNotFound):
        store.list_frames(job.id, "anna")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", '{"content'),
        ("input", b'{"content\xe3'),
        ("created_at", None),
        ("status", "sleeping"),
    ],
)
def test_a_record_that_the_disk_has_damaged_hides_no_other(
    store: JobStore, valkey: Any, field: str, value: str | bytes | None
) -> None:
    damaged, whole = _create(store), _create(store)
    with redis.Redis(port=valkey.port) as client:
        key = f"{PREFIX}job:{damaged.id}"
        client.hdel(key, field) if value is None else client.hset(key, field, value)

    assert [job.id for job in store.list_page(limit=10)[0]] == [whole.id]
    with pytest.raises(errors.JobNotFound):
        store.get(damaged.id)


def test_an_entry_that_the_disk_has_damaged_hides_no_other(store: JobStore, valkey: Any) -> None:
    whole = _create(store)
    with redis.Redis(port=valkey.port) as client:
        client.zadd(f"{PREFIX}jobs_of:local", {b"job_\xe3": 999})

    assert [job.id for job in store.list_page(limit=10)[0]] == [whole.id]


@pytest.mark.parametrize("field", ["blobs", "progress"])
def test_a_record_that_the_disk_has_damaged_stops_no_step(
    store: JobStore, valkey: Any, field: str
) -> None:
    damaged, other, waiting = _create(store), _create(store), _create(store)
    for token in "tu":
        _claimed(store, token)
    with redis.Redis(port=valkey.port) as client:
        client.hset(f"{PREFIX}job:{damaged.id}", field, '{"sha')
    assert (store.get_load().queued, store.get_load().running) == (1, 2)
    assert store.get(waiting.id).id == waiting.id
    for job, token in ((damaged, "t"), (other, "u")):
        store.fail(job.id, token, DIVERGED)
    store.expire_early(2)

    assert store.expire_due(0) == 2
    assert store.expire_due(0) == 2
    assert [job.id for job in store.list_page(limit=10)[0]] == [waiting.id]


@pytest.mark.parametrize("field", ["status", "place", "attempt", "version", "owner", "record"])
def test_whatever_the_disk_has_damaged_those_behind_it_are_claimed(
    store: JobStore, valkey: Any, field: str
) -> None:
    damaged, other = _create(store), _create(store)
    with redis.Redis(port=valkey.port) as client:
        key = f"{PREFIX}job:{damaged.id}"
        client.delete(key) if field == "record" else client.hset(key, field, "\x01")
    claimed = []
    for token in "tuv":
        with suppress(errors.JobNotFound):
            claimed += [job.id for job in [store.claim(token, "worker")] if job]

    assert other.id in claimed
    assert len(set(claimed)) == len(claimed)
    assert store.get_load().queued == 0


@pytest.mark.parametrize("field", ["status", "losses", "record"])
def test_whatever_the_disk_has_damaged_others_are_put_back(
    store: JobStore, valkey: Any, field: str
) -> None:
    damaged, other = _create(store), _create(store)
    for token in "tu":
        _claimed(store, token)
    with redis.Redis(port=valkey.port) as client:
        key = f"{PREFIX}job:{damaged.id}"
        client.delete(key) if field == "record" else client.hset(key, field, "\x01")
    _expire_leases(valkey.url)

    assert store.reap_expired_leases() == (1 + (field == "losses"), 0)
    assert store.reap_expired_leases() == (0, 0)
    assert store.get_load().running == 0
    assert store.get(other.id).status == "queued"


def _fewer(monkeypatch: pytest.MonkeyPatch, line: str, other: str) -> None:
    """Another number in the library."""
    version, code = load_library()
    assert line in code
    name = f"{version}_{other.rsplit(maxsplit=1)[-1]}"  # the server keeps the functions of earlier tests
    changed = code.replace(line, other).replace(version, name)
    monkeypatch.setattr("core.jobs.store.load_library", lambda: (name, changed))


def test_the_oldest_record_that_has_ended_makes_room_for_the_next(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fewer(monkeypatch, "local MAX_RECORDS = 50000", "local MAX_RECORDS = 3")
    running, pinned, ended = _create(store), _create(store), _create(store)
    _claimed(store)
    store.set_pinned(pinned.id, pinned=True)
    for job in (pinned, ended):
        store.cancel(job.id)
    last = _create(store)

    assert [job.id for job in store.list_page(limit=9)[0]] == [last.id, pinned.id, running.id]


def test_whose_records_may_not_go_gets_no_more_of_them_also_by_reuse(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fewer(monkeypatch, "local MAX_RECORDS = 50000", "local MAX_RECORDS = 3")
    store.record_model_weights(INPUT.spec["model"], MODEL.sha256)
    jobs = [_ended_job(store), *(_submit(store, reuse=True) for _ in range(2))]
    assert [job.reused_from for job in jobs] == [None, jobs[0].id, jobs[0].id]
    for job in jobs:
        store.set_pinned(job.id)

    with pytest.raises(errors.QuotaExceeded, match="pin"):
        _submit(store, reuse=True)
    with pytest.raises(errors.QuotaExceeded, match="pin"):
        store.create_batch(
            new_batch_id(), [INPUT] * 2, SubmissionOptions(reuse=True), QueueLimits()
        )
    store.set_pinned(jobs[1].id, pinned=False)
    last = _submit(store)
    assert [job.id for job in store.list_page(limit=9)[0]] == [last.id, jobs[2].id, jobs[0].id]


def test_a_job_that_is_painted_again_because_its_result_made_room_counts(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fewer(monkeypatch, "local MAX_RECORDS = 50000", "local MAX_RECORDS = 2")
    store.record_model_weights(INPUT.spec["model"], MODEL.sha256)
    _ended_job(store)

    with pytest.raises(errors.QuotaExceeded):
        store.create_batch(
            new_batch_id(), [INPUT] * 2, SubmissionOptions(reuse=True), QueueLimits(per_owner=1)
        )
    assert len(store.list_page(limit=9)[0]) == 1, "and a refusal costs no record"


def test_one_owner_has_a_few_couriers_however_many_hosts_they_name(store: JobStore) -> None:
    for number in range(9):
        _told(store, f"https://host{number}.example/", owner="anna")
    other = _told(store, "https://host.example/", owner="bob")
    taken = [_collected(store, f"t{number}") for number in range(10)]

    assert sum(one is not None for one in taken) == 9
    assert (other, 1) in taken
