"""Writes the pictures of a run: previews, frames and results. Knows no tensors."""

import logging
import threading

from PIL import Image

from core import errors
from core.images import codec
from core.jobs.models import Frame, Job
from core.jobs.store import JobStore
from core.neural.transfer.stylize import RunProgress
from core.storage.blobs import Blobs, digest_of

FRAME_SECONDS = 0.5  # between two frames; the store doubles it when there are too many
FRAME_PX = 256
# Seconds between two frames, for each second that the run waited for one: frames cost it at most
# 0.5 %.
FRAME_COST_FACTOR = 200

log = logging.getLogger(__name__)


class ImageWriter:
    """Stores pictures as blobs."""

    def __init__(self, store: JobStore, blobs: Blobs) -> None:
        self._store, self._blobs = store, blobs

    def write(self, data: bytes, content_type: str) -> str:
        """Store an encoded picture and return its digest. Raises Unavailable, StorageFull."""
        # The reservation comes first, or the garbage collector could delete the new blob.
        self._store.reserve(digest_of(data))
        return self._blobs.put(data, content_type)

    def write_preview(self, preview: Image.Image) -> str:
        """Store a preview and return its digest. Raises Unavailable, StorageFull."""
        return self.write(codec.encode(preview, "jpeg"), "image/jpeg")


class FrameRecorder:
    """Records small pictures of the run, from which a client can make a time-lapse."""

    def __init__(self, store: JobStore, images: ImageWriter, job: Job, token: str) -> None:
        self._store, self._images, self._job_id, self._token = store, images, job.id, token
        self._interval_seconds = FRAME_SECONDS * 2**job.frame_thinnings
        self._next = 0.0
        self._iteration = -1  # of the newest frame
        self._lock = threading.Lock()

    def is_due(self, now: float) -> bool:
        """Whether the run must make a frame now."""
        return now >= self._next

    def schedule_next(self, now: float, cost_seconds: float) -> None:
        """A frame was made, and the run waited so long for it."""
        self._next = now + max(self._interval_seconds, FRAME_COST_FACTOR * cost_seconds)

    def record(self, progress: RunProgress, picture: Image.Image) -> None:
        """Store a frame, unless there is a newer one.

        A missing frame fails no run and delays no end.
        """
        try:
            with self._lock:
                if progress.iteration >= self._iteration:
                    self._record(progress, codec.thumbnail(picture, FRAME_PX))
        except errors.Unavailable:
            pass
        except Exception:
            log.exception("%s: no frame", self._job_id)

    def _record(self, progress: RunProgress, picture: Image.Image) -> None:
        frame = Frame(
            index=0,  # the store chooses it
            iteration=progress.iteration,
            scale=progress.scale,
            seconds=round(progress.seconds, 2),
            digest=self._images.write(codec.encode(picture, "jpeg", quality=80), "image/jpeg"),
        )
        thinnings = self._store.add_frame(self._job_id, self._token, frame)
        self._iteration = progress.iteration
        self._interval_seconds = FRAME_SECONDS * 2 ** max(0, thinnings)
