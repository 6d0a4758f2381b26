"""The check of the structure of JPEG files."""

import hostile_files
import pytest

from core.images import jpeg

JPEGS = {name: data for name, data in hostile_files.encodings().items() if name.startswith("JPEG")}


@pytest.mark.parametrize("name", sorted(JPEGS))
def test_a_file_is_complete_only_with_its_own_end_marker_and_not_with_a_thumbnail_one(
    name: str,
) -> None:
    complete = JPEGS[name]

    assert jpeg.is_complete(complete)
    assert jpeg.is_complete(complete + complete[:100])
    assert [end for end in range(len(complete)) if jpeg.is_complete(complete[:end])] == []


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xff\xd8\xff\xd9", id="no scan"),
        pytest.param(hostile_files.jpeg_of_many_scans(100, 64), id="more than 100 scans"),
        pytest.param(
            hostile_files.jpeg_with(hostile_files.segment(0xE0, b"") * 10_000), id="10,000 segments"
        ),
        pytest.param(hostile_files.jpeg_with(b"\xff\xe0\0\1"), id="a length below its own"),
    ],
)
def test_a_structure_that_no_encoder_writes_is_refused(data: bytes) -> None:
    assert not jpeg.is_complete(data)
