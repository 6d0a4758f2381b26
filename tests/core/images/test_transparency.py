"""A transparent picture is flattened on a background on which it can be seen."""

import io
from typing import Any

import pytest
from PIL import Image, ImageDraw

from core import errors
from core.images import codec


def _saved(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _drawing(*colors: Any, transparent: int = 0) -> bytes:
    """Return equal discs of these colors on transparency."""
    picture = Image.new("RGBA", (60 * len(colors), 60), (0, 0, 0, transparent))
    for index, color in enumerate(colors):
        ImageDraw.Draw(picture).ellipse((60 * index + 10, 10, 60 * index + 50, 50), color)
    return _saved(picture)


def _photo() -> bytes:
    """Return a gray cutout that is mostly white inside."""
    picture = Image.new("RGBA", (60, 60))
    ImageDraw.Draw(picture).ellipse((5, 5, 55, 55), "#707070")
    ImageDraw.Draw(picture).ellipse((9, 9, 51, 51), "white")
    ImageDraw.Draw(picture).ellipse((28, 28, 32, 32), "#707070")
    return _saved(picture)


def _portrait(*, turned: int) -> bytes:
    """Return a dark head over a white shirt, which one edge of the file cuts off."""
    picture = Image.new("RGBA", (60, 60))
    ImageDraw.Draw(picture).rectangle((2, 30, 57, 60), "white", outline="#404040")
    ImageDraw.Draw(picture).ellipse((15, 5, 45, 35), "#503020")
    return _saved(picture.rotate(turned))


@pytest.mark.parametrize(
    ("data", "background"),
    [
        *(
            pytest.param(_portrait(turned=turned), "white", id=f"a portrait, turned by {turned}")
            for turned in (0, 90, 180, 270)
        ),
        pytest.param(_drawing("white"), "black", id="white artwork"),
        pytest.param(_drawing("#f0f0d8"), "black", id="pale artwork"),
        pytest.param(_drawing("black"), "white", id="black artwork"),
        pytest.param(_drawing("red"), "white", id="red artwork"),
        pytest.param(_drawing("white", "black"), "gray", id="white and black artwork"),
        pytest.param(
            _drawing("white", "red", "red", "red", "red"), "black", id="red and a white part"
        ),
        pytest.param(_photo(), "white", id="a photo with light parts inside"),
    ],
)
def test_the_background_contrasts_with_the_outline(data: bytes, background: str) -> None:
    decoded = codec.decode(data)

    assert decoded.getpixel((1, 1)) == Image.new("RGB", (1, 1), background).getpixel((0, 0))
    assert decoded.getpixel((30, 30)) != decoded.getpixel((1, 1))


def test_an_outline_may_be_thin() -> None:
    picture = Image.new("RGBA", (200, 200))
    ImageDraw.Draw(picture).line((20, 20, 180, 170), "white", 1)

    assert codec.decode(_saved(picture)).getextrema() == ((0, 255),) * 3


@pytest.mark.parametrize("background", ["white", "black", "#123456"])
def test_the_caller_chooses_the_background(background: str) -> None:
    decoded = codec.decode(_drawing("red"), background)

    assert decoded.getpixel((1, 1)) == Image.new("RGB", (1, 1), background).getpixel((0, 0))


@pytest.mark.parametrize(
    ("data", "background", "message"),
    [
        pytest.param(_drawing("white"), "white", "send another background", id="white on white"),
        pytest.param(_drawing("#fcfcff"), "white", "send another background", id="nearly white"),
        pytest.param(_drawing("#123456"), "#123456", "send another background", id="a color"),
        pytest.param(_drawing((9, 9, 9, 0)), "auto", "transparent all over", id="nothing"),
    ],
)
def test_a_picture_that_cannot_be_seen_is_refused(
    data: bytes, background: str, message: str
) -> None:
    with pytest.raises(errors.BadImage, match=message):
        codec.decode(data, background)


def test_an_opaque_picture_of_one_color_is_no_transparent_picture_that_cannot_be_seen() -> None:
    assert codec.decode(_saved(Image.new("RGBA", (40, 40), "white")), "white").mode == "RGB"


def test_a_mask_may_be_transparent_all_over() -> None:
    """Its painting may have no share."""
    assert codec.decode(_drawing((9, 9, 9, 0)), mask=True).convert("L").getextrema() == (0, 0)


def test_the_alpha_is_kept_on_request_and_only_if_there_is_one() -> None:
    kept = codec.decode(_drawing((200, 30, 30, 128)), "white", keep_alpha=True)

    assert (kept.mode, kept.getpixel((1, 1)), kept.getpixel((30, 30))) == (
        "RGBA",
        (255, 255, 255, 0),
        (227, 142, 142, 128),
    )
    opaque = _saved(Image.new("RGBA", (40, 40), "red"))
    assert codec.decode(opaque, keep_alpha=True).mode == "RGB"


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_a_result_with_alpha_is_encoded_and_scaled_with_it(kind: Any) -> None:
    picture = codec.decode(_drawing("white", "red"), keep_alpha=True)
    scaled = codec.convert(codec.encode(picture, provenance={"a": 1}), kind, 60)

    with Image.open(io.BytesIO(scaled)) as image:
        assert image.mode == "RGBA"
        assert image.size == (60, 30)
        assert [image.getpixel((x, 15))[3] for x in (0, 15)] == [0, 255]  # type: ignore[index]


def test_a_jpeg_of_a_result_with_alpha_lies_on_a_background_that_shows_it() -> None:
    picture = Image.new("RGBA", (60, 60), (255, 255, 255, 0))
    picture.paste("white", (20, 20, 40, 40))
    with Image.open(io.BytesIO(codec.encode(picture, "jpeg"))) as image:
        assert [image.getpixel((x, 30)) for x in (3, 30)] == [(0, 0, 0), (255, 255, 255)]
