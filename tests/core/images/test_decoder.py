"""Decode untrusted files in restricted processes."""

import io
import json
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO

import hostile_files
import pytest
from PIL import Image

from core import errors
from core.images import codec, decoder, sandbox
from core.images.decoder import (
    DATASET_LIMITS,
    JOB_LIMITS,
    UPLOAD_LIMITS,
    DecoderProcess,
    ProcessLimits,
    SandboxedDecoder,
    fork_process,
    inspect_upload,
    run_program,
)

TAKEN_OVER_LIMITS = replace(UPLOAD_LIMITS, file_seconds=3)


def _png(mode: str = "RGB", size: tuple[int, int] = (60, 40), color: Any = (200, 30, 90)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, "PNG")
    return buffer.getvalue()


def _halves(width: int, height: int) -> bytes:
    """Left black, right white."""
    picture = Image.new("RGB", (width, height))
    picture.paste("white", (width // 2, 0, width, height))
    return codec.encode(picture)


def _square(data: bytes) -> bytes:
    return codec.decode_square(data, 32, "linear").tobytes()


def _pixel(data: bytes, side: int, x: int, y: int) -> Any:
    return Image.frombytes("RGB", (side, side), data).getpixel((x, y))


class Recorder:
    """Starts processes as `start` does, and keeps them, so that a test can signal them."""

    def __init__(self, start: decoder.StartProcess = fork_process) -> None:
        self._start = start
        self.processes: list[Any] = []

    def __call__(self, connection: Connection, limits: ProcessLimits) -> DecoderProcess:
        process = self._start(connection, limits)
        self.processes.append(process)
        return process

    def signal_last(self, number: signal.Signals) -> None:
        os.kill(self.processes[-1]._process.pid, number)
        if number == signal.SIGKILL:
            self.processes[-1]._process.join()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def forked(recorder: Recorder) -> Iterator[SandboxedDecoder]:
    with SandboxedDecoder(DATASET_LIMITS, recorder) as opened:
        yield opened


@pytest.fixture(params=[fork_process, run_program])
def either(request: pytest.FixtureRequest) -> Iterator[SandboxedDecoder]:
    """A decoder of each kind of process."""
    with SandboxedDecoder(JOB_LIMITS, request.param) as opened:
        yield opened


# ---------------------------------------------------------------------- answers


def test_the_pixels_are_those_that_decode_returns(either: SandboxedDecoder) -> None:
    translucent = _png("LA", color=(255, 100))
    for arguments in ((_png(),), (translucent,), (translucent, "black")):
        assert either.decode(*arguments).tobytes() == codec.decode(*arguments).tobytes()  # type: ignore[arg-type]
    kept = either.decode(translucent, keep_alpha=True)
    assert (kept.mode, kept.getpixel((5, 5))) == ("RGBA", (255, 255, 255, 100))


def test_only_a_picture_that_is_wider_is_scaled_in_the_process(either: SandboxedDecoder) -> None:
    translucent = codec.encode(Image.new("RGBA", (96, 48), (255, 0, 0, 100)))
    small, whole = (
        either.decode(translucent, keep_alpha=True, max_width=width) for width in (32, 500)
    )
    assert ((small.size, small.mode), (whole.size, whole.mode)) == (
        ((32, 16), "RGBA"),
        ((96, 48), "RGBA"),
    )


@pytest.mark.parametrize(
    "name", [name for name in hostile_files.encodings() if name.startswith(("H", "A", "T", "G"))]
)
def test_each_format_is_decoded_inside_the_sandbox(either: SandboxedDecoder, name: str) -> None:
    """A library that loads code or starts threads while it decodes would fail there."""
    data = hostile_files.encodings()[name]

    assert either.decode(data) == codec.decode(data)


def test_only_a_process_for_heic_may_start_threads(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    heic, png = hostile_files.encodings()["HEIC plain"], _png()
    allowed = []

    def start(connection: Connection, limits: ProcessLimits) -> DecoderProcess:
        allowed.append(limits.threads)
        return recorder(connection, limits)

    with SandboxedDecoder(JOB_LIMITS, start) as opened:
        for data in (png, png, heic, heic, png):
            opened.decode(data)

    assert allowed == [False, True, False]


def test_the_largest_heic_needs_less_than_half_of_the_memory(
    inspect: Callable[[bytes], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = replace(UPLOAD_LIMITS, memory_bytes=UPLOAD_LIMITS.memory_bytes // 2)
    monkeypatch.setattr(decoder, "UPLOAD_LIMITS", limits)

    assert inspect((hostile_files.HEIC / "large.heic").read_bytes()) == (6300, 6300)


def test_a_refusal_keeps_its_message_and_the_process_serves_the_next_file(
    either: SandboxedDecoder,
) -> None:
    with pytest.raises(errors.UnsupportedImage):
        either.decode(b"BM")
    with pytest.raises(errors.BadImage, match="has 60 × 8 px; it must have at least 32 px"):
        either.decode(_png(size=(60, 8)))
    with pytest.raises(errors.ImageTooLarge, match="12000 px"):
        either.decode(_png(size=(12_001, 700)))
    assert either.decode(_png(size=(60, 8)), any_size=True).size == (60, 8)


def test_a_file_larger_than_a_frame_arrives_entirely(either: SandboxedDecoder) -> None:
    noise = Image.effect_noise((1500, 1400), 100).convert("RGB")
    data = codec.encode(noise)

    assert len(data) > 2 * decoder._CHUNK_BYTES
    assert either.decode(data).tobytes() == noise.tobytes()


def test_a_process_serves_one_file_after_another(
    forked: SandboxedDecoder, recorder: Recorder
) -> None:
    for side in (40, 64, 90):
        data = _halves(side, 40)
        assert forked.decode_square(data, 32, "linear") == _square(data)
    assert len(recorder.processes) == 1


def test_a_new_process_serves_the_files_after_the_maximum(recorder: Recorder) -> None:
    with SandboxedDecoder(replace(DATASET_LIMITS, max_files=2), recorder) as opened:
        for _ in range(5):
            opened.decode(_png())

    assert len(recorder.processes) == 3


def test_linear_keeps_the_whole_picture_and_crop_keeps_its_proportions(
    forked: SandboxedDecoder,
) -> None:
    picture = Image.new("RGB", (200, 100), "red")
    picture.paste("blue", (50, 0, 150, 100))  # the square in the middle
    picture.putpixel((100, 50), (0, 255, 0))  # so that the square is not one color all over
    data = codec.encode(picture)

    linear = forked.decode_square(data, 50, "linear")
    crop = forked.decode_square(data, 50, "crop")

    assert _pixel(linear, 50, 2, 25) == (255, 0, 0)
    assert _pixel(linear, 50, 25, 5) == (0, 0, 255)
    assert _pixel(crop, 50, 2, 25) == _pixel(crop, 50, 47, 25) == (0, 0, 255)


def test_a_jpeg_becomes_a_square_too(forked: SandboxedDecoder) -> None:
    data = codec.encode(codec.decode(_halves(64, 64)), "jpeg")

    assert _pixel(forked.decode_square(data, 32, "linear"), 32, 2, 5) == (0, 0, 0)


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (b"\xff\xd8\xff" + bytes(100), errors.BadImage, "damaged"),
        (b"hello", errors.UnsupportedImage, "JPEG, PNG, WebP"),
        (codec.encode(Image.new("RGB", (64, 64), "gray")), errors.BadImage, "one color all over"),
        (codec.encode(Image.new("RGB", (20, 20))), errors.BadImage, "at least 32 px"),
    ],
)
def test_a_file_that_is_no_training_picture_is_refused_and_the_process_goes_on(
    forked: SandboxedDecoder,
    recorder: Recorder,
    data: bytes,
    kind: type[errors.BadImage],
    message: str,
) -> None:
    with pytest.raises(kind, match=message):
        forked.decode_square(data, 32, "linear")

    assert len(forked.decode_square(_halves(64, 64), 32, "linear")) == 32 * 32 * 3
    assert len(recorder.processes) == 1


# ---------------------------------------------------------------------- processes that fail


def _read_file(connection: Connection) -> None:
    connection.send_bytes(b'{"filtered": true}')
    while connection.recv_bytes():
        pass


def _answer(connection: Connection, *_: int, answer: bytes, rest: bytes = b"") -> None:
    _read_file(connection)
    connection.send_bytes(answer)
    if rest:
        connection.send_bytes(rest)


def _die(connection: Connection, *_: int, number: int) -> None:
    _read_file(connection)
    os.kill(os.getpid(), number)


def _hang(connection: Connection, *_: int) -> None:
    _read_file(connection)
    time.sleep(60)


def _hang_before_the_file(connection: Connection, *_: int) -> None:
    connection.send_bytes(b'{"filtered": true}')
    time.sleep(60)


def _send_half_a_header(connection: Connection, *_: int) -> None:
    _read_file(connection)
    os.write(connection.fileno(), b"\0\0\0\x10{")
    time.sleep(60)


def _send_half_the_pixels(connection: Connection, *_: int) -> None:
    _read_file(connection)
    connection.send_bytes(b'{"size": [32, 32]}')
    os.write(connection.fileno(), struct.pack("!i", 3072) + b"half")
    time.sleep(60)


def _spin(connection: Connection, memory_bytes: int, cpu_seconds: int) -> None:
    _compute_until(cpu_seconds)  # does not count
    sandbox.restrict_process(memory_bytes, cpu_seconds)
    _compute_until(cpu_seconds + 0.5)
    _read_file(connection)
    while True:
        pass


def _compute_until(process_seconds: float) -> None:
    while time.process_time() < process_seconds:
        pass


# What a process may do that a file has taken over.
TAKEN_OVER: dict[str, Callable[..., None]] = {
    "dies": partial(_die, number=signal.SIGSEGV),
    "hangs": _hang,
    "hangs before it reads the file": _hang_before_the_file,
    "sends half a header": _send_half_a_header,
    "sends half the pixels": _send_half_the_pixels,
    "sends no JSON": partial(_answer, answer=b"[" * 4000),
    "sends nothing": partial(_answer, answer=b""),
    "sends a number": partial(_answer, answer=b"7"),
    "sends null": partial(_answer, answer=b"null"),
    "sends no size": partial(_answer, answer=b"{}"),
    "sends a long header": partial(_answer, answer=b" " * 5000 + b'{"size": [60, 40]}'),
    "sends an empty size": partial(_answer, answer=b'{"size": [0, 7]}'),
    "sends a negative size": partial(_answer, answer=b'{"size": [-6, -7]}'),
    "sends an infinite size": partial(_answer, answer=b'{"size": [Infinity, 1]}'),
    "sends too large a size": partial(_answer, answer=b'{"size": [900000, 900000]}'),
    "sends three numbers": partial(_answer, answer=b'{"size": [9, 9, 9]}'),
    "sends too few pixels": partial(_answer, answer=b'{"size": [4000, 4000]}', rest=b"abc"),
    "sends too many pixels": partial(_answer, answer=b'{"size": [2, 2]}', rest=bytes(13)),
    "sends an unknown mode": partial(
        _answer, answer=b'{"size": [2, 2], "mode": "CMYK"}', rest=bytes(16)
    ),
    "sends too few pixels with alpha": partial(
        _answer, answer=b'{"size": [2, 2], "mode": "RGBA"}', rest=bytes(12)
    ),
    "sends a number of warnings": partial(_answer, answer=b'{"size": [2, 2], "warnings": 7}'),
    "sends an unknown refusal": partial(
        _answer, answer=b'{"refusal": "SystemExit", "message": "x"}'
    ),
    "sends half a refusal": partial(_answer, answer=b'{"refusal": "BadImage"}'),
}


@pytest.mark.parametrize("behavior", TAKEN_OVER)
def test_a_process_that_is_taken_over_harms_only_its_file(behavior: str) -> None:
    start = partial(fork_process, serve=TAKEN_OVER[behavior])
    began = time.monotonic()

    with SandboxedDecoder(TAKEN_OVER_LIMITS, start) as taken_over, pytest.raises(errors.BadImage):
        taken_over.decode(codec.encode(Image.effect_noise((800, 800), 99).convert("RGB")))
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("reason", ["x", ["too_small"], None, "too_small"], ids=str)
def test_a_process_cannot_choose_another_reason_than_those_there_are(reason: Any) -> None:
    answer = {"refusal": "BadImage", "message": "The file is empty.", "reason": reason}
    start = partial(fork_process, serve=partial(_answer, answer=json.dumps(answer).encode()))
    with (
        SandboxedDecoder(TAKEN_OVER_LIMITS, start) as taken_over,
        pytest.raises(errors.BadImage, match="empty") as raised,
    ):
        taken_over.decode(_png())
    assert raised.value.reason == ("too_small" if reason == "too_small" else None)


@pytest.mark.parametrize("message", ["The key is sk-1234.", "\\ud800", ""])
def test_a_process_cannot_choose_what_a_refusal_says(message: str) -> None:
    answer = f'{{"refusal": "ImageTooLarge", "message": "{message}"}}'.encode()
    start = partial(fork_process, serve=partial(_answer, answer=answer))
    with (
        SandboxedDecoder(TAKEN_OVER_LIMITS, start) as taken_over,
        pytest.raises(errors.ImageTooLarge) as raised,
    ):
        taken_over.decode(_png())

    assert raised.value.message == errors.ImageTooLarge().message


def test_a_process_cannot_choose_what_a_warning_or_a_size_says() -> None:
    known = "The picture has 1 × 99999999999 px; it must have at least 32 px a side."
    answer = f'{{"size": [2, 2], "warnings": ["The key is sk-1234.", "{known}"]}}'.encode()
    start = partial(fork_process, serve=partial(_answer, answer=answer))
    with SandboxedDecoder(TAKEN_OVER_LIMITS, start) as taken_over:
        assert taken_over.inspect(io.BytesIO(_png())).warnings == ()


def test_a_square_of_another_size_is_refused() -> None:
    serve = partial(_answer, answer=b'{"size": [2, 2]}', rest=bytes(12))
    with SandboxedDecoder(TAKEN_OVER_LIMITS, partial(fork_process, serve=serve)) as taken_over:
        for request in (
            lambda: taken_over.decode_square(_halves(64, 64), 32, "linear"),
            lambda: taken_over.decode_square(_halves(64, 64), 1, "linear"),
        ):
            with pytest.raises(errors.BadImage):
                request()


@pytest.mark.parametrize("size", [(17, 1), (1, 17_000)])
def test_a_scaled_picture_of_another_size_is_refused(size: tuple[int, int]) -> None:
    serve = partial(_answer, answer=b'{"size": [%d, %d]}' % size, rest=bytes(3 * size[0] * size[1]))
    with (
        SandboxedDecoder(TAKEN_OVER_LIMITS, partial(fork_process, serve=serve)) as taken_over,
        pytest.raises(errors.BadImage),
    ):
        taken_over.decode(_png(), max_width=16)


PROGRAM = """
import os, signal
from multiprocessing.connection import Connection
connection = Connection(os.dup(0))
connection.send_bytes(b'{"filtered": true}')
connection.recv_bytes()
os.kill(os.getpid(), signal.%s)
"""


@pytest.mark.parametrize(
    ("name", "kind"), [("SIGKILL", errors.OutOfMemory), ("SIGSEGV", errors.BadImage)]
)
def test_a_program_that_the_system_kills_does_not_blame_the_picture(
    name: str, kind: type[errors.ImpastoError]
) -> None:
    """As the kernel kills when it is out of memory."""
    start = partial(run_program, command=(sys.executable, "-c", PROGRAM % name))
    with SandboxedDecoder(JOB_LIMITS, start) as opened, pytest.raises(kind) as raised:
        opened.decode(_png())
    assert type(raised.value) is kind


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("side", [64, 2000])  # less and more than a socket buffers
def test_a_picture_is_not_refused_because_of_earlier_files_of_its_process(
    recorder: Recorder, how: signal.Signals, side: int
) -> None:
    """The process is out of CPU time or memory, or an earlier picture has taken it over."""
    data = codec.encode(Image.effect_noise((side, side), 50).convert("RGB"))
    with SandboxedDecoder(replace(DATASET_LIMITS, file_seconds=4), recorder) as opened:
        opened.decode_square(_halves(64, 64), 32, "linear")
        recorder.signal_last(how)

        assert opened.decode_square(data, 32, "linear") == _square(data)
        assert recorder.processes[0].wait(0) == -signal.SIGKILL
        assert len(recorder.processes) == 2


class KillsFirst(Recorder):
    """Signals the first process as soon as it is ready for its first file."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__()
        self._number = number

    def __call__(self, connection: Connection, limits: ProcessLimits) -> DecoderProcess:
        if self.processes:
            return super().__call__(connection, limits)
        self._start = partial(fork_process, serve=partial(_die, number=self._number))
        process = super().__call__(connection, limits)
        self._start = fork_process
        return process


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        (signal.SIGSEGV, errors.BadImage),
        (signal.SIGSTOP, errors.BadImage),
        (signal.SIGKILL, errors.OutOfMemory),
    ],
)
def test_a_file_that_ends_its_own_process_is_refused_and_the_next_gets_a_new_process(
    how: signal.Signals, kind: type[errors.ImpastoError]
) -> None:
    with SandboxedDecoder(replace(DATASET_LIMITS, file_seconds=3), KillsFirst(how)) as opened:
        with pytest.raises(kind) as raised:
            opened.decode_square(_halves(64, 64), 32, "linear")
        assert type(raised.value) is kind
        assert opened.decode_square(_halves(64, 64), 32, "linear") == _square(_halves(64, 64))


def _no_process(*_: Any) -> DecoderProcess:
    raise OSError("too many processes")


def test_a_process_that_has_died_before_its_first_file_is_replaced() -> None:
    """It may have waited for hours. No file is to blame for its end."""
    with SandboxedDecoder(JOB_LIMITS) as opened:
        opened.start()
        assert opened._process is not None
        opened._process.kill()
        opened._process.wait(None)
        assert opened.decode(_png()).size == (60, 40)


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(partial(run_program, command=(sys.executable, "-c", "")), id="exits"),
        pytest.param(partial(run_program, command=("/nowhere",)), id="missing program"),
        pytest.param(_no_process, id="too many processes"),
    ],
)
def test_without_a_process_the_picture_is_not_refused(start: decoder.StartProcess) -> None:
    with SandboxedDecoder(JOB_LIMITS, start) as opened, pytest.raises(errors.Unavailable):
        opened.decode(_png())


def test_a_process_that_does_not_start_in_time_refuses_nothing() -> None:
    """Otherwise a data set that is built on a busy machine would lack pictures."""
    limits = replace(DATASET_LIMITS, start_seconds=0)
    with SandboxedDecoder(limits, fork_process) as opened, pytest.raises(errors.Unavailable):
        opened.decode_square(_halves(64, 64), 32, "linear")


def test_a_timeout_that_comes_with_the_answer_does_not_end_the_next_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The timer may fire after the answer has arrived, before it is canceled."""
    opened = SandboxedDecoder(DATASET_LIMITS, fork_process)

    class LateTimer(threading.Timer):
        def cancel(self) -> None:  # at the worst moment: the function has just begun
            self.function()
            super().cancel()

    monkeypatch.setattr(threading, "Timer", LateTimer)
    with opened:
        with pytest.raises(errors.Unavailable):
            opened.start()
        monkeypatch.undo()

        assert opened.decode_square(_halves(64, 64), 32, "linear")


class FailingFile(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        if self.tell():
            raise OSError("input/output error")
        return super().read(size)


def test_a_file_that_cannot_be_read_to_its_end_is_not_refused(
    forked: SandboxedDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "_CHUNK_BYTES", 10)
    file: BinaryIO = FailingFile(_png())
    with pytest.raises(errors.Unavailable):
        forked.inspect(file)
    assert forked.inspect(io.BytesIO(_png())).size == (60, 40)


# ---------------------------------------------------------------------- secrets


SPY = """
import os
from core import errors
from core.images import codec, decoder_process
def decode(*_, **__):
    try:
        open({file!r})
        found = "open"
    except OSError:
        found = "shut"
    found += " " + os.environ.get("IMPASTO_WEBHOOK_SECRET", "nothing")
    try:
        os.fstat({descriptor})
        found += " inherited"
    except OSError:
        found += " closed"
    raise errors.BadImage(found)
codec.decode = decode
decoder_process.main()
"""


def test_a_program_inherits_no_secrets_and_no_descriptors_and_opens_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not decoder.warm_up():  # not in a mark: forked processes import this module
        pytest.skip("no filter on this system")
    (tmp_path / "file").write_text("s")
    monkeypatch.setenv("IMPASTO_WEBHOOK_SECRET", "whsec")
    monkeypatch.setattr(decoder, "_MESSAGES", {"shut nothing closed"})
    with (tmp_path / "file").open() as opened:
        os.set_inheritable(opened.fileno(), True)
        script = SPY.format(file=os.fspath(tmp_path / "file"), descriptor=opened.fileno())
        start = partial(run_program, command=(sys.executable, "-c", script))
        with (
            SandboxedDecoder(JOB_LIMITS, start) as spy,
            pytest.raises(errors.BadImage, match=r"^shut nothing closed$"),
        ):
            spy.decode(_png())


# ---------------------------------------------------------------------- uploads


@pytest.fixture
def inspect(tmp_path: Path) -> Callable[[bytes], tuple[int, int]]:
    """Inspect bytes as an upload."""

    def inspect_bytes(data: bytes) -> tuple[int, int]:
        file = tmp_path / "upload"
        file.write_bytes(data)
        return inspect_upload(file).size

    return inspect_bytes


def _change_uploads(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[..., None], **limits: float
) -> None:
    """Let another function decode uploads, or change their limits."""
    monkeypatch.setattr(decoder, "fork_process", partial(fork_process, serve=serve))
    monkeypatch.setattr(decoder, "UPLOAD_LIMITS", replace(UPLOAD_LIMITS, **limits))  # type: ignore[arg-type]


def test_each_upload_gets_a_process_of_its_own(
    inspect: Callable[[bytes], Any], monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    monkeypatch.setattr(decoder, "fork_process", recorder)
    for _ in range(2):
        inspect(_png())

    assert len(recorder.processes) == 2
    assert None not in [process.wait(0) for process in recorder.processes]


def test_an_upload_whose_process_sends_half_an_answer_times_out(
    inspect: Callable[[bytes], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _change_uploads(monkeypatch, _send_half_a_header, file_seconds=3)
    began = time.monotonic()

    with pytest.raises(errors.BadImage):
        inspect(_png())
    assert time.monotonic() - began < 20


def test_an_upload_whose_process_the_system_kills_is_not_refused(
    inspect: Callable[[bytes], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel does when memory runs out, whichever process used it."""
    _change_uploads(monkeypatch, partial(_die, number=signal.SIGKILL))

    with pytest.raises(errors.Unavailable, match="temporarily unavailable"):
        inspect(_png())


def test_an_upload_that_cannot_be_opened_is_not_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.Unavailable):
        inspect_upload(tmp_path / "missing")


@pytest.mark.parametrize(
    ("mask", "is_black"),
    [
        pytest.param(Image.new("L", (40, 40), 0), True, id="black"),
        pytest.param(Image.new("LA", (40, 40), (255, 0)), True, id="transparent"),
        pytest.param(Image.new("L", (40, 40), 1), False, id="nearly black"),
        pytest.param(Image.new("RGB", (40, 40), (9, 0, 0)), False, id="dark red"),
    ],
)
def test_a_black_mask_is_refused_only_if_the_caller_says_so(
    mask: Image.Image, is_black: bool, tmp_path: Path
) -> None:
    file = tmp_path / "mask"
    mask.save(file, "PNG")

    assert inspect_upload(file, mask=True).size == (40, 40)
    if is_black:
        with pytest.raises(errors.BadImage, match="A mask is black all over"):
            inspect_upload(file, mask=True, refuse_black=True)
    else:
        assert inspect_upload(file, mask=True, refuse_black=True).size == (40, 40)


def test_an_upload_has_its_upright_size(inspect: Callable[[bytes], Any]) -> None:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (64, 48)).save(buffer, "JPEG", exif=exif)

    assert inspect(buffer.getvalue()) == (48, 64)


def test_a_file_that_uses_too_much_time_is_refused(
    inspect: Callable[[bytes], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit counts from the restriction on: CPU time before it is not the picture's."""
    _change_uploads(monkeypatch, _spin, cpu_seconds=1)

    with pytest.raises(errors.BadImage):
        inspect(_png())


def test_a_file_that_uses_too_much_memory_is_refused(
    inspect: Callable[[bytes], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few bytes of WebP can ask for a gigabyte. A lower limit than this file needs shows it."""
    buffer = io.BytesIO()
    Image.new("RGB", (5000, 5000), "white").save(buffer, "WEBP", lossless=True)
    assert inspect(buffer.getvalue()) == (5000, 5000)

    limits = replace(UPLOAD_LIMITS, memory_bytes=300 * 2**20)
    monkeypatch.setattr(decoder, "UPLOAD_LIMITS", limits)
    with pytest.raises(errors.BadImage):
        inspect(buffer.getvalue())


def test_modules_in_the_current_folder_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`impasto stylize` may run in any folder."""
    for name in ("core", "PIL"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    with SandboxedDecoder() as decoder:
        assert decoder.decode(_png()).size == (60, 40)
