"""Strangers' files to pictures, in a child that has shut itself in (sandbox.py), one for the pictures of a job.

A worker decodes what the API has looked at, but a file that took that child over would do it again: here, too, it finds
neither files nor a network, and no secrets either, for this child is a program of its own and inherits nothing. Where
core/images/codec.py asks for a verdict, pixels come back, and nothing else is believed.
"""

import io
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from types import TracebackType
from typing import BinaryIO, Literal

from PIL import Image

from core import errors
from core.images import codec, sandbox, validation
from core.style.spec import MAX_SIZE_PX

MEMORY_BYTES = (
    3 * 2**30
)  # a result of ours that is gone on from is larger than what strangers may send
SECONDS = 600  # of CPU time, for all of them
PATIENCE_SECONDS = 500.0  # for one, by the clock, on a machine that may be busy
DEATH_SECONDS = 1.0  # that a child may take to be dead, once it says no more
_MOST_PIXELS = max(validation.MAX_PIXELS, MAX_SIZE_PX**2)
_READY, _HEAD_BYTES = b"!", 4096
_PASSED_ON = (
    "PYTHON",
    "PATH",
    "LD_",
    "LANG",
    "LC_",
    "VIRTUAL_ENV",
)  # beginnings of an environment's names
_REFUSALS = (errors.UnsupportedImage, errors.ImageTooLarge, errors.UploadTooLarge)

Ground = Literal["white", "black"]


class SandboxedDecoder:
    """A context manager, for one thread."""

    def __init__(
        self, command: tuple[str, ...] = (sys.executable, "-m", "core.images.darkroom")
    ) -> None:
        self._command = command
        self._gave_up = False

    def __enter__(self) -> "SandboxedDecoder":
        """Raises Unavailable where no child can be had."""
        given = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        try:
            self._child = subprocess.Popen(
                self._command, env=given, stdin=pipe, stdout=pipe, stderr=nowhere
            )
        except OSError as error:  # too many files or processes
            raise _no_child() from error
        if self._answer(b"", 1) != _READY:
            self.__exit__(None, None, None)
            raise _no_child()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._child.kill()
        with suppress(OSError):  # what the child did not take
            self._child.communicate()

    def decode(
        self, data: bytes, ground: Ground = "white", *, any_size: bool = False
    ) -> Image.Image:
        """As `images.decode`. Raises what that does.

        Also BadImage where the child dies of the file, and OutOfMemory where the machine ended it.
        """
        wish = json.dumps({"bytes": len(data), "ground": ground, "any_size": any_size}).encode()
        head = self._answer(wish.ljust(_HEAD_BYTES) + data, _HEAD_BYTES)
        try:
            told = json.loads(head)
            if "refusal" not in told:
                width, height = map(int, told["size"])
                if min(width, height) < 1 or width * height > _MOST_PIXELS:
                    raise errors.BadImage()
                return Image.frombytes(
                    "RGB", (width, height), self._answer(b"", 3 * width * height)
                )
            name, message = str(told["refusal"]), str(told["message"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise (errors.OutOfMemory() if self._was_killed() else errors.BadImage()) from error
        raise next((kind for kind in _REFUSALS if kind.__name__ == name), errors.BadImage)(message)

    def _answer(self, question: bytes, count: int) -> bytes:
        """So many bytes, or less where the child has died, or hangs."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        late = threading.Timer(PATIENCE_SECONDS, self._give_up)
        late.start()
        try:
            self._child.stdin.write(question)
            self._child.stdin.flush()
            return bytes(self._child.stdout.read(count))
        except OSError:
            return b""
        finally:
            late.cancel()

    def _give_up(self) -> None:
        self._gave_up = True
        self._child.kill()

    def _was_killed(self) -> bool:
        """By somebody else, as a kernel does that has no memory left: a limit of its own is another signal."""
        with suppress(subprocess.TimeoutExpired):
            return self._child.wait(DEATH_SECONDS) == -signal.SIGKILL and not self._gave_up
        return False


def _no_child() -> errors.Unavailable:
    return errors.Unavailable("No process to decode pictures in can be started; try again.")


def _serve(come: BinaryIO, go: BinaryIO) -> None:
    """In the child, until the parent has gone."""
    while wish := come.read(_HEAD_BYTES):
        asked = json.loads(wish)
        try:
            picture = codec.decode(
                come.read(asked["bytes"]), asked["ground"], any_size=asked["any_size"]
            )
        except errors.BadInput as error:
            go.write(
                json.dumps({"refusal": type(error).__name__, "message": error.message})
                .encode()
                .ljust(_HEAD_BYTES)
            )
        else:
            go.write(json.dumps({"size": picture.size}).encode().ljust(_HEAD_BYTES))
            go.write(picture.tobytes())
        go.flush()


def main() -> None:
    """Shut itself in, then serve on what were standard input and output."""
    come, go = io.FileIO(os.dup(0), "r"), io.FileIO(os.dup(1), "w")
    sandbox.close_descriptors(come.fileno(), go.fileno())
    sandbox.restrict_process(MEMORY_BYTES, SECONDS)
    go.write(_READY)
    with suppress(OSError):
        _serve(io.BufferedReader(come), io.BufferedWriter(go))


if __name__ == "__main__":
    main()
