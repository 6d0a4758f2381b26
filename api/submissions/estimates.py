"""Asks a worker what a job would take, and applies the operator's limits. Knows no route.

A worker computes the estimate, because the API process does not load torch.
"""

from contextlib import suppress
from typing import NamedTuple

from anyio import CapacityLimiter, to_thread
from starlette.concurrency import run_in_threadpool

from core import errors
from core.jobs.models import EstimateRequest, EstimateResponse
from core.jobs.store import JobStore
from core.style.limits import JobLimits
from core.style.schedule import schedule
from core.style.spec import StyleSpec

WAIT_SECONDS = 5.0

# Estimates at the same time; each occupies a thread until the worker answers.
_slots = CapacityLimiter(8)

Size = tuple[int, int]  # width, height in px


class PictureSizes(NamedTuple):
    """The sizes of a job's pictures."""

    content: Size
    styles: list[Size]
    init: Size | None = None


async def request_estimate(
    spec: StyleSpec, sizes: PictureSizes, masks: int, store: JobStore
) -> EstimateResponse | None:
    """Return the answer of a worker, or None if none answers in time.

    masks: their number. Raises Unavailable if too many callers wait for an estimate.
    """
    if not _slots.available_tokens:
        raise errors.Unavailable("Too many estimates are pending; try again in a few seconds.")
    request = EstimateRequest(
        content=sizes.content,
        styles=sizes.styles,
        masks=masks,
        init=sizes.init,
        spec=spec.model_dump(),
    )
    return await to_thread.run_sync(store.estimates.request, request, WAIT_SECONDS, limiter=_slots)


async def check_limits(
    limits: JobLimits, spec: StyleSpec, sizes: PictureSizes, masks: int, store: JobStore
) -> None:
    """Raise BadSpec for a job that exceeds the operator's limits, or is too small for its photo.

    Only a job that may be too long for a slow device waits for an estimate. Where none is to be
    had, or the workers are not alike, the worker enforces the limit.
    """
    limits.check_spec(spec, *sizes.content)
    scales = schedule(spec, *sizes.content, max(sizes.init) if sizes.init else None)
    if not limits.may_exceed_seconds(scales):
        return
    workers = await run_in_threadpool(store.list_workers)
    if len({(info.device, info.precision) if info else None for info, _ in workers}) != 1:
        return
    with suppress(errors.Unavailable):
        answer = await request_estimate(spec, sizes, masks, store)
        if answer is not None:
            limits.check_seconds(sum(scale.seconds for scale in answer.scales))
