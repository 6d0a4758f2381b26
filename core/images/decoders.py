"""Child processes that turn a stranger's file into a square of pixels, each shut in for good. Knows no data set.

What comes back is so many bytes of pixels, or a refusal in words: nothing that a hostile file could have shaped is
ever decoded again. Where a single upload gets a child of its own (core/images/codec.py), here one serves thousands.
"""

import json
import multiprocessing
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Literal, get_args

from PIL import Image, ImageOps

from core import errors
from core.images import codec, sandbox, validation

# linear: each side on its own, whatever becomes of the proportions. crop: the short side, then the middle.
Resize = Literal["linear", "crop"]
RESIZES: tuple[Resize, ...] = get_args(Resize)

# CPU time, which is never given back, for so many pictures: twelve seconds for each, and an upload has ten.
_CHILD_SECONDS, _CHILD_PICTURES = 3600, 300
# By the clock, of a machine that may be busy: a picture refused for that would be in one build and not in the next.
_PICTURE_SECONDS = _START_SECONDS = 120
_READY, _PICTURE, _REFUSAL = b"!", b"+", b"-"
_REFUSALS = (errors.BadImage, errors.UnsupportedImage, errors.ImageTooLarge, errors.UploadTooLarge)
_forkserver = threading.Lock()  # it is started by whoever is first


def square(data: bytes, side_px: int, resize: Resize) -> bytes:
    """A file's picture as side_px × side_px pixels, RGB, 8 bits, row by row. Raises what `images.decode` raises.

    Also BadImage where it is one color all over: there is nothing to learn from it.
    """
    picture = codec.decode(data)
    if all(low == high for low, high in picture.getextrema()):  # type: ignore[misc]
        raise errors.BadImage("The picture is one color all over.")
    size = (side_px, side_px)
    if resize == "linear":
        return picture.resize(size, Image.Resampling.BILINEAR).tobytes()
    return ImageOps.fit(picture, size, Image.Resampling.BILINEAR).tobytes()


class Decoder:
    """One child at a time; another when it dies, hangs or has grown old. For one thread."""

    def __init__(self, side_px: int, resize: Resize) -> None:
        self._plan: tuple[int, Resize] = (side_px, resize)
        self._child: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._served = 0

    def square(self, data: bytes) -> bytes:
        """As the function of that name. Raises BadImage as well where a child of its own died over it; Unavailable.

        A child that has served others may have died of them, or of the machine: the picture gets another.
        """
        fresh = self._pipe is None or self._served >= _CHILD_PICTURES
        answer = self._answer(data, fresh=fresh)
        if answer is None and not fresh:
            answer = self._answer(data, fresh=True)
        return self._read(answer)

    def _answer(self, data: bytes, *, fresh: bool) -> bytes | None:
        """What the child says; None if it died of it, or had to be ended."""
        if fresh:
            self._start()
        assert self._pipe is not None
        assert self._child is not None
        self._served += 1
        # Neither what is sent to it nor its own answer may be waited for forever: it may have been taken over.
        timer = threading.Timer(_PICTURE_SECONDS, self._child.kill)
        timer.start()
        try:
            self._pipe.send_bytes(data)
            return self._pipe.recv_bytes(1 + self._bytes)
        except (EOFError, OSError):
            self.close()
            return None
        finally:
            timer.cancel()

    @property
    def _bytes(self) -> int:
        return 3 * self._plan[0] ** 2

    def _start(self) -> None:
        self.close()
        context = multiprocessing.get_context("forkserver")
        ours, theirs = context.Pipe()
        with _forkserver:
            context.set_forkserver_preload(["core.images.decoders"])
            child = context.Process(target=_serve, args=(theirs, *self._plan), daemon=True)
            child.start()
        theirs.close()
        self._child, self._pipe, self._served = child, ours, 0
        with suppress(EOFError, OSError):
            if ours.poll(_START_SECONDS) and ours.recv_bytes(1) == _READY:
                return
        self.close()
        raise errors.Unavailable("No process to decode pictures in can be started; try again.")

    def _read(self, answer: bytes | None) -> bytes:
        """The pixels. Takes nothing on trust: a file may have taken the child over."""
        if answer is None or not answer:
            raise errors.BadImage()
        if answer[:1] == _PICTURE and len(answer) == 1 + self._bytes:
            return answer[1:]
        try:
            name, message = json.loads(answer[1:1000])
        except (ValueError, TypeError, RecursionError) as error:
            raise errors.BadImage() from error
        raise next((kind for kind in _REFUSALS if kind.__name__ == name), errors.BadImage)(
            str(message)
        )

    def close(self) -> None:
        """End the child. Safe to repeat."""
        if self._pipe is not None and self._child is not None:
            self._pipe.close()
            self._child.kill()
            self._child.join()
        self._child = self._pipe = None


def _serve(pipe: Connection, side_px: int, resize: Resize) -> None:
    sandbox.close_descriptors(pipe.fileno())
    sandbox.restrict_process(codec.DECODE_MEMORY_BYTES, _CHILD_SECONDS)
    with suppress(EOFError, OSError):  # the parent has gone
        pipe.send_bytes(_READY)
        while True:
            data = pipe.recv_bytes(validation.MAX_BYTES)
            try:
                answer = _PICTURE + square(data, side_px, resize)
            except errors.BadInput as error:
                answer = _REFUSAL + json.dumps((type(error).__name__, error.message)).encode()
            pipe.send_bytes(answer)
