"""The runner claims jobs and keeps networks loaded between them."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from proxy import Proxy

from core.jobs.models import Job, Status
from core.jobs.store import JobStore
from core.neural.weights.cache import WeightsCache, random_parameters
from core.neural.weights.parameters import Parameters
from worker.runner import JobRunner

MakeRunner = Callable[..., JobRunner]
Submit = Callable[..., Job]


def test_without_a_queued_job_nothing_happens(runner: JobRunner) -> None:
    assert runner.run_next() is None


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

        assert runner.run_next() == jobs[0].id
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
        cache.keep(
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
