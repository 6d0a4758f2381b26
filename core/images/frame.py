"""Finds the frame around a painting: even bands on all four sides, such as a wall, a frame, a mat.

In a result they would become bars across the picture. A band is even if it looks the same all along
its side; it may have a pattern. The inner edge of a frame is straight; a figure on a plain ground
has none. A frame may be turned by a few degrees. Knows no network.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import cos, radians, sin

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Box = tuple[int, int, int, int]  # left, top, right, bottom, in px

_LONG_SIDE_PX = 256  # of the copy that is searched
_EVEN_LEVELS = 28.0  # largest difference between parts of a band's side, of 255
_LIGHT_LEVELS = 40.0  # largest change of light along a side, and from one side to another
_EDGE_LEVELS = 20.0  # smallest difference between painting and band that counts as an edge
_MIN_SHARE = 0.01  # of the picture's sides: a thinner margin is left as it is
_MIN_AREA = 0.15  # of the picture: what is smaller is no painting in a frame
_MIN_EDGE = 0.7  # share of the inner edge along which the painting differs from the band
_MAX_TURN_DEGREES = 6
_SAME_AREA = 1.15  # largest ratio of what is found of one painting in copies turned differently
_PARTS = 8  # of a side, whose mean colors are compared
_MIXED_PX = 3  # rows between two bands that may belong to neither

_Pixels = NDArray[np.uint8]  # (H, W, 3)
_Means = NDArray[np.float64]  # (rows, parts, 3)


@dataclass(frozen=True)
class _Found:
    """A painting in a copy that is turned by some degrees."""

    box: Box
    contrast: float  # between band and painting along the inner edge
    degrees: float = 0.0

    @property
    def area(self) -> int:
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


def find_painting(picture: Image.Image) -> Box | None:
    """The box of the painting inside its frame; None if there is no frame.

    Of a painting that is turned, the largest upright box. Only bands on all four sides count.
    """
    factor = min(1.0, _LONG_SIDE_PX / max(picture.size))
    size = tuple(max(1, round(side * factor)) for side in picture.size)
    small = picture.resize((size[0], size[1]), Image.Resampling.BOX).convert("RGB")
    if min(size) <= 2 * _PARTS:
        return None
    found = _best(small, range(-_MAX_TURN_DEGREES, _MAX_TURN_DEGREES + 1))
    if found is None:
        return None
    found = _best(small, (found.degrees + step / 4 for step in range(-3, 4))) or found
    left, top, right, bottom = _upright_box(found, small.size)
    scale = picture.width / small.width, picture.height / small.height
    # More on each side: these px of the copy are a mixture of frame and painting.
    inset = 2 if found.degrees else 1
    return (
        round((left + inset) * scale[0]),
        round((top + inset) * scale[1]),
        round((right - inset) * scale[0]),
        round((bottom - inset) * scale[1]),
    )


def scale_box(box: Box, factor: int) -> Box:
    """The same box in a picture that is larger by a factor."""
    left, top, right, bottom = box
    return left * factor, top * factor, right * factor, bottom * factor


def _best(small: Image.Image, turns: Iterable[float]) -> _Found | None:
    """What is found in the copy turned back, if anything: innermost, with the strongest edges."""
    found = [
        _Found(one.box, one.contrast, degrees)
        for degrees in turns
        if (one := _find_upright(_turn(small, degrees))) is not None
    ]
    # In a copy that is turned wrongly, only an outer edge may be found, which is often stronger.
    least = min((one.area for one in found), default=0)
    innermost = (one for one in found if one.area <= _SAME_AREA * least)
    return max(innermost, key=lambda one: one.contrast, default=None)


def _turn(small: Image.Image, degrees: float) -> _Pixels:
    """The copy turned about its middle; the outermost pixels repeat where it has none."""
    pixels = np.asarray(small)
    if not degrees:
        return pixels
    pad = max(small.size) // 8
    padded = Image.fromarray(np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)), mode="edge"))
    turned = np.asarray(padded.rotate(degrees, Image.Resampling.BILINEAR))
    return turned[pad:-pad, pad:-pad]


class _Sides:
    """Sums along the rows and columns of a picture, from which means of parts follow at once.

    Four sides: top, bottom, left and right. Depths are in px, from the picture's edge inwards.
    """

    def __init__(self, pixels: _Pixels) -> None:
        self.height, self.width = pixels.shape[:2]
        rows, columns = (
            np.pad(part.cumsum(1, np.int32), ((0, 0), (1, 0), (0, 0)))
            for part in (pixels, pixels.swapaxes(0, 1))
        )
        self._sums = (rows, rows[::-1], columns, columns[::-1])

    def part_means(
        self, side: int, depths: Sequence[int], begin: int, end: int, parts: int
    ) -> _Means:
        """The mean colors of the parts of a side's rows, (rows, parts, 3).

        depths: of all four sides; between them lies what the rows span. begin, end: the rows,
        counted from the side's depth.
        """
        others = (
            (depths[2], self.width - depths[3])
            if side < 2
            else (depths[0], self.height - depths[1])
        )
        edges = np.linspace(*others, parts + 1).round().astype(int)
        sums = self._sums[side][max(0, depths[side] + begin) : depths[side] + end, edges]
        return np.diff(sums, axis=1) / np.diff(edges)[:, None]

    def inner_size(self, depths: Sequence[int]) -> tuple[int, int]:
        """Height and width of what lies inside."""
        return self.height - depths[0] - depths[1], self.width - depths[2] - depths[3]


def _find_upright(pixels: _Pixels) -> _Found | None:
    """The painting inside upright bands; None if there are none."""
    sides = _Sides(pixels)
    depths = [0, 0, 0, 0]
    while min(sides.inner_size(depths)) > 2 * _PARTS + 2 * _MIXED_PX:
        bands = (
            _peel(sides, [one + skipped for one in depths]) for skipped in range(_MIXED_PX + 1)
        )
        band = next((one for one in bands if one is not None), None)
        if band is None:
            break
        depths = band
    height, width = sides.inner_size(depths)
    top, bottom, left, right = depths
    shares = (top / sides.height, bottom / sides.height, left / sides.width, right / sides.width)
    is_small = width * height < _MIN_AREA * sides.width * sides.height
    if min(shares) < _MIN_SHARE or is_small or min(width, height) < 2 * _PARTS:
        return None
    contrast = _edge_contrast(sides, depths)
    if contrast is None:
        return None
    return _Found((left, top, sides.width - right, sides.height - bottom), contrast)


def _edge_contrast(sides: _Sides, depths: Sequence[int]) -> float | None:
    """The mean difference of painting and band along the box; None if it has no straight edges."""
    contrasts = []
    for side in range(4):
        outside, inside = (
            sides.part_means(side, depths, *rows, 3 * _PARTS).mean(0) for rows in ((-2, 0), (1, 3))
        )
        differences = np.abs(inside - outside).max(1)  # (3 * _PARTS,)
        if (differences > _EDGE_LEVELS).mean() < _MIN_EDGE:
            return None
        contrasts.append(differences.mean())
    return float(np.mean(contrasts))


def _peel(sides: _Sides, depths: list[int]) -> list[int] | None:
    """The depths behind the outermost band; None if there is none."""
    colors = []
    for side in range(4):
        strip = sides.part_means(side, depths, 0, 2, _PARTS).mean(0, keepdims=True)
        is_even, means = _evenness(strip)
        if not is_even[0]:
            return None
        colors.append(means[0])
    if np.ptp(np.stack(colors), axis=0).max() > _LIGHT_LEVELS:
        return None
    size = sides.inner_size(depths)
    widths = []
    for side, color in enumerate(colors):
        rows = sides.part_means(side, depths, 0, size[side // 2] // 2, _PARTS)
        is_even, means = _evenness(rows)
        others = np.flatnonzero(~is_even | (np.abs(means - color).max(1) > _EVEN_LEVELS))
        widths.append(max(1, int(others[0]) if len(others) else len(rows)))
    if max(widths) - min(widths) <= _MIXED_PX:  # stay at the same depth of a profile on all sides
        widths = [min(widths)] * 4
    return [depth + width for depth, width in zip(depths, widths, strict=True)]


def _evenness(rows: _Means) -> tuple[NDArray[np.bool_], _Means]:
    """Whether each row is even along its side, by its parts (rows, parts, 3), and its mean color.

    The outermost parts do not count: they may lie in the next side's band. The light may change
    along the side.
    """
    parts = rows[:, 1:-1]
    at = np.arange(parts.shape[1]) - (parts.shape[1] - 1) / 2
    slopes = np.einsum("p,rpc->rc", at, parts) / (at @ at)
    rest = np.sort(parts - at[:, None] * slopes[:, None], axis=1)
    spread = (rest[:, -2] - rest[:, 1]).max(1)
    change = np.abs(slopes).max(1) * len(at)
    return (spread <= _EVEN_LEVELS) & (change <= _LIGHT_LEVELS), parts.mean(1)


def _upright_box(found: _Found, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest upright box inside the painting, in px of the copy."""
    left, top, right, bottom = found.box
    width, height = right - left, bottom - top
    turn = radians(found.degrees)
    s, c = abs(sin(turn)), cos(turn)
    # The corners of the largest one lie on all four sides, for turns of a few degrees.
    across, down = (
        (width * c - height * s) / cos(2 * turn),
        (height * c - width * s) / cos(2 * turn),
    )
    x, y = (left + right - size[0]) / 2, (top + bottom - size[1]) / 2  # from the middle
    x, y = c * x - sin(turn) * y, sin(turn) * x + c * y
    x, y = x + size[0] / 2, y + size[1] / 2
    return x - across / 2, y - down / 2, x + across / 2, y + down / 2
