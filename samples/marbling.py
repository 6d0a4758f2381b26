"""Marbled paper: colors dropped on water, combed, and lifted off with a sheet.

It knows how a drop pushes all other ink aside and how a comb drags it along; the picture is found by going back from
each dot through all that was done, to the drop that it was once in. It does not know brushes, networks or any file.
"""

import numpy as np
from noise import Array, bytes_of, noise, rgb, sheet
from PIL import Image

INKS = rgb("17264f 1f4f8f f2e7cf b8322a 17264f e0a23a f2e7cf 2b7a78 17264f d9653b")
WATER = rgb("e9dfc8")[0]


def dropped(hand: np.random.Generator, wide: float) -> list[tuple[float, float, float, int]]:
    """Drops as they fell: across, down, radius, ink. Rings grow where one falls into another."""
    fallen = []
    for ring in range(9):
        for spot in range(30):
            x, y = hand.uniform(-0.1, wide + 0.1), hand.uniform(-0.1, 1.1)
            fallen.append(
                (
                    x,
                    y,
                    float(hand.uniform(0.035, 0.075)) * (1.15 - 0.06 * ring),
                    (ring * 3 + spot % 3) % len(INKS),
                )
            )
    return fallen


def combed(x: Array, y: Array) -> tuple[Array, Array]:
    """Where each dot was before the combs: up and down, the fine comb across, then a slow hand in waves."""
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
    """The whole sheet, at twice its size."""
    hand = np.random.default_rng(31)
    across, down = sheet(wide * 2, high * 2)
    x, y = (a.ravel() for a in combed(across, down))
    color = np.tile(WATER, (x.size, 1))
    afloat = np.arange(x.size)
    for at_x, at_y, radius, ink in reversed(dropped(hand, wide / high)):
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
    return Image.fromarray(bytes_of(lifted)).resize((wide, high), Image.Resampling.LANCZOS)
