"""Measures the average activation of each filter, and rescales a network so that it is 1.

Gatys, Ecker and Bethge 2016, *Image Style Transfer Using Convolutional Neural Networks*,
section 2: ReLU and pooling commute with positive factors. So a filter can be divided by its
average if the next convolution's weights are multiplied by it. The network computes the same
function up to a factor for each filter; the filters' weights in a Gram matrix change. Knows no
files.
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

MAX_SIDE_PX = 512  # larger pictures are scaled down to this long side

# A filter that hardly responds to these pictures may respond to others. Scaled up to 1, it would
# dominate the Gram matrix there, and a run may not recover from its first step
# (docs/benchmarks/weights.md). So no filter is divided by less than this share of its layer's
# average.
MIN_SHARE = 0.1


@dataclass(frozen=True)
class ActivationMeans:
    """Mean activation of each filter over all positions of all pictures, (filters,) by layer."""

    by_layer: dict[str, Tensor]
    pictures: int

    def count_weak_filters(self, min_share: float = MIN_SHARE) -> dict[str, int]:
        """Number of filters below this share of their layer's average, for layers with any."""
        counts = {
            layer: int((means < min_share * means.mean()).sum())
            for layer, means in self.by_layer.items()
        }
        return {layer: count for layer, count in counts.items() if count}


def measure_activations(network: Network, pictures: Iterable[Image.Image]) -> ActivationMeans:
    """Average the activations over the pictures, one after the other.

    Raises BadInput if there is no picture.
    """
    names = layers(network.architecture)
    sums: dict[str, Tensor] = {}
    positions = dict.fromkeys(names, 0)
    count = 0
    for count, picture in enumerate(pictures, start=1):  # noqa: B007 - used after the loop
        image = pixels.to_image(picture, _target_size(picture)).to(network.device)
        for layer, responses in network.responses(image, names):  # (1, filters, h, w)
            # Sum rows on the device and the rest on the CPU: MPS has no double precision.
            total = responses.sum(3).cpu().double().sum((0, 2))  # (filters,)
            sums[layer] = sums[layer] + total if layer in sums else total
            positions[layer] += responses.shape[2] * responses.shape[3]
    if not count:
        raise errors.BadInput("There is no picture in the folder that can be read.")
    return ActivationMeans(
        {layer: total / positions[layer] for layer, total in sums.items()}, count
    )


def _target_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height with a long side of at most MAX_SIDE_PX and a short side of at least 32.

    Five poolings divide a side by 32.
    """
    factor = min(1.0, MAX_SIDE_PX / max(picture.size))
    width, height = (max(32, round(side * factor)) for side in picture.size)
    return width, height


def normalize(
    parameters: Parameters, activations: ActivationMeans, min_share: float = MIN_SHARE
) -> Parameters:
    """Rescale the network so that each filter's mean activation on those pictures is 1.

    Filters below `min_share` of their layer's average stay below 1, and dead filters at 0.
    Raises BadInput for a layer without any activation.
    """
    pairs = []
    previous = torch.ones(3, dtype=torch.float64)  # factors of the inputs; the colors keep theirs
    for (weight, bias), (layer, means) in zip(
        parameters.pairs, activations.by_layer.items(), strict=True
    ):
        layer_mean = means.mean()
        if not 0 < layer_mean < float("inf"):
            raise errors.BadInput(
                f"{layer} does not respond to these pictures, or its response is not finite."
            )
        factors = means.clamp_min(min_share * layer_mean)  # (out,)
        scaled = weight.double() * previous.view(1, -1, 1, 1) / factors.view(-1, 1, 1, 1)
        pairs.append((scaled.float(), (bias.double() / factors).float()))
        previous = factors
    return Parameters.of(pairs, parameters.input_format)
