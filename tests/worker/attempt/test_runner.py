"""The runner claims jobs and keeps networks loaded between them."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from proxy import Proxy

from core import errors
from core.jobs.models import Job, Status
from core.jobs.store import JobStore
from core.neural import device
from core.neural.weights.cache import WeightsCache, random_parameters
from core.neural.weights.parameters import Parameters
from worker import process
from worker.attempt import Attempt
from worker.runner import JobRunner

MakeRunner = Callable[..., JobRunner]
Submit = Callable[..., Job]


def test_without_a_queued_job_nothing_happens(runner: JobRunner) -> None:
    assert runner.run_next() == "no_job"


class LossyProxy(Proxy):
    """Forwards claims and cuts the connection before their answer, a few times."""

    cuts = 5  # redis-py sends each call twice before the worker sees an error

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionResetError):
            await super()._serve(reader, writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
            if b"_claim" in data and self.cuts:
                self.cuts -= 1
                raise ConnectionResetError
        writer.close()


def test_a_claim_whose_answer_is_lost_counts_as_no_attempt(
    valkey: Any, store: JobStore, submit: Submit, make_runner: MakeRunner
) -> None:
    jobs = [submit() for _ in range(2)]
    with LossyProxy(1, valkey.port) as proxy:
        runner = make_runner(f"redis://127.0.0.1:{proxy.port}/0")

        assert runner.run_next() == "done"
        assert proxy.cuts == 0
        runner._store.close()

    after = [store.get(job.id) for job in jobs]
    assert [(job.status, job.attempt) for job in after] == [
        (Status.SUCCEEDED, 1),
        (Status.QUEUED, 0),
    ]


def test_the_network_stays_loaded_between_jobs(runner: JobRunner) -> None:
    assert runner.load_network("vgg16") is runner.load_network("auto")


@pytest.mark.usefixtures("nominal_throughput")
def test_an_estimate_loads_no_network(runner: JobRunner, tmp_path: Path) -> None:
    runner._weights = cache = WeightsCache(tmp_path / "own")
    for number, name in enumerate(["vgg16", "one", "two", "three"]):
        cache.add(
            name,
            Parameters.of(random_parameters("vgg16" if name == "vgg16" else "vgg11", number)),
            {},
        )
        runner.load_network(name)
    loaded = {
        name
        for name in ("vgg16", "one", "two", "three")
        if runner.get_loaded_network(name)[0].name == name
    }

    assert loaded == {"two", "three"}
    assert runner.get_loaded_network("auto")[0].name == "three"
    assert runner.load_network("two") is runner.load_network("two")


def test_queued_jobs_run_until_none_is_left(
    runner: JobRunner, store: JobStore, submit: Submit
) -> None:
    jobs = [submit(iterations=2) for _ in range(3)]

    assert not runner.run_queued(10)
    assert [store.get(job.id).status for job in jobs] == [Status.SUCCEEDED] * 3


def test_a_job_that_is_deleted_during_the_claim_does_not_end_the_drain(
    runner: JobRunner, store: JobStore, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (submit(iterations=2) for _ in range(2))
    usual = runner._store.get

    def delete_first(job_id: str, *args: Any) -> Job:
        if job_id == first.id:
            store.delete(first.id)
        return usual(job_id, *args)

    monkeypatch.setattr(runner._store, "get", delete_first)

    assert not runner.run_queued(10)
    assert store.get(second.id).status is Status.SUCCEEDED


def test_the_limit_leaves_jobs_and_asks_for_a_notification(
    runner: JobRunner, store: JobStore, submit: Submit
) -> None:
    jobs = [submit(iterations=2) for _ in range(3)]

    assert runner.run_queued(2)
    assert [store.get(job.id).status for job in jobs] == [
        Status.SUCCEEDED,
        Status.SUCCEEDED,
        Status.QUEUED,
    ]


def test_a_shutdown_between_two_jobs_leaves_the_rest_and_asks_for_a_notification(
    runner: JobRunner, store: JobStore, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = runner._store.succeed

    def succeed_and_shut_down(*args: Any) -> Any:
        process.shutting_down.set()
        return usual(*args)

    monkeypatch.setattr(runner._store, "succeed", succeed_and_shut_down)
    jobs = [submit(iterations=2) for _ in range(2)]

    assert runner.run_queued(10)
    assert [store.get(job.id).status for job in jobs] == [Status.SUCCEEDED, Status.QUEUED]


def test_a_job_that_is_released_for_a_failure_is_not_claimed_again_at_once(
    runner: JobRunner, store: JobStore, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def fail(model: str) -> Any:
        calls.append(model)
        raise errors.Unavailable()

    monkeypatch.setattr(runner, "load_network", fail)
    job = submit()

    assert not runner.run_queued(10)
    assert len(calls) == 1
    assert ((back := store.get(job.id)).status, back.attempt) == (Status.QUEUED, 0)


def test_a_job_leaves_nothing_on_the_card_beside_the_network(
    make_runner: MakeRunner, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images are gone, and torch's cache is returned, so that another program can use it."""
    held: list[object] = []
    released: list[object] = []
    monkeypatch.setattr(device, "release_memory", released.append)
    usual = Attempt.run

    def run(self: Attempt, load: Any) -> bool:
        is_done = usual(self, load)
        held.append(self._state.event)
        return is_done

    monkeypatch.setattr(Attempt, "run", run)
    runner = make_runner(memory_gb=3)
    limits: list[tuple[object, ...]] = []
    monkeypatch.setattr(device, "limit_memory", lambda *args: limits.append(args))
    submit(iterations=2)

    assert runner.run_next() == "done"
    assert held == [None]
    network, _ = runner.load_network("auto")
    assert released == [network.device]
    assert limits == [(network.device, 3 * 10**9)]


def test_a_worker_with_a_card_that_torch_cannot_use_refuses_to_start(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it loads anything; its first kernel would fail, again and again."""
    stubs = {
        "is_available": True,
        "device_count": 1,
        "get_device_name": "NVIDIA TITAN X (Pascal)",
        "get_device_capability": (6, 1),
        "get_arch_list": ["sm_75", "sm_80"],
    }
    for name, value in stubs.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, _value=value: _value)
    monkeypatch.setattr(torch, "__version__", "2.13.0")
    runner = make_runner()
    monkeypatch.setattr(runner, "load_network", lambda _: pytest.fail("loaded a network"))

    with pytest.raises(errors.BadSettings, match=r"TITAN X .* constraints-legacy-gpu\.txt"):
        runner.warm_up()
