"""VGG's four depths (Simonyan and Zisserman 2014) as a row of data, and the names of their layers. Knows no tensors."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

Architecture = Literal["vgg11", "vgg13", "vgg16", "vgg19"]

# Convolutions in each of the five blocks; a pooling ends each block.
BLOCKS: dict[Architecture, tuple[int, ...]] = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
WIDTHS = (64, 128, 256, 512, 512)


@dataclass(frozen=True)
class Convolution:
    """One 3 x 3 convolution, its ReLU's name, and whether a pooling comes before it."""

    layer: str
    inputs: int
    outputs: int
    pooled: bool


def convolutions(architecture: Architecture) -> list[Convolution]:
    """All convolutions in order: of VGG-16 `relu1_1` to `relu5_3`."""
    row: list[Convolution] = []
    inputs = 3
    for block, (count, width) in enumerate(zip(BLOCKS[architecture], WIDTHS, strict=True), start=1):
        for number in range(1, count + 1):
            row.append(
                Convolution(
                    f"relu{block}_{number}", inputs, width, pooled=block > 1 and number == 1
                )
            )
            inputs = width
    return row


def layers(architecture: Architecture) -> list[str]:
    """The names of all layers, in order."""
    return [convolution.layer for convolution in convolutions(architecture)]


def missing_layer(architecture: Architecture, wanted: Collection[str], model: str) -> str | None:
    """The sentence that refuses a layer which the model does not have; None if it has them all."""
    there = layers(architecture)
    missing = sorted({*wanted} - {*there})
    return (
        f"{missing[0]} is no layer of {model}, a {title(architecture)}: it has {', '.join(there)}."
        if missing
        else None
    )


def title(architecture: Architecture) -> str:
    """As people write it: VGG-16."""
    return f"VGG-{architecture.removeprefix('vgg')}"
