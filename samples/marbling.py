"""Draws marbled paper: ink drops on water, combed into swirls.

A drop pushes all other ink aside and a comb drags it along. The picture is computed backward: each
pixel is traced through the combs and drops, in reverse order, to the drop that it came from.
"""

import numpy as np
from noise import Array, noise, pixel_grid, rgb, to_bytes
from PIL import Image

INKS = rgb("17264f 1f4f8f f2e7cf b8322a 17264f e0a23a f2e7cf 2b7a78 17264f d9653b")
WATER = rgb("e9dfc8")[0]


def random_drops(rng: np.random.Generator, wide: float) -> list[tuple[float, float, float, int]]:
    """Random drops in their order: x, y, radius, ink. A drop inside another one makes a ring."""
    drops = []
    for ring in range(9):
        for drop_number in range(30):
            x, y = rng.uniform(-0.1, wide + 0.1), rng.uniform(-0.1, 1.1)
            drops.append(
                (
                    x,
                    y,
                    float(rng.uniform(0.035, 0.075)) * (1.15 - 0.06 * ring),
                    (ring * 3 + drop_number % 3) % len(INKS),
                )
            )
    return drops


def undo_combs(x: Array, y: Array) -> tuple[Array, Array]:
    """Return each pixel's position before combing; undoes waves, vortices and two combs."""
    y = y - 0.035 * np.sin(x * 9 + 0.6) - 0.02 * np.sin(x * 21)
    x = x - 0.03 * np.sin(y * 11 + 1)
    for at_x, at_y, size, turn in (
        (0.36, 0.36, 0.22, 2.6),
        (1.02, 0.62, 0.26, -2.9),
        (0.72, 0.15, 0.13, 2.2),
        (0.15, 0.85, 0.15, 2.4),
    ):
        dx, dy = x - at_x, y - at_y
        angle = turn * np.exp(-(dx * dx + dy * dy) / size**2)
        x, y = (
            at_x + np.cos(angle) * dx - np.sin(angle) * dy,
            at_y + np.sin(angle) * dx + np.cos(angle) * dy,
        )
    tooth = np.abs((x * 15) % 1 - 0.5)
    y = y - 0.17 * 0.1 / (tooth + 0.1)
    rake = np.abs((y * 4) % 2 - 1)
    return x - 0.20 * (np.abs(rake) - 0.5), y


def picture(wide: int, high: int) -> Image.Image:
    """Draw the picture at twice its size, then reduce it."""
    rng = np.random.default_rng(31)
    across, down = pixel_grid(wide * 2, high * 2)
    x, y = (a.ravel() for a in undo_combs(across, down))
    color = np.tile(WATER, (x.size, 1))
    afloat = np.arange(x.size)
    for at_x, at_y, radius, ink in reversed(random_drops(rng, wide / high)):
        dx, dy = x - at_x, y - at_y
        far = dx * dx + dy * dy
        inside = far < radius**2
        color[afloat[inside]] = INKS[ink]
        pull = np.sqrt(1 - radius**2 / np.where(inside, 1, far))
        x, y, afloat = ((at_x + dx * pull)[~inside], (at_y + dy * pull)[~inside], afloat[~inside])
    paper = (
        0.95
        + 0.06 * (noise(across * 140, down * 140, 2) - 0.5)
        + 0.12 * (noise(across * 5, down * 5, 3) - 0.5)
    )
    lifted = color.reshape(*across.shape, 3) * paper[..., None]
    return Image.fromarray(to_bytes(lifted)).resize((wide, high), Image.Resampling.LANCZOS)
