"""Admission control for reads: lists and other answers that a thread computes take turns.

Without it, a crowd of such reads shares the processor and the threads of this process. Then all of
them, and the event loop, are late, and the work for clients that give up is lost. So only a few run
at once, callers take turns (api/fair_queue.py), and a read that would wait too long is refused. In
a crowd, api/fast_path.py does that first, because most reads are refused then.

The status, the events and the result of a job never wait here. Requests that come at once share one
read of the store, so they cost hardly more than a refusal.
"""

from contextlib import AsyncExitStack

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.fair_queue import FairQueue, Waiter
from api.http.problems import problem
from api.http.root_path import service_path
from api.middleware.auth import Caller
from core import errors

# Python runs one thread at a time. Others use the time in which the store answers; more of them
# would only delay the event loop.
SLOTS = 4
MAX_WAITING, MAX_WAITING_PER_CALLER = 256, 64
_PATHS = frozenset({"/v1/jobs", "/v1/system", "/v1/models"})
_FOLDERS = ("/v1/batches/", "/v1/operator/")


def create_read_queue(max_wait_seconds: float) -> FairQueue:
    """Create the queue of this process's reads."""
    return FairQueue(
        "reads",
        SLOTS,
        wait_seconds=max_wait_seconds,
        max_waiting=MAX_WAITING,
        max_waiting_per_caller=MAX_WAITING_PER_CALLER,
        refuses_early=True,
    )


class ReadAdmission:
    """Answers 503 or 429 to reads beyond the capacity. For one event loop.

    Needs an identified caller.
    """

    def __init__(self, app: ASGIApp, queue: FairQueue) -> None:
        self._app, self._queue = app, queue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if not is_read(scope):
            await self._app(scope, receive, send)
            return
        caller: Caller = scope["state"]["caller"]
        async with AsyncExitStack() as turn:
            try:
                await turn.enter_async_context(self._queue.turn(Waiter(caller.queue_name, receive)))
            except (errors.RetryLater, errors.Unavailable) as refusal:
                await problem(refusal)(scope, receive, send)
                return
            except ClientDisconnect:
                return

            async def send_and_release(message: Message) -> None:
                await turn.aclose()  # a slow client must not keep the turn
                await send(message)

            await self._app(scope, receive, send_and_release)


def is_read(scope: Scope) -> bool:
    """Whether a thread computes the answer of this GET."""
    if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
        return False
    path = service_path(scope)
    return path in _PATHS or path.startswith(_FOLDERS)
