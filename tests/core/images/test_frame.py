"""The frame around a painting: what is found, and what is not."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from bench.frames import GALLERY, frame, is_right, read_folder
from core.images.frame import find_painting

SAMPLES = Path(__file__).parents[3] / "samples"


@pytest.fixture(scope="module")
def painting() -> Image.Image:
    with Image.open(SAMPLES / "strokes.jpg") as picture:
        return picture.resize((450, 350))


def _framed(painting: Image.Image, *bands: tuple[int, tuple[int, int, int]]) -> Image.Image:
    for width, color in bands:
        painting = ImageOps.expand(painting, width, color)
    return painting


MAT, WOOD, WALL = (60, (255, 255, 255)), (30, (70, 45, 20)), (70, (225, 222, 215))


@pytest.mark.parametrize("bands", [(MAT, WOOD, WALL), (MAT,), (WOOD, WALL), ((12, (9, 9, 9)),)])
def test_mat_frame_and_wall_are_left_out(painting: Image.Image, bands: object) -> None:
    margin = sum(width for width, _ in bands)  # type: ignore[attr-defined]
    box = find_painting(_framed(painting, *bands))  # type: ignore[misc]

    assert box is not None
    expected = (margin, margin, margin + 450, margin + 350)
    assert box == pytest.approx(expected, abs=8)  # two px of the copy that is searched
    assert box[0] >= margin
    assert box[2] <= margin + 450


def test_a_frame_after_compression_and_with_uneven_light_is_found(
    painting: Image.Image, tmp_path: Path
) -> None:
    framed = np.asarray(_framed(painting, MAT, WOOD, WALL), np.float32)
    light = np.linspace(0.97, 1.0, framed.shape[1])[None, :, None]
    noise = np.random.default_rng(0).normal(0, 2, framed.shape)
    lit = Image.fromarray((framed * light + noise).clip(0, 255).astype(np.uint8))
    lit.save(tmp_path / "x.jpg", quality=80)
    with Image.open(tmp_path / "x.jpg") as picture:
        assert find_painting(picture) == pytest.approx((160, 160, 610, 510), abs=10)


@pytest.mark.parametrize(
    ("kind", "width", "turn", "ground"),
    [
        ("wood", 0.06, 2.0, "black"),
        ("wood", 0.2, 0.0, "none"),
        ("gilded", 0.12, 3.5, "white"),
        ("patterned", 0.12, 1.0, "black"),
        ("gradient", 0.06, 5.0, "white"),
        ("passepartout", 0.12, 0.5, "none"),
        ("plain", 0.2, 0.5, "white"),
    ],
)
def test_a_frame_with_a_pattern_or_turned_by_a_few_degrees_is_left_out(
    painting: Image.Image, kind: str, width: float, turn: float, ground: str
) -> None:
    picture, where = frame(painting, kind, width, turn, ground)

    assert is_right(find_painting(picture), where, turn)


def test_the_box_of_a_turned_painting_is_as_large_as_an_upright_one_can_be(
    painting: Image.Image,
) -> None:
    """Turned the other way too."""
    areas = []
    for turn in (4.0, -4.0):
        picture, where = frame(painting, "plain", 0.12, turn, "white")
        box = find_painting(picture)
        assert box is not None
        part = np.asarray(where.crop(box)) / 255
        assert part.mean() > 0.98
        areas.append(part.size / np.asarray(where, float).sum() * 255)

    assert areas == pytest.approx([0.83, 0.83], abs=0.04)


def test_no_frame_is_found_in_pictures_without_one() -> None:
    """Of the gallery; two prints have a border in black or white."""
    found = {name for name, picture in read_folder(GALLERY).items() if find_painting(picture)}

    assert found == {"glass", "woodcut"}


@pytest.mark.parametrize("color", ["white", "black", (120, 60, 30)])
def test_a_picture_of_one_color_has_no_frame(color: str) -> None:
    assert find_painting(Image.new("RGB", (300, 200), color)) is None


def test_a_small_thing_on_a_plain_ground_is_no_painting_in_a_frame() -> None:
    picture = Image.new("RGB", (400, 400), "white")
    ImageDraw.Draw(picture).ellipse((180, 180, 230, 230), "red")

    assert find_painting(picture) is None


@pytest.mark.parametrize("size", [(120, 100), (592, 474)])
def test_a_small_square_or_a_thin_margin_is_no_frame(
    painting: Image.Image, size: tuple[int, int]
) -> None:
    """4 % of the picture; a margin of 0.7 %."""
    ground = Image.new("RGB", (600, 480), "white")
    ground.paste(painting.resize(size), ((600 - size[0]) // 2, (480 - size[1]) // 2))

    assert find_painting(ground) is None


def test_a_large_figure_on_a_plain_ground_is_no_painting_in_a_frame(painting: Image.Image) -> None:
    """Its outline is not straight."""
    figure = Image.new("L", painting.size, 0)
    ImageDraw.Draw(figure).ellipse((0, 0, *painting.size), 255)
    ground = Image.new("RGB", (600, 480), "white")
    ground.paste(painting, (75, 65), figure)

    assert find_painting(ground) is None


def test_lines_on_white_paper_are_no_painting_in_a_frame() -> None:
    picture = Image.new("RGB", (600, 400), "white")
    draw = ImageDraw.Draw(picture)
    for x in range(100, 500, 37):
        draw.line((x, 80, 600 - x, 320), "black", 3)

    assert find_painting(picture) is None


def test_a_plain_sky_or_ground_is_no_frame(painting: Image.Image) -> None:
    """A band must lie on all four sides."""
    for sides in ((0, 80, 0, 0), (60, 60, 0, 60), (0, 60, 0, 60)):
        assert find_painting(ImageOps.expand(painting, sides, "lightblue")) is None


@pytest.mark.parametrize("size", [(32, 32), (32, 640), (1, 1)])
def test_a_tiny_picture_is_searched_without_an_error(size: tuple[int, int]) -> None:
    find_painting(Image.effect_noise(size, 80).convert("RGB"))
