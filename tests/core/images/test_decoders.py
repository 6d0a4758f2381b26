import io
import multiprocessing
import os
import signal
import struct
from collections.abc import Iterator
from multiprocessing.process import BaseProcess

import numpy as np
import pytest
from PIL import Image

from core import errors
from core.images import codec
from core.images.decoders import Decoder, square


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    opened = Decoder(32, "linear")
    yield opened
    opened.close()


def halves(width: int, height: int) -> bytes:
    """Left black, right white."""
    picture = Image.new("RGB", (width, height))
    picture.paste("white", (width // 2, 0, width, height))
    return codec.encode(picture)


def pixels(data: bytes, side: int) -> np.ndarray:
    return np.frombuffer(data, np.uint8).reshape(side, side, 3)


def test_linear_keeps_all_of_the_picture_and_crop_its_proportions() -> None:
    picture = Image.new("RGB", (200, 100), "red")
    picture.paste("blue", (50, 0, 150, 100))  # the middle square
    data = codec.encode(picture)

    linear, crop = (
        pixels(square(_with_dot(data), 50, "linear"), 50),
        pixels(square(_with_dot(data), 50, "crop"), 50),
    )

    assert linear[25, 2].tolist() == [255, 0, 0]
    assert linear[5, 25].tolist() == [0, 0, 255]
    assert [0, 0, 255] == crop[25, 2].tolist() == crop[25, 47].tolist()


def _with_dot(data: bytes) -> bytes:
    """So that the middle is not one color all over."""
    picture = codec.decode(data)
    picture.putpixel((100, 50), (0, 255, 0))
    return codec.encode(picture)


def test_a_child_answers_for_one_picture_after_another(decoder: Decoder) -> None:
    assert [decoder.square(halves(side, 40)) for side in (40, 64, 90)] == [
        square(halves(side, 40), 32, "linear") for side in (40, 64, 90)
    ]


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"\xff\xd8\xff" + bytes(100), errors.BadImage, "damaged"),
        (b"hello", errors.UnsupportedImage, "JPEG, PNG and WebP"),
        (codec.encode(Image.new("RGB", (64, 64), "gray")), errors.BadImage, "one color all over"),
        (codec.encode(Image.new("RGB", (20, 20))), errors.BadImage, "at least 32 px"),
    ],
)
def test_what_an_upload_would_not_be_taken_for_is_refused_in_words_and_the_child_goes_on(
    decoder: Decoder, data: bytes, kind: type[errors.BadImage], words: str
) -> None:
    with pytest.raises(kind, match=words):
        decoder.square(data)

    assert len(decoder.square(halves(64, 64))) == 32 * 32 * 3


def end(decoder: Decoder, how: signal.Signals) -> BaseProcess:
    assert decoder._child is not None
    os.kill(decoder._child.pid or 0, how)
    if how == signal.SIGKILL:
        decoder._child.join()
    return decoder._child


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize(
    "side", [64, 2000]
)  # what a pipe takes at once, and what someone must read
def test_a_picture_is_not_refused_for_what_became_of_the_child_of_others(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, how: signal.Signals, side: int
) -> None:
    """Its CPU time was over, or the machine was out of memory; or it hangs, taken over by the picture before."""
    noise = Image.effect_noise((side, side), 50).convert("RGB")
    decoder.square(halves(64, 64))
    monkeypatch.setattr("core.images.decoders._PICTURE_SECONDS", 2)
    ended = end(decoder, how)

    assert decoder.square(codec.encode(noise)) == square(codec.encode(noise), 32, "linear")
    assert not ended.is_alive()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_file_over_which_a_child_of_its_own_dies_or_hangs_is_refused_and_the_next_gets_a_new_child(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    start = decoder._start
    monkeypatch.setattr("core.images.decoders._PICTURE_SECONDS", 1)
    monkeypatch.setattr(decoder, "_start", lambda: (start(), end(decoder, how)))

    with pytest.raises(errors.BadImage):
        decoder.square(halves(64, 64))
    monkeypatch.undo()
    assert decoder.square(halves(64, 64)) == square(halves(64, 64), 32, "linear")


def test_an_answer_that_never_ends_is_not_waited_for(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that is taken over may promise more bytes than it sends."""
    decoder._start()
    assert decoder._pipe is not None
    ours, theirs = multiprocessing.Pipe()
    os.write(theirs.fileno(), struct.pack("!i", 3073) + b"+")
    monkeypatch.setattr(decoder._pipe, "recv_bytes", ours.recv_bytes)
    assert decoder._child is not None
    kill, ends = (
        decoder._child.kill,
        iter([theirs.close]),
    )  # once: the timer's thread and `close` both kill
    monkeypatch.setattr(decoder._child, "kill", lambda: (kill(), next(ends, bool)()))
    monkeypatch.setattr("core.images.decoders._PICTURE_SECONDS", 0.2)

    assert decoder._answer(halves(64, 64), fresh=False) is None


def test_without_a_process_to_decode_in_nothing_is_refused(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a busy machine's data set would lack pictures."""
    monkeypatch.setattr("core.images.decoders._START_SECONDS", 0)

    with pytest.raises(errors.Unavailable):
        decoder.square(halves(64, 64))


def test_nothing_that_a_child_says_is_taken_on_trust(decoder: Decoder) -> None:
    for answer in (b"", b"+short", b"?" * 4000, b'-["SystemExit", "x"]', b"-[[[[", b"-7"):
        with pytest.raises(errors.BadImage):
            decoder._read(answer)


def test_a_jpeg_is_decoded_there_as_well(decoder: Decoder) -> None:
    buffer = io.BytesIO()
    codec.decode(halves(64, 64)).save(buffer, "JPEG")

    assert pixels(decoder.square(buffer.getvalue()), 32)[5, 2, 0] == 0
