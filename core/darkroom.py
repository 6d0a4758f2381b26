"""A stranger's file to a picture, decoded in a child that has shut itself in (core/sandbox.py). For workers.

They decode what the API has looked at, but a file that took that child over would do it again: here, too, it finds
neither files nor a network. Where core/images.py asks for a verdict, pixels come back, and nothing else is believed.
"""

import json
import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Literal

from PIL import Image

from core import errors, images, sandbox
from core.spec import MAX_SIZE_PX

MEMORY_BYTES = 3 * 2**30  # a result of ours that is gone on from is larger than what strangers may send
SECONDS, PATIENCE_SECONDS = 120, 500  # of CPU time; by the clock, on a machine that may be busy
_READY, _HEAD_BYTES = b"!", 4096
_MOST_PIXELS = max(images.MAX_PIXELS, MAX_SIZE_PX**2)
_REFUSALS = (errors.UnsupportedImage, errors.ImageTooLarge, errors.UploadTooLarge)

Ground = Literal["white", "black"]


def developed(data: bytes, ground: Ground = "white", *, any_size: bool = False) -> Image.Image:
    """As `images.decode`. Raises what that does, BadImage where the child dies of the file; Unavailable without one."""
    with _child(ground, any_size=any_size) as pipe:
        try:
            ready = pipe.recv_bytes(1) == _READY
        except (EOFError, OSError) as error:
            raise errors.Unavailable("No process to decode pictures in can be started; try again.") from error
        head = pixels = b""
        with suppress(EOFError, OSError):  # over its limits, or crashed
            if ready:
                pipe.send_bytes(data)
                head = pipe.recv_bytes(_HEAD_BYTES)
                pixels = pipe.recv_bytes(3 * _MOST_PIXELS)
    return _picture(head, pixels)


def warm_up() -> None:
    """Start the process that children come from. Raises Unavailable."""
    developed(images.encode(Image.new("RGB", (images.MIN_SIDE_PX, images.MIN_SIDE_PX))))


@contextmanager
def _child(ground: Ground, *, any_size: bool) -> Iterator[Connection]:
    """The pipe to one. It is gone afterwards."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["core.darkroom"])
    try:
        ours, theirs = context.Pipe()
        child = context.Process(target=_serve, args=(theirs, ground, any_size), daemon=True)
        child.start()
    except (OSError, EOFError) as error:  # too many files or processes
        raise errors.Unavailable("No process to decode pictures in can be started; try again.") from error
    theirs.close()
    late = threading.Timer(PATIENCE_SECONDS, child.kill)
    late.start()
    try:
        yield ours
    finally:
        late.cancel()
        ours.close()
        child.kill()
        child.join()


def _serve(pipe: Connection, ground: Ground, any_size: bool) -> None:
    sandbox.let_go(pipe.fileno())
    sandbox.enter(MEMORY_BYTES, SECONDS)
    pipe.send_bytes(_READY)
    data = pipe.recv_bytes()
    try:
        picture = images.decode(data, ground, any_size=any_size)
    except errors.BadInput as error:
        pipe.send_bytes(json.dumps({"refusal": type(error).__name__, "message": error.message}).encode())
        return
    pipe.send_bytes(json.dumps({"size": picture.size}).encode())
    pipe.send_bytes(picture.tobytes())


def _picture(head: bytes, pixels: bytes) -> Image.Image:
    try:
        told = json.loads(head)
        if "refusal" not in told:
            width, height = told["size"]
            return Image.frombytes("RGB", (int(width), int(height)), pixels)
        name, message = str(told["refusal"]), str(told["message"])
    except (ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise errors.BadImage() from error
    raise next((kind for kind in _REFUSALS if kind.__name__ == name), errors.BadImage)(message)
