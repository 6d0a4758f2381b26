"""Decodes the pictures of jobs in sandboxed processes, so that a job waits as little as possible.

Each job's pictures get a process of their own. Starting one takes tenths of a second, so the next
job's process is started in advance. The pixels of recent pictures are kept, because the next job
often has the same photo or painting.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from cachetools import TTLCache
from PIL import Image

from core import errors
from core.images.decoder import SandboxedDecoder
from core.jobs.models import JobImages, JobInput

MAX_KEPT_BYTES = 100_000_000  # two photos of 12 megapixels take 72 MB
KEPT_SECONDS = 600.0
# From the pictures of one job until the process for the next one starts: the first preview comes
# first, because both take a core.
START_DELAY_SECONDS = 3.0

log = logging.getLogger(__name__)


class PictureDecoder:
    """Decodes the pictures of one job after the other. For one thread, except `expire`."""

    def __init__(self) -> None:
        self._kept: TTLCache[tuple[object, ...], Image.Image] = TTLCache(
            MAX_KEPT_BYTES, KEPT_SECONDS, getsizeof=_count_bytes
        )
        self._starts_ahead = False
        self._started: SandboxedDecoder | None = None
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def load_images(self, job_input: JobInput, read: Callable[[str], bytes]) -> JobImages:
        """Return the pictures of a job, which must not be changed.

        read: returns the bytes of a digest. The API has accepted them. Raises as
        `JobInput.load_images` does.
        """
        with ExitStack() as stack:
            decoders: list[SandboxedDecoder] = []

            def decode(digest: str, *args: Any, **options: Any) -> Image.Image:
                key = (digest, args, *sorted(options.items()))
                with self._lock:
                    picture = self._kept.get(key)
                if picture is None:
                    data = read(digest)
                    if not decoders:
                        decoders.append(stack.enter_context(self._take()))
                    picture = decoders[0].decode(data, *args, inspected=True, **options)
                    if _count_bytes(picture) <= MAX_KEPT_BYTES:
                        with self._lock:
                            self._kept[key] = picture
                return picture

            return job_input.load_images(decode)

    def start_ahead(self) -> None:
        """Start the process for the next job now, and from now on after each job's pictures."""
        self._starts_ahead = True
        self._schedule_start(0)

    def expire(self) -> None:
        """Drop the pixels that were decoded KEPT_SECONDS ago. Safe on any thread."""
        with self._lock:
            self._kept.expire()

    def close(self) -> None:
        """End the process for the next job."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            started, self._started, self._timer = self._started, None, None
        if started is not None:
            started.close()

    def _take(self) -> SandboxedDecoder:
        with self._lock:
            started, self._started = self._started, None
        if self._starts_ahead:
            self._schedule_start(START_DELAY_SECONDS)
        return started or SandboxedDecoder()

    def _schedule_start(self, delay_seconds: float) -> None:
        with self._lock:
            if self._started is None and self._timer is None:
                self._timer = threading.Timer(delay_seconds, self._start)
                self._timer.daemon = True
                self._timer.start()

    def _start(self) -> None:
        decoder: SandboxedDecoder | None = SandboxedDecoder()
        try:
            assert decoder is not None
            decoder.start()
        except errors.Unavailable as error:  # the job will start one, or fail with this
            log.warning("%s", error.message)
            decoder = None
        with self._lock:
            is_wanted, self._timer = self._timer is threading.current_thread(), None
            if is_wanted:
                self._started, decoder = decoder, None
        if decoder is not None:
            decoder.close()


def _count_bytes(picture: Image.Image) -> int:
    width, height = picture.size
    return len(picture.getbands()) * width * height
