"""Draws poplars by a river at evening in the pointillist style.

Each dot has one pigment near the target color, or now and then its complement; broad dots first,
then small ones. The result is always the same.
"""

import numpy as np
from noise import Array, mix, noise, pixel_grid, ramp, rgb, to_bytes, vec
from PIL import Image

SHORE = 0.58
PIGMENTS = rgb(
    "fff4d6 ffe08a ffc23d ff9a3c f2693a d93a2f a8264f 7a2d7d 4b3aa0 2f55c4 2f86d9 66b8e8 a9dcef "
    "1f6f6b 2f9a5c 7cc24a c9dc4f 123a5c 0f2f3a f7b6c2 e889a8 c9a6de"
)


def trees(x: Array, y: Array, at: float, tall: float, broad: float) -> Array:
    """Return the mask of a poplar that stands on the shore."""
    up = (SHORE - y) / tall
    wave = 0.35 * (noise(x * 26 + at * 9, y * 22, 3) - 0.5)
    edge = np.clip(np.sin(np.pi * np.clip(up, 0, 1) ** 0.75), 0, 1) ** 0.7
    return ((up > 0) & (up < 1) & (np.abs(x - at) < broad * (edge + wave))).astype(np.float32)


def land(x: Array, y: Array) -> Array:
    """Return the colors above the water, shape (..., 3)."""
    glow = np.exp(-np.hypot((x - 0.50) * 0.8, y - 0.44) / 0.22)[..., None]
    color = mix(vec(0.36, 0.55, 0.85).T, vec(0.99, 0.80, 0.62).T, ramp(y, -0.05, 0.52)[..., None])
    color = mix(color, vec(1, 0.86, 0.45).T, 1.1 * glow)
    cloud = ramp(noise(x * 2.2 + 3, y * 9, 3), 0.50, 0.72) * ramp(y, 0.46, 0.2)
    color = mix(color, vec(0.98, 0.70, 0.72).T, 0.75 * cloud[..., None])
    color = mix(color, vec(1, 0.97, 0.82).T, (np.hypot(x - 0.50, y - 0.44) < 0.052)[..., None])
    hill = 0.50 - 0.07 * noise(x * 2.4 + 8, 0 * x, 2) - 0.02 * np.sin(x * 5)
    color = mix(
        color,
        mix(vec(0.50, 0.46, 0.80).T, vec(0.86, 0.60, 0.62).T, 0.6 * glow),
        (y > hill)[..., None],
    )
    meadow = 0.545 - 0.012 * np.sin(x * 9 + 1)
    color = mix(
        color,
        mix(vec(0.48, 0.70, 0.28).T, vec(0.93, 0.80, 0.35).T, noise(x * 8, y * 60, 2)[..., None]),
        (y > meadow)[..., None],
    )
    for at, tall, broad in (
        (0.93, 0.50, 0.055),
        (1.05, 0.56, 0.062),
        (1.17, 0.47, 0.055),
        (0.16, 0.33, 0.042),
        (0.25, 0.27, 0.036),
        (0.82, 0.30, 0.035),
    ):
        sunny = ramp(at - x, -0.02, broad)[..., None] * 0.8 + 0.25 * (
            noise(x * 40, y * 40, 2)[..., None] - 0.3
        )
        leaves = mix(vec(0.06, 0.26, 0.30).T, vec(0.72, 0.76, 0.26).T, np.clip(sunny, 0, 1))
        color = mix(color, leaves, trees(x, y, at, tall, broad)[..., None])
    return color


def landscape(x: Array, y: Array) -> Array:
    """Return the land, its reflection in the river, and the near bank."""
    ripple = 0.010 * np.sin(y * 150 + 6 * noise(x * 5, y * 20, 2)) + 0.02 * (
        noise(x * 3, y * 50, 2) - 0.5
    )
    mirrored = land(x + ripple, 2 * SHORE - y) * 0.86 + vec(0.0, 0.02, 0.07).T
    color = np.where((y > SHORE)[..., None], mirrored, land(x, y))
    bank = y > 0.90 + 0.10 * np.sin(x * 2.3 + 2.4)
    grass = mix(
        vec(0.16, 0.42, 0.24).T,
        vec(0.86, 0.84, 0.30).T,
        ramp(noise(x * 9, y * 16, 3), 0.35, 0.68)[..., None],
    )
    flower = ramp(noise(x * 34, y * 34, 1), 0.76, 0.84)[..., None]
    return np.where(bank[..., None], mix(grass, vec(0.92, 0.36, 0.36).T, flower), color)


def paint_dots(
    canvas: Array, target_image: Array, size: float, count: int, rng: np.random.Generator
) -> None:
    """Paint a layer of random dots over the whole canvas."""
    high, wide, _ = canvas.shape
    rows, columns = rng.integers(0, high, count), rng.integers(0, wide, count)
    target = target_image[rows, columns] + rng.normal(scale=0.055, size=(count, 3)).astype(
        np.float32
    )
    odd = rng.random(count) < 0.04
    target[odd] = 0.45 * target[odd] + 0.55 * (1.15 - target[odd])
    nearest = (
        (target[:, None] - PIGMENTS[None]) ** 2 @ np.array((0.9, 1.3, 0.8), np.float32)
    ).argmin(1)
    paint = mix(PIGMENTS[nearest], target, 0.28) * rng.normal(1, 0.035, (count, 1))
    radii = size * rng.uniform(0.72, 1.2, count)
    for row, column, radius, color in zip(rows, columns, radii, paint, strict=True):
        reach = int(radius) + 2
        top, left = max(0, row - reach), max(0, column - reach)
        patch = canvas[top : row + reach + 1, left : column + reach + 1]
        y, x = np.ogrid[
            top - row : top - row + patch.shape[0], left - column : left - column + patch.shape[1]
        ]
        far = np.hypot(x, y * 1.08)
        inside = np.clip(radius - far + 0.5, 0, 1)[..., None]
        dome = (1.04 - 0.05 * (x + y) / radius - 0.06 * (far / radius) ** 2)[..., None]
        patch += (color * dome - patch) * inside


def picture(wide: int, high: int) -> Image.Image:
    """Draw the picture at twice its size, from broad dots to small ones, then reduce it."""
    rng = np.random.default_rng(1886)
    target_image = landscape(*pixel_grid(wide * 2, high * 2)).astype(np.float32)
    canvas = np.clip(0.75 * target_image + 0.25 * vec(0.96, 0.88, 0.72).T, 0, 1).astype(np.float32)
    for size, count in ((11.0, 16_000), (8.0, 30_000), (6.2, 30_000)):
        paint_dots(canvas, target_image, size, count, rng)
    return Image.fromarray(to_bytes(canvas)).resize((wide, high), Image.Resampling.LANCZOS)
