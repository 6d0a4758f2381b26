"""How many frames `core/images/frame.py` finds, and where it finds one that is none.

`python bench/frames.py` frames the gallery's paintings in several ways, widths and turns, and
searches pictures of the gallery, scikit-image and scikit-learn, and those of folders.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from core.images import codec
from core.images.frame import Box, find_painting

GALLERY = Path(__file__).parents[1] / "api" / "web" / "gallery"
PAINTINGS = ("strokes", "ink", "points", "watercolor", "marbling", "glass")
WIDTHS = (0.03, 0.06, 0.12, 0.2)  # shares of the painting's long side
TURNS = (0.0, 0.5, 1.5, 3.0, 5.0)  # degrees

Pixels = NDArray[np.float64]  # (H, W, 3), 0 to 255


@dataclass(frozen=True)
class Size:
    """The size of a framed painting, and the width of its frame, in px."""

    width: int
    height: int
    frame: int

    def depth(self) -> NDArray[np.float64]:
        """Of each pixel, how far it is from the outer edge: 1 is the inner edge. (H, W)."""
        y, x = np.mgrid[: self.height, : self.width]
        down, across = np.minimum(y, self.height - 1 - y), np.minimum(x, self.width - 1 - x)
        return np.asarray(np.minimum(down, across) / self.frame)


def _filled(size: Size, color: tuple[int, int, int]) -> Pixels:
    return np.broadcast_to(np.asarray(color, float), (size.height, size.width, 3))


def plain(size: Size) -> Pixels:
    """A black bar."""
    return _filled(size, (30, 28, 26))


def gradient(size: Size) -> Pixels:
    """Light that falls off from the left to the right, by 12 %."""
    light = np.linspace(1, 0.88, size.width)[None, :, None]
    return _filled(size, (190, 170, 150)) * light


def wood(size: Size) -> Pixels:
    """Brown with a grain of streaks."""
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 8, (size.height, size.width, 1))
    streaks = np.cumsum(rng.normal(0, 4, (size.height, 1, 1)), 0) % 24 - 12
    return _filled(size, (120, 78, 44)) + grain + streaks


def gilded(size: Size) -> Pixels:
    """A golden profile: light and dark ridges that follow the painting, and specks."""
    specks = np.random.default_rng(1).normal(0, 14, (size.height, size.width, 1))
    ridges = 45 * np.sin(size.depth() * 9)[..., None]
    return np.asarray(_filled(size, (176, 140, 66)) + ridges + specks)


def patterned(size: Size) -> Pixels:
    """Checks of two colors, forty along the longer side."""
    y, x = np.mgrid[: size.height, : size.width] * 80 / max(size.width, size.height)
    is_dark = (y.astype(int) + x.astype(int)) % 2 == 0
    return np.where(is_dark[..., None], (60.0, 40.0, 90.0), (200.0, 180.0, 120.0))


def passepartout(size: Size) -> Pixels:
    """A dark frame around a white mat that is twice as wide."""
    is_frame = size.depth()[..., None] < 1 / 3
    return np.where(is_frame, (60.0, 40.0, 30.0), (242.0, 240.0, 232.0))


FRAMES = {one.__name__: one for one in (plain, gradient, wood, gilded, patterned, passepartout)}
GROUNDS = {"none": None, "black": (8, 8, 8), "white": (250, 250, 250)}


def frame(
    painting: Image.Image, kind: str, width: float, turn: float, ground: str
) -> tuple[Image.Image, Image.Image]:
    """The painting in a frame, turned, and where it is then: white in mode L.

    width: of the painting's long side. turn: in degrees. ground: the scanner's margin; none: the
    frame reaches the picture's edges, and is a little cut off if it is turned.
    """
    px = round(width * max(painting.size))
    size = Size(painting.width + 2 * px, painting.height + 2 * px, px)
    pixels = FRAMES[kind](size).clip(0, 255).astype(np.uint8)
    framed = Image.fromarray(pixels)
    framed.paste(painting, (px, px))
    inside = Image.new("L", framed.size, 0)
    inside.paste(255, (px, px, px + painting.width, px + painting.height))
    color = GROUNDS[ground]
    margin = round(0.09 * max(framed.size))
    outer = (framed.width + 2 * margin, framed.height + 2 * margin)
    whole, where = Image.new("RGB", outer, color or (0, 0, 0)), Image.new("L", outer, 0)
    whole.paste(framed, (margin, margin))
    where.paste(inside, (margin, margin))
    whole = whole.rotate(turn, Image.Resampling.BICUBIC, fillcolor=color)
    where = where.rotate(turn, Image.Resampling.BILINEAR)
    if color is None:  # the largest part without a corner outside of the frame
        cut = margin + round(np.sin(np.radians(turn)) * max(framed.size) / 2)
        box = (cut, cut, outer[0] - cut, outer[1] - cut)
        whole, where = whole.crop(box), where.crop(box)
    return whole, where


def is_right(box: Box | None, where: Image.Image, turn: float) -> bool:
    """Whether a box holds the painting, and next to nothing else.

    At most 2 % of it lies outside of the painting. It covers 80 % of the painting, less 3 % for
    each degree, which an upright box cannot cover.
    """
    if box is None:
        return False
    pixels = np.asarray(where, np.float32) / 255
    part = pixels[box[1] : box[3], box[0] : box[2]]
    return bool(part.mean() >= 0.98 and part.sum() >= (0.8 - 0.03 * turn) * pixels.sum())


def cases(
    paintings: dict[str, Image.Image],
) -> Iterator[tuple[str, str, float, float, Image.Image, Image.Image]]:
    """Kind of frame, ground, width, turn, the picture, and where the painting is in it."""
    names, grounds = itertools.cycle(paintings), itertools.cycle(GROUNDS)
    for kind, width, wanted in itertools.product(FRAMES, WIDTHS, TURNS):
        ground, picture = next(grounds), paintings[next(names)]
        # Of a narrow frame without a ground, a turn would cut off most.
        turn = 0.0 if ground == "none" and width < 0.1 else wanted
        yield kind, ground, width, turn, *frame(picture, kind, width, turn, ground)


def unframed(folders: tuple[Path, ...]) -> dict[str, Image.Image]:
    """Pictures without a frame: of the gallery, scikit-image, scikit-learn, and of folders."""
    import skimage.data
    from sklearn.datasets import load_sample_images

    images = load_sample_images()
    names = (Path(name).stem for name in images.filenames)
    found = {name: Image.fromarray(one) for name, one in zip(names, images.images, strict=True)}
    for folder in (GALLERY, Path(skimage.data.__file__).parent, *folders):
        found |= read_folder(folder)
    return found


def read_folder(folder: Path) -> dict[str, Image.Image]:
    """The pictures of a folder by name."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png"))
    return {path.stem: codec.decode(path.read_bytes()) for path in paths}


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(folders: tuple[Path, ...]) -> None:
    """Print the shares of frames that are found, and the pictures of FOLDERS that have none."""
    paintings = {name: codec.decode((GALLERY / f"{name}.jpg").read_bytes()) for name in PAINTINGS}
    for picture in paintings.values():
        picture.thumbnail((400, 400))
    hits: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for kind, ground, width, turn, picture, where in cases(paintings):
        hit = is_right(find_painting(picture), where, turn)
        for column in (f"{turn:g}°", f"width {width:g}", f"ground {ground}", "all"):
            hits[kind, column].append(hit)
            hits["all", column].append(hit)
    columns = [f"{turn:g}°" for turn in TURNS] + [f"width {width:g}" for width in WIDTHS]
    columns += [*(f"ground {ground}" for ground in GROUNDS), "all"]
    click.echo("| frame | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for kind in (*FRAMES, "all"):
        shares = [hits[kind, column] for column in columns]
        click.echo(f"| {kind} | " + " | ".join(f"{sum(one)}/{len(one)}" for one in shares) + " |")
    for name, picture in unframed(folders).items():
        box = find_painting(picture)
        if box:
            click.echo(f"{name}: {box} of {picture.size}")


if __name__ == "__main__":
    main()
