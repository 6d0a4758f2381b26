"""Draws a data set for training a small network: textures and shapes in 26 classes.

`python samples/textures.py FOLDER` makes a sub-folder per class. Each picture has random colors,
scale, rotation, light and grain, so that only the pattern identifies its class. The same seed draws
the same pictures, whatever their number.
"""

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array = NDArray[np.float64]
Rng = np.random.Generator
Pattern = Callable[[Array, Array, Rng], Array]


def soft(values: Array, width: float = 0.15) -> Array:
    """An anti-aliased step at 0."""
    return np.clip(0.5 + values / width, 0, 1)


def lattice(x: Array, y: Array) -> tuple[Array, Array, Array, Array]:
    """Return each point's cell (column, row) and its offset in the cell, from -0.5 to 0.5."""
    column, row = np.floor(x), np.floor(y)
    return column, row, x - column - 0.5, y - row - 0.5


def clouds(x: Array, y: Array, rng: Rng, octaves: int = 4) -> Array:
    """Smooth noise around 0: a sum of waves in random directions, finer ones weaker."""
    total = np.zeros_like(x)
    for octave in range(octaves):
        for angle, phase in zip(
            rng.uniform(0, 2 * np.pi, 6), rng.uniform(0, 2 * np.pi, 6), strict=True
        ):
            bent = x + 0.3 * total
            total += (
                np.sin(2**octave * (np.cos(angle) * bent + np.sin(angle) * y) + phase)
                / 2**octave
                / 3
            )
    return total


def seeds(x: Array, y: Array, rng: Rng) -> tuple[Array, Array]:
    """Return the distances to the nearest and the second nearest of 40 random points."""
    points = rng.uniform((x.min(), y.min()), (x.max(), y.max()), (40, 2))
    far = np.sort(np.stack([np.hypot(x - px, y - py) for px, py in points]), axis=0)
    return far[0], far[1]


def stripes(x: Array, y: Array, rng: Rng) -> Array:
    return soft(np.sin(2 * np.pi * x), 0.6)


def checks(x: Array, y: Array, rng: Rng) -> Array:
    return soft(np.sin(np.pi * x) * np.sin(np.pi * y), 0.3)


def dots(x: Array, y: Array, rng: Rng) -> Array:
    _, _, u, v = lattice(x, y)
    return soft(rng.uniform(0.2, 0.35) - np.hypot(u, v))


def net(x: Array, y: Array, rng: Rng) -> Array:
    _, _, u, v = lattice(x, y)
    return soft(np.maximum(abs(u), abs(v)) - rng.uniform(0.36, 0.44))


def zigzag(x: Array, y: Array, rng: Rng) -> Array:
    return soft(np.sin(2 * np.pi * (x + abs(y % 2 - 1))), 0.6)


def waves(x: Array, y: Array, rng: Rng) -> Array:
    return soft(np.sin(2 * np.pi * (x + 0.35 * np.sin(2 * y))), 0.6)


def rings(x: Array, y: Array, rng: Rng) -> Array:
    cx, cy = rng.uniform(-1.5, 1.5, 2)
    return soft(np.sin(2 * np.pi * np.hypot(x - cx, y - cy)), 0.6)


def spiral(x: Array, y: Array, rng: Rng) -> Array:
    cx, cy = rng.uniform(-1, 1, 2)
    arms = rng.choice((-2, -1, 1, 2))
    return soft(
        np.sin(2 * np.pi * np.hypot(x - cx, y - cy) + arms * np.arctan2(y - cy, x - cx)), 0.6
    )


def rays(x: Array, y: Array, rng: Rng) -> Array:
    cx, cy = rng.uniform(-1, 1, 2)
    return soft(np.sin(rng.integers(6, 14) * np.arctan2(y - cy, x - cx)), 0.4)


def bricks(x: Array, y: Array, rng: Rng) -> Array:
    row = np.floor(y)
    _, _, u, v = lattice(x / 2 + 0.5 * (row % 2), y)
    return soft(np.minimum(0.5 - abs(v), 1 - 2 * abs(u)) - 0.08)


def honeycomb(x: Array, y: Array, rng: Rng) -> Array:
    """Distance to the edge of the nearest hexagon; the centers form two rectangular lattices."""
    places = [
        ((x + shift) % 1 - 0.5, ((y / np.sqrt(3) + shift) % 1 - 0.5) * np.sqrt(3))
        for shift in (0.0, 0.5)
    ]
    first = np.hypot(*places[0]) < np.hypot(*places[1])
    u, v = (abs(np.where(first, *pair)) for pair in zip(*places, strict=True))
    return soft(0.42 - np.maximum(u, u / 2 + v * np.sqrt(3) / 2), 0.1)


def scales(x: Array, y: Array, rng: Rng) -> Array:
    row = np.floor(y)
    _, _, u, v = lattice(x + 0.5 * (row % 2), y)
    return np.clip(1.3 - 1.4 * abs(np.hypot(u, v + 0.5) - 0.5), 0, 1) * (0.5 + 0.5 * v)


def weave(x: Array, y: Array, rng: Rng) -> Array:
    column, row, u, v = lattice(x, y)
    over = (column + row) % 2 == 0
    return np.where(
        over, np.cos(np.pi * u) * (abs(v) < 0.42), 0.7 * np.cos(np.pi * v) * (abs(u) < 0.42)
    )


def sky(x: Array, y: Array, rng: Rng) -> Array:
    return soft(clouds(x / 2, y / 2, rng), 2)


def marble(x: Array, y: Array, rng: Rng) -> Array:
    return np.asarray(abs(np.sin(x + 2.5 * clouds(x / 2, y / 2, rng))) ** 0.4)


def wood(x: Array, y: Array, rng: Rng) -> Array:
    rings_ = np.hypot(x, y / 8) * 2 + 0.5 * clouds(x, y / 8, rng)
    return np.asarray(rings_ % 1)


def grain(x: Array, y: Array, rng: Rng) -> Array:
    return rng.uniform(0, 1, x.shape)


def cells(x: Array, y: Array, rng: Rng) -> Array:
    nearest, _ = seeds(x, y, rng)
    return np.clip(nearest / 1.2, 0, 1)


def cracks(x: Array, y: Array, rng: Rng) -> Array:
    nearest, second = seeds(x, y, rng)
    return soft(second - nearest - 0.12)


def strokes(x: Array, y: Array, rng: Rng) -> Array:
    column, row, u, v = lattice(x * 1.5, y * 1.5)
    turn = np.sin(12.9898 * column + 78.233 * row + rng.uniform(0, 6)) * 43758.5453
    angle = 2 * np.pi * (turn % 1)
    return soft(0.09 - abs(np.cos(angle) * u + np.sin(angle) * v), 0.1) * (np.hypot(u, v) < 0.48)


PATTERNS: dict[str, Pattern] = {
    pattern.__name__: pattern
    for pattern in (
        *(
            stripes,
            checks,
            dots,
            net,
            zigzag,
            waves,
            rings,
            spiral,
            rays,
            bricks,
            honeycomb,
            scales,
            weave,
        ),
        *(sky, marble, wood, grain, cells, cracks, strokes),
    )
}
# Corners of shapes around the origin, the outermost at distance 1.
_TURN = np.linspace(0, 2 * np.pi, 60, endpoint=False)
SHAPES: dict[str, Array] = {
    "disks": np.stack([np.cos(_TURN), np.sin(_TURN)], 1),
    "triangles": np.stack([np.cos(_TURN[::20]), np.sin(_TURN[::20])], 1),
    "squares": np.stack([np.cos(_TURN[::15]), np.sin(_TURN[::15])], 1),
    "stars": np.stack([np.cos(_TURN[::6]), np.sin(_TURN[::6])], 1)
    * np.resize([1, 0.4], 10)[:, None],
    "crosses": np.array(
        [
            (1, 3),
            (1, 1),
            (3, 1),
            (3, -1),
            (1, -1),
            (1, -3),
            (-1, -3),
            (-1, -1),
            (-3, -1),
            (-3, 1),
            (-1, 1),
            (-1, 3),
        ]
    )
    / 3.2,
    "crescents": np.concatenate(
        [
            np.stack([np.cos(_TURN[8:53]), np.sin(_TURN[8:53])], 1),
            np.stack([0.55 + 0.75 * np.cos(_TURN[14:47]), 0.75 * np.sin(_TURN[14:47])], 1)[::-1],
        ]
    ),
}
CLASSES = sorted((*PATTERNS, *SHAPES))


def draw_shapes(corners: Array, side: int, rng: Rng) -> Array:
    """Draw one shape many times, in random sizes and rotations, with values from 0 to 1."""
    picture = Image.new("L", (side, side))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(4, 12)):
        angle, size = rng.uniform(0, 2 * np.pi), rng.uniform(0.08, 0.22) * side
        turned = corners @ np.array(
            [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
        )
        places = turned * size + rng.uniform(0, side, 2)
        draw.polygon([(x, y) for x, y in places], fill=int(rng.integers(150, 256)))
    return np.asarray(picture) / 255


def draw_picture(name: str, number: int, side: int, seed: int) -> Image.Image:
    """Draw one picture of a class."""
    rng = np.random.default_rng((seed, CLASSES.index(name), number))
    down, across = np.mgrid[0:side, 0:side] / side - 0.5
    angle, scale = rng.uniform(0, 2 * np.pi), rng.uniform(5, 11)
    x = scale * (np.cos(angle) * across + np.sin(angle) * down) + rng.uniform(-1, 1)
    y = scale * (np.cos(angle) * down - np.sin(angle) * across) + rng.uniform(-1, 1)
    values = PATTERNS[name](x, y, rng) if name in PATTERNS else draw_shapes(SHAPES[name], side, rng)
    ground, ink = rng.uniform(0, 1, (2, 3))
    if abs(ground - ink).sum() < 0.8:  # too little contrast
        ink = (ground + 0.5) % 1
    light = 1 + rng.uniform(-0.3, 0.3) * across + rng.uniform(-0.3, 0.3) * down
    picture = (ground + values[..., None] * (ink - ground)) * light[..., None]
    picture += rng.normal(0, rng.uniform(0.01, 0.06), picture.shape)
    return Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))


def draw_class(folder: Path, count: int, side: int, seed: int, name: str) -> None:
    """Draw all pictures of a class and save them as JPEG."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        draw_picture(name, number, side, seed).save(
            folder / name / f"{number:05d}.jpg", quality=92, subsampling=0
        )


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--count", default=200, show_default=True, help="Pictures per class.")
@click.option("--side", default=128, show_default=True, help="Side in px.")
@click.option("--seed", default=1, show_default=True, help="Seed of the random numbers.")
def main(folder: Path, count: int, side: int, seed: int) -> None:
    """Draw the data set into FOLDER."""
    with ProcessPoolExecutor() as pool:
        for _ in pool.map(partial(draw_class, folder, count, side, seed), CLASSES):
            sys.stderr.write(".")
    click.echo(f"\n{len(CLASSES)} classes of {count} pictures in {folder}", err=True)


if __name__ == "__main__":
    main()
