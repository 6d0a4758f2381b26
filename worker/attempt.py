"""One attempt at one job: reads the inputs, runs the transfer, ends the job.

Runs in the pool's child. Knows no Celery. Every change to the job carries the token of the claim,
so an attempt that has lost its job to another worker changes nothing.
"""

import logging
import math
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from PIL import Image
from tenacity import stop_after_attempt

from core import errors, tracing
from core.images import codec
from core.jobs.models import Job, ModelUsed, WorkerReport
from core.jobs.store import JobStore, LeaseStatus
from core.neural import device
from core.neural.transfer import checkpoint
from core.neural.transfer.checkpoint import Checkpoint
from core.neural.transfer.inputs import StyleInputs
from core.neural.transfer.planner import Planner
from core.neural.transfer.style_cache import StyleCache
from core.neural.transfer.stylize import Control, StepEvent, StyleResult, stylize
from core.neural.vgg import Network
from core.storage.blobs import Blobs
from core.storage.checkpoints import Checkpoints
from core.style.limits import JobLimits
from core.style.spec import ModelName, parse_spec
from worker.checkpoint_writer import CheckpointWriter
from worker.finisher import JobFinisher, RunState, to_job_progress
from worker.images import FRAME_PX, FrameRecorder, ImageWriter
from worker.lease import Lease
from worker.pictures import PictureDecoder
from worker.process import shutting_down
from worker.reporter import Reporter
from worker.retry import MAX_TRIES, make_retrying
from worker.scale_spans import ScaleSpans
from worker.settings import WorkerSettings
from worker.spec_updates import SpecUpdates
from worker.statistics import RunStatistics
from worker.watchdog import HangWatchdog

# Between the first two previews; each further interval is twice as long, up to the setting. A
# client wants to see its photo change.
FIRST_PREVIEW_SECONDS = 0.2
PREVIEW_COST_FACTOR = 10  # the early previews take at most this part of the run
FINAL_CHECKPOINT_SECONDS = 5.0  # timeout of the last checkpoint at a shutdown

log = logging.getLogger(__name__)

T = TypeVar("T")
LoadNetwork = Callable[[ModelName], tuple[Network, Planner]]


class Attempt:
    """From the claim to the job's end, its release, or the loss of the lease."""

    def __init__(
        self,
        job: Job,
        token: str,
        store: JobStore,
        *,
        blobs: Blobs,
        checkpoints: Checkpoints,
        settings: WorkerSettings,
        limits: JobLimits,
        decoder: PictureDecoder | None = None,
        style_cache: StyleCache | None = None,
        statistics: RunStatistics | None = None,
        report: WorkerReport | None = None,
    ) -> None:
        """decoder, style_cache: those of earlier jobs. statistics: count the steps.

        report: what this worker holds; with it, a larger one gets the jobs that it does not.
        """
        self._report = report
        self._job, self._blobs, self._checkpoints = job, blobs, checkpoints
        self._settings, self._limits, self._style_cache = settings, limits, style_cache
        self._decoder = decoder or PictureDecoder()
        self._statistics = statistics or RunStatistics()
        self._run_began_at = math.inf  # as if the earlier attempts had run just before it
        self._state = RunState()
        self._watchdog = HangWatchdog(device.device_busy_waits)
        self._spec_updates = SpecUpdates(store, job.id, token, job.spec_update_count)
        self._lease = Lease(
            store,
            job.id,
            token,
            spec_updates=self._spec_updates,
            on_stop=self._end_early,
            is_over_limit=self._is_over_limit,
            shutting_down=shutting_down,
        )
        images = ImageWriter(store, blobs)
        self._reporter = Reporter(store, job.id, token, self._lease, images.write_preview)
        self._frames = FrameRecorder(store, images, job, token)
        self._checkpoint_writer = CheckpointWriter(
            checkpoints,
            partial(checkpoints.name, job.id, token),
            partial(store.save_checkpoint, job.id, token),
            settings.checkpoint_seconds,
        )
        self._finisher = JobFinisher(
            job,
            token,
            store,
            self._state,
            images=images,
            frames=self._frames,
            lease=self._lease,
            checkpoint_writer=self._checkpoint_writer,
            watchdog=self._watchdog,
            limits=limits,
            preview_px=settings.preview_px,
        )
        self._next_preview, self._preview_seconds = 0.0, FIRST_PREVIEW_SECONDS
        self._scale_spans = ScaleSpans()
        self._outcome = ""  # for the trace: succeeded, stopped, or the code of the error

    def run(self, load: LoadNetwork) -> bool:
        """Bring the job to its end, or release it. Returns False for a job that was released.

        load: returns the network for a model, and the planner of its runs. Raises DeviceLost.
        """
        with tracing.span(
            "attempt",
            self._job.traceparent,
            "CONSUMER",
            impasto__job=self._job.id,
            impasto__attempt=self._job.attempt,
        ) as span:
            self._record_wait()
            return self._run_until_end(load, span)

    def _record_wait(self) -> None:
        """Record how long the job was queued, before its first attempt."""
        job = self._job
        if job.traceparent and job.started_at and job.started_at == job.claimed_at:
            tracing.record(
                "queue", job.traceparent, job.created_at, job.started_at, impasto__job=job.id
            )

    def _run_until_end(self, load: LoadNetwork, span: tracing.Span) -> bool:
        job, is_done = self._job, True
        log.info("%s: attempt %d%s", job.id, job.attempt, " resumes" if job.checkpoint else "")
        with self._watchdog:
            try:
                with self._lease, self._reporter:
                    status = self._run_and_end(load)
                log.info("%s: attempt %d ended: %s", job.id, job.attempt, status)
                span.add(impasto__outcome=self._outcome)
                if self._outcome != "succeeded":
                    span.fail(self._outcome)
            except errors.LeaseLost:
                span.fail("lease_lost")
                log.warning("%s: stopped, because its lease is lost or it is deleted", job.id)
            except errors.ShuttingDown:
                span.add(impasto__outcome="released")
                is_done = False
                self._finisher.release()
            except errors.Unavailable as error:  # the service's fault, not the job's
                span.fail(error.code)
                log.warning("%s: %s", job.id, error.message)
                is_done = False
                self._finisher.release()
            finally:
                self._checkpoint_writer.close()
                self._statistics.end_run()
                self._state.event = None  # it refers to images on the device
            if self._finisher.has_ended:  # else the next attempt resumes from a checkpoint
                self._checkpoint_writer.delete_all()
                if job.checkpoint is not None:
                    self._checkpoints.delete(job.checkpoint)
        return is_done

    def _run_and_end(self, load: LoadNetwork) -> LeaseStatus:
        try:
            result, load_seconds = self._run(load)
            with tracing.span("write result"):
                if result.stopped:
                    self._outcome = "stopped"
                    return self._finisher.end_stopped()
                self._outcome = "succeeded"
                return self._finisher.succeed(result, load_seconds)
        except errors.Unavailable:
            raise
        except errors.OutOfMemory as caught:
            if self._report is not None and self._finisher.release_to_larger(self._report):
                return "stale"
            error: errors.ImpastoError = errors.OutOfMemory(caught.message)
        except errors.Diverged as diverged:
            error = errors.Diverged(diverged.message)
            self._finisher.keep_last_good(diverged.picture)
        except errors.ImpastoError as caught:
            # A copy without the traceback, which would keep the run's tensors alive until the next
            # garbage collection.
            error = type(caught)(caught.message)
        except Exception:
            log.exception("%s: failed", self._job.id)
            error = errors.ImpastoError()
        self._outcome = error.code
        return self._finisher.fail(error)

    def _end_early(self, status: LeaseStatus) -> None:
        """End a job that must stop beside its run, because an iteration may be long.

        If this fails, the run ends the job after the iteration.
        """
        self._reporter.call_soon(lambda: self._finisher.end_stopped(status))

    def _is_over_limit(self) -> bool:
        """Whether the run has taken longer than the service allows; for the lease's thread."""
        return self._limits.is_over(time.monotonic() - self._run_began_at)

    # ------------------------------------------------------------------ the run

    def _run(self, load: LoadNetwork) -> tuple[StyleResult, float]:
        """Return the result, and the seconds until the network was loaded."""
        start = time.monotonic()
        job_input = self._job.input
        with tracing.span("decode pictures"):
            images = self._decoder.load_images(job_input, self._read)
        inputs = StyleInputs(**images._asdict(), style_cache=self._style_cache)
        spec = parse_spec(job_input.spec)
        self._watchdog.begin_phase("device")
        with tracing.span("load network", impasto__model=spec.model):
            network, planner = load(spec.model)
        self._state.model = ModelUsed(name=network.name, sha256=network.sha256)
        self._watchdog.begin_phase("host")
        resume = self._load_checkpoint()
        load_seconds = time.monotonic() - start
        earlier_seconds = resume.header.seconds if resume else 0.0
        self._run_began_at = time.monotonic() - earlier_seconds
        self._watchdog.begin_phase("device")
        self._statistics.begin_run()
        with self._scale_spans:
            result = stylize(
                inputs,
                spec,
                network,
                self._on_step,
                planner,
                resume=resume,
                on_start=self._show_start,
            )
        if not (resume or result.stopped or result.spec_updates):
            self._statistics.record_run(result.plan.seconds, result.seconds)
        self._run_began_at = math.inf  # a finished run is kept, however long its file takes
        self._watchdog.begin_phase("host")
        return result, load_seconds

    def _read(self, digest: str) -> bytes:
        """Return an input of the job.

        Raises ImageNotFound, also if this file alone is unreadable; ImageDamaged; Unavailable;
        LeaseLost.
        """
        try:
            return self._retry(lambda: self._blobs.get(digest))
        except errors.Unavailable:
            if not self._blobs.is_writable():  # the whole folder or bucket is unavailable
                raise
        # Only this file is unreadable. It would be so for each worker, for ever.
        raise errors.ImageNotFound(
            "A picture of this job cannot be read any more; upload it again."
        )

    def _retry(self, read: Callable[[], T]) -> T:
        """Retry for some seconds. Raises Unavailable, LeaseLost."""

        def step() -> T:
            self._watchdog.begin_phase("host")
            return read()

        def before_sleep(error: errors.Unavailable) -> None:
            log.warning("%s: %s %s", self._job.id, error.message, error.__cause__)
            self._lease.has_to_stop()

        return make_retrying(stop_after_attempt(MAX_TRIES), before_sleep)(step)

    def _load_checkpoint(self) -> Checkpoint | None:
        """Return the last attempt's checkpoint. Raises Unavailable, LeaseLost."""
        if self._job.checkpoint is None:
            return None
        name = self._job.checkpoint

        def read() -> Checkpoint | None:
            with self._checkpoints.fetch(name) as file:
                return checkpoint.load(file)

        loaded = self._retry(read)
        if loaded is None:
            log.warning("%s: its checkpoint is unreadable; it starts again", self._job.id)
        return loaded

    def _show_start(self, picture: Image.Image) -> None:
        """Called by the run before its first iteration: the client sees its photo change."""
        self._reporter.report(None, codec.thumbnail(picture, self._settings.preview_px))

    def _on_step(self, event: StepEvent) -> Control:
        """Called by the run after every iteration. Raises LeaseLost, ShuttingDown."""
        self._watchdog.report_step()
        self._statistics.count_step(event.progress)
        self._scale_spans.report(event.progress)
        if self._state.event is None and self._job.checkpoint is not None:
            # A checkpoint at once, or one step later, would count as progress of this attempt.
            self._checkpoint_writer.restart_interval()
        self._state.event = event
        if event.progress.iteration == event.progress.iterations:
            self._watchdog.begin_phase("device")  # after the last iteration the picture is made
            self._finisher.lock_spec(self._spec_updates)
        stop = self._lease.has_to_stop()
        if stop:
            self._watchdog.begin_phase("device")
        if shutting_down.is_set() and not stop:
            self._interrupt(event)
        if self._checkpoint_writer.is_due():
            self._checkpoint_writer.submit(event.checkpoint())
        self._reporter.report(to_job_progress(event.progress), self._make_preview(event))
        spec = self._spec_updates.take()
        if stop:
            return Control.STOP
        return Control.CONTINUE if spec is None else Control(spec=parse_spec(spec))

    def _interrupt(self, event: StepEvent) -> None:
        """Keep the run's work for the next attempt. Raises ShuttingDown."""
        self._watchdog.begin_phase("host")
        self._checkpoint_writer.submit(event.checkpoint())
        self._checkpoint_writer.flush(FINAL_CHECKPOINT_SECONDS)
        self._finisher.report_interruption(event)
        raise errors.ShuttingDown()

    def _make_preview(self, event: StepEvent) -> Image.Image | None:
        """Return a preview if one is due. If a frame is due, the reporter records it."""
        start = time.monotonic()
        preview_due, frame_due = start >= self._next_preview, self._frames.is_due(start)
        if not (preview_due or frame_due):
            return None
        side_px = self._settings.preview_px if preview_due else FRAME_PX
        small = codec.thumbnail(event.picture(), side_px)
        now = time.monotonic()
        if frame_due:
            self._reporter.defer(lambda: self._frames.record(event.progress, small))
            self._frames.schedule_next(now, now - start)
        if not preview_due:
            return None
        seconds = max(self._preview_seconds, PREVIEW_COST_FACTOR * (now - start))
        self._next_preview = now + min(seconds, self._settings.preview_seconds)
        self._preview_seconds *= 2
        return small
