"""Draws a night sky in thick brush strokes: the sample painting.

Strokes follow a stream function, carry two half-mixed pigments, and leave a relief of paint that is
lit at the end. The seed is fixed, so the first picture of a run is always the same.
"""

import numpy as np
from noise import Array, Index, mix, noise, ramp, to_bytes
from PIL import Image

rng = np.random.default_rng(7)
NIGHT = (
    np.array(
        (
            (8, 12, 40),
            (18, 32, 98),
            (28, 62, 150),
            (30, 104, 160),
            (62, 150, 160),
            (150, 194, 168),
            (238, 226, 160),
            (252, 204, 62),
            (244, 140, 36),
        ),
        np.float32,
    )
    / 255
)
EARTH = (
    np.array(
        (
            (8, 10, 26),
            (30, 22, 66),
            (16, 44, 74),
            (26, 74, 70),
            (66, 100, 62),
            (150, 120, 44),
            (206, 76, 30),
            (236, 130, 40),
            (250, 206, 90),
        ),
        np.float32,
    )
    / 255
)
# Vortices of the wind, and lights: x, y, radius (in picture heights), rotation, brightness.
EDDIES = (
    (0.42, 0.37, 0.20, 1.1, 0.20),
    (0.80, 0.45, 0.14, -1.2, 0.16),
    (0.12, 0.15, 0.085, 2.2, 0.75),
    (0.64, 0.13, 0.065, -2.4, 0.65),
    (1.00, 0.58, 0.05, 2.6, 0.65),
    (0.88, 0.10, 0.04, 2.4, 0.55),
    (1.10, 0.27, 0.12, 2.2, 0.85),
    (0.11, 0.55, 0.06, -2.4, 0.60),
    (0.56, 0.60, 0.035, 2.4, 0.50),
)


def shore(x: Array) -> Array:
    """Return the y at which the hills begin."""
    line: Array = (
        0.72 + 0.05 * np.sin(x * 4.1 + 0.6) + 0.10 * (noise(x * 2.3 + 5, x * 0 + 2, 2) - 0.5)
    )
    return line


def stream(x: Array, y: Array) -> Array:
    """The stream function; strokes follow its level lines: wind above the shore, swell below."""
    wind = 0.5 * y + 0.10 * np.sin(x * 5 + y * 3) + 0.22 * noise(x * 2.2 + 7, y * 3 + 1, 2)
    for across, down, size, turn, _ in EDDIES:
        far = ((x - across) ** 2 + (y - down) ** 2) / size**2
        wind += turn * size * 1.6 * np.exp(-far * 0.6)
    swell = 0.9 * (y - shore(x)) + 0.10 * noise(x * 3, y * 9, 2) + 0.015 * np.sin(x * 14 + y * 30)
    return mix(wind, swell, ramp(y - shore(x), -0.02, 0.01))


def tones(x: Array, y: Array, psi: Array) -> Array:
    """Return each pixel's place on the palette, 0..1: bands along the stream, and lights."""
    tone = 0.26 + 0.16 * np.sin(psi * 38) + 0.30 * (noise(x * 4, y * 4 + 3, 3) - 0.5)
    for across, down, size, _, bright in EDDIES:
        far = np.sqrt((x - across) ** 2 + (y - down) ** 2) / size
        tone += bright * np.exp(-far * far * 1.4) + 0.25 * bright * np.cos(far * 8) * np.exp(
            -far * 0.7
        )
    dawn = np.exp(-(((y - shore(x) + 0.04) / 0.06) ** 2))
    below = 0.27 + 0.15 * np.sin(psi * 60) + 0.35 * (noise(x * 5, y * 12, 3) - 0.5)
    below += 0.5 * ramp(noise(x * 7 + 3, y * 22, 2), 0.66, 0.80)
    return mix(tone + 0.22 * dawn, below, ramp(y - shore(x), -0.004, 0.004))


class Canvas:
    """The paint and its relief, and the fields that guide the brush; y is in picture heights."""

    def __init__(self, wide: int, high: int) -> None:
        y, x = np.mgrid[0 : 1 : high * 1j, 0 : wide / high : wide * 1j].astype(np.float32)
        psi = stream(x, y)
        down, along = np.gradient(psi)
        self.angle = np.arctan2(-along, down)
        self.tone, self.land = tones(x, y, psi), y > shore(x)
        self.paint = NIGHT[np.clip(self.tone * 8, 0, 8).astype(np.intp)]
        self.relief = 0.15 * noise(x * 300, y * 300, 2)

    def pixel_at(self, position: Array) -> tuple[Index, Index]:
        """Return the row and column of the pixel nearest to each position, within the canvas."""
        high, wide = self.tone.shape
        x, y = np.rint(position).astype(np.intp)
        return np.clip(y, 0, high - 1), np.clip(x, 0, wide - 1)

    def layer(self, width: float, length: float, count: int, least: float) -> None:
        """Paint strokes of about one size, except where the tone is much darker than least."""
        high, wide = self.tone.shape
        start: Array = rng.uniform(-0.05, 1.05, (2, count)) * ((wide,), (high,))
        start = start[
            :, self.tone[self.pixel_at(start)] + rng.normal(scale=0.2, size=count) > least
        ]
        wander, trail = rng.normal(scale=0.14, size=start.shape[1]), [start]
        for _ in range(steps := int(length / width * 2)):
            angle = self.angle[self.pixel_at(trail[-1])] + wander
            trail.append(trail[-1] + width / 2 * np.stack([np.cos(angle), np.sin(angle)]))
        for line in np.stack(trail).transpose(2, 0, 1):
            self.stroke(
                line[: int(steps * rng.uniform(0.5, 1)) + 1],
                width * float(rng.uniform(0.7, 1.25)),
            )

    def pigments(self, position: Array) -> tuple[Array, Array]:
        """Return two neighboring pigments for one stroke; now and then an unexpected one."""
        pixel = self.pixel_at(position)
        palette = EARTH if self.land[pixel] else NIGHT
        tone = self.tone[pixel] + 0.45 * (rng.random() < 0.03) + rng.normal((0, 0.10), 0.085)
        steps = np.clip(tone, 0, 1) * (len(palette) - 1)
        two = np.stack([np.interp(steps, range(len(palette)), band) for band in palette.T], 1)
        first, second = np.clip(two * rng.normal(1, 0.09, size=(2, 3)), 0, 1)
        return first, second

    def stroke(self, trail: Array, width: float) -> None:
        """Paint one stroke: streaked by bristles, dry toward its end, thick at its edges."""
        first, second = self.pigments(trail[len(trail) // 2])
        s, t, position = ribbon(trail, width)
        hair = noise(t * width * 0.35 + 99 * rng.random(), s * 2.5 + 50 * rng.random(), 2)
        inside = ((position > 0) & (position < np.array(self.tone.T.shape)[:, None, None] - 1)).all(
            0
        )
        wet = inside & (hair > 0.62 * s**3 - 0.05 + 0.25 * abs(t) ** 6 * s)
        pixels, thinness = (
            self.pixel_at(position[:, wet]),
            (0.10 + 0.3 * s**2 + 0 * t)[wet][:, None],
        )
        self.paint[pixels] = mix(
            mix(first, second, ramp(hair, 0.35, 0.65)[wet][:, None]), self.paint[pixels], thinness
        )
        ridge = (
            0.55 * hair
            + 0.5 * abs(t) ** 3
            - 0.9 * abs(t) ** 9
            + 0.5 * np.exp(-400 * (s - 0.96) ** 2)
        )
        self.relief[pixels] = (
            0.35 * self.relief[pixels] + (ridge * (1 - 0.4 * s) * min(width / 14, 1.3))[wet]
        )

    def light(self) -> Array:
        """Return the paint lit from the upper left, which shows its relief."""
        y, x = np.gradient(self.relief)
        slope = np.clip((x + 1.3 * y) * -0.55, -0.5, 0.5)
        shine = np.clip(slope - 0.16, 0, 1) * 0.9
        shaded: Array = self.paint * (1 + 1.1 * slope)[..., None] + shine[..., None]
        return shaded


def ribbon(trail: Array, width: float) -> tuple[Array, Array, Array]:
    """Sample a stroke more densely than the pixels: along (0..1), across (-1..1), positions."""
    step = np.linspace(0, len(trail) - 1, int(len(trail) * width * 0.8))
    x, y = (np.interp(step, range(len(trail)), line) for line in trail.T)
    dx, dy = np.gradient(x), np.gradient(y)
    s, t = (step / step[-1])[:, None], np.linspace(-1, 1, int(width * 1.6))
    half = width / 2 * np.sqrt(np.clip(1 - (2 * s - 1) ** 8, 0.05, 1)) * (1.05 - 0.25 * s)
    aside = np.stack([-dy, dx]) / np.hypot(dx, dy)
    return s, t, np.stack([x, y])[..., None] + aside[..., None] * half * t


def picture(wide: int, high: int) -> Image.Image:
    """Draw the night at twice its size, from the broadest strokes to the finest, then reduce it."""
    canvas = Canvas(wide * 2, high * 2)
    for width, length, count, pick in (
        (52, 300, 800, -9),
        (34, 240, 2000, -9),
        (24, 190, 3200, -9),
        (19, 150, 4000, 0.1),
        (14, 100, 4000, 0.4),
    ):
        canvas.layer(width, length, count, pick)
    return Image.fromarray(to_bytes(canvas.light())).resize((wide, high), Image.Resampling.LANCZOS)
