"""Which reads wait for their turn, and which are refused."""

from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from starlette.types import Receive, Scope, Send

from api.middleware import read_admission
from api.middleware.auth import Caller
from api.middleware.read_admission import (
    MAX_WAITING_PER_CALLER,
    SLOTS,
    ReadAdmission,
    create_read_queue,
)

PATH = "/v1/jobs"


class Service:
    """Reads that begin and end their answer when the test says so, behind the middleware."""

    def __init__(self, max_wait_seconds: float = 30.0) -> None:
        self.may_answer, self.may_end = anyio.Event(), anyio.Event()
        self.admission = ReadAdmission(self._app, create_read_queue(max_wait_seconds))
        self.running: list[str] = []
        self.statuses: list[tuple[str, int]] = []

    async def _app(self, scope: Scope, _receive: Receive, send: Send) -> None:
        self.running.append(scope["state"]["caller"].owner)
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await self.may_end.wait()

    async def get(self, caller: str, path: str = PATH) -> None:
        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.statuses.append((caller, message["status"]))

        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "root_path": "",
            "headers": [],
            "state": {"caller": Caller(caller)},
        }
        await self.admission(scope, _wait_forever, send)


async def _wait_forever() -> Any:
    await anyio.sleep_forever()


async def _settle() -> None:
    for _ in range(10):
        await checkpoint()


def test_a_few_reads_run_at_once_and_callers_take_turns() -> None:
    async def run() -> Service:
        service = Service()
        async with anyio.create_task_group() as group:
            for _ in range(SLOTS + 10):
                group.start_soon(service.get, "many")
            await _settle()
            group.start_soon(service.get, "one")
            await _settle()
            assert service.running == ["many"] * SLOTS
            service.may_answer.set()
            await _settle()
            service.may_end.set()
        return service

    service = anyio.run(run)
    assert "one" in service.running[: SLOTS + 1], "before what the other caller sent earlier"
    assert {status for _, status in service.statuses} == {200}
    assert len(service.statuses) == SLOTS + 11


def test_what_a_client_still_receives_occupies_no_turn() -> None:
    async def run() -> int:
        service = Service()
        service.may_answer.set()
        async with anyio.create_task_group() as group:
            for _ in range(3 * SLOTS):
                group.start_soon(service.get, "slow")
            await _settle()
            answered = len(service.statuses)
            service.may_end.set()
        return answered

    assert anyio.run(run) == 3 * SLOTS


def test_a_read_that_waits_too_long_is_refused_and_never_begins() -> None:
    async def run() -> Service:
        service = Service(max_wait_seconds=0.05)
        async with anyio.create_task_group() as group:
            for _ in range(SLOTS):
                group.start_soon(service.get, "many")
            await _settle()
            await service.get("late")
            service.may_answer.set()
            service.may_end.set()
        return service

    service = anyio.run(run)
    assert service.statuses[0] == ("late", 503)
    assert service.running == ["many"] * SLOTS


def test_what_one_caller_sends_in_excess_is_refused_at_once() -> None:
    async def run() -> Service:
        service = Service()
        async with anyio.create_task_group() as group:
            for _ in range(SLOTS + MAX_WAITING_PER_CALLER):
                group.start_soon(service.get, "many")
            await _settle()
            await service.get("many")
            service.may_answer.set()
            service.may_end.set()
        return service

    assert anyio.run(run).statuses[0] == ("many", 429)


@pytest.mark.parametrize(
    "path", ["/v1/jobs/job_a", "/v1/jobs/job_a/events", "/v1/images/sha256:a", "/livez"]
)
def test_cheap_reads_streams_and_files_never_wait(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_admission, "SLOTS", 0)

    async def run() -> list[tuple[str, int]]:
        service = Service(max_wait_seconds=0.01)
        service.may_answer.set()
        service.may_end.set()
        await service.get("a", path)
        await service.get("a", "/v1/jobs")
        return service.statuses

    assert anyio.run(run) == [("a", 200), ("a", 503)]
