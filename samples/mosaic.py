"""A mosaic: the sun over the sea, a sail, and a border, laid in stones.

It knows how stones are laid: in rings about the sun, in rows along the waves, each cut a bit differently, with mortar
between. It does not know brushes, networks or any file; the same stones come out again.
"""

import numpy as np
from noise import Array, bytes_of, chance, mix, noise, ramp, rgb, sheet
from PIL import Image

STONE = 0.021  # a side, in picture heights
SUN = (0.86, 0.36)
GOLD = rgb("fff3c4 fbd75e f4b23a e58a2e d5602b")
SKY = rgb("f0b574 e6998a a4a6c0 6c9ac0 3f7fae 2c6499")
SEA = rgb("103a5c 17577a 1f7a8c 3aa0a0 8ccbbb e8dfb0")
MORTAR = rgb("a99c85")[0]


def palette(colors: Array, tone: Array) -> Array:
    """The stones are sorted: of the colors that there are, the one that is nearest."""
    return colors[np.clip(np.rint(tone * (len(colors) - 1)), 0, len(colors) - 1).astype(int)]


class Laid:
    """Rows and places of stones over the whole sheet: which stone a dot is in, and how far from its edges."""

    def __init__(self, row: Array, along: Array, per_row: Array | float, salt: int) -> None:
        self.row = np.floor(row).astype(np.int64)
        self.salt = salt
        shifted = along * per_row + chance(self.row, salt=salt)
        self.place = np.floor(shifted).astype(np.int64)
        across, down = shifted - self.place, row - self.row
        gap = [0.045 + 0.075 * chance(self.row, self.place, salt=salt + k) for k in range(4)]
        slant = (chance(self.row, self.place, salt=salt + 9) - 0.5) * 0.16
        a, b = across + slant * (down - 0.5), down - slant * (across - 0.5)
        self.depth = np.minimum.reduce([a - gap[0], 1 - gap[1] - a, b - gap[2], 1 - gap[3] - b])
        self.tilt = (a - 0.5) * (chance(self.row, self.place, salt=salt + 5) - 0.5) + (
            b - 0.5
        ) * 0.3

    def odds(self, salt: int) -> Array:
        """A number of 0..1 for each stone."""
        return chance(self.row, self.place, salt=self.salt + salt)


def sky(x: Array, y: Array) -> tuple[Laid, Array]:
    """Rings about the sun; the sun is the innermost of them, and every other ray goes on outward."""
    dx, dy = x - SUN[0], y - SUN[1]
    far, turn = np.hypot(dx, dy), np.arctan2(dy, dx) / (2 * np.pi) + 0.5
    rings = np.floor(far / STONE)
    laid = Laid(far / STONE, turn, np.maximum(3, np.rint(2 * np.pi * (rings + 0.5))), 100)
    middle = (laid.row + 0.5) * STONE
    ray = np.cos(2 * np.pi * 12 * turn) > 0.35 * ramp(middle, 0.1, 0.5)
    glow = palette(SKY, ramp(middle, 0.12, 0.95) + 0.35 * (laid.odds(1) - 0.5) - 0.10 * ray)
    beam = palette(GOLD, ramp(middle, 0.08, 0.55) + 0.4 * (laid.odds(2) - 0.5))
    color = np.where((ray & (middle < 0.34) & (middle > 0.135))[..., None], beam, glow)
    disc = palette(GOLD[:4], middle / 0.12 + 0.35 * (laid.odds(3) - 0.5))
    return laid, np.where((middle < 0.125)[..., None], disc, color)


def sea(x: Array, y: Array) -> tuple[Laid, Array]:
    """Rows that rise and fall with the swell, and the sun's path on them."""
    swell = 0.022 * np.sin(x * 9) + 0.012 * np.sin(x * 17 + 2)
    depth = (y - 0.66 + swell * ramp(y, 0.66, 0.8)) / STONE
    laid = Laid(depth, x / STONE * 0.8, 1.0, 200)
    crest = 0.5 + 0.5 * np.sin(laid.row * 1.1 + 3 * np.sin(x * 6 + laid.row * 0.4))
    tone = 0.10 + 0.5 * crest * crest + 0.3 * (laid.odds(1) - 0.5)
    path = np.exp(-(((x - SUN[0]) / (0.05 + 0.02 * laid.row / 5)) ** 2)) * (laid.odds(2) > 0.25)
    return laid, mix(
        palette(SEA, tone), palette(GOLD, 0.2 + 0.6 * laid.odds(3)), (path > 0.45)[..., None]
    )


def sail(x: Array, y: Array) -> tuple[Array, Laid, Array]:
    """Where the boat is, its stones in straight rows, and their colors."""
    left = (x > 0.30) & (y > 0.26) & (y < 0.66) & (x < 0.30 + (y - 0.26) * 0.46)
    right = (x < 0.285) & (y > 0.33) & (y < 0.66) & (x > 0.285 - (y - 0.33) * 0.42)
    hull = (y > 0.685) & (y < 0.76) & (np.abs(x - 0.30) < 0.24 - (y - 0.685) * 1.4)
    laid = Laid(y / STONE * 1.05, x / STONE, 1.05, 300)
    canvas = palette(rgb("fff8e6 f3e3c0 e3cda2"), laid.odds(1))
    stripes = np.where(
        (laid.row % 6 < 2)[..., None], palette(rgb("b8322a cf4a35 8f2420"), laid.odds(2)), canvas
    )
    color = np.where(
        hull[..., None],
        palette(rgb("4a2a1c 6b3d25 35201a"), laid.odds(3)),
        np.where(left[..., None], canvas, stripes),
    )
    return left | right | hull, laid, color


def border(x: Array, y: Array, wide: float) -> tuple[Array, Laid, Array]:
    """Four rows of stones about it all, in steps of red, white and blue."""
    inward = np.minimum(np.minimum(x, wide - x), np.minimum(y, 1 - y))
    upright = np.minimum(x, wide - x) < np.minimum(y, 1 - y)
    laid = Laid(inward / STONE, np.where(upright, y, x) / STONE, 1.0, 400)
    step = (laid.place + laid.row) % 8
    tone = np.select([laid.row == 0, laid.row == 3, step < 3, step < 6], [0, 0, 1, 2], 3)
    shades = rgb("1d3b5c b23a2c f2e6cc d9a441")[tone] * (0.86 + 0.28 * laid.odds(4))[..., None]
    return inward < 4 * STONE, laid, shades


def picture(wide: int, high: int) -> Image.Image:
    """The whole wall, at twice its size, under a low lamp."""
    x, y = sheet(wide * 2, high * 2)
    parts = [
        (np.ones_like(x, bool), *sky(x, y)),
        (y > 0.66, *sea(x, y)),
        sail(x, y),
        border(x, y, wide / high),
    ]
    color, depth, tilt = np.zeros((*x.shape, 3), np.float32), np.zeros_like(x), np.zeros_like(x)
    for where, laid, shades in parts:
        seam = np.where(where, laid.depth, depth)
        color[where], depth, tilt[where] = shades[where], seam, laid.tilt[where]
        tilt[where] += 0.25 * (laid.odds(7)[where] - 0.5)
    face = ramp(depth, 0.0, 0.05)
    grain = 0.06 * (noise(x * 330, y * 330, 2) - 0.5)
    stone = color * (1 + 0.30 * tilt + grain + 0.20 * (ramp(depth, 0.0, 0.12) - 0.75))[..., None]
    mortar = MORTAR * (0.72 + 0.5 * (noise(x * 200, y * 200, 2) - 0.5))[..., None]
    return Image.fromarray(bytes_of(mix(mortar, stone, face[..., None]))).resize(
        (wide, high), Image.Resampling.LANCZOS
    )
