"""Draws a color woodcut: a mountain, a red sun, and waves like scales.

Each block prints one flat color with the grain of its wood, slightly misaligned. The sky gets paler
toward the horizon. The last block prints the black lines.
"""

import numpy as np
from noise import Array, blur, mix, noise, pixel_grid, ramp, rgb, to_bytes
from PIL import Image

PAPER, SKY, DUSK, ROCK, SNOW, RED, DEEP, TEAL, FOAM, PINE, INK = rgb(
    "f3e8d0 2f6a9c e7a27a 5b6f8f f7efdd c8372d 1d4068 3f86a0 ece3cc 2f5a48 15161c"
)
SCALE = 0.085


def mountain(x: Array, y: Array) -> tuple[Array, Array]:
    """Return each pixel's depth below the outline and below the snow line."""
    outline = (
        0.15 + 0.62 * np.abs(x - 0.52) ** 1.12 * 0.82 + 0.012 * (noise(x * 14, 0 * x, 2) - 0.5)
    )
    outline = np.maximum(outline, 0.172 + 0.012 * np.sin(x * 70))
    teeth = 0.30 + 0.05 * np.abs(((x * 11) % 2) - 1) + 0.05 * (noise(x * 22, 0 * x + 3, 2) - 0.5)
    return y - outline, y - np.where(y - outline > 0, teeth, 9)


def lines(phase: Array, width: Array) -> Array:
    """Parallel lines: 1 on a line; `width` is the line's share of the period."""
    off = np.abs((phase % 1) - 0.5) * 2
    return ramp(off, 1.05 - width, 1.12 - width)


def scales(x: Array, y: Array, top: float) -> tuple[Array, Array]:
    """Waves as overlapping disks: each pixel's distance from its disk's center (0..1), and row."""
    best, rows = np.full_like(x, 9), np.zeros_like(x)
    swell = 0.02 * np.sin(x * 4.2 + 1)
    for row in range(int((1.3 - top) / (SCALE * 0.5)), -1, -1):
        middle_y = top + SCALE * 0.62 + row * SCALE * 0.5 + swell
        middle_x = (np.floor(x / (2 * SCALE) - row % 2 * 0.5) + 0.5 + row % 2 * 0.5) * 2 * SCALE
        far = np.hypot(x - middle_x, (y - middle_y)) / SCALE
        inside = (far < 1) & (y < middle_y + SCALE)
        free = best > 1
        best, rows = np.where(inside & free, far, best), np.where(inside & free, row, rows)
    return best, rows


def cloud(x: Array, y: Array) -> Array:
    """Return the mask of the clouds: long bands with round ends."""
    there = np.zeros_like(x, bool)
    for left, right, level, thick in (
        (-0.1, 0.34, 0.36, 0.020),
        (0.06, 0.50, 0.405, 0.016),
        (0.86, 1.5, 0.43, 0.020),
        (0.98, 1.22, 0.385, 0.016),
        (0.72, 0.96, 0.475, 0.014),
    ):
        there |= np.hypot(np.maximum(np.maximum(left - x, x - right), 0), y - level) < thick
    return there


def pines(x: Array, y: Array) -> Array:
    """Depth below the outline of the hills with their pines."""
    edge = (
        0.60
        - 0.16 * np.exp(-(((x - 1.34) / 0.22) ** 2))
        - 0.10 * np.exp(-(((x + 0.02) / 0.2) ** 2))
        + 0.03
    )
    spikes = (
        0.028
        * np.abs(((x * 34 + 2 * noise(x * 9, 0 * x)) % 2) - 1)
        * (0.5 + noise(x * 20, 0 * x + 9))
    )
    return y - edge - 0.02 + spikes


def picture(wide: int, high: int) -> Image.Image:
    """Print the picture block by block at twice its size, then reduce it."""
    x, y = pixel_grid(wide * 2, high * 2)
    wobble = 0.0016 * (noise(x * 60, y * 60, 2) - 0.5)
    x, y = x + wobble, y + wobble
    grain = noise(x * 3, y * 120 + 5 * noise(x * 1.2, y * 3, 2), 3)
    rock, snow = mountain(x, y)
    horizon = 0.63 + 0.02 * np.sin(x * 4.2 + 1)
    water = y > horizon

    wiped = ramp(y, 0.0, 0.34)[..., None]
    color = mix(mix(SKY, PAPER, wiped), mix(PAPER, DUSK, ramp(y, 0.36, 0.60)[..., None]), wiped)
    sun = np.hypot(x - 1.02, y - 0.22)
    color = mix(color, RED, (sun < 0.105)[..., None])
    body = mix(ROCK, DUSK, ramp(y, 0.36, 0.66)[..., None] * 0.85)
    color = np.where((rock > 0)[..., None], np.where((snow < 0)[..., None], SNOW, body), color)
    color = np.where(cloud(x - 0.003, y + 0.002)[..., None], FOAM, color)
    hills = pines(x, y)
    color = np.where((hills > 0.002)[..., None], PINE, color)
    far, row = scales(x, y, 0.60)
    shade = np.where((row % 3 == 0)[..., None], TEAL, DEEP)
    shade = np.where(
        (far < 0.30)[..., None],
        mix(TEAL, FOAM, 0.35),
        np.where((far > 0.86)[..., None], FOAM, shade),
    )
    color = np.where(water[..., None], shade, color)

    side = ramp(x - 0.52, -0.02, 0.04)
    hatch = (
        lines(
            (x * 1.3 + y * 0.4 - np.abs(x - 0.52) * y * 1.2) * 44,
            0.13 + 0.20 * side * ramp(y, 0.15, 0.5),
        )
        * (rock > 0.008)
        * (snow > 0.012)
    )
    hatch += (
        lines((x * 1.5 + y) * 36, 0.12)
        * (rock > 0.01)
        * (snow < -0.01)
        * side
        * (noise(x * 16, y * 30) > 0.55)
    )
    rings = lines(far * 4.0 + 0.5, 0.17 + 0.06 * noise(x * 7, y * 7)) * (far < 1.02) * water
    needles = lines(x * 46 + 3 * noise(x * 12, y * 12), 0.25 + 0.4 * noise(x * 30, y * 18)) * (
        hills > 0.012
    )
    air = (
        lines(y * 46 + 0.3 * np.sin(x * 5), 0.10 * ramp(y, 0.26, 0.02))
        * (rock < -0.006)
        * (sun > 0.112)
    )
    below = (water * 4 + (hills > 0) * 2 + (rock > 0)).astype(np.float32) + 9 * cloud(x, y) * (
        ~water
    ) * (hills < 0)
    edge = np.hypot(*np.gradient(below)) > 0
    disc = np.abs(sun - 0.105) < 0.0018
    upper = ~water & (hills < 0) & ~cloud(x, y)
    black = np.clip(
        hatch * upper + rings + needles * ~water + air * upper + disc * upper * (rock < 0), 0, 1
    )
    black = np.maximum(black, ramp(blur(edge.astype(np.float32), 2), 0.18, 0.32))
    frame = np.minimum(np.minimum(x, wide / high - x), np.minimum(y, 1 - y))
    black = np.where(frame < 0.022, 0, np.maximum(black, frame < 0.0255))
    color = np.where((frame < 0.022)[..., None], PAPER, color)

    worn = 0.16 * ramp(grain, 0.52, 0.72) + 0.08 * ramp(noise(x * 160, y * 160, 2), 0.6, 0.8)
    printed = mix(color, PAPER, worn[..., None])
    printed = mix(
        printed,
        INK,
        (black * (0.95 - 0.5 * ramp(noise(x * 120, y * 120, 2), 0.68, 0.85)))[..., None],
    )
    printed *= (0.985 + 0.05 * (noise(x * 220, y * 220, 2) - 0.5))[..., None]
    return Image.fromarray(to_bytes(printed)).resize((wide, high), Image.Resampling.LANCZOS)
