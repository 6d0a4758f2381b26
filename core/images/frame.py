"""Finds the frame around a painting: flat bands on all four sides, such as a wall, a frame, a mat.

In a result they would become bars across the picture. The inner edge of a frame is straight; a
figure on a plain ground has none. Knows no network.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Box = tuple[int, int, int, int]  # left, top, right, bottom, in px

_LONG_SIDE_PX = 256  # of the copy that is searched
_FLAT_LEVELS = 12.0  # largest standard deviation of a color along a band, of 255
_SAME_LEVELS = 24.0  # largest difference between the colors of one band's sides
_MIN_SHARE = 0.02  # of the picture's sides: a thinner margin is left as it is
_MIN_AREA = 0.15  # of the picture: what is smaller is no painting in a frame
_MIN_EDGE = 0.7  # share of the inner edge along which the painting differs from the band

_Pixels = NDArray[np.float32]  # (H, W, 3)


def find_painting(picture: Image.Image) -> Box | None:
    """The box of the painting inside its frame; None if there is no frame.

    Only bands of one color on all four sides count. A frame with a pattern is not found.
    """
    factor = min(1.0, _LONG_SIDE_PX / max(picture.size))
    size = tuple(max(1, round(side * factor)) for side in picture.size)
    small = picture.convert("RGB").resize((size[0], size[1]), Image.Resampling.BOX)
    pixels = np.asarray(small, np.float32)
    height, width = pixels.shape[:2]
    top, bottom, left, right = 0, height, 0, width
    color = pixels[0, 0]  # of the innermost band
    while bottom - top > 2 and right - left > 2:
        inside = pixels[top:bottom, left:right]
        band = _band(inside)
        # Between two bands the copy may have a row that is a mixture of both.
        if not any(band) and min(inside.shape[:2]) > 4 and any(_band(inside[1:-1, 1:-1])):
            band = (1, 1, 1, 1)
        if not any(band):
            break
        color = np.median(inside[:1].reshape(-1, 3), axis=0)
        top, bottom = top + band[0], bottom - band[1]
        left, right = left + band[2], right - band[3]
    margins = (top / height, 1 - bottom / height, left / width, 1 - right / width)
    area = (bottom - top) * (right - left) / (height * width)
    if min(margins) < _MIN_SHARE or area < _MIN_AREA or bottom - top <= 2 or right - left <= 2:
        return None
    if not _has_straight_edges(pixels[top:bottom, left:right], color):
        return None
    # One px of the copy more on each side: it is a mixture of frame and painting.
    scale = picture.width / width, picture.height / height
    return (
        round((left + 1) * scale[0]),
        round((top + 1) * scale[1]),
        round((right - 1) * scale[0]),
        round((bottom - 1) * scale[1]),
    )


def _has_straight_edges(inside: _Pixels, color: NDArray[np.float32]) -> bool:
    """Whether a picture differs from the color around it along most of each of its sides."""
    for side in _sides(inside):
        line = side[1 if len(side) > 2 else 0]  # the first row may be a mixture
        differs = np.abs(line - color).max(1) > _SAME_LEVELS  # (W,)
        if differs.mean() < _MIN_EDGE:
            return False
    return True


def _sides(pixels: _Pixels) -> list[_Pixels]:
    """The picture with its top, bottom, left and right side as the first row."""
    across = pixels.swapaxes(0, 1)
    return [pixels, pixels[::-1], across, across[::-1]]


def _band(pixels: _Pixels) -> tuple[int, int, int, int]:
    """The widths of the outermost band: at the top, bottom, left and right. 0 if there is none."""
    sides = _sides(pixels)
    edges = np.stack([side[0].mean(0) for side in sides])  # (4, 3)
    is_flat = all(side[0].std(0).max() <= _FLAT_LEVELS for side in sides)
    if not is_flat or np.ptp(edges, axis=0).max() > _SAME_LEVELS:
        return 0, 0, 0, 0
    top, bottom, left, right = (_width(side, edges.mean(0)) for side in sides)
    return top, bottom, left, right


def _width(side: _Pixels, color: NDArray[np.float32]) -> int:
    """The number of rows, from the first one, that are flat and of this color; at least 1."""
    is_flat = side.std(1).max(1) <= _FLAT_LEVELS  # (H,)
    is_same = np.abs(side.mean(1) - color).max(1) <= _SAME_LEVELS
    others = np.flatnonzero(~(is_flat & is_same))
    return max(1, min(int(others[0]) if len(others) else len(side), len(side) // 2))
