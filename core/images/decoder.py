"""Decode untrusted files in sandboxed processes, for uploads, jobs and data sets.

A file that crashes the decoder, takes it over or makes it use too much memory harms only that
process. There are two ways to start one:

    fork_process   forks a server that has loaded Pillow already. It takes milliseconds. For uploads
                   and data sets.
    run_program    runs a new program, which inherits no secrets in environment variables and no
                   descriptors. It takes tenths of a second. For workers.

decoder_process.py restricts the process and describes the protocol. This module trusts nothing that
a process sends: sizes are bounded, pixels are plain bytes, and a refusal becomes one of four errors
with one of the messages known here, so that a file cannot make a process tell its secrets.
"""

import io
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from PIL import Image

from core import errors
from core.images import codec, decoder_process, validation
from core.images.codec import Resize
from core.images.transparency import Background
from core.style.spec import MAX_SIZE_PX


@dataclass(frozen=True)
class ProcessLimits:
    """Limits of a decoding process."""

    memory_bytes: int  # of address space
    cpu_seconds: int  # for all files of a process
    start_seconds: float  # wall time, until the process is ready
    file_seconds: float  # wall time, for one file
    max_files: int | None = None  # a new process serves the files after that
    threads: bool = False  # whether it may start threads


UPLOAD_LIMITS = ProcessLimits(1536 * 2**20, cpu_seconds=10, start_seconds=20, file_seconds=40)
# A result to start from may be larger than an upload: 8192 x 8192 px.
RESULT_LIMITS = ProcessLimits(3 * 2**30, cpu_seconds=20, start_seconds=20, file_seconds=40)
# In a worker. The times allow for a busy machine.
JOB_LIMITS = ProcessLimits(3 * 2**30, cpu_seconds=600, start_seconds=500, file_seconds=500)
# CPU time is never given back: 3600 s for 300 files are 12 s for each, and an upload has 10. The
# wall times are long, because a picture that is refused on a busy machine would be missing.
DATASET_LIMITS = ProcessLimits(
    1536 * 2**20, cpu_seconds=3600, start_seconds=120, file_seconds=120, max_files=300
)

# Of a forked process: its parent also answers requests that need no decoder, and they come first.
_NICENESS = 5
_EXIT_SECONDS = 1.0  # that a process may take to exit after its last word
_CHUNK_BYTES = 2**20
_MAX_HEADER_BYTES = 4096
_MAX_PIXELS = max(validation.MAX_PIXELS, MAX_SIZE_PX**2)
_REFUSALS = (
    errors.BadImage,
    errors.UnsupportedImage,
    errors.ImageTooLarge,
    errors.UploadTooLarge,
)
_MESSAGES = validation.MESSAGES | codec.MESSAGES
_BYTES_PER_PIXEL = {"RGB": 3, "RGBA": 4}
# -P: the current folder may hold modules of the same names.
_PROGRAM = (sys.executable, "-P", "-m", "core.images.decoder_process")
# The environment variables that a program gets, by the beginnings of their names.
_INHERITED_VARIABLES = ("PYTHON", "PATH", "LD_", "LANG", "LC_", "VIRTUAL_ENV")
# What a dead process or an answer that is not valid raises here.
_PROCESS_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    RecursionError,
)
# Starting a forked process polls all others. Two polls at once would lose an exit code.
_fork_lock = threading.Lock()


class DecoderProcess(Protocol):
    """A started process."""

    def kill(self) -> None:
        """Send SIGKILL. Safe to repeat."""

    def wait(self, seconds: float | None) -> int | None:
        """Return the exit code (a signal's number is negative), or None if the process runs on."""


StartProcess = Callable[[Connection, ProcessLimits], DecoderProcess]
Serve = Callable[..., None]  # its parameters: see decoder_process.serve


class _ForkedProcess:
    def __init__(self, connection: Connection, limits: ProcessLimits, serve: Serve) -> None:
        context = multiprocessing.get_context("forkserver")
        arguments: tuple[Any, ...] = (connection, limits.memory_bytes, limits.cpu_seconds)
        if limits.threads:
            arguments += (True,)
        with _fork_lock:
            context.set_forkserver_preload([decoder_process.__name__])
            self._process = context.Process(target=serve, args=arguments, daemon=True)
            self._process.start()
        assert self._process.pid is not None
        with suppress(OSError):  # it may have died
            niceness = os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS
            os.setpriority(os.PRIO_PROCESS, self._process.pid, niceness)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, seconds: float | None) -> int | None:
        # The lock must not be held while this waits.
        multiprocessing.connection.wait([self._process.sentinel], seconds)
        with _fork_lock:
            return self._process.exitcode


class _Program:
    def __init__(self, connection: Connection, command: list[str]) -> None:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(_INHERITED_VARIABLES)
        }
        null = subprocess.DEVNULL
        self._process = subprocess.Popen(
            command, env=environment, stdin=connection.fileno(), stdout=null, stderr=null
        )

    def kill(self) -> None:
        self._process.kill()

    def wait(self, seconds: float | None) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.returncode


def fork_process(
    connection: Connection,
    limits: ProcessLimits,
    serve: Serve = decoder_process.serve,
) -> DecoderProcess:
    """Fork a decoding process from the fork server. Raises OSError, EOFError."""
    return _ForkedProcess(connection, limits, serve)


def run_program(
    connection: Connection, limits: ProcessLimits, command: tuple[str, ...] = _PROGRAM
) -> DecoderProcess:
    """Start a decoding process as a program of its own. Raises OSError."""
    numbers = [str(limits.memory_bytes), str(limits.cpu_seconds)]
    return _Program(connection, [*command, *numbers, *(["threads"] if limits.threads else [])])


class Inspection(NamedTuple):
    """What is known of a picture that was decoded."""

    size: tuple[int, int]  # (width, height) in px, upright
    warnings: tuple[str, ...] = ()  # what is doubtful about the file, in sentences
    is_opaque: bool = False  # without a transparent pixel: on every background it looks the same


class SandboxedDecoder:
    """Decodes untrusted files, one after another, in one process at a time. For one thread.

    The first file starts the process. Another process replaces it when it dies, hangs or has served
    `limits.max_files` files. Only a process for HEIC may start threads, because its decoder needs
    one. A context manager, which ends the process.
    """

    def __init__(
        self, limits: ProcessLimits = JOB_LIMITS, start: StartProcess = run_program
    ) -> None:
        self._limits, self._start_process = limits, start
        self._process: DecoderProcess | None = None
        self._connection: Connection | None = None
        self._files = 0
        self._has_threads = False
        self._timed_out = False

    def __enter__(self) -> "SandboxedDecoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def decode(
        self,
        data: bytes,
        background: Background = "auto",
        *,
        any_size: bool = False,
        keep_alpha: bool = False,
        mask: bool = False,
        inspected: bool = False,
        min_side_px: int | None = None,
        max_width: int | None = None,
    ) -> Image.Image:
        """Decode a file as `codec.decode` does, and raise what it raises.

        max_width: scale a wider picture to so many px. Raises also BadImage if the process dies or
        hangs, OutOfMemory if the system kills it, and Unavailable if no process can be started.
        """
        request = {
            "pixels": True,
            "background": background,
            "any_size": any_size,
            "keep_alpha": keep_alpha,
            "mask": mask,
            "inspected": inspected,
            "min_side_px": min_side_px,
            "max_width": max_width,
        }
        answer, pixels = self._request(request, io.BytesIO(data))
        width, height = answer["size"]
        if max_width is not None and (width > max_width or height > validation.MAX_SIDE_PX):
            raise errors.BadImage()
        picture = Image.frombytes(answer["mode"], answer["size"], pixels)
        if answer["reduction"] > 1:
            picture.info[codec.REDUCTION] = answer["reduction"]
        return picture

    def inspect(
        self,
        file: BinaryIO,
        background: Background = "auto",
        *,
        mask: bool = False,
        refuse_black: bool = False,
        any_size: bool = False,
    ) -> Inspection:
        """Decode a file and return what is known of it. Raises as `decode` does.

        refuse_black: raise BadImage if the mask is all black.
        """
        request = {
            "background": background,
            "mask": mask,
            "refuse_black": refuse_black,
            "any_size": any_size,
            "keep_alpha": True,
        }
        answer, _ = self._request(request, file)
        # Without a background, `decode` leaves the alpha out.
        is_opaque = answer["mode"] == "RGB" and background != "none"
        return Inspection(answer["size"], answer["warnings"], is_opaque)

    def decode_square(self, data: bytes, side_px: int, resize: Resize) -> bytes:
        """Decode and scale a file as `codec.decode_square` does. Raises as `decode` does.

        If a process dies or hangs that has served other files, they may be the cause: the file gets
        a new process.
        """
        request = {"pixels": True, "square": [side_px, resize]}
        answer, pixels = self._request(request, io.BytesIO(data), retry=True)
        if answer["size"] != (side_px, side_px) or answer["mode"] != "RGB":
            raise errors.BadImage()
        return pixels

    def start(self, *, threads: bool = False) -> bool:
        """Start a new process; return whether the kernel filters its system calls.

        threads: it may start threads. Raises Unavailable if no process can be started.
        """
        self.close()
        self._files, self._has_threads, self._timed_out = 0, threads, False
        try:
            self._connection, theirs = multiprocessing.Pipe()
            with theirs:  # this process closes its copy, so that it sees when the other one dies
                self._process = self._start_process(theirs, replace(self._limits, threads=threads))
            with self._timeout(self._limits.start_seconds):
                ready = json.loads(self._connection.recv_bytes(_MAX_HEADER_BYTES))
            return bool(ready["filtered"])
        except _PROCESS_ERRORS as error:
            self.close()
            raise errors.Unavailable(
                "No process to decode pictures in can be started; try again."
            ) from error

    def close(self) -> None:
        """End the process. Safe to repeat."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait(None)
        self._connection = self._process = None

    def _request(
        self, request: dict[str, Any], file: BinaryIO, *, retry: bool = False
    ) -> tuple[dict[str, Any], bytes]:
        """Have a file decoded; return the answer and the pixels, if they are requested."""
        with _translate_read_errors():
            needs_threads = validation.needs_threads(file.read(validation.HEAD_BYTES))
            file.seek(0)
        is_unfit = needs_threads != self._has_threads or self._files == self._limits.max_files
        if self._process is None or is_unfit or self._has_died_unused():
            self.start(threads=needs_threads)
        self._files += 1
        try:
            with self._timeout(self._limits.file_seconds):
                self._send(request, file)
                return self._receive(has_pixels="pixels" in request)
        except errors.Unavailable:  # part of the file is sent
            self.close()
            raise
        except _PROCESS_ERRORS as error:
            failure = self._find_cause()
            if not retry or self._files == 1:
                raise failure from error
        file.seek(0)
        return self._request(request, file)

    def _has_died_unused(self) -> bool:
        """Whether the process, which `start` has started some time ago, is dead before its first
        file. So no file is to blame.
        """
        assert self._process is not None
        return self._files == 0 and self._process.wait(0) is not None

    def _send(self, request: dict[str, Any], file: BinaryIO) -> None:
        assert self._connection is not None
        self._connection.send_bytes(json.dumps(request).encode())
        for chunk in _read_chunks(file):
            self._connection.send_bytes(chunk)
        self._connection.send_bytes(b"")

    def _receive(self, *, has_pixels: bool) -> tuple[dict[str, Any], bytes]:
        """Return an answer, or raise its refusal. Raises _PROCESS_ERRORS if it is not valid."""
        assert self._connection is not None
        answer = json.loads(self._connection.recv_bytes(_MAX_HEADER_BYTES))
        if "refusal" in answer:
            refusals = {kind.__name__: kind for kind in _REFUSALS}
            refusal = refusals.get(str(answer["refusal"]), errors.BadImage)
            message = str(answer["message"])
            if not _is_known(message):
                raise refusal()
            reason = answer.get("reason")
            known = isinstance(reason, str) and reason in validation.REASONS
            raise refusal(message, reason=reason if known else None)
        width, height = map(int, answer["size"])
        if min(width, height) < 1 or width * height > _MAX_PIXELS:
            raise ValueError(answer)
        mode = answer.get("mode", "RGB")
        doubts = tuple(filter(_is_known, map(str, answer.get("warnings", []))))
        checked = {
            "size": (width, height),
            "mode": mode,
            "warnings": doubts,
            "reduction": min(8, int(answer.get("reduction", 1))),
        }
        if not has_pixels:
            return checked, b""
        length = _BYTES_PER_PIXEL[mode] * width * height
        pixels = self._connection.recv_bytes(length)
        if len(pixels) != length:
            raise ValueError(len(pixels))
        return checked, pixels

    @contextmanager
    def _timeout(self, seconds: float) -> Iterator[None]:
        """Kill the process after so many seconds inside; this ends a read of half an answer too."""
        process = self._process
        assert process is not None

        def kill() -> None:
            self._timed_out = True
            process.kill()

        timer = threading.Timer(seconds, kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()  # otherwise it could still kill the process, during the next request
        if self._timed_out:
            raise EOFError

    def _find_cause(self) -> errors.ImpastoError:
        """End a process that gave no valid answer; return the error that explains why.

        The kernel sends SIGKILL when the machine is out of memory, and the file is not to blame. A
        process over its own limits gets another signal (see sandbox.py), and the file is to blame.
        """
        assert self._process is not None
        exit_code = None if self._timed_out else self._process.wait(_EXIT_SECONDS)
        self.close()
        return errors.OutOfMemory() if exit_code == -signal.SIGKILL else errors.BadImage()


def _read_chunks(file: BinaryIO) -> Iterator[bytes]:
    with _translate_read_errors():
        yield from iter(lambda: file.read(_CHUNK_BYTES), b"")


@contextmanager
def _translate_read_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise errors.Unavailable("Pictures cannot be read at the moment; try again.") from error


def _is_known(message: str) -> bool:
    """Return whether a message is one of ours. It may state a size, as an answer does."""
    return validation.strip_size(message) in _MESSAGES


def inspect_upload(
    path: Path,
    background: Background = "auto",
    *,
    mask: bool = False,
    refuse_black: bool = False,
    any_size: bool = False,
) -> Inspection:
    """Decode an upload in a process of its own; return what is known of it.

    mask: decode it as a mask. refuse_black: raise BadImage if the mask is all black. any_size: skip
    the limits for uploads, because the file may be a result of ours. Raises what `codec.decode`
    raises, and Unavailable if no process can be started or the machine is out of memory.
    """
    limits = RESULT_LIMITS if any_size else UPLOAD_LIMITS
    try:
        with path.open("rb") as file:
            validation.detect_format(file.read(validation.HEAD_BYTES))
            if not any_size:
                validation.check_file_size(file.seek(0, os.SEEK_END))
            file.seek(0)
            with SandboxedDecoder(limits, fork_process) as decoder:
                return decoder.inspect(
                    file, background, mask=mask, refuse_black=refuse_black, any_size=any_size
                )
    except OSError as error:  # deleted as stale, because the clock has jumped; too many open files
        raise errors.Unavailable() from error
    except errors.OutOfMemory as error:
        raise errors.Unavailable() from error


def shrink_stored(data: bytes, width: int) -> Image.Image:
    """Decode a stored picture in a process of its own, at most `width` px wide, with its alpha.

    data: an upload that was accepted, or a result. Raises BadImage; Unavailable if no process can
    be started or the machine is out of memory.
    """
    try:
        with SandboxedDecoder(RESULT_LIMITS, fork_process) as decoder:
            return decoder.decode(
                data,
                any_size=True,
                keep_alpha=True,
                inspected=True,
                min_side_px=2 * width,
                max_width=width,
            )
    except errors.OutOfMemory as error:
        raise errors.Unavailable() from error


def warm_up() -> bool:
    """Start the fork server, by one process; return whether the kernel filters its system calls."""
    with SandboxedDecoder(UPLOAD_LIMITS, fork_process) as decoder:
        return decoder.start()
