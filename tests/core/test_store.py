"""The job store on a real Valkey: every step of a job's life, and every step that is refused."""

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from core import errors
from core.jobs import MAX_ATTEMPTS, TRANSITIONS, Job, JobInput, JobProgress, NetworkUsed, Output, Status, new_job_id
from core.spec import StyleSpec
from core.store import PREFIX, JobStore, _library

CONTENT, STYLE, RESULT, PREVIEW = (f"sha256:{digit * 64}" for digit in "abcd")
INPUT = JobInput(content=CONTENT, styles=[STYLE], spec=StyleSpec().model_dump())
OUTPUT = Output(id=RESULT, content_type="image/png", width=4, height=3, size_bytes=9)
MODEL = NetworkUsed(name="vgg16", sha256="0" * 64)
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
    store.hold(CONTENT, 60)
    store.hold(STYLE, 60)
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

    assert (Status.QUEUED, 1, 0, INPUT) == (first.status, first.version, first.attempt, first.input)
    assert [0, 1] == [job.queue.position for job in (first, second) if job.queue]
    assert store.queued() == 2


def test_creating_the_same_id_again_changes_nothing(store: JobStore) -> None:
    job = _create(store)
    _claimed(store)

    assert Status.RUNNING is store.create(job.id, INPUT).status
    assert 0 == store.queued()


def test_jobs_are_claimed_in_the_order_of_their_arrival(store: JobStore) -> None:
    jobs = [_create(store) for _ in range(3)]

    assert [job.id for job in jobs] == [_claimed(store, token).id for token in "abc"]
    assert store.claim("d", "worker") is None


def test_a_claim_sent_twice_takes_one_job(store: JobStore) -> None:
    _create(store), _create(store)

    assert _claimed(store, "t").id == _claimed(store, "t").id
    assert 1 == store.queued()


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

    assert 60 == len(taken)
    assert jobs == set(taken)


def test_progress_shows_and_counts_as_a_change(store: JobStore) -> None:
    _create(store)
    job = _claimed(store)

    assert "ok" == store.progress(job.id, "t", PROGRESS)
    seen = store.get(job.id)
    assert PROGRESS == seen.progress
    assert seen.version > job.version


def test_success_keeps_the_result_and_is_safe_to_say_twice(store: JobStore) -> None:
    _create(store)
    job = _claimed(store)

    assert "ok" == store.succeed(job.id, "t", OUTPUT, MODEL, {"run_seconds": 1.5})
    ended = store.get(job.id)
    assert "ok" == store.succeed(job.id, "t", OUTPUT, MODEL, {"run_seconds": 1.5})

    assert (Status.SUCCEEDED, [OUTPUT], MODEL, 1.5) == (
        ended.status,
        ended.outputs,
        ended.model,
        ended.metrics["run_seconds"],
    )
    assert ended == store.get(job.id)
    assert ended.completed_at is not None
    assert ended.started_at is not None
    assert ended.created_at <= ended.started_at <= ended.completed_at


def test_failure_keeps_the_code_and_the_sentence(store: JobStore) -> None:
    _create(store)
    job = _claimed(store)
    store.fail(job.id, "t", DIVERGED)

    error = store.get(job.id).error
    assert error is not None
    assert ("diverged", DIVERGED.message) == (error.code, error.message)


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
    "fail": (lambda store, job_id: store.fail(job_id, "t", DIVERGED), {Status.RUNNING: Status.FAILED}),
    "end_canceled": (lambda store, job_id: store.end_canceled(job_id, "t"), {Status.RUNNING: Status.CANCELED}),
    "release": (lambda store, job_id: store.release(job_id, "t"), {Status.RUNNING: Status.QUEUED}),
    "renew": (lambda store, job_id: store.renew(job_id, "t"), {}),
    "progress": (lambda store, job_id: store.progress(job_id, "t", PROGRESS), {}),
    "reap": (lambda store, job_id: store.reap(), {Status.RUNNING: Status.QUEUED}),
}
REACH: dict[Status, Callable[[JobStore, str], object]] = {
    Status.QUEUED: lambda store, job_id: None,
    Status.RUNNING: lambda store, job_id: store.claim("t", "worker"),
    Status.SUCCEEDED: lambda store, job_id: (store.claim("t", "worker"), store.succeed(job_id, "t", OUTPUT, MODEL, {})),
    Status.FAILED: lambda store, job_id: (store.claim("t", "worker"), store.fail(job_id, "t", DIVERGED)),
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
    assert status is before.status

    do, leads = STEPS[step]
    do(store, job.id)

    after = store.get(job.id)
    assert leads.get(status, status) is after.status
    assert after.status is status or after.status in TRANSITIONS[status]
    if status.ended:
        assert before == after


def _raw_move(url: str, job_id: str, status: Status, to: Status) -> bool:
    """Try to end the job as `to` by the one function that takes any status."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        client.hset(f"{PREFIX}job:{job_id}", "token", "t")
        return client.fcall(f"{_library()[0]}_finish", 1, PREFIX, job_id, "t", to) == "ok" and status is not to


@pytest.mark.parametrize(("status", "to"), list(itertools.product(REACH, Status)))
def test_the_servers_table_of_transitions_is_pythons(store: JobStore, valkey: Any, status: Status, to: Status) -> None:
    job = _create(store)
    REACH[status](store, job.id)

    moved = _raw_move(valkey.url, job.id, status, to)

    # finish() serves running jobs only, whatever the table says.
    assert (status is Status.RUNNING and to in TRANSITIONS[status]) is moved
    assert (to if moved else status) is store.get(job.id).status


@pytest.mark.parametrize("step", ["renew", "progress", "succeed", "fail", "end_canceled", "release"])
def test_a_stale_token_is_refused_and_changes_nothing(store: JobStore, valkey: Any, step: str) -> None:
    """A worker that was frozen beyond its lease wakes up after another has taken the job."""
    _create(store)
    job = _claimed(store, "t")
    _expire_leases(valkey.url)
    store.reap()
    again = _claimed(store, "fresh")
    assert job.id == again.id

    do, _ = STEPS[step]
    assert "stale" == do(store, job.id)
    assert again == store.get(job.id)


def test_a_lease_that_ran_out_puts_the_job_back_at_the_head(store: JobStore, valkey: Any) -> None:
    first, second = _create(store), _create(store)
    _claimed(store)
    _expire_leases(valkey.url)

    assert (1, 0) == store.reap()
    back = store.get(first.id)
    assert back.queue is not None
    assert (Status.QUEUED, 0, 1) == (back.status, back.queue.position, back.attempt)
    assert first.id == _claimed(store, "u").id
    assert 2 == store.get(first.id).attempt
    assert second.id == _claimed(store, "v").id


def test_a_renewed_lease_does_not_run_out(valkey: Any) -> None:
    store = JobStore(valkey.url, lease_seconds=0.6)
    _create(store)
    job = _claimed(store)

    for _ in range(4):
        time.sleep(0.25)
        assert "ok" == store.renew(job.id, "t")
        assert (0, 0) == store.reap()
    time.sleep(0.7)
    assert (1, 0) == store.reap()
    assert "stale" == store.renew(job.id, "t")
    store.close()


def test_after_three_attempts_the_job_fails_as_worker_lost(store: JobStore, valkey: Any) -> None:
    job = _create(store)
    for attempt in range(MAX_ATTEMPTS):
        _claimed(store, str(attempt))
        _expire_leases(valkey.url)
        store.reap()

    ended = store.get(job.id)
    assert ended.error is not None
    assert (Status.FAILED, "worker_lost", MAX_ATTEMPTS) == (ended.status, ended.error.code, ended.attempt)
    assert store.claim("one more", "worker") is None


def test_a_job_handed_back_keeps_its_place_and_the_attempt_does_not_count(store: JobStore) -> None:
    first, _ = _create(store), _create(store)
    _claimed(store)

    assert "ok" == store.release(first.id, "t")
    back = store.get(first.id)
    assert back.queue is not None
    assert (0, 0) == (back.queue.position, back.attempt)


def test_cancel_of_a_running_job_reaches_its_worker(store: JobStore) -> None:
    _create(store)
    job = _claimed(store)

    assert store.cancel(job.id).cancel_requested
    assert "cancel" == store.renew(job.id, "t")
    assert "ok" == store.end_canceled(job.id, "t")
    assert Status.CANCELED is store.get(job.id).status


@pytest.mark.parametrize("gone", ["lease ran out", "handed back"])
def test_a_canceled_job_whose_worker_is_gone_ends_as_canceled(store: JobStore, valkey: Any, gone: str) -> None:
    _create(store)
    job = _claimed(store)
    store.cancel(job.id)
    if gone == "handed back":
        store.release(job.id, "t")
    else:
        _expire_leases(valkey.url)
        assert (0, 1) == store.reap()

    assert Status.CANCELED is store.get(job.id).status


def test_a_deleted_job_is_gone_and_its_worker_finds_out(store: JobStore) -> None:
    _create(store)
    job = _claimed(store)
    store.delete(job.id)
    store.delete(job.id)

    assert "stale" == store.renew(job.id, "t")
    assert "stale" == store.succeed(job.id, "t", OUTPUT, MODEL, {})
    with pytest.raises(errors.JobNotFound):
        store.get(job.id)
    with pytest.raises(errors.JobNotFound):
        store.cancel(job.id)
    assert ([], None) == store.page(limit=10)


def test_the_list_is_newest_first_in_pages_and_by_status(store: JobStore) -> None:
    jobs = [_create(store) for _ in range(5)]
    _claimed(store)

    first, cursor = store.page(limit=3)
    second, end = store.page(limit=3, before=cursor)
    queued, _ = store.page(limit=10, status=Status.QUEUED)

    assert [job.id for job in reversed(jobs)] == [job.id for job in first + second]
    assert end is None
    assert [job.id for job in reversed(jobs[1:])] == [job.id for job in queued]


# ---------------------------------------------------------------------- blobs in use


def test_blobs_of_a_job_are_kept_until_no_job_uses_them(store: JobStore, valkey: Any) -> None:
    one, two = _create(store), _create(store)
    _claimed(store)
    store.progress(one.id, "t", PROGRESS, PREVIEW)
    store.succeed(one.id, "t", OUTPUT, MODEL, {})
    assert [] == store.condemn()

    store.delete(one.id)
    assert {RESULT, PREVIEW} == set(store.condemn())
    store.delete(two.id)
    assert {RESULT, PREVIEW} == set(store.condemn())  # the others are still held from their submission
    _end_holds(valkey.url)
    assert {RESULT, PREVIEW, CONTENT, STYLE} == set(store.condemn())


def test_a_preview_that_was_replaced_is_condemned(store: JobStore) -> None:
    _create(store)
    job = _claimed(store)
    store.progress(job.id, "t", PROGRESS, PREVIEW)
    store.progress(job.id, "t", PROGRESS, RESULT)

    assert [PREVIEW] == store.condemn()


def _end_holds(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        for digest in client.zrange(PREFIX + "orphans", 0, -1):
            client.zadd(PREFIX + "orphans", {digest: 1})


def test_a_held_blob_is_safe_for_its_time_and_then_condemned_until_forgotten(store: JobStore) -> None:
    store.hold(CONTENT, 60)
    store.hold(STYLE, 0)
    time.sleep(0.01)

    assert [STYLE] == store.condemn()
    assert [STYLE] == store.condemn()
    store.forget(STYLE)
    assert [] == store.condemn()


def test_taking_hold_of_a_blob_waits_while_its_old_file_is_deleted(store: JobStore) -> None:
    """Else the deletion would take the new file along."""
    store.hold(STYLE, 0)
    time.sleep(0.01)
    store.condemn()
    with pytest.raises(errors.Unavailable):
        store.hold(STYLE)

    deletion = threading.Timer(0.3, store.forget, [STYLE])
    deletion.start()
    began = time.monotonic()
    store.hold(STYLE)
    assert time.monotonic() - began > 0.25
    deletion.join()


@pytest.mark.parametrize("state", ["never held", "hold is over", "condemned"])
def test_a_job_whose_picture_may_be_gone_is_refused(store: JobStore, valkey: Any, state: str) -> None:
    store.hold(CONTENT, 60)
    if state != "never held":
        store.hold(STYLE, 60)
        _end_holds(valkey.url)
        store.hold(CONTENT, 60)
    if state == "condemned":
        store.condemn()

    with pytest.raises(errors.ImageNotFound):
        store.create(new_job_id(), INPUT)
    assert 0 == store.queued()


def test_holding_again_never_shortens(store: JobStore) -> None:
    store.hold(CONTENT, 60)
    store.hold(CONTENT, 0)
    time.sleep(0.01)

    assert [] == store.condemn()


# ---------------------------------------------------------------------- the server's own troubles


def test_one_process_leads(store: JobStore) -> None:
    assert store.lead("a", 60)
    assert not store.lead("b", 60)
    assert store.lead("a", 0.001)
    time.sleep(0.01)
    assert store.lead("b", 60)


def test_acknowledged_jobs_survive_kill_9_of_the_server(own_valkey: Any) -> None:
    store = JobStore(own_valkey.url)
    jobs = [_create(store) for _ in range(20)]
    _claimed(store)
    own_valkey.kill()

    with pytest.raises(errors.StoreUnavailable):
        store.get(jobs[0].id)
    own_valkey.start()

    assert [Status.RUNNING] + [Status.QUEUED] * 19 == [store.get(job.id).status for job in jobs]
    assert "ok" == store.renew(jobs[0].id, "t")
    store.close()


def test_a_server_without_our_functions_is_taught_them(store: JobStore, valkey: Any) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.function_flush("SYNC")

    assert Status.QUEUED is _create(store).status


def test_a_server_that_keeps_another_versions_functions_runs_ours(store: JobStore, valkey: Any) -> None:
    """It writes functions to its disk, and knows nothing of a new version of the program."""
    version, code = _library()
    other = code.replace(version, "impasto_other").replace("return nil", "error('old')").replace("'queued'", "'gone'")
    with redis.Redis.from_url(valkey.url) as client:
        client.function_load(other, replace=True)

    job = _create(store)
    assert job.id == _claimed(store).id


def test_a_mistake_of_ours_does_not_look_like_an_outage(store: JobStore, valkey: Any) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.set(f"{PREFIX}leases", "not a zset")

    with pytest.raises(redis.ResponseError):
        store.reap()
