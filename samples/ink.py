"""Draws an ink painting: mountains in the mist behind bamboo.

One ink of varying darkness fades into mist, a dry brush lets the paper through, and a red seal is
the only color. The result is always the same.
"""

import numpy as np
from noise import Array, blur, mix, noise, pixel_grid, ramp, rgb, to_bytes
from PIL import Image, ImageDraw

PAPER, INK, SEAL = rgb("efe6d2 16171a b3261c")


def mountains(x: Array, y: Array) -> Array:
    """Ink density of five ranges: dark at the ridge, rough below it, fading into the mist."""
    ink = np.zeros_like(x)
    for k, (level, tall, dark) in enumerate(
        (
            (0.30, 0.14, 0.13),
            (0.40, 0.34, 0.24),
            (0.52, 0.26, 0.36),
            (0.66, 0.30, 0.58),
            (0.82, 0.22, 0.85),
        )
    ):
        far = x * (2.6 + 0.5 * k) + 13.7 * k
        peak = 1 - np.abs(2 * noise(far, 0 * far + 7.3 * k, 1) - 1)
        ridge = (
            level
            - tall * (0.75 * peak**2 + 0.30 * (noise(far * 3, 0 * far + k, 3) - 0.3))
            + 0.004 * noise(far * 40, 0 * far, 2)
        )
        below, under = y - ridge, np.maximum(y - ridge, 0)
        slope = noise(x * 26 + below * 18 + 9 * k, y * 7 - below * 11 + k, 4)
        crag = ramp(slope, 0.46, 0.66) * np.exp(-under / (0.10 + 0.03 * k))
        wash = (
            np.exp(-under / (0.05 + 0.05 * noise(x * 3 + k, y * 2, 2))) * 0.55
            + 0.75 * crag
            + 0.6 * np.exp(-under / 0.006)
        )
        mist = ramp(noise(x * 1.6 + 5 * k, y * 4 + k, 3), 0.30, 0.62)
        stays = np.where(below > 0, 0.25 + 0.75 * ramp(below, 0.20 + 0.12 * mist, 0.0), 1)
        ink = np.where(
            below > 0,
            ink * (1 - ramp(below, 0, 0.004)) * stays + dark * wash * (1 - 0.45 * mist),
            ink,
        )
    return ink


class Brush:
    """Draws filled strokes of a given darkness on a grayscale image."""

    def __init__(self, wide: int, high: int) -> None:
        self.high, self.image = high, Image.new("L", (wide, high))
        self.canvas = ImageDraw.Draw(self.image)

    def shape(self, points: Array, dark: float) -> None:
        """Fill a polygon; points has shape (n, 2), in picture heights."""
        self.canvas.polygon([tuple(point) for point in points * self.high], fill=int(255 * dark))

    def leaf(self, x: float, y: float, turn: float, long: float, dark: float) -> None:
        """Draw a leaf: widest near its base, a hair at its tip."""
        t = np.linspace(0, 1, 24)
        wide = long * 0.085 * np.sin(np.pi * t**0.55) ** 1.1
        bend = 0.16 * t * t * long
        ax, ay = np.cos(turn), np.sin(turn)
        middle = np.stack([x + ax * t * long, y + ay * t * long + bend], 1)
        aside = np.array([-ay, ax]) * wide[:, None]
        self.shape(np.r_[middle + aside, (middle - aside)[::-1]], dark)

    def stalk(self, x: float, top: float, lean: float, wide: float, dark: float) -> None:
        """Draw a stalk: segments that widen at both ends, with gaps between them."""
        y = 1.05
        while y > top:
            end = y - 0.15 - 0.05 * np.sin(y * 9)
            t = np.linspace(0, 1, 12)
            half = wide * (0.78 + 0.34 * np.abs(2 * t - 1) ** 5)
            down = y + (end - y) * t
            middle = x + lean * (1.05 - down) ** 1.3
            left, right = np.stack([middle - half, down], 1), np.stack([middle + half, down], 1)
            self.shape(np.r_[left, right[::-1]], dark * (0.8 + 0.2 * np.sin(y * 40)))
            y = end - 0.009


def bamboo(wide: int, high: int, rng: np.random.Generator) -> Array:
    """Draw three stalks at the right and their leaves, pale ones first."""
    brush = Brush(wide, high)
    across = wide / high
    for x, top, lean, thick, dark in (
        (1.27, -0.1, -0.10, 0.010, 0.35),
        (1.10, 0.12, 0.10, 0.008, 0.5),
        (1.19, -0.1, -0.05, 0.016, 0.80),
    ):
        brush.stalk(x, top, lean, thick, dark)
    for dark in (0.32, 0.55, 0.9, 0.97):
        for _ in range(6):
            x, y = across - rng.uniform(0.03, 0.50), rng.uniform(0.02, 0.52)
            for turn in rng.uniform(0.15, 2.3, rng.integers(3, 5)):
                brush.leaf(
                    x,
                    y,
                    float(turn),
                    float(rng.uniform(0.10, 0.21)),
                    dark * float(rng.uniform(0.85, 1)),
                )
    return np.asarray(brush.image, np.float32) / 255


def picture(wide: int, high: int) -> Image.Image:
    """Draw the picture at twice its size, then reduce it."""
    x, y = pixel_grid(wide * 2, high * 2)
    rng = np.random.default_rng(12)
    strokes = bamboo(wide * 2, high * 2, rng)
    dry = noise(x * 170 + y * 60, y * 50 - x * 30, 2)
    strokes = blur(strokes, 1) * (1 - 0.5 * ramp(dry, 0.64, 0.80)) + 0.10 * blur(strokes, 10)
    moon = np.hypot(x - 0.34, y - 0.17)
    halo = 0.10 * ramp(moon, 0.075, 0.080) * np.exp(-np.maximum(moon - 0.078, 0) / 0.10)
    ink = 1 - (1 - np.clip(mountains(x, y) + halo, 0, 1)) * (1 - strokes)
    fiber = noise(x * 60, y * 240, 3) + noise(x * 240 + 5, y * 60, 3) - 1
    ink *= 1 + 0.5 * fiber + 0.35 * (noise(x * 130, y * 130, 2) - 0.5)
    paper = (
        PAPER
        * (1 + 0.045 * fiber - 0.10 * ramp(np.hypot(x - wide / high / 2, y - 0.5), 0.35, 0.95))[
            ..., None
        ]
    )
    color = mix(paper, INK, np.clip(ink, 0, 0.97)[..., None])
    dx, dy = (x - 0.11) / 0.034, (y - 0.86) / 0.042
    marks = (np.abs(np.sin(dx * 5.2 + 0.4) * np.cos(dy * 4.1)) < 0.22) | (np.abs(dy) < 0.10)
    pressed = (np.maximum(np.abs(dx), np.abs(dy)) < 1) & ~(
        marks & (np.maximum(np.abs(dx), np.abs(dy)) < 0.78)
    )
    stamp = pressed * (0.92 - 0.5 * ramp(noise(x * 90, y * 90, 2), 0.62, 0.8))
    return Image.fromarray(to_bytes(mix(color, SEAL, stamp[..., None]))).resize(
        (wide, high), Image.Resampling.LANCZOS
    )
