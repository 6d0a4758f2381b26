import io
import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from core import errors, images
from core.decoders import Decoder, square


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    opened = Decoder(32, "linear")
    yield opened
    opened.close()


def halves(width: int, height: int) -> bytes:
    """Left black, right white."""
    picture = Image.new("RGB", (width, height))
    picture.paste("white", (width // 2, 0, width, height))
    return images.encode(picture)


def pixels(data: bytes, side: int) -> np.ndarray:
    return np.frombuffer(data, np.uint8).reshape(side, side, 3)


def test_linear_keeps_all_of_the_picture_and_crop_its_proportions() -> None:
    picture = Image.new("RGB", (200, 100), "red")
    picture.paste("blue", (50, 0, 150, 100))  # the middle square
    data = images.encode(picture)

    linear, crop = pixels(square(_with_dot(data), 50, "linear"), 50), pixels(square(_with_dot(data), 50, "crop"), 50)

    assert [255, 0, 0] == linear[25, 2].tolist()
    assert [0, 0, 255] == linear[5, 25].tolist()
    assert [0, 0, 255] == crop[25, 2].tolist() == crop[25, 47].tolist()


def _with_dot(data: bytes) -> bytes:
    """So that the middle is not one color all over."""
    picture = images.decode(data)
    picture.putpixel((100, 50), (0, 255, 0))
    return images.encode(picture)


def test_a_child_answers_for_one_picture_after_another(decoder: Decoder) -> None:
    assert [square(halves(side, 40), 32, "linear") for side in (40, 64, 90)] == [
        decoder.square(halves(side, 40)) for side in (40, 64, 90)
    ]


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"\xff\xd8\xff" + bytes(100), errors.BadImage, "damaged"),
        (b"hello", errors.UnsupportedImage, "JPEG, PNG and WebP"),
        (images.encode(Image.new("RGB", (64, 64), "gray")), errors.BadImage, "one color all over"),
        (images.encode(Image.new("RGB", (20, 20))), errors.BadImage, "at least 32 px"),
    ],
)
def test_what_an_upload_would_not_be_taken_for_is_refused_in_words_and_the_child_goes_on(
    decoder: Decoder, data: bytes, kind: type[errors.BadImage], words: str
) -> None:
    with pytest.raises(kind, match=words):
        decoder.square(data)

    assert 32 * 32 * 3 == len(decoder.square(halves(64, 64)))


def test_a_file_that_kills_the_child_is_refused_and_the_next_gets_a_new_child(decoder: Decoder) -> None:
    decoder.square(halves(64, 64))
    assert decoder._child is not None
    os.kill(decoder._child.pid or 0, signal.SIGKILL)
    decoder._child.join()

    with pytest.raises(errors.BadImage):
        decoder.square(halves(64, 64))
    assert square(halves(64, 64), 32, "linear") == decoder.square(halves(64, 64))


def test_a_child_that_hangs_is_ended_and_the_next_picture_gets_a_new_one(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder.square(halves(64, 64))
    assert decoder._child is not None
    hung = decoder._child
    os.kill(hung.pid or 0, signal.SIGSTOP)
    monkeypatch.setattr("core.decoders._PICTURE_SECONDS", 0.1)

    with pytest.raises(errors.BadImage):
        decoder.square(halves(64, 64))
    monkeypatch.undo()
    assert not hung.is_alive()
    assert square(halves(64, 64), 32, "linear") == decoder.square(halves(64, 64))


def test_without_a_process_to_decode_in_nothing_is_refused(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a busy machine's data set would lack pictures."""
    monkeypatch.setattr("core.decoders._START_SECONDS", 0)

    with pytest.raises(errors.Unavailable):
        decoder.square(halves(64, 64))


def test_nothing_that_a_child_says_is_taken_on_trust(decoder: Decoder) -> None:
    for answer in (b"", b"+short", b"?" * 4000, b'-["SystemExit", "x"]', b"-[[[[", b"-7"):
        with pytest.raises(errors.BadImage):
            decoder._read(answer)


def test_a_jpeg_is_decoded_there_as_well(decoder: Decoder) -> None:
    buffer = io.BytesIO()
    images.decode(halves(64, 64)).save(buffer, "JPEG")

    assert 0 == pixels(decoder.square(buffer.getvalue()), 32)[5, 2, 0]
