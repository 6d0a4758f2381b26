"""The check of the structure of JPEG files."""

import re
from typing import Any

import hostile_files
import pytest
import simplejpeg
from PIL import Image

from core import errors
from core.images import codec, jpeg, validation

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


# ---------------------------------------------------------------------- parts of scans


def _picture(kind: str) -> Image.Image:
    if kind == "smooth":
        return Image.linear_gradient("L").resize((64, 48)).convert("RGB")
    return hostile_files.noise(5).resize((64, 48))


ENCODINGS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "4:4:4": {"subsampling": 0},
    "optimized": {"optimize": True},
    "restarts": {"restart_marker_blocks": 2},
    "progressive": {"progressive": True},
    "progressive, fine": {"progressive": True, "quality": 100},
    "progressive, restarts": {"progressive": True, "restart_marker_rows": 1},
}


def _ask_libjpeg(data: bytes) -> str | None:
    """Return what libjpeg reports, which Pillow hides; None for a clean file."""
    try:
        simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
    except ValueError as error:
        return str(error)
    return None


def _structural_doubts(data: bytes) -> list[str]:
    structure = jpeg.parse(data)
    assert structure is not None
    return validation.list_doubts(structure)


def _doubts(data: bytes) -> list[str]:
    doubts: list[str] = []
    codec.decode(data, doubts=doubts)
    return doubts


def _is_refused(data: bytes) -> bool:
    try:
        codec.decode(data)
    except errors.BadImage:
        return True
    return False


@pytest.mark.parametrize("picture", ["noise", "smooth"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_file_that_was_cut_inside_a_scan_is_refused_as_libjpeg_reports_it(
    encoding: str, picture: str
) -> None:
    """At every byte of the scans. Each file has an end marker.

    libjpeg is right about each refusal. Any other file looks like the whole one, or is doubtful.
    """
    whole = hostile_files.saved(_picture(picture), "JPEG", **ENCODINGS[encoding])
    structure = jpeg.parse(whole)
    assert structure is not None
    first, last = whole.index(b"\xff\xda") + 14, structure.scans[-1].end
    expected = codec.decode(whole)
    doubtful = 0
    for cut in range(first, last):
        data = whole[:cut] + b"\xff\xd9"
        if _is_refused(data):
            assert _ask_libjpeg(data) is not None, cut
            continue
        # Cut between two scans; or what is missing does not show.
        doubts = _structural_doubts(data)
        assert doubts or codec.decode(data) == expected, cut
        doubtful += bool(doubts)
    assert _ask_libjpeg(whole) is None
    assert not _is_refused(whole)
    assert not _structural_doubts(whole)
    assert bool(doubtful) == ("progressive" in encoding)


def _odd_files() -> dict[str, bytes]:
    """Return valid files that look damaged to a simple check."""
    plain = hostile_files.saved(_picture("noise"), "JPEG")
    progressive = hostile_files.saved(_picture("noise"), "JPEG", progressive=True)
    restarts = hostile_files.saved(_picture("noise"), "JPEG", restart_marker_blocks=2)
    end = len(plain) - 2
    return {
        "bytes before the end marker": plain[:end] + b"\0\0\x55" + plain[end:],
        "many zeros before the end marker": plain[:end] + bytes(100) + plain[end:],
        "fill bytes before the end marker": plain[:end] + b"\xff\xff\xff" + plain[end:],
        "fill bytes between scans": progressive.replace(b"\xff\xda", b"\xff\xff\xff\xda"),
        "a comment between scans": progressive.replace(b"\xff\xda", b"\xff\xfe\0\4hi\xff\xda", 3),
        "a restart marker too many": restarts[:-2] + b"\xff\xd1\xff\xd9",
        "bytes after the end marker": plain + b"\xff\xda\0\0more",
        "two pictures": hostile_files.saved(
            _picture("noise"), "MPO", save_all=True, append_images=[_picture("smooth")]
        ),
        "gray": hostile_files.saved(_picture("noise").convert("L"), "JPEG"),
        "CMYK": hostile_files.saved(_picture("noise").convert("CMYK"), "JPEG"),
        "one color": hostile_files.saved(Image.new("RGB", (64, 48), (128, 128, 128)), "JPEG"),
        "gray at the end": hostile_files.saved(_picture("smooth").point(lambda v: v // 2), "JPEG"),
        "odd size": hostile_files.saved(_picture("noise").resize((61, 43)), "JPEG"),
        "odd size, progressive": hostile_files.saved(
            _picture("noise").resize((61, 43)), "JPEG", progressive=True, restart_marker_blocks=1
        ),
    }


@pytest.mark.parametrize("name", _odd_files())
def test_an_odd_but_valid_file_is_accepted_without_a_warning(name: str) -> None:
    data = _odd_files()[name]

    assert codec.decode(data).size in ((64, 48), (61, 43))
    assert _doubts(data) == []


@pytest.mark.parametrize(
    ("encoding", "share"), [("baseline", 0.9), ("4:4:4", 0.9), ("optimized", 0.5)]
)
def test_a_hole_inside_a_scan_is_refused_or_doubtful_as_libjpeg_reports_it(
    encoding: str, share: float
) -> None:
    """As a download leaves it that was assembled from parts: zeros in place of one.

    share: of the reports. The rest leaves the right number of blocks.
    """
    whole = hostile_files.saved(_picture("noise"), "JPEG", **ENCODINGS[encoding])
    structure = jpeg.parse(whole)
    assert structure is not None
    scan = structure.scans[0]
    reported = noticed = 0
    for at in range(scan.start, scan.end - 200, 17):
        data = whole[:at] + bytes(128) + whole[at + 128 :]
        is_doubtful = _is_refused(data) or bool(_doubts(data))
        is_reported = _ask_libjpeg(data) is not None
        assert is_reported or not is_doubtful, at
        reported += is_reported
        noticed += is_doubtful

    assert _doubts(whole) == []
    assert noticed >= share * reported > 5


def test_a_file_that_lacks_a_component_is_refused() -> None:
    """Its scans are complete, and libjpeg reports nothing."""
    data = hostile_files.saved(_picture("noise"), "JPEG", progressive=True)
    starts = [match.start() for match in re.finditer(b"\xff\xda", data)]
    header = data[starts[0] : starts[0] + 2 + int.from_bytes(data[starts[0] + 2 : starts[0] + 4])]
    assert header[4] == 3  # the first scan holds the mean of each block, of all three components
    only_first = bytearray(data[: starts[1]] + b"\xff\xd9")
    only_first[starts[0] + 4] = 1

    assert not jpeg.is_complete(bytes(only_first))


def test_an_arithmetic_coded_file_is_doubtful() -> None:
    """Its encoder may leave out bytes at its end. Pillow can decode it and cannot write it."""
    data = hostile_files.saved(_picture("noise"), "JPEG").replace(b"\xff\xc0", b"\xff\xc9")

    assert [doubt for doubt in _structural_doubts(data) if "arithmetic" in doubt]


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xc0\x00\x08\x08\x00\x40\x00\x40\x03",  # three components, and none described
        b"\xff\xc0\x00\x0b\x08\x00\x40\x00\x40\x01\x01\x00\x00",  # sampling factors of 0
        b"\xff\xda\x00\x03\x01",
    ],
)
def test_a_damaged_header_is_no_structure(body: bytes) -> None:
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00ab"

    assert jpeg.parse(b"\xff\xd8" + body + scan + b"\xff\xd9") is None
