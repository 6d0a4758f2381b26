"""The order of claims: priorities, rounds between owners, and positions."""

import time
from typing import Any

from core.jobs.models import new_job_id
from core.jobs.store import JobStore


def _claim_owners(driver: Any) -> list[str]:
    """Claim all queued jobs and return their owners, in order."""
    order = []
    while job := driver.store.claim(new_job_id(), "worker"):
        order.append(job.owner)
    return order


def test_jobs_are_claimed_in_the_order_of_arrival(driver: Any, store: JobStore) -> None:
    jobs = [driver.create() for _ in range(3)]

    assert [driver.claim(token).id for token in "abc"] == [job.id for job in jobs]
    assert store.claim("d", "worker") is None


def test_a_thousand_jobs_of_one_owner_do_not_delay_the_first_job_of_another(driver: Any) -> None:
    for _ in range(1000):
        driver.submit("anna")
    late = driver.submit("ben")

    assert late.queue is not None
    assert late.queue.position == 1
    assert _claim_owners(driver)[:4] == ["anna", "ben", "anna", "anna"]


def test_owners_take_turns_in_the_order_of_arrival(driver: Any) -> None:
    for owner in "aaabbc":
        driver.submit(owner)

    assert _claim_owners(driver) == list("abcaba")


def test_an_owner_who_submits_after_each_claim_gets_every_second_turn_at_most(driver: Any) -> None:
    for _ in range(10):
        driver.submit("many")
    driver.submit("again")
    order = []
    for number in range(10):
        job = driver.claim(f"t{number}")
        order.append(job.owner)
        if job.owner == "again":
            driver.submit("again")

    assert order == ["many", "again"] * 5


def test_canceled_jobs_cost_no_turns(driver: Any, store: JobStore) -> None:
    for job in [driver.submit("a") for _ in range(50)]:
        store.cancel(job.id)
    for _ in range(3):
        driver.submit("b")
    driver.submit("a")

    assert _claim_owners(driver) == ["b", "a", "b", "b"]


def test_priorities_come_first_and_owners_take_turns_within_each(driver: Any) -> None:
    for owner, priority in (
        ("a", "low"),
        ("b", "normal"),
        ("b", "normal"),
        ("a", "normal"),
        ("c", "high"),
    ):
        driver.submit(owner, priority=priority)

    assert _claim_owners(driver) == list("cbaba")


def test_turns_of_one_priority_do_not_affect_another(driver: Any) -> None:
    """Otherwise the late second owner would wait for all low jobs of the first one."""
    for _ in range(5):
        driver.submit("a", priority="low")
    for _ in range(50):
        driver.submit("x")
    driver.submit("b", priority="low")

    assert _claim_owners(driver)[50:] == ["a", "b", "a", "a", "a", "a"]


def test_the_position_is_the_order_of_claims(driver: Any, store: JobStore) -> None:
    jobs = [
        driver.submit(owner, priority=priority)
        for owner in "aaabbc"
        for priority in ("normal", "high")
    ]
    positions = {job.id: queue.position for job in jobs if (queue := store.get(job.id).queue)}
    claimed = [driver.claim(f"t{number}").id for number in range(len(jobs))]

    assert sorted(positions, key=positions.__getitem__) == claimed


def test_the_start_is_estimated_while_a_worker_is_alive(driver: Any, store: JobStore) -> None:
    first = driver.submit()
    assert first.queue is not None
    assert first.queue.start_seconds is None

    store.heartbeat("worker")
    driver.claim()
    time.sleep(0.05)
    store.succeed(first.id, "t", driver.OUTPUT, driver.MODEL, {})
    driver.submit()
    driver.claim("u")
    soon, later = (
        job.queue.start_seconds for job in (driver.submit(), driver.submit()) if job.queue
    )

    assert soon is not None
    assert later is not None
    assert 0.05 <= soon < later


def test_a_released_job_of_an_early_round_gives_new_owners_no_advantage(
    driver: Any, store: JobStore
) -> None:
    """The round of a new job is the current one, not that of the released job."""
    for _ in range(6):
        driver.submit("many")
    early = driver.claim("early")
    for number in range(3):
        driver.claim(f"t{number}")
    store.release(early.id, "early")
    for _ in range(4):
        driver.submit("new")

    assert _claim_owners(driver) == ["many", "new", "many", "new", "many", "new", "new"]
