"""Flatten a transparent picture on a background on which it can be seen."""

from PIL import Image, ImageChops, ImageColor

from core import errors

# auto: white, or what shows the picture's outline better; otherwise a color, as in StyleSpec.
Background = str

_CANDIDATES = {"white": 255, "black": 0, "gray": 128}  # by preference, with their luminance
# A pixel is seen against a luminance that differs by so much.
_CONTRAST = 48
# So much of the outline must be seen. The rest may be as light as the background, because the
# inside of a picture shows where it is.
_SEEN_SHARE = 0.9
_MIN_RANGE = 8  # levels; a picture with less looks like one color

_TRANSPARENT = "The picture is transparent all over."
_INVISIBLE = (
    "Nothing of this transparent picture is visible on the background; send another background."
)
MESSAGES = frozenset({_TRANSPARENT, _INVISIBLE})


def flatten(picture: Image.Image, alpha: Image.Image, background: Background) -> Image.Image:
    """Return an RGB picture composited on the background.

    Raises BadImage if something is transparent and nothing is visible.
    """
    low, high = _range(alpha)
    if low == 255:
        return picture
    if high == 0:
        raise errors.BadImage(_TRANSPARENT, reason="transparent")
    flat = composite(picture, alpha, background)
    has_outline = low <= high // 2
    ranges = map(_range, flat.split())
    if has_outline and all(highest - lowest < _MIN_RANGE for lowest, highest in ranges):
        raise errors.BadImage(_INVISIBLE, reason="transparent")
    return flat


def composite(picture: Image.Image, alpha: Image.Image, background: Background) -> Image.Image:
    """Return an RGB picture composited on the background."""
    name = _choose_color(picture, alpha) if background == "auto" else background
    canvas = Image.new("RGB", picture.size, ImageColor.getrgb(name))
    return Image.composite(picture, canvas, alpha)


def _range(channel: Image.Image) -> tuple[int, int]:
    low, high = channel.getextrema()
    assert isinstance(low, int), "it is a channel"
    assert isinstance(high, int)
    return low, high


def _shift(channel: Image.Image, across: int, down: int) -> Image.Image:
    """Return the channel moved by so many pixels; ImageChops.offset would wrap around."""
    moved = Image.new("L", channel.size)
    moved.paste(channel, (across, down))
    return moved


def _choose_color(picture: Image.Image, alpha: Image.Image) -> str:
    """Return white if most of the outline contrasts with it, else the color that contrasts best.

    The outline is where the picture borders on transparency: only there does the background matter.
    What the edge of the file cuts off has no outline there.
    """
    threshold = _range(alpha)[1] // 2
    visible = alpha.point([255 if value > threshold else 0 for value in range(256)])
    hidden = ImageChops.invert(visible)
    near = hidden
    for across, down in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        near = ImageChops.lighter(near, _shift(hidden, across, down))
    counts = picture.convert("L").histogram(ImageChops.darker(near, visible))
    total = sum(counts)
    shares = {
        name: sum(
            count for value, count in enumerate(counts) if abs(value - luminance) >= _CONTRAST
        )
        for name, luminance in _CANDIDATES.items()
    }
    if shares["white"] >= _SEEN_SHARE * total:
        return "white"
    return max(shares, key=lambda name: shares[name])
