"""Submissions beyond the capacity are refused at once; all other requests pass."""

from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import pytest
from anyio import Event, create_task_group, wait_all_tasks_blocked
from starlette.responses import Response
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from api.fair_queue import FairQueue
from api.middleware import admission
from api.middleware.admission import Admission, SubmissionLoad
from api.middleware.auth import Caller


class Service:
    """Admission in front of a service that answers a submission when the test says so."""

    def __init__(self, slots: int = 4, *, interval_seconds: float = 0.05) -> None:
        self.decoders = FairQueue("pictures", slots)
        self.load = SubmissionLoad(self.decoders, max_wait_seconds=1e9)
        self.load._pace.interval_seconds = interval_seconds
        self.admission = Admission(self._app, self.load)
        self.done = Event()
        self.admitted: list[str] = []

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.admitted.append(scope["state"]["caller"].owner)
        if scope["method"] == "POST" and scope["path"] == "/v1/jobs":
            while (await receive()).get("more_body"):
                pass
            await self.done.wait()
        await Response()(scope, receive, send)

    async def ask(
        self,
        owner: str,
        method: str = "POST",
        path: str = "/v1/jobs",
        *,
        more_body: bool = False,
        answers: list[Message] | None = None,
    ) -> None:
        """Send a request. more_body: its body never ends."""
        blocks = [{"type": "http.request", "body": b"x", "more_body": more_body}]

        async def receive() -> Message:
            if blocks:
                return blocks.pop()
            await Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            if answers is not None and message["type"] == "http.response.start":
                answers.append(message)

        caller = {"caller": Caller(owner)}
        scope = {"type": "http", "method": method, "path": path, "headers": [], "state": caller}
        await self.admission(scope, receive, send)


def play(service: Service, *busy: str, asks: tuple[Any, ...], **request: Any) -> int:
    """Return the status for one more request while those of the busy callers are in progress."""

    async def run() -> int:
        answers: list[Message] = []
        async with create_task_group() as tasks:
            for owner in busy:
                tasks.start_soon(service.ask, owner)
            await wait_all_tasks_blocked()
            assert len(service.admitted) == len(busy)
            service.load._max_wait_seconds = 1.0
            with anyio.move_on_after(0.1):
                await service.ask(*asks, answers=answers, **request)
            tasks.cancel_scope.cancel()
        return answers[0]["status"] if answers else 0

    return anyio.run(run)


def _crowd(count: int) -> list[str]:
    return [f"caller {number}" for number in range(count)]


WAITS = 0  # the submission was admitted


@pytest.mark.parametrize(
    ("busy", "owner", "status"),
    [
        pytest.param([], "new", WAITS, id="idle"),
        pytest.param(["own"] * 3, "own", WAITS, id="a-decoder-is-free"),
        pytest.param(["own"] * 98, "own", WAITS, id="a-burst-of-one-caller"),
        pytest.param(["own"] * 100, "own", 429, id="too-many-of-one-caller"),
        pytest.param(["own"] * 10 + ["other"], "own", 429, id="a-burst-beside-another-caller"),
        pytest.param(["own"] * 10, "new", WAITS, id="another-caller-beside-it"),
        pytest.param(_crowd(3) + ["own"] * 20, "new", WAITS, id="few-others-beside-it"),
        pytest.param(_crowd(9), "new", WAITS, id="many-callers-below-the-bound"),
        pytest.param(_crowd(10), "new", 503, id="many-callers"),
        pytest.param([*_crowd(10), "own"], "own", 503, id="one-more-of-a-caller-of-many"),
    ],
)
def test_what_would_wait_longer_than_the_bound_is_refused(
    busy: list[str], owner: str, status: int
) -> None:
    # Each submission takes all decoders for 0.1 s.
    assert play(Service(), *busy, asks=(owner,)) == status


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/jobs/x"),
        ("GET", "/v1/jobs"),
        ("DELETE", "/v1/jobs/x"),
        ("PATCH", "/v1/jobs/x"),
        ("POST", "/v1/jobs/x/cancel"),
        ("POST", "/v1/estimate"),
    ],
)
def test_other_requests_are_answered_while_submissions_are_refused(method: str, path: str) -> None:
    service = Service(interval_seconds=100)

    assert play(service, *["own"] * 4, asks=("own", method, path)) == 200
    assert play(Service(interval_seconds=100), *["own"] * 4, asks=("own",)) == 429


@pytest.mark.parametrize(("more_body", "counted"), [(False, 3), (True, 0)])
def test_a_body_on_a_slow_line_is_no_load(
    more_body: bool, counted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "RECEIVE_SECONDS", 0.01)

    async def run() -> list[int]:
        service, counts = Service(), []
        async with create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(partial(service.ask, "own", more_body=more_body))
            await wait_all_tasks_blocked()
            await anyio.sleep(0.05)
            counts.append(service.load._in_progress.total())
            tasks.cancel_scope.cancel()
        return [*counts, len(service.load._in_progress)]

    assert anyio.run(run) == [counted, 0]


def test_the_refusal_says_when_to_come_again(
    client: TestClient, submit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[SubmissionLoad] = []
    stock = SubmissionLoad._find_refusal

    def find(self: SubmissionLoad, caller: str) -> Any:
        found.append(self)
        self._in_progress["somebody"] = 99
        self._in_progress[caller] = 9
        self._pace.interval_seconds = 0.7
        return stock(self, caller)

    monkeypatch.setattr(SubmissionLoad, "_find_refusal", find)
    answer = submit()

    assert (answer.status_code, answer.json()["code"]) == (429, "retry_later")
    assert 1 <= int(answer.headers["retry-after"]) <= admission.MAX_RETRY_SECONDS
    assert client.get("/v1/jobs").json()["jobs"] == []
    found[0]._in_progress.clear()
    monkeypatch.undo()
    assert submit().status_code == 202
    assert not found[0]._in_progress, "an answered submission does not count"


def test_a_client_that_waits_for_the_job_occupies_no_place(
    client: TestClient, files: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[admission.Submission] = []
    stock = admission.Submission.end
    monkeypatch.setattr(
        admission.Submission, "end", lambda self: (ended.append(self), stock(self))[1]
    )
    answer = client.post("/v1/jobs", files=files, data={"size": "64"}, headers={"Prefer": "wait=1"})

    assert answer.status_code == 202
    assert len(ended) == 2  # before it waits, and at its end
