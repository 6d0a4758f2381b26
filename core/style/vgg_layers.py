"""The four depths of VGG (Simonyan and Zisserman 2014) as data, and the names of their layers.

Knows no tensors.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

Architecture = Literal["vgg11", "vgg13", "vgg16", "vgg19"]
# The networks that any machine can download: `impasto weights fetch`.
DownloadableModel = Literal["vgg19", "vgg16", "vgg19-torchvision"]
DOWNLOADABLE_MODELS: tuple[DownloadableModel, ...] = get_args(DownloadableModel)

# Convolutions in each of the five blocks; a pooling ends each block.
BLOCKS: dict[Architecture, tuple[int, ...]] = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
# Filters of the convolutions in each block.
WIDTHS = (64, 128, 256, 512, 512)


@dataclass(frozen=True)
class Convolution:
    """One 3 x 3 convolution.

    The name of its ReLU, its channels, and whether a pooling precedes it (`pooled`).
    """

    layer: str
    inputs: int
    outputs: int
    pooled: bool


def convolutions(architecture: Architecture) -> list[Convolution]:
    """All convolutions in order; for VGG-16 from `relu1_1` to `relu5_3`."""
    result: list[Convolution] = []
    inputs = 3
    for block, (count, width) in enumerate(zip(BLOCKS[architecture], WIDTHS, strict=True), start=1):
        for number in range(1, count + 1):
            result.append(
                Convolution(
                    f"relu{block}_{number}", inputs, width, pooled=block > 1 and number == 1
                )
            )
            inputs = width
    return result


def layers(architecture: Architecture) -> list[str]:
    """The names of all layers, in order."""
    return [convolution.layer for convolution in convolutions(architecture)]


def missing_layer(architecture: Architecture, wanted: Collection[str], model: str) -> str | None:
    """The error message if the model lacks one of the wanted layers; None if it has them all."""
    available = layers(architecture)
    missing = sorted({*wanted} - {*available})
    if not missing:
        return None
    names = ", ".join(available)
    return f"{missing[0]} is no layer of {model}, a {title(architecture)}: it has {names}."


def title(architecture: Architecture) -> str:
    """The architecture's name as it is usually written: VGG-16."""
    return f"VGG-{architecture.removeprefix('vgg')}"
