"""A stranger's file to pixels, in a child that is shut in."""

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from core import errors
from core.images import codec, darkroom
from core.images.darkroom import SandboxedDecoder


def _file(mode: str = "RGB", size: tuple[int, int] = (60, 40), color: Any = (200, 30, 90)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def room() -> Iterator[SandboxedDecoder]:
    with SandboxedDecoder() as room:
        yield room


def test_the_pixels_are_those_that_decode_gives(room: SandboxedDecoder) -> None:
    clear = _file("LA", color=(255, 100))
    for arguments in ((_file(),), (clear,), (clear, "black")):
        assert room.decode(*arguments).tobytes() == codec.decode(*arguments).tobytes()  # type: ignore[arg-type]


def test_refusals_come_back_in_their_words_and_the_next_picture_after_them(
    room: SandboxedDecoder,
) -> None:
    with pytest.raises(errors.UnsupportedImage):
        room.decode(b"GIF89a")
    with pytest.raises(errors.BadImage, match="at least 32 px"):
        room.decode(_file(size=(60, 8)))
    with pytest.raises(errors.ImageTooLarge, match="12000 px"):
        room.decode(_file(size=(12_001, 700)))
    assert room.decode(_file(size=(60, 8)), any_size=True).size == (60, 8)


# What a child may do that a file has taken over.
TAKEN_OVER = {
    "dies": "os.kill(os.getpid(), 11)",
    "says nothing of a picture": "say(b'[' * 4096)",
    "lies of the size": """say(b'{"size": [4000, 4000]}'.ljust(4096) + b'abc')""",
    "says that there is no picture": """say(b'{"size": [0, 7]}'.ljust(4096))""",
    "promises too much": """say(b'{"size": [900000, 900000]}'.ljust(4096))""",
    "hangs": "time.sleep(60)",
}


def test_where_the_machine_ends_the_child_the_picture_is_not_to_blame() -> None:
    """As one that is out of memory does."""
    killed = "import os, signal\nos.write(1, b'!')\nos.read(0, 4096)\nos.kill(os.getpid(), signal.SIGKILL)"
    with (
        SandboxedDecoder((sys.executable, "-c", killed)) as room,
        pytest.raises(errors.OutOfMemory),
    ):
        room.decode(_file())


@pytest.mark.parametrize("deed", TAKEN_OVER)
def test_a_child_that_was_taken_over_harms_nobody(
    monkeypatch: pytest.MonkeyPatch, deed: str
) -> None:
    monkeypatch.setattr(darkroom, "PATIENCE_SECONDS", 3)
    begin = "import os, time\nsay = lambda words: os.write(1, words)\nsay(b'!')\nos.read(0, 4096)\n"
    with (
        SandboxedDecoder((sys.executable, "-c", begin + TAKEN_OVER[deed])) as room,
        pytest.raises(errors.BadImage),
    ):
        room.decode(_file())


@pytest.mark.parametrize("command", [(sys.executable, "-c", ""), ("/nowhere",)])
def test_without_a_child_the_picture_is_not_to_blame(command: tuple[str, ...]) -> None:
    with pytest.raises(errors.Unavailable), SandboxedDecoder(command):
        pass


@pytest.mark.skipif(not codec.warm_up(), reason="no filter on this system")
def test_it_can_open_nothing_and_knows_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("s")
    monkeypatch.setenv("IMPASTO_WEBHOOK_SECRET", "whsec")
    taken_over = (
        "import os\n"
        "from core import errors\n"
        "from core.images import darkroom\n"
        "def decode(*_, **__):\n"
        "    try:\n"
        f"        open({os.fspath(tmp_path / 'file')!r})\n"
        "        told = 'open'\n"
        "    except OSError:\n"
        "        told = 'shut'\n"
        "    raise errors.BadImage(told + ' ' + os.environ.get('IMPASTO_WEBHOOK_SECRET', 'nothing'))\n"
        "darkroom.codec.decode = decode\n"
        "darkroom.main()\n"
    )
    with (
        SandboxedDecoder((sys.executable, "-c", taken_over)) as room,
        pytest.raises(errors.BadImage, match=r"^shut nothing$"),
    ):
        room.decode(_file())
