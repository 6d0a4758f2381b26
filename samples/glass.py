"""Draws a stained glass window: sunrise over hills.

The picture is divided into numbered panes. A pane has one color, streaks and bubbles, and light
from behind; lead runs wherever two panes meet. The result is always the same.
"""

import numpy as np
from noise import Array, blur, hashed_random, mix, noise, pixel_grid, ramp, rgb, to_bytes
from PIL import Image

SUN = (0.66, 0.50)
RAYS = rgb("f9d65c f2a73b e8702f c93f38 8e2a5b 4a2a72 2b3b8e 2f6db0")
HILLS = rgb("1f6f5c 3c9a55 8fbf45 146079 0f4d63 2c8f86")
WATER = rgb("1b5fa8 2a86c9 5cb4dd 174a8c 8fd0e6")
BLOOM = rgb("d42f4b f0608a f7b7c8 b01f3c")


def panes(x: Array, y: Array) -> tuple[Array, Array]:
    """Return each pixel's pane number and the color of that pane."""
    dx, dy = x - SUN[0], y - SUN[1]
    far, turn = (
        np.hypot(dx, dy) + 0.006 * np.sin(9 * np.arctan2(dy, dx)),
        np.arctan2(dy, dx) / (2 * np.pi) + 0.5,
    )
    ring = np.digitize(far, (0.07, 0.13, 0.21, 0.31, 0.43, 0.57, 0.74))
    sector = np.floor((turn * 16 + 0.5 * (ring % 2)) % 16).astype(int)
    sector[ring == 0] = 0
    which = ring * 16 + sector
    color = RAYS[np.clip(ring + (hashed_random(which, salt=3) * 1.7 - 0.6).astype(int), 0, 7)]
    for k, (level, swing, phase, parts) in enumerate(
        ((0.56, 0.05, 0.4, 5), (0.66, 0.045, 2.6, 4), (0.73, 0.02, 1.0, 6))
    ):
        line = level + swing * np.sin(x * (4.6 - k) + phase) + 0.02 * np.sin(x * 11 + k)
        cut = np.floor(
            x * parts + 0.9 * (y - line) * (-1) ** k + 0.3 * k + 0.12 * np.sin(y * 14)
        ).astype(int)
        deep = (y > line + 0.075).astype(int)
        under = y > line
        pane = 1000 * (k + 1) + cut * 2 + deep
        which = np.where(under, pane, which)
        color = np.where(
            under[..., None], HILLS[(hashed_random(pane, salt=5) * 5.99).astype(int)], color
        )
    shore = 0.80 + 0.018 * np.sin(x * 6)
    row = np.floor((y - shore + 0.012 * np.sin(x * 13)) / 0.052).astype(int)
    cut = np.floor(x * 4 + 0.5 * (row % 2) + 0.12 * np.sin(y * 30)).astype(int)
    pane = 9000 + row * 40 + cut
    which = np.where(y > shore, pane, which)
    color = np.where(
        (y > shore)[..., None], WATER[(hashed_random(pane, salt=8) * 4.99).astype(int)], color
    )
    return flowers(x, y, which, color)


def flowers(x: Array, y: Array, which: Array, color: Array) -> tuple[Array, Array]:
    """Add lilies at both sides, each petal a pane of its own."""
    for k, (at_x, at_y, size) in enumerate(
        ((0.20, 0.40, 0.16), (0.11, 0.70, 0.11), (1.16, 0.66, 0.14), (1.26, 0.32, 0.10))
    ):
        stem = (np.abs(x - at_x - 0.04 * np.sin((y - at_y) * 7)) < 0.011) & (y > at_y)
        which, color = (
            np.where(stem, 20_000 + k, which),
            np.where(stem[..., None], rgb("2f7d3a")[0], color),
        )
        dx, dy = (x - at_x) / size, (y - at_y) / size
        turn = np.arctan2(dy, dx) / (2 * np.pi) * 6 + 0.25 + k * 0.3
        petal = np.floor(turn).astype(int) % 6
        reach = 0.45 + 0.55 * np.sin(np.pi * (turn % 1)) ** 0.6
        far = np.hypot(dx, dy)
        pane = 30_000 + k * 20 + petal + 6 * (far < 0.55 * reach)
        inside = far < reach
        which = np.where(inside, pane, which)
        color = np.where(
            inside[..., None], BLOOM[(hashed_random(pane, salt=2) * 3.99).astype(int)], color
        )
        heart = far < 0.2
        which, color = (
            np.where(heart, 40_000 + k, which),
            np.where(heart[..., None], rgb("f9d65c")[0], color),
        )
    return which, color


def picture(wide: int, high: int) -> Image.Image:
    """Draw the window at twice its size, then reduce it."""
    x, y = pixel_grid(wide * 2, high * 2)
    x, y = (
        x + 0.006 * (noise(x * 14, y * 14, 2) - 0.5),
        y + 0.006 * (noise(x * 14 + 40, y * 14, 2) - 0.5),
    )
    which, color = panes(x, y)
    seam = np.zeros_like(x)
    seam[:-1] += which[:-1] != which[1:]
    seam[:, :-1] += which[:, :-1] != which[:, 1:]
    frame = np.minimum(np.minimum(x, wide / high - x), np.minimum(y, 1 - y)) < 0.014
    near = blur(np.minimum(seam, 1), 4) * 9
    lead = ramp(near, 0.55, 0.85)
    streak = (
        noise(x * 7 + 3 * hashed_random(which, salt=1), y * 60, 3)
        - 0.5
        + 0.6 * (noise(x * 40, y * 40, 2) - 0.5)
    )
    glow = 0.72 + 0.5 * np.exp(-((x - SUN[0]) ** 2 + (y - SUN[1]) ** 2) / 0.28) + 0.42 * streak
    glow += 0.20 * (hashed_random(which, salt=4) - 0.5) - 0.9 * np.clip(
        blur(np.minimum(seam, 1), 14) * 4, 0, 0.30
    )
    light = color ** (1.25 - 0.3 * streak[..., None]) * glow[..., None]
    down, along = np.gradient(blur(np.minimum(near, 1.5), 2))
    metal = (0.085 + 0.55 * np.clip(-(down + along), 0, 0.5) + 0.03 * noise(x * 200, y * 200))[
        ..., None
    ] * rgb("e6ecf5")[0]
    window = mix(light, metal, np.maximum(lead, frame)[..., None])
    halo = np.stack([blur(window[..., band], 12) for band in range(3)], -1)
    return Image.fromarray(to_bytes(window * 0.93 + 0.16 * halo)).resize(
        (wide, high), Image.Resampling.LANCZOS
    )
