"""One attempt at one job: what it is to paint, how far it is, how it ends. Runs in the pool's child process.

Knows no Celery. Every change to the job carries the token of the claim, so an attempt that has lost its job to another
worker changes nothing.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from PIL import Image

from core import errors
from core.images import codec
from core.images.decoder import SandboxedDecoder
from core.jobs.models import Frame, Job, JobProgress, ModelUsed, Output
from core.jobs.store import JobStore, LeaseStatus
from core.neural import device
from core.neural.transfer import checkpoint
from core.neural.transfer.checkpoint import Checkpoint
from core.neural.transfer.inputs import StyleInputs
from core.neural.transfer.planner import Planner
from core.neural.transfer.stylize import Control, RunProgress, StepEvent, StyleResult, stylize
from core.neural.vgg import Network
from core.storage.blobs import Blobs, digest_of
from core.storage.checkpoints import Checkpoints
from core.style.spec import ModelName, SpecUpdate, StyleSpec, parse_spec
from worker.checkpoint_writer import CheckpointWriter
from worker.lease import Lease
from worker.settings import WorkerSettings
from worker.watchdog import HangWatchdog

RETRY_SECONDS = 0.5
MAX_TRIES = 10  # to read a picture, or to hand the job back
FRAME_SECONDS = 0.5  # between two frames, until there are too many
FRAME_PX = 256
FRAME_COST_FACTOR = (
    200  # seconds between two frames, for each second that the painting waited for one
)
FINAL_CHECKPOINT_SECONDS = 5.0  # that the last one may take, when the worker is asked to go

log = logging.getLogger(__name__)

shutting_down = threading.Event()  # set by tasks.py when the worker is asked to go

Load = Callable[[ModelName], tuple[Network, Planner]]
T = TypeVar("T")


class Attempt:
    """From the claim to the job's end, or until it is somebody else's."""

    def __init__(
        self,
        job: Job,
        token: str,
        store: JobStore,
        *,
        blobs: Blobs,
        checkpoints: Checkpoints,
        settings: WorkerSettings,
    ) -> None:
        self._job, self._token = job, token
        self._store, self._blobs, self._checkpoints, self._settings = (
            store,
            blobs,
            checkpoints,
            settings,
        )
        self._lease = Lease(
            store,
            job.id,
            token,
            self._keep_preview,
            end=self._end,
            leaving=shutting_down,
            spec_update_count=job.spec_update_count,
        )
        self._checkpoint_writer = CheckpointWriter(
            checkpoints,
            lambda count: checkpoints.name(job.id, token, count),
            lambda name: store.save_checkpoint(job.id, token, name),
            settings.checkpoint_seconds,
        )
        self._watchdog = HangWatchdog(device.device_busy_waits)
        self._moment: StepEvent | None = None  # the newest
        self._model: ModelUsed | None = None  # once it is loaded
        self._has_ended = False  # by us
        self._next_preview = self._next_frame = 0.0
        self._frame_seconds = FRAME_SECONDS * 2**job.frame_thinnings
        self._framed = -1  # the iteration of the newest frame
        self._framing = threading.Lock()

    def run(self, load: Load) -> None:
        """Bring the job to its end, or hand it back. `load`: the network for a model, and who plans its runs.

        Raises DeviceLost.
        """
        job = self._job
        log.info("%s: attempt %d%s", job.id, job.attempt, " goes on" if job.checkpoint else "")
        with self._watchdog:
            try:
                with self._lease:
                    standing = self._painted(load)
                log.info("%s: attempt %d ended: %s", job.id, job.attempt, standing)
            except errors.LeaseLost:
                log.warning("%s: no longer ours", job.id)
            except errors.ShuttingDown:
                self._hand_back()
            except errors.Unavailable as error:  # our trouble, not the job's
                log.warning("%s: %s", job.id, error.message)
                self._hand_back()
            finally:
                self._checkpoint_writer.close()
            if self._has_ended:  # else the next attempt goes on from there
                self._checkpoint_writer.delete_all()
                if job.checkpoint is not None:
                    self._checkpoints.delete(job.checkpoint)

    def _hand_back(self) -> None:
        """So that it counts as no attempt. Where the store stays away, the lease runs out, and it does."""
        for _ in range(MAX_TRIES):
            try:
                self._store.release(self._job.id, self._token)
            except errors.Unavailable:
                time.sleep(RETRY_SECONDS)
            else:
                log.info("%s: handed back", self._job.id)
                return
        log.warning("%s: could not be handed back", self._job.id)

    # ------------------------------------------------------------------ painting

    def _painted(self, load: Load) -> LeaseStatus:
        job, token, store = self._job, self._token, self._store
        try:
            painting, load_seconds = self._paint(load)
            output = None
            if not painting.stopped:
                output = self._keep_result(painting.picture, painting.spec, painting.spec_updates)
            if output is None:  # asked to stop, perhaps while there was no room for the picture
                return self._end(self._until_stored(lambda: store.renew(job.id, token)))
            self._tell_end()
            took = {"load_seconds": load_seconds, "run_seconds": painting.seconds}
            planned = {
                "planned_seconds": painting.plan.seconds,
                "planned_bytes": painting.plan.memory_bytes,
            }
            losses = {f"loss_{name}": value for name, value in painting.losses.items()}
            model = self._model
            assert model is not None, "a picture was painted with a network"
            return self._ended(
                lambda: store.succeed(job.id, token, output, model, took | planned | losses)
            )
        except errors.Unavailable:
            raise
        except errors.Diverged as error:
            refused: errors.ImpastoError = errors.Diverged(error.message)
            self._keep_last_good(error.picture)
        except errors.ImpastoError as error:
            # Without its traceback, which would keep the run's tensors until the garbage collector comes.
            refused = type(error)(error.message)
        except Exception:
            log.exception("%s: failed", job.id)
            refused = errors.ImpastoError()
        return self._ended(lambda: store.fail(job.id, token, refused))

    def _paint(self, load: Load) -> tuple[StyleResult, float]:
        began = time.monotonic()
        wanted = self._job.input
        with SandboxedDecoder() as decoder:
            subject = StyleInputs(*wanted.load_images(self._read, decoder.decode))
        spec = parse_spec(wanted.spec)
        self._watchdog.begin_phase("device")
        network, planner = load(spec.model)
        self._model = ModelUsed(name=network.name, sha256=network.sha256)
        self._watchdog.begin_phase("host")
        resume = self._resumed()
        load_seconds = time.monotonic() - began
        self._watchdog.begin_phase("device")
        painting = stylize(subject, spec, network, self._watch, planner, resume=resume)
        self._watchdog.begin_phase("host")
        return painting, load_seconds

    def _read(self, digest: str) -> bytes:
        """A picture of the job. Raises ImageNotFound, also where it alone cannot be read; Unavailable, LeaseLost."""
        for _ in range(MAX_TRIES):
            self._watchdog.begin_phase("host")
            try:
                return self._blobs.get(digest)
            except errors.Unavailable as error:
                log.warning("%s: %s %s", self._job.id, error.message, error.__cause__)
                time.sleep(RETRY_SECONDS)
                self._lease.should_stop()
        if (
            self._blobs.is_writable()
        ):  # all but this one: it would be the same for every worker, for ever
            raise errors.ImageNotFound(
                "A picture of this job cannot be read any more; upload it again."
            )
        return self._blobs.get(digest)

    def _resumed(self) -> Checkpoint | None:
        """Where the last attempt got to."""
        if self._job.checkpoint is None:
            return None
        found = checkpoint.load(self._checkpoints.path(self._job.checkpoint))
        if found is None:
            log.warning("%s: its checkpoint cannot be read; it begins again", self._job.id)
        return found

    def _watch(self, moment: StepEvent) -> Control:
        """Called by the run after every iteration."""
        self._watchdog.report_step()
        if self._moment is None and self._job.checkpoint is not None:
            self._checkpoint_writer.restart_interval()  # what is kept at once, or a step later, would pass for having got further
        self._moment = moment
        if moment.progress.iteration == moment.progress.iterations:
            self._watchdog.begin_phase("device")  # the last iteration; the picture comes
            self._until_stored(self._lease.lock_spec)
        stop = self._lease.should_stop()
        if stop:
            self._watchdog.begin_phase("device")
        if shutting_down.is_set() and not stop:
            self._watchdog.begin_phase("host")
            self._checkpoint_writer.submit(moment.checkpoint())
            self._checkpoint_writer.flush(FINAL_CHECKPOINT_SECONDS)
            self._tell_last(moment)
            raise errors.ShuttingDown()
        if self._checkpoint_writer.is_due():
            self._checkpoint_writer.submit(moment.checkpoint())
        self._lease.report(_job_progress(moment.progress), self._shown(moment))
        spec = self._lease.take_spec_update()
        if stop:
            return Control.STOP
        return Control.CONTINUE if spec is None else Control(spec=parse_spec(spec))

    def _shown(self, moment: StepEvent) -> Image.Image | None:
        """A preview, if one is due; a frame is made of the same picture, if that is."""
        began = time.monotonic()
        preview_due, frame_due = began >= self._next_preview, began >= self._next_frame
        if not (preview_due or frame_due):
            return None
        shown = codec.thumbnail(
            moment.picture(), self._settings.preview_px if preview_due else FRAME_PX
        )
        if frame_due:
            self._lease.defer(lambda: self._keep_frame(moment.progress, shown))
        now = time.monotonic()
        if preview_due:
            self._next_preview = now + self._settings.preview_seconds
        if frame_due:
            self._next_frame = now + max(self._frame_seconds, FRAME_COST_FACTOR * (now - began))
        return shown if preview_due else None

    def _keep_frame(self, progress: RunProgress, picture: Image.Image) -> None:
        """No run fails, and no end waits, because a frame is missing."""
        try:
            with self._framing:
                if progress.iteration >= self._framed:
                    self._keep_newest_frame(progress, codec.thumbnail(picture, FRAME_PX))
        except errors.Unavailable:
            pass
        except Exception:
            log.exception("%s: no frame", self._job.id)

    def _keep_newest_frame(self, progress: RunProgress, picture: Image.Image) -> None:
        frame = Frame(
            index=0,
            iteration=progress.iteration,
            scale=progress.scale,
            seconds=round(progress.seconds, 2),
            digest=self._keep(codec.encode(picture, "jpeg", quality=80)),
        )
        frame_thinnings = self._store.add_frame(self._job.id, self._token, frame)
        self._framed, self._frame_seconds = (
            progress.iteration,
            FRAME_SECONDS * 2 ** max(0, frame_thinnings),
        )

    def _tell_last(self, moment: StepEvent) -> None:
        """Who looks at the waiting job sees how far it is, and who cancels it has this picture of it."""
        preview = None
        with suppress(errors.Unavailable):
            preview = self._keep_preview(
                codec.thumbnail(moment.picture(), self._settings.preview_px)
            )
        with suppress(errors.Unavailable):
            self._tell_end(preview)

    def _tell_end(self, preview: str | None = None) -> None:
        """The last progress, if there was any: a run that was resumed at its end by another way may have none."""
        if (moment := self._moment) is not None:
            progress = _job_progress(moment.progress)
            self._until_stored(
                lambda: self._store.report_progress(self._job.id, self._token, progress, preview)
            )

    # ------------------------------------------------------------------ ending

    def _end(self, standing: LeaseStatus) -> LeaseStatus:
        """Canceled, or late: with the picture so far. Also called beside the painting: an iteration may be long."""
        job_id, token = self._job.id, self._token
        if standing not in ("cancel", "deadline_exceeded"):
            return standing
        output = None
        if (moment := self._moment) is not None:
            output = self._keep_result(moment.picture(), moment.spec, moment.progress.spec_updates)
        if standing == "cancel":
            return self._ended(lambda: self._store.end_canceled(job_id, token, output))
        return self._ended(
            lambda: self._store.fail(job_id, token, errors.DeadlineExceeded(), output)
        )

    def _ended(self, step: Callable[[], LeaseStatus]) -> LeaseStatus:
        standing = self._until_stored(step)
        self._has_ended = self._has_ended or standing == "ok"
        return standing

    def _keep_last_good(self, picture: Image.Image | None) -> None:
        """What a run had before it went wrong stays to be seen, as the preview."""
        if picture is not None:
            small = codec.thumbnail(picture, self._settings.preview_px)
            digest = self._until_room(lambda: self._keep_preview(small))
            self._tell_end(digest)

    def _keep_result(
        self, picture: Image.Image, spec: StyleSpec, spec_updates: Sequence[SpecUpdate]
    ) -> Output | None:
        """None where the disk has no room for it, and nobody waits for it any more."""
        assert self._model is not None, "a picture was painted with a network"
        made_of = self._job.input.model_copy(update={"spec": spec.model_dump()})
        provenance = {"job": self._job.id, **made_of.provenance(self._model)}
        if spec_updates:
            provenance["spec_updates"] = [update.model_dump() for update in spec_updates]
        data = codec.encode(picture, "png", provenance)
        width, height = picture.size
        digest = self._until_room(lambda: self._keep(data))
        if digest is None:
            return None
        if self._moment is not None:
            self._keep_frame(self._moment.progress, picture)
        return Output(
            id=digest, content_type="image/png", width=width, height=height, size_bytes=len(data)
        )

    def _keep_preview(self, preview: Image.Image) -> str:
        return self._keep(codec.encode(preview, "jpeg"))

    def _keep(self, data: bytes) -> str:
        self._store.reserve(digest_of(data))
        return self._blobs.put(data)

    def _until_room(self, step: Callable[[], T]) -> T | None:
        """Wait for room on the disk; None when the job is to stop. Raises LeaseLost when it is no longer ours."""

        def once() -> T | None:
            try:
                return step()
            except errors.StorageFull:
                self._checkpoint_writer.delete_all()  # the room that checkpoints take is worth less
                if not self._lease.should_stop():
                    raise
            with suppress(errors.StorageFull):
                return step()
            return None

        return self._until_stored(once)

    def _until_stored(self, step: Callable[[], T]) -> T:
        """What a run has made is not thrown away because store or disk are away: ask until they take it."""
        while True:
            try:
                return step()
            except errors.Unavailable as error:
                if shutting_down.is_set():
                    raise  # the lease will run out, and another worker go on
                log.warning("%s", error.message)
                self._watchdog.reset_timer()
                time.sleep(RETRY_SECONDS)


def _job_progress(progress: RunProgress) -> JobProgress:
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
    )
