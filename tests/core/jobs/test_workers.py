"""Heartbeats, the list of workers, the counts, and signals to a run."""

import threading
import time
from typing import Any

import pytest
import redis

from core.jobs.models import Status, WorkerInfo, WorkerReport
from core.jobs.store import JobStore
from core.redis_client import PREFIX

INFO = WorkerInfo(device="cpu", precision="bfloat16", network="vgg16", networks=["vgg16"])


def _set_heartbeat(driver: Any, worker: str, age_ms: int) -> None:
    with redis.Redis.from_url(driver.redis_url) as client:
        client.zadd(f"{PREFIX}workers", {worker: driver.server_time_ms() - age_ms}, xx=True)


def test_all_live_workers_are_listed_with_description_and_state(
    driver: Any, store: JobStore
) -> None:
    other = INFO.model_copy(update={"device": "NVIDIA TITAN RTX"})
    store.heartbeat("a", INFO)
    store.heartbeat("b", other)
    store.heartbeat("c")
    store.heartbeat("silent", INFO)
    _set_heartbeat(driver, "silent", 5_500)
    driver.create()
    store.claim("t", "b")

    assert store.list_workers() == [(INFO, False), (other, True), (None, False)]
    assert store.get_load().workers == 3


def test_every_running_job_makes_its_worker_busy(driver: Any, store: JobStore) -> None:
    workers = ["a", "b", "c"]
    for worker in workers:
        store.heartbeat(worker, INFO)
        driver.create()
        store.claim(worker, worker)

    assert [is_busy for _, is_busy in store.list_workers()] == [True, True, True]


def test_a_worker_is_listed_for_five_seconds_after_its_heartbeat(
    driver: Any, store: JobStore
) -> None:
    store.heartbeat("worker", INFO)
    _set_heartbeat(driver, "worker", 4_500)

    assert store.list_workers() == [(INFO, False)]


def test_the_description_of_a_worker_is_forgotten_after_a_minute(
    driver: Any, store: JobStore, valkey: Any
) -> None:
    for worker in ("first", "second", "recent", "live"):
        store.heartbeat(worker, INFO)
    for worker, age_ms in (("first", 61_000), ("second", 70_000), ("recent", 59_000)):
        _set_heartbeat(driver, worker, age_ms)
    store.heartbeat("live", INFO)

    with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        assert set(client.zrange(f"{PREFIX}workers", 0, -1)) == {"recent", "live"}
        assert set(client.hkeys(f"{PREFIX}worker_info")) == {"recent", "live"}


def test_a_worker_is_idle_with_a_backlog_if_others_run_and_jobs_wait(
    driver: Any, store: JobStore
) -> None:
    assert not store.is_idle_with_backlog("idle"), "nothing is queued"
    for _ in range(3):
        driver.create()
    for worker in ("first", "last"):
        store.claim(worker, worker)

    states = {worker: store.is_idle_with_backlog(worker) for worker in ("first", "last", "idle")}
    assert states == {"first": False, "last": False, "idle": True}


def test_without_a_backlog_no_worker_is_idle_with_one(driver: Any, store: JobStore) -> None:
    driver.create()
    store.claim("t", "busy")

    assert not store.is_idle_with_backlog("idle")


def test_ended_jobs_and_pending_webhooks_are_counted(driver: Any, store: JobStore) -> None:
    driver.end()
    driver.end(webhook="https://example.com/a")
    store.cancel(driver.submit(webhook="https://example.com/b").id)

    assert store.get_counts() == ({Status.SUCCEEDED: 2, Status.CANCELED: 1}, 2)


def test_a_read_of_a_queued_job_costs_the_same_however_many_jobs_run(
    driver: Any, store: JobStore
) -> None:
    """It estimates the start from the running jobs; with 1,000 of them it took 10 ms."""
    for _ in range(50):
        job = driver.submit()
        driver.claim(job.id)
        store.report_progress(job.id, job.id, driver.PROGRESS)
    store.heartbeat("worker", WorkerReport.of_unknown())
    queued = driver.submit()
    with redis.Redis.from_url(driver.redis_url) as client:
        client.set(f"{PREFIX}average_seconds", 10)
        client.config_resetstat()
        queue = store.get(queued.id).queue
        reads = client.info("commandstats")["cmdstat_hmget"]["calls"]

    assert queue is not None
    assert (store.get_load().running, queue.start_seconds) == (50, pytest.approx(50 * 3.0))
    assert reads <= 32 + 5


def test_a_signal_wakes_a_waiting_run_and_stays_for_ten_seconds(
    store: JobStore, valkey: Any
) -> None:
    timer = threading.Timer(0.1, store.send_signal, ["token"])
    timer.start()
    started = time.monotonic()
    assert store.wait_for_signal("token", 0.5)
    assert time.monotonic() - started >= 0.1
    timer.join()

    store.send_signal("token")
    with redis.Redis.from_url(valkey.url) as client:
        assert client.pttl(f"{PREFIX}signal:token") == pytest.approx(9_500, abs=500)
    assert not store.wait_for_signal("another token", 0.1)


def test_the_reaper_counts_what_it_requeues_and_what_it_ends(driver: Any, store: JobStore) -> None:
    overdue = driver.submit(deadline_seconds=1)
    for token in ("a", "b"):
        driver.submit(priority="high")
        driver.claim(token)
    driver.expire_leases()
    assert store.reap_expired_leases() == (2, 0)

    time.sleep(1.01)
    assert store.reap_expired_leases() == (0, 1)
    assert store.get(overdue.id).status == Status.EXPIRED
