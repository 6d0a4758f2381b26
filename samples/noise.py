"""Lattice noise and vector arithmetic for the drawing programs.

The noise interpolates random numbers on a square lattice. Vectors are columns: an array of shape
(3, n) has n points, directions or colors.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Index = NDArray[np.intp]
rng = np.random.default_rng(1889)  # harbor.py continues the sequence
LATTICE = rng.random(256 * 256, dtype=np.float32)


def vec(*numbers: float) -> Array:
    """Return a column of shape (n, 1): a point, a direction or a color."""
    column: Array = np.array(numbers, np.float32).reshape(-1, 1)
    return column


def dot(a: Array, b: Array) -> Array:
    """Return the dot products of columns. numpy's sum over so short an axis is slow."""
    total: Array = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
    return total


def unit(v: Array) -> Array:
    """Normalize columns to length 1."""
    return v / np.sqrt(dot(v, v))


def mix(a: Array, b: Array, amount: Array | float) -> Array:
    """Interpolate between a (amount 0) and b (amount 1)."""
    return a + (b - a) * amount


def ramp(x: Array, low: float, high: float) -> Array:
    """Smooth step: 0 below low, 1 above high, with zero slope at both ends."""
    t: Array = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def noise(x: Array, y: Array, octaves: int = 1) -> Array:
    """Value noise from 0 to 1 around 0.5; integer coordinates give the lattice's values."""
    total = np.zeros(np.broadcast_shapes(x.shape, y.shape), np.float32)
    for octave in range(octaves):
        fx, fy = x * 2.03**octave, y * 2.03**octave
        ix, iy = np.floor(fx).astype(np.int32), np.floor(fy).astype(np.int32)
        tx, ty = ramp(fx - ix.astype(np.float32), 0, 1), ramp(fy - iy.astype(np.float32), 0, 1)
        left, right, top, bottom = (ix & 255) * 256, (ix + 1 & 255) * 256, iy & 255, iy + 1 & 255
        upper = mix(LATTICE[left + top], LATTICE[right + top], tx)
        total += (
            mix(upper, mix(LATTICE[left + bottom], LATTICE[right + bottom], tx), ty) * 0.5**octave
        )
    return total / (2 - 0.5 ** (octaves - 1))


def to_bytes(colors: Array) -> NDArray[np.uint8]:
    """Convert colors from 0..1 to bytes; clips values outside."""
    return (np.clip(colors, 0, 1) * 255).astype(np.uint8)


def pixel_grid(wide: int, high: int) -> tuple[Array, Array]:
    """Return the x and y of each pixel, in picture heights."""
    y, x = np.mgrid[0 : 1 : high * 1j, 0 : wide / high : wide * 1j].astype(np.float32)
    return x, y


def blur(a: Array, dots: int) -> Array:
    """Blur with three box filters per axis, which approximates a Gaussian."""
    for axis in (0, 1) * 3:
        pad = [(dots + 1, dots) if side == axis else (0, 0) for side in range(a.ndim)]
        total = np.cumsum(np.pad(a, pad, mode="edge"), axis=axis, dtype=np.float64)
        end, start = (np.take(total, range(k, k + a.shape[axis]), axis) for k in (2 * dots + 1, 0))
        a = ((end - start) / (2 * dots + 1)).astype(np.float32)
    return a


def rgb(text: str) -> Array:
    """Parse hex colors, `2b3f9e f3c64f`, to shape (n, 3) with values from 0 to 1."""
    return np.array(
        [[int(one[i : i + 2], 16) / 255 for i in (0, 2, 4)] for one in text.split()], np.float32
    )


def hashed_random(*whole: NDArray[np.integer] | int, salt: int = 0) -> Array:
    """Hash integers to a number from 0 to 1 (splitmix64 constants)."""
    total = np.zeros((), np.uint64) + np.uint64(salt * 7919 + 17)
    for part in whole:
        total = (total ^ np.asarray(part, np.int64).astype(np.uint64)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        total ^= total >> np.uint64(29)
    return ((total * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(40)).astype(
        np.float32
    ) / np.float32(2**24)
