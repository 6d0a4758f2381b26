"""Paints the pictures of docs/algorithm.md, one row for each idea, from the project's own samples.

PYTHONPATH=. python samples/ideas.py [ROW …]

The paintings are kept in out/ideas/; a second run paints only what is missing there. All rows take
some ten minutes on two cores.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cli.weights import open_cache
from core.neural.transfer.inputs import StyleInputs
from core.neural.transfer.pixels import to_image
from core.style.spec import StyleSpec

ROOT = Path(__file__).parents[1]
PAINTED = ROOT / "out" / "ideas"
PHOTO, PAINTING = (ROOT / "samples" / f"{name}.jpg" for name in ("harbor", "strokes"))
WIDTH, HEIGHT, GAP = 256, 192, 8  # of one picture in a row, and between two, in px
MAX_BYTES = 100_000
PHOTO_ONLY = ["--style-weight", "0", "--init", "noise"]
STYLE_ONLY = ["--content-weight", "0", "--init", "noise", "--quality", "draft"]
PARTS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7")  # colors that color-blind people distinguish


def main() -> None:
    """Write the rows that are named, or all."""
    PAINTED.mkdir(parents=True, exist_ok=True)
    rows = {
        "content": paint_content,
        "style": paint_style,
        "gram": draw_gram,
        "scales": paint_scales,
        "color": paint_color,
        "regions": paint_regions,
    }
    for name in sys.argv[1:] or rows:
        save_row(name, rows[name]())


def paint_content() -> list[Image.Image]:
    """The photo, and what each layer knows of it: images from noise with its responses there."""
    layers = ("relu2_1", "relu4_2", "relu5_1")
    return [
        Image.open(PHOTO),
        *(
            paint(f"content-{layer}", "--content-layers", f"{layer}=1", *PHOTO_ONLY)
            for layer in layers
        ),
    ]


def paint_style() -> list[Image.Image]:
    """The painting, and textures from noise with its statistics in more and more layers."""
    layers = [f"relu{block}_1=1" for block in range(1, 6)]
    return [
        Image.open(PAINTING),
        *(
            paint(f"style-{count}", "--style-layers", ",".join(layers[:count]), *STYLE_ONLY)
            for count in (1, 3, 5)
        ),
    ]


def draw_gram() -> list[Image.Image]:
    """Photo, result and painting, each with its Gram matrix in a layer."""
    network = open_cache().load("auto", "cpu", "float32")
    pictures = [Image.open(PHOTO), paint("plain"), Image.open(PAINTING)]
    matrices = []
    for picture in pictures:
        image = to_image(picture.convert("RGB"), (WIDTH, HEIGHT))
        responses = network.features(image, ["relu2_1"])["relu2_1"].float().flatten(2)[0]
        matrices.append((responses @ responses.T / responses.shape[1]).sqrt().numpy())
    most = np.percentile(np.stack(matrices), 99)
    drawn = [
        Image.fromarray((255 - 255 * np.clip(matrix / most, 0, 1)).astype(np.uint8))
        .resize((HEIGHT, HEIGHT), Image.Resampling.NEAREST)
        .convert("RGB")
        for matrix in matrices
    ]
    return [one for pair in zip(pictures, drawn, strict=True) for one in pair]


def paint_scales() -> list[Image.Image]:
    """A result of one scale, the coarsest scale alone, and a result of both."""
    return [
        paint("scales-one", "--scales", "1"),
        paint("scales-first", "--size", "128", "--scales", "1"),
        paint("plain"),
    ]


def paint_color() -> list[Image.Image]:
    """The values of `preserve_color`."""
    values = ("none", "luminance", "match", "histogram")
    return [paint(f"color-{value}", "--preserve-color", value) for value in values]


def paint_regions() -> list[Image.Image]:
    """The parts of photo and painting that belong together, and results without and with them."""
    network = open_cache().load("auto", "cpu", "float32")
    photo, painting = (Image.open(path).convert("RGB") for path in (PHOTO, PAINTING))
    found = StyleInputs(photo, [painting]).with_regions(StyleSpec(regions="auto"), network)
    assert found.region_map is not None
    parts = [
        color_parts(found.region_map.photo_guides(WIDTH, HEIGHT)),
        color_parts(found.region_map.painting_guides(0, WIDTH, HEIGHT)),
    ]
    return [*parts, paint("plain"), paint("regions", "--regions", "auto")]


def color_parts(guides: list[torch.Tensor]) -> Image.Image:
    """Mix one color for each part."""
    weights = torch.stack(guides).square()
    colors = torch.tensor([[int(one[at : at + 2], 16) for at in (1, 3, 5)] for one in PARTS])
    mixed = torch.einsum("khw,kc->hwc", weights / weights.sum(0), colors[: len(guides)].float())
    return Image.fromarray(mixed.round().to(torch.uint8).numpy())


def paint(name: str, *options: str) -> Image.Image:
    """Paint the samples with `impasto stylize`, unless it was done before."""
    file = PAINTED / f"{name}.png"
    if not file.exists():
        command = [sys.executable, "-m", "cli", "stylize", str(PHOTO), str(PAINTING)]
        size = [] if "--size" in options else ["--size", str(WIDTH)]
        subprocess.run([*command, "-o", str(file), *size, *options], check=True)
    return Image.open(file)


def save_row(name: str, pictures: list[Image.Image]) -> None:
    """Save pictures side by side, with the highest quality that keeps the file small."""
    fitted = [
        picture.convert("RGB").resize(
            (round(picture.width * HEIGHT / picture.height), HEIGHT), Image.Resampling.LANCZOS
        )
        for picture in pictures
    ]
    row = Image.new("RGB", (sum(one.width + GAP for one in fitted) - GAP, HEIGHT), "white")
    left = 0
    for picture in fitted:
        row.paste(picture, (left, 0))
        left += picture.width + GAP
    target = ROOT / "docs" / f"idea-{name}.jpg"
    for quality in range(88, 40, -4):
        row.save(target, quality=quality)
        if target.stat().st_size <= MAX_BYTES:
            break


if __name__ == "__main__":
    main()
