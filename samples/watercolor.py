"""Draws a watercolor: poppies in a meadow.

A wash is transparent pigment: thin and even, darker at the edge where it dried, grainy in the
paper's hollows, and blurred where the paper was wet.
"""

from copy import copy
from itertools import pairwise

import numpy as np
from noise import Array, blur, noise, pixel_grid, ramp, rgb, to_bytes
from PIL import Image

PAPER = rgb("fbf7ee")[0]
# Washes on wet paper: x, y, size, pigment, strength.
MEADOW = (
    (0.25, 0.16, 0.34, "9cc4e4", 0.9),
    (0.95, 0.10, 0.36, "86b2dd", 0.9),
    (0.62, 0.30, 0.22, "f6d9b8", 0.7),
    (1.25, 0.34, 0.20, "e9c3cf", 0.7),
    (0.15, 0.62, 0.30, "a9c57a", 0.9),
    (0.70, 0.66, 0.34, "c6cf79", 0.8),
    (1.18, 0.66, 0.30, "8fb87f", 0.9),
    (0.40, 0.92, 0.36, "5f9a68", 0.9),
    (1.00, 0.95, 0.36, "4f8a76", 0.9),
    (0.72, 0.88, 0.20, "e3cf6a", 0.7),
    (0.05, 0.90, 0.20, "5b8fa0", 0.7),
)


class Sheet:
    """Paper, and the light that its washes transmit."""

    def __init__(self, wide: int, high: int, rng: np.random.Generator) -> None:
        self.x, self.y = pixel_grid(wide, high)
        self.rng = rng
        self.tooth = noise(self.x * 150, self.y * 150, 3)
        self.light = np.ones((*self.x.shape, 3), np.float32) * PAPER

    def near(self, x: float, y: float, reach: float) -> "Sheet":
        """Return a window around a point; it shares the pixels of the sheet."""
        high = len(self.x)
        top, left = max(0, int((y - reach) * high)), max(0, int((x - reach) * high))
        part = copy(self)
        window = np.s_[
            top : max(top, int((y + reach) * high)), left : max(left, int((x + reach) * high))
        ]
        part.x, part.y, part.tooth, part.light = (
            self.x[window],
            self.y[window],
            self.tooth[window],
            self.light[window],
        )
        return part

    def lift(self, inside: Array) -> None:
        """Lighten an area almost to white paper."""
        self.light += (PAPER - self.light) * (0.88 * ramp(inside, -0.004, 0.004))[..., None]

    def warp(self, amount: float, fine: float) -> tuple[Array, Array]:
        """Return the coordinates distorted by noise, so that no edge is a perfect curve."""
        a, b = self.rng.uniform(0, 90, 2)
        dx = noise(self.x * fine + a, self.y * fine, 4) - 0.5
        dy = noise(self.x * fine + b, self.y * fine + 30, 4) - 0.5
        return self.x + amount * dx, self.y + amount * dy

    def wash(self, inside: Array, pigment: str, strength: float = 1.0, soft: float = 0.004) -> None:
        """Add a wash.

        inside: each pixel's distance within the edge, in picture heights. pigment: the color of
        white paper under this wash.
        """
        mask = ramp(inside, -soft, soft)
        if not mask.size or not mask.any():
            return
        rim = (
            np.exp(-((np.maximum(inside, 0) / 0.0045) ** 1.0)) * mask * (0.9 if soft < 0.02 else 0)
        )
        pool = noise(self.x * 4 + self.rng.uniform(0, 90), self.y * 4, 3)
        grain = 0.45 * (self.tooth - 0.5)
        density = strength * mask * (0.30 + 0.75 * pool + 0.85 * rim + grain)
        absorbs = -np.log(np.clip(rgb(pigment)[0] / PAPER, 0.01, 1))
        self.light *= np.exp(-np.clip(density, 0, 4)[..., None] * absorbs)

    def petal(self, x: float, y: float, size: float, turn: float, pigment: str) -> None:
        """Paint a petal: wide at its end, crinkled, darker toward the center."""
        if not self.x.size:
            return
        px, py = self.warp(size * 0.55, 1.9 / size)
        dx, dy = (px - x) / size, (py - y) / (size * 0.82)
        along, across = (
            dx * np.cos(turn) + dy * np.sin(turn),
            -dx * np.sin(turn) + dy * np.cos(turn),
        )
        inside = (1 - np.hypot((along - 0.52) / 0.62, across / 0.72)) * size * 0.5
        self.wash(inside, pigment, 0.9)
        self.wash(
            np.minimum(inside, 0.42 * size - 0.5 * size * np.hypot(dx, dy)), pigment, 0.5, 0.03
        )

    def line(self, points: Array, width: float, pigment: str) -> None:
        """Paint a line through the points."""
        px, py = self.warp(0.012, 9)
        near = np.full_like(px, 9)
        for (ax, ay), (bx, by) in pairwise(points):
            t = np.clip(
                ((px - ax) * (bx - ax) + (py - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2),
                0,
                1,
            )
            near = np.minimum(near, np.hypot(px - ax - t * (bx - ax), py - ay - t * (by - ay)))
        self.wash(width - near, pigment, 1.0, 0.002)


def ground(paper: Sheet) -> None:
    """Paint sky and meadow on wet paper, with white paper between."""
    for at_x, at_y, size, pigment, strength in MEADOW:
        px, py = paper.warp(0.34, 3)
        paper.wash(
            (0.8 * size - np.hypot((px - at_x) * 0.75, py - at_y)) * 0.6,
            pigment,
            0.62 * strength,
            0.035,
        )
    px, py = paper.warp(0.05, 5)
    for level, pigment in ((0.46, "8aa9c4"), (0.52, "7fa58d")):
        hill = py - level + 0.05 * np.sin(px * 4.4 + level * 40) + 0.02 * np.sin(px * 9)
        paper.wash(np.minimum(hill, 0.14 - hill) * 0.8, pigment, 0.55, 0.010)


def picture(wide: int, high: int) -> Image.Image:
    """Draw the picture at one and a half times its size, then reduce it."""
    rng = np.random.default_rng(23)
    paper = Sheet(wide * 3 // 2, high * 3 // 2, rng)
    ground(paper)
    blooms = (
        (0.36, 0.40, 0.17),
        (0.86, 0.33, 0.19),
        (0.62, 0.62, 0.13),
        (1.14, 0.56, 0.15),
        (0.14, 0.66, 0.12),
        (0.95, 0.74, 0.09),
    )
    for x, y, size in blooms:
        bend = rng.uniform(-0.08, 0.08)
        t = np.linspace(0, 1, 7)[:, None]
        paper.near(x, 0.5 + y / 2, 0.6).line(
            np.c_[x + bend * np.sin(t * 2.2), y + size * 0.3 + t * (1.03 - y)], 0.0048, "4d7a3c"
        )
        for _ in range(3):
            from_y = rng.uniform(y + 0.2, 1.0)
            side = rng.choice((-1, 1))
            leaf = np.c_[x + side * t * 0.12, from_y - 0.10 * np.sqrt(t)]
            paper.near(x, from_y, 0.2).line(leaf, 0.0055, "5f8f45")
    for x, y, size in blooms:
        flower = paper.near(x, y, size * 1.7)
        px, py = flower.warp(0.05, 6)
        flower.lift(size * 0.98 - np.hypot(px - x, (py - y) / 0.86))
        for k in range(5):
            pigment = ("ef5b3c", "e2402f", "f47a4a", "d8322f", "f0663e")[int(rng.integers(5))]
            flower.petal(
                x,
                y,
                size * float(rng.uniform(0.85, 1.05)),
                2 * np.pi * k / 5 + float(rng.uniform(0.1, 0.7)),
                pigment,
            )
        px, py = flower.warp(0.02, 14)
        flower.wash(size * 0.17 - np.hypot(px - x, py - y), "3a2a44", 1.5)
        for turn in rng.uniform(0, 2 * np.pi, 14):
            far = size * float(rng.uniform(0.22, 0.33))
            flower.wash(
                0.0045 - np.hypot(px - x - far * np.cos(turn), py - y - far * 0.85 * np.sin(turn)),
                "2c2233",
                1.3,
                0.002,
            )
    for _ in range(46):
        x, y, size = rng.uniform(0, wide / high), rng.uniform(0, 1), rng.uniform(0.001, 0.006)
        pigment = ("e2402f", "5f8f45", "86b2dd", "f47a4a")[int(rng.integers(4))]
        drop = paper.near(x, y, 0.02)
        drop.wash(size - np.hypot(drop.x - x, drop.y - y), pigment, 0.8, 0.0015)
    lit = (
        paper.light * (1 + 0.05 * (np.gradient(blur(paper.tooth, 1))[0] * 8).clip(-1, 1))[..., None]
    )
    return Image.fromarray(to_bytes(lit)).resize((wide, high), Image.Resampling.LANCZOS)
