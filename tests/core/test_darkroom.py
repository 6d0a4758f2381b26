"""A stranger's file to pixels, in a child that is shut in."""

import io
import json
import os
import signal
from multiprocessing.connection import Connection
from typing import Any

import pytest
from PIL import Image

from core import darkroom, errors, images
from core.darkroom import developed


def _file(mode: str = "RGB", size: tuple[int, int] = (60, 40), color: Any = (200, 30, 90)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_pixels_are_those_that_decode_gives() -> None:
    clear = _file("LA", color=(255, 100))
    for arguments in ((_file(),), (clear,), (clear, "black")):
        assert images.decode(*arguments).tobytes() == developed(*arguments).tobytes()  # type: ignore[arg-type]


def test_refusals_come_back_in_their_words() -> None:
    with pytest.raises(errors.UnsupportedImage):
        developed(b"GIF89a")
    with pytest.raises(errors.BadImage, match="at least 32 px"):
        developed(_file(size=(60, 8)))
    with pytest.raises(errors.ImageTooLarge, match="12000 px"):
        developed(_file(size=(12_001, 700)))
    assert (60, 8) == developed(_file(size=(60, 8)), any_size=True).size


# What a child may do that a file has taken over. `_serve` of each.


def _dies(pipe: Connection, *_: Any) -> None:
    pipe.send_bytes(b"!")
    os.kill(os.getpid(), signal.SIGSEGV)


def _says_nothing_of_a_picture(pipe: Connection, *_: Any) -> None:
    pipe.send_bytes(b"!")
    pipe.send_bytes(b"[" * 4000)
    pipe.send_bytes(b"")


def _lies_of_the_size(pipe: Connection, *_: Any) -> None:
    pipe.send_bytes(b"!")
    pipe.send_bytes(json.dumps({"size": [4000, 4000]}).encode())
    pipe.send_bytes(b"abc")


def _sends_too_much(pipe: Connection, *_: Any) -> None:
    pipe.send_bytes(b"!")
    pipe.send_bytes(bytes(100_000))


def _hangs(pipe: Connection, *_: Any) -> None:
    pipe.send_bytes(b"!")
    signal.pause()


@pytest.mark.parametrize("child", [_dies, _says_nothing_of_a_picture, _lies_of_the_size, _sends_too_much, _hangs])
def test_a_child_that_was_taken_over_harms_nobody(monkeypatch: pytest.MonkeyPatch, child: Any) -> None:
    monkeypatch.setattr(darkroom, "_serve", child)
    monkeypatch.setattr(darkroom, "PATIENCE_SECONDS", 3)
    with pytest.raises(errors.BadImage):
        developed(_file())


def _is_never_ready(*_: Any) -> None: ...


def test_without_a_child_the_picture_is_not_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(darkroom, "_serve", _is_never_ready)
    with pytest.raises(errors.Unavailable):
        developed(_file())


def test_it_can_open_nothing(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(darkroom, "_serve", _looks_around)
    (tmp_path / "secret").write_text("s")
    with pytest.raises(errors.BadImage, match="could not"):
        developed(_file(), str(tmp_path / "secret"))  # type: ignore[arg-type]


def _looks_around(pipe: Connection, secret: str, _: bool) -> None:
    def look(*_: Any, **__: Any) -> None:
        try:
            open(secret).close()  # noqa: PTH123
        except OSError:
            raise errors.BadImage("It could not.") from None

    images.decode = look  # type: ignore[assignment]
    _SERVE(pipe, "white", _)


_SERVE = darkroom._serve
