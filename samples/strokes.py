"""The night, brushed: the picture to paint like.

It knows paint.  Strokes follow a stream function, carry two half-mixed pigments, and leave a relief of
paint that is lit at the end.  It does not know solids, rays, networks or any file; its seed is fixed,
so the first picture that a run draws is always the same.
"""

import numpy as np
from noise import Array, Index, bytes_of, mix, noise, ramp
from PIL import Image

hand = np.random.default_rng(7)
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
# Eddies of the wind, and lights: across, down, radius (of the picture's height), turn, brightness.
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
    """How far down the hills begin."""
    line: Array = (
        0.72 + 0.05 * np.sin(x * 4.1 + 0.6) + 0.10 * (noise(x * 2.3 + 5, x * 0 + 2, 2) - 0.5)
    )
    return line


def stream(x: Array, y: Array) -> Array:
    """A height whose level lines the brush follows: wind above the shore, swell below it."""
    wind = 0.5 * y + 0.10 * np.sin(x * 5 + y * 3) + 0.22 * noise(x * 2.2 + 7, y * 3 + 1, 2)
    for across, down, size, turn, _ in EDDIES:
        far = ((x - across) ** 2 + (y - down) ** 2) / size**2
        wind += turn * size * 1.6 * np.exp(-far * 0.6)
    swell = 0.9 * (y - shore(x)) + 0.10 * noise(x * 3, y * 9, 2) + 0.015 * np.sin(x * 14 + y * 30)
    return mix(wind, swell, ramp(y - shore(x), -0.02, 0.01))


def tones(x: Array, y: Array, psi: Array) -> Array:
    """How light each place is, 0..1 along its palette: bands that run with the stream, and lights."""
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
    """Paint and its thickness, and the lay of the land that the brush looks at; y is in picture heights."""

    def __init__(self, wide: int, high: int) -> None:
        y, x = np.mgrid[0 : 1 : high * 1j, 0 : wide / high : wide * 1j].astype(np.float32)
        psi = stream(x, y)
        down, along = np.gradient(psi)
        self.angle = np.arctan2(-along, down)
        self.tone, self.land = tones(x, y, psi), y > shore(x)
        self.paint = NIGHT[np.clip(self.tone * 8, 0, 8).astype(np.intp)]
        self.relief = 0.15 * noise(x * 300, y * 300, 2)

    def at(self, spot: Array) -> tuple[Index, Index]:
        """The row and column of the dot nearest to each spot, within the canvas."""
        high, wide = self.tone.shape
        x, y = np.rint(spot).astype(np.intp)
        return np.clip(y, 0, high - 1), np.clip(x, 0, wide - 1)

    def layer(self, width: float, length: float, count: int, least: float) -> None:
        """Lays strokes of about one size all over, but none where it is much darker than least."""
        high, wide = self.tone.shape
        start: Array = hand.uniform(-0.05, 1.05, (2, count)) * ((wide,), (high,))
        start = start[:, self.tone[self.at(start)] + hand.normal(scale=0.2, size=count) > least]
        wander, trail = hand.normal(scale=0.14, size=start.shape[1]), [start]
        for _ in range(steps := int(length / width * 2)):
            angle = self.angle[self.at(trail[-1])] + wander
            trail.append(trail[-1] + width / 2 * np.stack([np.cos(angle), np.sin(angle)]))
        for line in np.stack(trail).transpose(2, 0, 1):
            self.stroke(
                line[: int(steps * hand.uniform(0.5, 1)) + 1],
                width * float(hand.uniform(0.7, 1.25)),
            )

    def pigments(self, spot: Array) -> tuple[Array, Array]:
        """Two neighbors on the palette for one brush; now and then a color that does not belong."""
        place = self.at(spot)
        palette = EARTH if self.land[place] else NIGHT
        tone = self.tone[place] + 0.45 * (hand.random() < 0.03) + hand.normal((0, 0.10), 0.085)
        steps = np.clip(tone, 0, 1) * (len(palette) - 1)
        two = np.stack([np.interp(steps, range(len(palette)), band) for band in palette.T], 1)
        first, second = np.clip(two * hand.normal(1, 0.09, size=(2, 3)), 0, 1)
        return first, second

    def stroke(self, trail: Array, width: float) -> None:
        """One loaded brush: bristles streak it, it runs dry toward the end, its edges pile up."""
        first, second = self.pigments(trail[len(trail) // 2])
        s, t, spot = ribbon(trail, width)
        hair = noise(t * width * 0.35 + 99 * hand.random(), s * 2.5 + 50 * hand.random(), 2)
        inside = ((spot > 0) & (spot < np.array(self.tone.T.shape)[:, None, None] - 1)).all(0)
        wet = inside & (hair > 0.62 * s**3 - 0.05 + 0.25 * abs(t) ** 6 * s)
        at, thin = self.at(spot[:, wet]), (0.10 + 0.3 * s**2 + 0 * t)[wet][:, None]
        self.paint[at] = mix(
            mix(first, second, ramp(hair, 0.35, 0.65)[wet][:, None]), self.paint[at], thin
        )
        ridge = (
            0.55 * hair
            + 0.5 * abs(t) ** 3
            - 0.9 * abs(t) ** 9
            + 0.5 * np.exp(-400 * (s - 0.96) ** 2)
        )
        self.relief[at] = (
            0.35 * self.relief[at] + (ridge * (1 - 0.4 * s) * min(width / 14, 1.3))[wet]
        )

    def lit(self) -> Array:
        """The paint under a lamp at the upper left, which finds every ridge of it."""
        y, x = np.gradient(self.relief)
        slope = np.clip((x + 1.3 * y) * -0.55, -0.5, 0.5)
        shine = np.clip(slope - 0.16, 0, 1) * 0.9
        shaded: Array = self.paint * (1 + 1.1 * slope)[..., None] + shine[..., None]
        return shaded


def ribbon(trail: Array, width: float) -> tuple[Array, Array, Array]:
    """Along (0..1), across (-1..1) and where that is, closer than the canvas's own dots."""
    step = np.linspace(0, len(trail) - 1, int(len(trail) * width * 0.8))
    x, y = (np.interp(step, range(len(trail)), line) for line in trail.T)
    dx, dy = np.gradient(x), np.gradient(y)
    s, t = (step / step[-1])[:, None], np.linspace(-1, 1, int(width * 1.6))
    half = width / 2 * np.sqrt(np.clip(1 - (2 * s - 1) ** 8, 0.05, 1)) * (1.05 - 0.25 * s)
    aside = np.stack([-dy, dx]) / np.hypot(dx, dy)
    return s, t, np.stack([x, y])[..., None] + aside[..., None] * half * t


def picture(wide: int, high: int) -> Image.Image:
    """The whole night, brushed at twice its size from the broadest strokes to the finest."""
    canvas = Canvas(wide * 2, high * 2)
    for width, length, count, pick in (
        (52, 300, 800, -9),
        (34, 240, 2000, -9),
        (24, 190, 3200, -9),
        (19, 150, 4000, 0.1),
        (14, 100, 4000, 0.4),
    ):
        canvas.layer(width, length, count, pick)
    return Image.fromarray(bytes_of(canvas.lit())).resize((wide, high), Image.Resampling.LANCZOS)
