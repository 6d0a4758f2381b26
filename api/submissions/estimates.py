"""Asks a worker what a job would take, and applies the operator's limits. Knows no route.

A worker computes the estimate, because the API process does not load torch.
"""

from contextlib import suppress
from functools import partial
from typing import NamedTuple

from anyio import CapacityLimiter, to_thread
from starlette.concurrency import run_in_threadpool

from api.fair_queue import FairQueue, Waiter
from api.submissions.service import SubmissionService
from core import errors
from core.jobs.models import EstimateRequest, EstimateResponse
from core.jobs.store import JobStore
from core.style.schedule import schedule
from core.style.spec import StyleSpec

WAIT_SECONDS = 5.0  # for its turn, and then for the worker

# Estimates at the same time; each occupies a thread until the worker answers. A worker answers one
# at a time, in the order of the requests, so each caller has one there at most.
_SLOTS = 8
_estimates = FairQueue("estimates", _SLOTS, slots_per_caller=1, wait_seconds=WAIT_SECONDS)
_threads = CapacityLimiter(_SLOTS)

Size = tuple[int, int]  # width, height in px


class PictureSizes(NamedTuple):
    """The sizes of a job's pictures."""

    content: Size
    styles: list[Size]
    init: Size | None = None


async def request_estimate(
    spec: StyleSpec, sizes: PictureSizes, masks: int, store: JobStore, waiter: Waiter
) -> EstimateResponse | None:
    """Return the answer of a worker, or None if none answers in time.

    masks: their number. Raises what `FairQueue.turn` raises.
    """
    request = EstimateRequest(
        content=sizes.content,
        styles=sizes.styles,
        masks=masks,
        init=sizes.init,
        spec=spec.model_dump(),
    )
    ask = partial(store.estimates.request, request, WAIT_SECONDS)
    async with _estimates.turn(waiter):
        return await to_thread.run_sync(ask, limiter=_threads)


async def check_limits(
    submissions: SubmissionService, spec: StyleSpec, sizes: PictureSizes, masks: int
) -> None:
    """Raise BadSpec for a job that exceeds the operator's limits, or is too small for its photo.

    Only a job that may be too long for a slow device waits for an estimate. Where none is to be
    had, or the workers are not alike, the worker enforces the limit.
    """
    limits, store = submissions.job_limits, submissions.store
    limits.check_spec(spec, *sizes.content)
    scales = schedule(spec, *sizes.content, max(sizes.init) if sizes.init else None)
    if not limits.may_exceed_seconds(scales):
        return
    workers = await run_in_threadpool(store.list_workers)
    if len({(info.device, info.precision) if info else None for info, _ in workers}) != 1:
        return
    with suppress(errors.RetryLater):
        answer = await request_estimate(spec, sizes, masks, store, submissions.waiter)
        if answer is not None:
            limits.check_seconds(sum(scale.seconds for scale in answer.scales))
