"""Draws a mosaic: the sun over the sea, a sail, and a border.

The stones lie in rings around the sun and in rows along the waves. Each has a slightly different
cut, with mortar between. The result is always the same.
"""

import numpy as np
from noise import Array, hashed_random, mix, noise, pixel_grid, ramp, rgb, to_bytes
from PIL import Image

STONE = 0.021  # a side, in picture heights
SUN = (0.86, 0.36)
GOLD = rgb("fff3c4 fbd75e f4b23a e58a2e d5602b")
SKY = rgb("f0b574 e6998a a4a6c0 6c9ac0 3f7fae 2c6499")
SEA = rgb("103a5c 17577a 1f7a8c 3aa0a0 8ccbbb e8dfb0")
MORTAR = rgb("a99c85")[0]


def palette(colors: Array, tone: Array) -> Array:
    """Return the color of the palette for each tone from 0 to 1."""
    return colors[np.clip(np.rint(tone * (len(colors) - 1)), 0, len(colors) - 1).astype(int)]


class StoneGrid:
    """A grid of stones over the picture: each pixel's stone and its distance from the edges."""

    def __init__(self, row: Array, along: Array, per_row: Array | float, salt: int) -> None:
        self.row = np.floor(row).astype(np.int64)
        self.salt = salt
        shifted = along * per_row + hashed_random(self.row, salt=salt)
        self.place = np.floor(shifted).astype(np.int64)
        across, down = shifted - self.place, row - self.row
        gap = [0.045 + 0.075 * hashed_random(self.row, self.place, salt=salt + k) for k in range(4)]
        slant = (hashed_random(self.row, self.place, salt=salt + 9) - 0.5) * 0.16
        a, b = across + slant * (down - 0.5), down - slant * (across - 0.5)
        self.depth = np.minimum.reduce([a - gap[0], 1 - gap[1] - a, b - gap[2], 1 - gap[3] - b])
        self.tilt = (a - 0.5) * (hashed_random(self.row, self.place, salt=salt + 5) - 0.5) + (
            b - 0.5
        ) * 0.3

    def random_per_stone(self, salt: int) -> Array:
        """Return a number from 0 to 1 for each stone."""
        return hashed_random(self.row, self.place, salt=self.salt + salt)


def sky(x: Array, y: Array) -> tuple[StoneGrid, Array]:
    """Rings around the sun, which is the innermost of them, with rays outward."""
    dx, dy = x - SUN[0], y - SUN[1]
    far, turn = np.hypot(dx, dy), np.arctan2(dy, dx) / (2 * np.pi) + 0.5
    rings = np.floor(far / STONE)
    stones = StoneGrid(far / STONE, turn, np.maximum(3, np.rint(2 * np.pi * (rings + 0.5))), 100)
    middle = (stones.row + 0.5) * STONE
    ray = np.cos(2 * np.pi * 12 * turn) > 0.35 * ramp(middle, 0.1, 0.5)
    glow = palette(
        SKY, ramp(middle, 0.12, 0.95) + 0.35 * (stones.random_per_stone(1) - 0.5) - 0.10 * ray
    )
    beam = palette(GOLD, ramp(middle, 0.08, 0.55) + 0.4 * (stones.random_per_stone(2) - 0.5))
    color = np.where((ray & (middle < 0.34) & (middle > 0.135))[..., None], beam, glow)
    disc = palette(GOLD[:4], middle / 0.12 + 0.35 * (stones.random_per_stone(3) - 0.5))
    return stones, np.where((middle < 0.125)[..., None], disc, color)


def sea(x: Array, y: Array) -> tuple[StoneGrid, Array]:
    """Rows that follow the swell, with the sun's reflection on them."""
    swell = 0.022 * np.sin(x * 9) + 0.012 * np.sin(x * 17 + 2)
    depth = (y - 0.66 + swell * ramp(y, 0.66, 0.8)) / STONE
    stones = StoneGrid(depth, x / STONE * 0.8, 1.0, 200)
    crest = 0.5 + 0.5 * np.sin(stones.row * 1.1 + 3 * np.sin(x * 6 + stones.row * 0.4))
    tone = 0.10 + 0.5 * crest * crest + 0.3 * (stones.random_per_stone(1) - 0.5)
    path = np.exp(-(((x - SUN[0]) / (0.05 + 0.02 * stones.row / 5)) ** 2)) * (
        stones.random_per_stone(2) > 0.25
    )
    return stones, mix(
        palette(SEA, tone),
        palette(GOLD, 0.2 + 0.6 * stones.random_per_stone(3)),
        (path > 0.45)[..., None],
    )


def sail(x: Array, y: Array) -> tuple[Array, StoneGrid, Array]:
    """Return the mask of the boat, its stones in straight rows, and their colors."""
    left = (x > 0.30) & (y > 0.26) & (y < 0.66) & (x < 0.30 + (y - 0.26) * 0.46)
    right = (x < 0.285) & (y > 0.33) & (y < 0.66) & (x > 0.285 - (y - 0.33) * 0.42)
    hull = (y > 0.685) & (y < 0.76) & (np.abs(x - 0.30) < 0.24 - (y - 0.685) * 1.4)
    stones = StoneGrid(y / STONE * 1.05, x / STONE, 1.05, 300)
    canvas = palette(rgb("fff8e6 f3e3c0 e3cda2"), stones.random_per_stone(1))
    stripes = np.where(
        (stones.row % 6 < 2)[..., None],
        palette(rgb("b8322a cf4a35 8f2420"), stones.random_per_stone(2)),
        canvas,
    )
    color = np.where(
        hull[..., None],
        palette(rgb("4a2a1c 6b3d25 35201a"), stones.random_per_stone(3)),
        np.where(left[..., None], canvas, stripes),
    )
    return left | right | hull, stones, color


def border(x: Array, y: Array, wide: float) -> tuple[Array, StoneGrid, Array]:
    """Four rows of stones around the picture, in steps of red, white and blue."""
    inward = np.minimum(np.minimum(x, wide - x), np.minimum(y, 1 - y))
    upright = np.minimum(x, wide - x) < np.minimum(y, 1 - y)
    stones = StoneGrid(inward / STONE, np.where(upright, y, x) / STONE, 1.0, 400)
    step = (stones.place + stones.row) % 8
    tone = np.select([stones.row == 0, stones.row == 3, step < 3, step < 6], [0, 0, 1, 2], 3)
    shades = (
        rgb("1d3b5c b23a2c f2e6cc d9a441")[tone]
        * (0.86 + 0.28 * stones.random_per_stone(4))[..., None]
    )
    return inward < 4 * STONE, stones, shades


def picture(wide: int, high: int) -> Image.Image:
    """Draw the mosaic at twice its size under a low lamp, then reduce it."""
    x, y = pixel_grid(wide * 2, high * 2)
    parts = [
        (np.ones_like(x, bool), *sky(x, y)),
        (y > 0.66, *sea(x, y)),
        sail(x, y),
        border(x, y, wide / high),
    ]
    color, depth, tilt = np.zeros((*x.shape, 3), np.float32), np.zeros_like(x), np.zeros_like(x)
    for where, stones, shades in parts:
        seam = np.where(where, stones.depth, depth)
        color[where], depth, tilt[where] = shades[where], seam, stones.tilt[where]
        tilt[where] += 0.25 * (stones.random_per_stone(7)[where] - 0.5)
    face = ramp(depth, 0.0, 0.05)
    grain = 0.06 * (noise(x * 330, y * 330, 2) - 0.5)
    stone = color * (1 + 0.30 * tilt + grain + 0.20 * (ramp(depth, 0.0, 0.12) - 0.75))[..., None]
    mortar = MORTAR * (0.72 + 0.5 * (noise(x * 200, y * 200, 2) - 0.5))[..., None]
    return Image.fromarray(to_bytes(mix(mortar, stone, face[..., None]))).resize(
        (wide, high), Image.Resampling.LANCZOS
    )
