"""Draw a data set to train a small network on: textures and shapes in 26 classes, a sub-folder each.

`python samples/textures.py FOLDER`. Every picture has its own colors, scale, turn, light and grain, so that only the
pattern tells its class. The same seed draws the same pictures, whatever their number. Knows no network.
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
Hand = np.random.Generator
Pattern = Callable[[Array, Array, Hand], Array]


def soft(values: Array, width: float = 0.15) -> Array:
    """A step at 0 that is not a staircase."""
    return np.clip(0.5 + values / width, 0, 1)


def lattice(x: Array, y: Array) -> tuple[Array, Array, Array, Array]:
    """The cell of each place, and the place in it from -0.5 to 0.5."""
    column, row = np.floor(x), np.floor(y)
    return column, row, x - column - 0.5, y - row - 0.5


def clouds(x: Array, y: Array, hand: Hand, octaves: int = 4) -> Array:
    """Smooth noise about 0: waves in all directions, the finer the weaker."""
    total = np.zeros_like(x)
    for octave in range(octaves):
        for angle, phase in zip(
            hand.uniform(0, 2 * np.pi, 6), hand.uniform(0, 2 * np.pi, 6), strict=True
        ):
            bent = x + 0.3 * total
            total += (
                np.sin(2**octave * (np.cos(angle) * bent + np.sin(angle) * y) + phase)
                / 2**octave
                / 3
            )
    return total


def seeds(x: Array, y: Array, hand: Hand) -> tuple[Array, Array]:
    """How far the nearest and the second nearest of some scattered points are."""
    points = hand.uniform((x.min(), y.min()), (x.max(), y.max()), (40, 2))
    far = np.sort(np.stack([np.hypot(x - px, y - py) for px, py in points]), axis=0)
    return far[0], far[1]


def stripes(x: Array, y: Array, hand: Hand) -> Array:
    return soft(np.sin(2 * np.pi * x), 0.6)


def checks(x: Array, y: Array, hand: Hand) -> Array:
    return soft(np.sin(np.pi * x) * np.sin(np.pi * y), 0.3)


def dots(x: Array, y: Array, hand: Hand) -> Array:
    _, _, u, v = lattice(x, y)
    return soft(hand.uniform(0.2, 0.35) - np.hypot(u, v))


def net(x: Array, y: Array, hand: Hand) -> Array:
    _, _, u, v = lattice(x, y)
    return soft(np.maximum(abs(u), abs(v)) - hand.uniform(0.36, 0.44))


def zigzag(x: Array, y: Array, hand: Hand) -> Array:
    return soft(np.sin(2 * np.pi * (x + abs(y % 2 - 1))), 0.6)


def waves(x: Array, y: Array, hand: Hand) -> Array:
    return soft(np.sin(2 * np.pi * (x + 0.35 * np.sin(2 * y))), 0.6)


def rings(x: Array, y: Array, hand: Hand) -> Array:
    cx, cy = hand.uniform(-1.5, 1.5, 2)
    return soft(np.sin(2 * np.pi * np.hypot(x - cx, y - cy)), 0.6)


def spiral(x: Array, y: Array, hand: Hand) -> Array:
    cx, cy = hand.uniform(-1, 1, 2)
    arms = hand.choice((-2, -1, 1, 2))
    return soft(
        np.sin(2 * np.pi * np.hypot(x - cx, y - cy) + arms * np.arctan2(y - cy, x - cx)), 0.6
    )


def rays(x: Array, y: Array, hand: Hand) -> Array:
    cx, cy = hand.uniform(-1, 1, 2)
    return soft(np.sin(hand.integers(6, 14) * np.arctan2(y - cy, x - cx)), 0.4)


def bricks(x: Array, y: Array, hand: Hand) -> Array:
    row = np.floor(y)
    _, _, u, v = lattice(x / 2 + 0.5 * (row % 2), y)
    return soft(np.minimum(0.5 - abs(v), 1 - 2 * abs(u)) - 0.08)


def honeycomb(x: Array, y: Array, hand: Hand) -> Array:
    """Distance to the edge of the hexagon whose center is nearest; centers lie on two lattices."""
    places = [
        ((x + shift) % 1 - 0.5, ((y / np.sqrt(3) + shift) % 1 - 0.5) * np.sqrt(3))
        for shift in (0.0, 0.5)
    ]
    first = np.hypot(*places[0]) < np.hypot(*places[1])
    u, v = (abs(np.where(first, *pair)) for pair in zip(*places, strict=True))
    return soft(0.42 - np.maximum(u, u / 2 + v * np.sqrt(3) / 2), 0.1)


def scales(x: Array, y: Array, hand: Hand) -> Array:
    row = np.floor(y)
    _, _, u, v = lattice(x + 0.5 * (row % 2), y)
    return np.clip(1.3 - 1.4 * abs(np.hypot(u, v + 0.5) - 0.5), 0, 1) * (0.5 + 0.5 * v)


def weave(x: Array, y: Array, hand: Hand) -> Array:
    column, row, u, v = lattice(x, y)
    over = (column + row) % 2 == 0
    return np.where(
        over, np.cos(np.pi * u) * (abs(v) < 0.42), 0.7 * np.cos(np.pi * v) * (abs(u) < 0.42)
    )


def sky(x: Array, y: Array, hand: Hand) -> Array:
    return soft(clouds(x / 2, y / 2, hand), 2)


def marble(x: Array, y: Array, hand: Hand) -> Array:
    return np.asarray(abs(np.sin(x + 2.5 * clouds(x / 2, y / 2, hand))) ** 0.4)


def wood(x: Array, y: Array, hand: Hand) -> Array:
    rings_ = np.hypot(x, y / 8) * 2 + 0.5 * clouds(x, y / 8, hand)
    return np.asarray(rings_ % 1)


def grain(x: Array, y: Array, hand: Hand) -> Array:
    return hand.uniform(0, 1, x.shape)


def cells(x: Array, y: Array, hand: Hand) -> Array:
    nearest, _ = seeds(x, y, hand)
    return np.clip(nearest / 1.2, 0, 1)


def cracks(x: Array, y: Array, hand: Hand) -> Array:
    nearest, second = seeds(x, y, hand)
    return soft(second - nearest - 0.12)


def strokes(x: Array, y: Array, hand: Hand) -> Array:
    column, row, u, v = lattice(x * 1.5, y * 1.5)
    turn = np.sin(12.9898 * column + 78.233 * row + hand.uniform(0, 6)) * 43758.5453
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
# Corners of shapes about the origin, the outermost at distance 1.
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


def scattered(corners: Array, side: int, hand: Hand) -> Array:
    """One shape many times, in sizes and turns of its own, as a picture from 0 to 1."""
    picture = Image.new("L", (side, side))
    draw = ImageDraw.Draw(picture)
    for _ in range(hand.integers(4, 12)):
        angle, size = hand.uniform(0, 2 * np.pi), hand.uniform(0.08, 0.22) * side
        turned = corners @ np.array(
            [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
        )
        places = turned * size + hand.uniform(0, side, 2)
        draw.polygon([(x, y) for x, y in places], fill=int(hand.integers(150, 256)))
    return np.asarray(picture) / 255


def draw(name: str, number: int, side: int, seed: int) -> Image.Image:
    """One picture of a class."""
    hand = np.random.default_rng((seed, CLASSES.index(name), number))
    down, across = np.mgrid[0:side, 0:side] / side - 0.5
    angle, scale = hand.uniform(0, 2 * np.pi), hand.uniform(5, 11)
    x = scale * (np.cos(angle) * across + np.sin(angle) * down) + hand.uniform(-1, 1)
    y = scale * (np.cos(angle) * down - np.sin(angle) * across) + hand.uniform(-1, 1)
    values = PATTERNS[name](x, y, hand) if name in PATTERNS else scattered(SHAPES[name], side, hand)
    ground, ink = hand.uniform(0, 1, (2, 3))
    if abs(ground - ink).sum() < 0.8:  # too alike to be seen
        ink = (ground + 0.5) % 1
    light = 1 + hand.uniform(-0.3, 0.3) * across + hand.uniform(-0.3, 0.3) * down
    picture = (ground + values[..., None] * (ink - ground)) * light[..., None]
    picture += hand.normal(0, hand.uniform(0.01, 0.06), picture.shape)
    return Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))


def draw_class(folder: Path, count: int, side: int, seed: int, name: str) -> None:
    """All pictures of a class, as JPEG."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        draw(name, number, side, seed).save(
            folder / name / f"{number:05d}.jpg", quality=92, subsampling=0
        )


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--count", default=200, show_default=True, help="Pictures of each class.")
@click.option("--side", default=128, show_default=True, help="Side in px.")
@click.option("--seed", default=1, show_default=True)
def main(folder: Path, count: int, side: int, seed: int) -> None:
    """Draw the data set into FOLDER."""
    with ProcessPoolExecutor() as pool:
        for _ in pool.map(partial(draw_class, folder, count, side, seed), CLASSES):
            sys.stderr.write(".")
    click.echo(f"\n{len(CLASSES)} classes of {count} pictures in {folder}", err=True)


if __name__ == "__main__":
    main()
