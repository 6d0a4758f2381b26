"""The decoder of the jobs' pictures, with real processes."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

from core.images import codec
from core.images.decoder import SandboxedDecoder
from core.jobs.models import JobInput
from core.storage.blobs import digest_of
from worker import pictures
from worker.pictures import PictureDecoder


class _Spy(SandboxedDecoder):
    """Records the starts, and how many files each decoder has decoded."""

    opened: list["_Spy"]

    def __init__(self) -> None:
        super().__init__()
        self.is_started, self.decoded = False, 0
        self.opened.append(self)

    def start(self, *, threads: bool = False) -> bool:
        self.is_started = super().start(threads=threads)
        return self.is_started

    def decode(self, *args: Any, **options: Any) -> Image.Image:
        self.decoded += 1
        return super().decode(*args, **options)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[_Spy]:
    """The decoders, in the order in which they were made."""
    _Spy.opened = []
    monkeypatch.setattr(pictures, "SandboxedDecoder", _Spy)
    monkeypatch.setattr(pictures, "START_DELAY_SECONDS", 0)
    return _Spy.opened


@pytest.fixture
def decoder(opened: list[_Spy]) -> Iterator[PictureDecoder]:
    made = PictureDecoder()
    yield made
    made.close()


def _job(*files: bytes, **spec: Any) -> tuple[JobInput, Callable[[str], bytes]]:
    stored = {digest_of(data): data for data in files}
    content, style = stored
    return JobInput(content=content, styles=[style], spec=spec), stored.__getitem__


def _png(color: Any) -> bytes:
    return codec.encode(Image.new("RGBA" if len(color) == 4 else "RGB", (40, 32), color))


def test_each_job_gets_a_process_that_was_started_before_it_came(
    decoder: PictureDecoder, opened: list[_Spy], until: Callable[..., None]
) -> None:
    decoder.start_ahead()
    for number in range(2):
        until(lambda count=number + 1: len(opened) == count and opened[-1].is_started, "a process")
        images = decoder.load_images(*_job(_png((number, 0, 0)), _png((0, number, 9))))
        assert images.content.getpixel((5, 5)) == (number, 0, 0)
        assert images.styles[0].getpixel((5, 5)) == (0, number, 9)

    assert [one.decoded for one in opened[:2]] == [2, 2]


def test_the_next_job_with_a_picture_does_not_read_or_decode_it(
    decoder: PictureDecoder, opened: list[_Spy]
) -> None:
    photo, painting, other = _png((1, 2, 3, 99)), _png((4, 5, 6)), _png((7, 8, 9))
    first = decoder.load_images(*_job(photo, painting))
    job, _ = _job(photo, painting)
    again = decoder.load_images(job, lambda digest: pytest.fail(f"{digest} is read"))
    white = decoder.load_images(*_job(photo, painting, background="white"))
    decoder.load_images(*_job(other, painting))

    assert again.content.tobytes() == first.content.tobytes()
    assert white.content.tobytes() == codec.decode(photo, "white").tobytes()
    assert [one.decoded for one in opened] == [2, 2, 1]


@pytest.mark.parametrize(
    ("spec", "photo_px", "painting_px"),
    [
        ({"size": 64}, 160, 160),
        ({"size": 64, "style_scale": 4}, 160, 640),
        ({"size": 64, "style_scale": 0.25}, 160, 160),
        ({"size": 128, "transparency": "keep"}, 320, 320),
        ({"size": 129}, 640, 640),
    ],
    ids=str,
)
def test_pictures_come_no_larger_than_the_job_needs_them(
    decoder: PictureDecoder, spec: dict[str, Any], photo_px: int, painting_px: int
) -> None:
    """At least twice as large as they are used. A cached one is of the size that the job needs."""
    files = [codec.encode(Image.new("RGB", (640, 512), color)) for color in ("red", "navy")]
    decoder.load_images(*_job(*files, size=500))
    images = decoder.load_images(*_job(*files, **spec))

    assert (images.content.width, images.styles[0].width) == (photo_px, painting_px)
    assert images.styles[0].info.get(codec.REDUCTION, 1) == 640 // painting_px


def test_pixels_are_dropped_in_time(opened: list[_Spy], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "KEPT_SECONDS", 0)
    decoder = PictureDecoder()
    decoder.load_images(*_job(_png((1, 2, 3)), _png((4, 5, 6))))
    decoder.expire()
    assert not decoder._kept.currsize


def test_a_picture_that_takes_too_much_memory_is_not_kept(
    decoder: PictureDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MAX_KEPT_BYTES", 40 * 32 * 3 - 1)
    decoder.load_images(*_job(_png((1, 2, 3)), _png((4, 5, 6))))
    assert not decoder._kept.currsize


def test_the_checks_that_decode_a_file_again_are_left_to_the_api(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bytes are those that the API has accepted, so their pixels are the same without these."""
    noise = Image.effect_noise((80, 60), 60).convert("RGB")
    data = io.BytesIO()
    noise.save(data, "JPEG", progressive=True)
    files = [data.getvalue(), codec.encode(noise)]
    decoded = [codec.decode(file).tobytes() for file in files]
    monkeypatch.setattr(codec, "_refuse_missing_data", lambda *_: pytest.fail("decoded twice"))
    monkeypatch.setattr(codec.png, "is_complete", lambda _: pytest.fail("inflated twice"))

    assert [codec.decode(file, inspected=True).tobytes() for file in files] == decoded
