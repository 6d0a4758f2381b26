"""How strongly a network's filters respond on average, and the same network with these averages at 1.

Gatys, Ecker and Bethge 2016, *Image Style Transfer Using Convolutional Neural Networks*: ReLU and pooling commute with
positive factors, so a filter can be divided by its average if the next convolution's weights are multiplied by it. What
the network tells of a picture stays; how much each filter counts in a Gram matrix does not. Knows no files.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from core import errors
from core.neural.transfer import pixels
from core.neural.vgg import Network
from core.neural.weights.parameters import Parameters
from core.style.vgg_layers import layers

PICTURE_PX = 512  # the long side at which a picture is looked at

# A filter that hardly responds to these pictures may to others, and brought up to 1 it would drown the rest: a run may
# not recover from its first step (docs/log.md). So none is divided by less than this share of its layer's average.
LEAST = 0.1


@dataclass(frozen=True)
class ActivationMeans:
    """Of each filter, by layer, (N,); over all positions of all pictures."""

    by_layer: dict[str, Tensor]
    pictures: int

    def weak(self, least: float = LEAST) -> dict[str, int]:
        """How many filters of a layer respond less than so large a share of its average, where there are any."""
        counts = {
            layer: int((means < least * means.mean()).sum())
            for layer, means in self.by_layer.items()
        }
        return {layer: count for layer, count in counts.items() if count}


def measure_activations(network: Network, pictures: Iterable[Image.Image]) -> ActivationMeans:
    """Looks at one picture after the other. Raises BadInput if there is none."""
    names = layers(network.architecture)
    sums: dict[str, Tensor] = {}
    positions = dict.fromkeys(names, 0)
    count = 0
    for count, picture in enumerate(pictures, start=1):  # noqa: B007 - it is wanted after the loop
        image = pixels.to_image(picture, _size(picture)).to(network.device)
        for layer, responses in network.responses(image, names):  # (1, N, h, w)
            total = (
                responses.sum(3).cpu().double().sum((0, 2))
            )  # an Apple card has no double precision
            sums[layer] = sums[layer] + total if layer in sums else total
            positions[layer] += responses.shape[2] * responses.shape[3]
    if not count:
        raise errors.BadInput("There is no picture in the folder that can be read.")
    return ActivationMeans(
        {layer: total / positions[layer] for layer, total in sums.items()}, count
    )


def _size(picture: Image.Image) -> tuple[int, int]:
    factor = min(1.0, PICTURE_PX / max(picture.size))
    width, height = (max(32, round(side * factor)) for side in picture.size)
    return width, height


def normalize(parameters: Parameters, of: ActivationMeans, least: float = LEAST) -> Parameters:
    """The network whose filters respond with 1 on average to those pictures; weak ones with less, dead ones with 0.

    Raises BadInput for a layer that does not respond at all.
    """
    pairs, before = [], torch.ones(3, dtype=torch.float64)
    for (weight, bias), (layer, means) in zip(parameters.pairs, of.by_layer.items(), strict=True):
        whole = means.mean()
        if not 0 < whole < float("inf"):
            raise errors.BadInput(
                f"{layer} does not respond to these pictures, or beyond all bounds."
            )
        factors = means.clamp_min(least * whole)
        scaled = weight.double() * before.view(1, -1, 1, 1) / factors.view(-1, 1, 1, 1)
        pairs.append((scaled.float(), (bias.double() / factors).float()))
        before = factors
    return Parameters.of(pairs, parameters.takes)
