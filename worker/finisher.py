"""Ends a job, or releases it: writes the picture, reports the last progress, tells the store.

A finished run is never discarded because the store or the disk is unavailable: each step retries
until it succeeds, the lease is lost, or the worker shuts down.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image
from tenacity import RetryCallState, stop_after_attempt, stop_when_event_set

from core import errors
from core.images import codec
from core.jobs.models import Job, JobProgress, ModelUsed, Output, WorkerReport
from core.jobs.store import JobStore, LeaseStatus
from core.neural.transfer.stylize import RunProgress, StepEvent, StyleResult
from core.style.limits import JobLimits
from core.style.spec import StyleSpec
from worker.checkpoint_writer import CheckpointWriter
from worker.images import FrameRecorder, ImageWriter
from worker.lease import STOPPING, Lease
from worker.process import shutting_down
from worker.retry import MAX_TRIES, make_retrying
from worker.spec_updates import SpecUpdates
from worker.watchdog import HangWatchdog

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class RunState:
    """How far the run is. The run's thread writes it, the reporter's thread reads it."""

    event: StepEvent | None = None  # the newest
    model: ModelUsed | None = None  # once it is loaded


class JobFinisher:
    """The steps of a job's end. The run's thread and the reporter's thread may call them."""

    def __init__(
        self,
        job: Job,
        token: str,
        store: JobStore,
        state: RunState,
        *,
        images: ImageWriter,
        frames: FrameRecorder,
        lease: Lease,
        checkpoint_writer: CheckpointWriter,
        watchdog: HangWatchdog,
        limits: JobLimits,
        preview_px: int,
    ) -> None:
        self._job, self._token, self._store, self._state = job, token, store, state
        self._images, self._frames, self._lease = images, frames, lease
        self._checkpoint_writer, self._watchdog = checkpoint_writer, watchdog
        self._limits, self._preview_px = limits, preview_px
        self._has_ended = False

    @property
    def has_ended(self) -> bool:
        """Whether this attempt has ended the job."""
        return self._has_ended

    # ------------------------------------------------------------------ ways to end

    def succeed(self, result: StyleResult, load_seconds: float) -> LeaseStatus:
        """Write the picture and end the job. Raises Unavailable, LeaseLost."""
        output = self._write_result(result.picture, result.spec, result)
        if output is None:  # the disk was full, and the job is to stop
            return self.end_stopped()
        self._report_progress()
        metrics = {
            "load_seconds": load_seconds,
            "run_seconds": result.seconds,
            "planned_seconds": result.plan.seconds,
            "planned_bytes": result.plan.memory_bytes,
        }
        metrics |= {f"loss_{name}": value for name, value in result.losses.items()}
        model = self._state.model
        assert model is not None, "the run used a network"
        return self._end(
            lambda: self._store.succeed(self._job.id, self._token, output, model, metrics)
        )

    def fail(self, error: errors.ImpastoError) -> LeaseStatus:
        """End the job with this error. Raises Unavailable."""
        return self._end(lambda: self._store.fail(self._job.id, self._token, error))

    def end_stopped(self, status: LeaseStatus | None = None) -> LeaseStatus:
        """End a job that is canceled, over its deadline or over the limit; keep the picture so far.

        status: the lease's, or None to ask the store. Raises Unavailable, LeaseLost.
        """
        job_id, token = self._job.id, self._token
        if status is None:
            status = self._ask_status()
        if status not in STOPPING:
            return status
        output = None
        if (event := self._state.event) is not None:
            output = self._write_result(event.picture(), event.spec, event.progress)
        if status == "cancel":
            return self._end(lambda: self._store.end_canceled(job_id, token, output))
        error = (
            errors.DeadlineExceeded() if status == "deadline_exceeded" else self._limits.run_error
        )
        return self._end(lambda: self._store.fail(job_id, token, error, output))

    def release(self) -> None:
        """Release the job, so that the attempt does not count.

        If the store stays unavailable, the lease expires, and the attempt counts as lost.
        """
        retrying = make_retrying(stop_after_attempt(MAX_TRIES), lambda _: None)
        try:
            status = retrying(self._store.release, self._job.id, self._token)
        except errors.Unavailable:
            log.warning("%s: could not be released", self._job.id)
        else:
            log.info("%s: release: %s", self._job.id, status)

    def release_to_larger(self, report: WorkerReport) -> bool:
        """Release a job that this worker cannot hold. False if no larger one is known.

        Raises Unavailable.
        """
        is_released = self._retry(
            lambda: self._store.release_to_larger(self._job.id, self._token, report)
        )
        if is_released:
            self._lease.mark_lost()
            log.info(
                "%s: needs more memory than this worker has; a larger one runs it", self._job.id
            )
        return is_released

    def lock_spec(self, spec_updates: SpecUpdates) -> None:
        """Refuse further spec updates, because the run is at its end. Raises Unavailable."""
        self._retry(spec_updates.lock_spec)

    # ------------------------------------------------------------------ what stays visible

    def keep_last_good(self, picture: Image.Image | None) -> None:
        """Make the last good picture of a diverged run its preview.

        Raises Unavailable, LeaseLost.
        """
        if picture is not None:
            small = codec.thumbnail(picture, self._preview_px)
            self._report_progress(self._retry_until_room(lambda: self._images.write_preview(small)))

    def report_interruption(self, event: StepEvent) -> None:
        """Report progress and preview once before the release.

        A client then sees how far the queued job is. If it cancels the job, the preview remains.
        """
        preview = None
        with suppress(errors.Unavailable):
            preview = self._images.write_preview(codec.thumbnail(event.picture(), self._preview_px))
        with suppress(errors.Unavailable):
            self._report_progress(preview)

    def _report_progress(self, preview: str | None = None) -> None:
        """Report the last step. A run that resumed after its last iteration may have none."""
        if (event := self._state.event) is not None:
            progress = to_job_progress(event.progress)
            self._retry(
                lambda: self._store.report_progress(self._job.id, self._token, progress, preview)
            )

    # ------------------------------------------------------------------ steps

    def _ask_status(self) -> LeaseStatus:
        status = self._retry(lambda: self._store.renew(self._job.id, self._token))
        return self._lease.status if status == "ok" else status

    def _end(self, step: Callable[[], LeaseStatus]) -> LeaseStatus:
        status = self._retry(step)
        self._has_ended = self._has_ended or status == "ok"
        return status

    def _write_result(
        self, picture: Image.Image, spec: StyleSpec, run: StyleResult | RunProgress
    ) -> Output | None:
        """Write picture and last frame. Returns None if the disk is full and the job must stop."""
        assert self._state.model is not None, "the run used a network"
        job_input = self._job.input.model_copy(update={"spec": spec.model_dump()})
        provenance = {"job": self._job.id, **job_input.provenance(self._state.model)}
        if run.spec_updates:
            provenance["spec_updates"] = [update.model_dump() for update in run.spec_updates]
        if run.style_crops:
            provenance["style_crops"] = run.style_crops
        data = codec.encode(picture, "png", provenance)
        digest = self._retry_until_room(lambda: self._images.write(data, "image/png"))
        if digest is None:
            return None
        if self._state.event is not None:
            self._frames.record(self._state.event.progress, picture)
        width, height = picture.size
        return Output(
            id=digest, content_type="image/png", width=width, height=height, size_bytes=len(data)
        )

    # ------------------------------------------------------------------ retries

    def _retry(self, step: Callable[[], T]) -> T:
        """Retry until the step succeeds.

        During a shutdown raises Unavailable: another worker resumes.
        """
        return make_retrying(stop_when_event_set(shutting_down), self._before_sleep)(step)

    def _retry_until_room(self, step: Callable[[], T]) -> T | None:
        """The same for a write; returns None if the disk is full and the job must stop.

        Raises LeaseLost.
        """

        def has_to_stop_trying(state: RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome is not None else None
            if isinstance(error, errors.StorageFull) and self._lease.has_to_stop():
                # The second try follows after the checkpoints are deleted, even at a shutdown: no
                # worker resumes a job that must stop.
                return state.attempt_number > 1
            return shutting_down.is_set()

        try:
            return make_retrying(has_to_stop_trying, self._before_sleep)(step)
        except errors.StorageFull:
            if self._lease.has_to_stop():
                return None
            raise

    def _before_sleep(self, error: errors.Unavailable) -> None:
        log.warning("%s", error.message)
        if isinstance(error, errors.StorageFull):
            self._checkpoint_writer.delete_all()  # a result is worth more than checkpoints
        self._watchdog.reset_timer()


def to_job_progress(progress: RunProgress) -> JobProgress:
    """Return the run's progress as a job shows it."""
    return JobProgress(
        value=round(progress.value, 4),
        scale=progress.scale,
        scales=progress.scales,
        iteration=progress.iteration,
        iterations=progress.iterations,
        iterations_per_second=round(progress.iterations_per_second, 2),
        seconds_left=round(progress.seconds_left, 1),
        loss=progress.losses,
        spec_updates=list(progress.spec_updates),
        style_crops=list(progress.style_crops),
    )
