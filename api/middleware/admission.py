"""Admission control: refuses a submission that would wait too long, before its body is read.

A service that accepts more than it can do serves nobody: each request waits until its client gives
up, and the work for it is lost. So the wait is estimated from the submissions in progress and the
pace at which their pictures are decoded, whatever limits that pace: decoders, this process, the
store or the disk. Decoders serve callers in turns (api/fair_queue.py), so only as many submissions
of another caller count as can come before this one.

Requests that change or cancel a job are never refused. Reads: read_admission.py.
"""

from asyncio import TimerHandle, get_running_loop
from collections import Counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import metrics
from api.fair_queue import FairQueue, Pace
from api.http.problems import problem
from api.http.root_path import service_path
from api.middleware.auth import Caller, classify_request
from api.rate_limit import RequestKind
from core import errors

PICTURES = 2  # of a usual submission: the photo and the painting
# A body that takes longer to arrive does not count until it is complete: a slow line is no load.
RECEIVE_SECONDS = 1.0
MAX_RETRY_SECONDS = 30.0
# A caller who is alone delays nobody else. Its burst of pictures, such as the page's for all
# styles, may wait for so many times the bound.
ALONE_FACTOR = 10
_FIRST_INTERVAL_SECONDS = 0.05  # between two pictures, before anything has been measured
_ESTIMATE = "/v1/estimate"  # waits for a worker, which is no load here


class SubmissionLoad:
    """The submissions in progress, and the pace at which their pictures are decoded.

    For one event loop.
    """

    def __init__(self, decoders: FairQueue, max_wait_seconds: float) -> None:
        """decoders: the queue that every submission's pictures pass."""
        self._decoders, self._max_wait_seconds = decoders, max_wait_seconds
        self._in_progress: Counter[str] = Counter()  # by caller
        self._pace = Pace(decoders, _FIRST_INTERVAL_SECONDS)

    def find_refusal(self, scope: Scope, caller: str) -> errors.RetryLater | None:
        """Return why the request is refused, or None. Counts a refusal for the metrics.

        caller: Caller.queue_name.
        """
        refusal = self._find_refusal(caller) if _is_submission(scope) else None
        if refusal is not None:
            metrics.record_refused_submission()
        return refusal

    def _find_refusal(self, caller: str) -> errors.RetryLater | None:
        """Return why a new submission of the caller is refused, or None."""
        self._note()
        own, slots = self._in_progress[caller], self._decoders.slots
        if self._in_progress.total() < slots:
            return None
        # Callers with one submission are never more than a few. So one that sends many, or slow
        # pictures, locks no other caller out: that one's turn comes next.
        if not own and sum(count == 1 for count in self._in_progress.values()) < slots:
            return None
        ahead = sum(min(count, own + 1) for count in self._in_progress.values())
        seconds = (ahead + 1) * PICTURES * self._pace.interval_seconds
        is_alone = own == self._in_progress.total()
        if seconds <= self._max_wait_seconds * (ALONE_FACTOR if is_alone else 1):
            return None
        seconds = min(max(1.0, seconds), MAX_RETRY_SECONDS)
        if own >= slots:  # the caller itself sends too much
            return errors.RetryLater(
                "Too many of your pictures are waiting; send it again as Retry-After says.", seconds
            )
        return errors.Unavailable(
            "The service is busy with other pictures; send it again as Retry-After says.", seconds
        )

    def count(self, caller: str, change: int) -> None:
        """Change the number of the caller's submissions in progress."""
        self._in_progress[caller] += change
        if not self._in_progress[caller]:
            del self._in_progress[caller]
        self._note()

    def _note(self) -> None:
        """Measure the pace while all decoders have work."""
        self._pace.note(is_busy=self._in_progress.total() >= self._decoders.slots)


class Admission:
    """Answers 503 or 429 with Retry-After to submissions beyond the capacity.

    Needs an identified caller. Where callers have keys, Authentication asks the load, too, before
    it counts the request: a refusal uses up nothing of the caller's limit, and costs less.
    """

    def __init__(self, app: ASGIApp, load: SubmissionLoad) -> None:
        self._app, self._load = app, load

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if not _is_submission(scope):
            await self._app(scope, receive, send)
            return
        caller: Caller = scope["state"]["caller"]
        refusal = self._load.find_refusal(scope, caller.queue_name)
        if refusal is not None:
            await problem(refusal)(scope, receive, send)
            return
        submission = Submission(self._load, caller.queue_name, receive)
        scope["state"]["submission"] = submission
        try:
            await self._app(scope, submission.receive, send)
        finally:
            submission.end()


def _is_submission(scope: Scope) -> bool:
    """Whether the request brings pictures to decode."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    path = service_path(scope)
    return path != _ESTIMATE and classify_request("POST", path) is RequestKind.SUBMISSION


class Submission:
    """One admitted submission, and whether it counts as in progress."""

    def __init__(self, load: SubmissionLoad, caller: str, receive: Receive) -> None:
        self._load, self._caller, self._receive = load, caller, receive
        self._has_ended = self._counts = False
        self._set_counts(True)
        self._timer: TimerHandle = get_running_loop().call_later(
            RECEIVE_SECONDS, self._set_counts, False
        )

    async def receive(self) -> Message:
        """Return the next message, and note the end of the body."""
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._timer.cancel()
            self._set_counts(not self._has_ended)
        return message

    def end(self) -> None:
        """Stop counting: it is answered, or waits for a worker only."""
        self._has_ended = True
        self._timer.cancel()
        self._set_counts(False)

    def _set_counts(self, counts: bool) -> None:
        if counts != self._counts:
            self._counts = counts
            self._load.count(self._caller, 1 if counts else -1)
