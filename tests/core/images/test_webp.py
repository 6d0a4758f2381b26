"""The check of the structure of WebP files."""

import hostile_files
import pytest

from core.images import webp

WEBPS = {name: data for name, data in hostile_files.encodings().items() if name.startswith("WebP")}


@pytest.mark.parametrize("name", sorted(WEBPS))
def test_a_file_is_complete_only_with_its_promised_length(name: str) -> None:
    complete = WEBPS[name]

    assert webp.is_complete(complete)
    assert webp.is_complete(complete + b"<script>")
    assert [end for end in range(len(complete)) if webp.is_complete(complete[:end])] == []


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(hostile_files.webp((b"EXIF", b"x")), id="no picture"),
        pytest.param(hostile_files.webp(*[(b"VP8L", b"")] * 50_001), id="too many chunks"),
        pytest.param(b"RIFF\x10\0\0\0WEBPVP8L\x06\0\0\0abcdef", id="a chunk longer than the file"),
    ],
)
def test_a_structure_that_no_encoder_writes_is_refused(data: bytes) -> None:
    assert not webp.is_complete(data)
