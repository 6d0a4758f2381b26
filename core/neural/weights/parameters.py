"""A network's parameters on the host, checked; to and from torchvision's names for them, and other colors to take.

Knows no files, no cache and no device.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core import errors
from core.neural.vgg import TORCHVISION, Input
from core.style.vgg_layers import BLOCKS, Architecture, convolutions, title

Pairs = Sequence[
    tuple[Tensor, Tensor]
]  # weight (out, in, 3, 3) and bias (out,) of each convolution, in order

# What the original networks of Simonyan and Zisserman were trained on, in Caffe: BGR in 0 to 255 less the mean of
# ImageNet. As for all our networks, the first convolution's inputs are kept in the order RGB.
CAFFE = Input(mean=(123.68 / 255, 116.779 / 255, 103.939 / 255), std=(1 / 255, 1 / 255, 1 / 255))

_EPSILON = 1e-5  # of torch's batch normalization
_CONVOLUTION = re.compile(r"features\.(\d+)\.weight")


@dataclass(frozen=True)
class Parameters:
    """All of a network that is kept. `of` makes and checks them."""

    architecture: Architecture
    pairs: Pairs
    takes: Input = TORCHVISION

    @classmethod
    def of(cls, pairs: Pairs, takes: Input = TORCHVISION) -> "Parameters":
        """As float32; the architecture is read from their shapes. Raises BadWeights."""
        architecture, checked = _architecture(len(pairs)), []
        for (weight, bias), row in zip(pairs, convolutions(architecture), strict=True):
            if weight.shape != (row.outputs, row.inputs, 3, 3) or bias.shape != (row.outputs,):
                narrow = weight.ndim == 4 and len(weight) < row.outputs
                raise errors.BadWeights(
                    f"The convolution before {row.layer} is {' x '.join(map(str, weight.shape))}; "
                    f"{title(architecture)} has {row.outputs} x {row.inputs} x 3 x 3."
                    + (
                        " Of a narrow network of `impasto train` take network.safetensors."
                        if narrow
                        else ""
                    )
                )
            if weight.is_complex() or bias.is_complex():
                raise errors.BadWeights(
                    f"The convolution before {row.layer} holds complex numbers."
                )
            weight, bias = weight.float().contiguous(), bias.float().contiguous()  # noqa: PLW2901
            if not (weight.isfinite().all() and bias.isfinite().all()):
                raise errors.BadWeights(
                    f"The convolution before {row.layer} holds numbers that are not finite."
                )
            checked.append((weight, bias))
        return cls(architecture, checked, takes)

    @property
    def sha256(self) -> str:
        """Over the float32 bytes of every weight and bias, in order; and of what they take, if it is not usual."""
        digest = hashlib.sha256()
        for pair in self.pairs:
            for tensor in pair:
                digest.update(np.ascontiguousarray(tensor.numpy()).data)
        if self.takes != TORCHVISION:
            digest.update(np.array([self.takes.mean, self.takes.std], np.float64).data)
        return digest.hexdigest()

    def taking(self, takes: Input) -> "Parameters":
        """The same function of RGB in [0, 1] by a first convolution that takes other means and deviations.

        To the bit, if they are the same. Otherwise to rounding, but for the outermost positions of pictures with zeros
        around them: zeros are the mean color, and that is another one.
        """
        if takes == self.takes:
            return self
        (weight, bias), *others = self.pairs
        old_mean, old_std, mean, std = (
            torch.tensor(row, dtype=torch.float64)
            for row in (self.takes.mean, self.takes.std, takes.mean, takes.std)
        )
        ratio, shift = (
            std / old_std,
            (mean - old_mean) / old_std,
        )  # (RGB - old) / old_std = x ratio + shift
        exact = weight.double()
        bias = (bias.double() + (exact.sum((2, 3)) * shift).sum(1)).float()
        weight = (exact * ratio.view(1, 3, 1, 1)).float()
        return Parameters(self.architecture, [(weight, bias), *others], takes)

    def turned(self) -> "Parameters":
        """With the first convolution's inputs in the other order: BGR for RGB, and back."""
        (weight, bias), *others = self.pairs
        return Parameters(self.architecture, [(weight.flip(1), bias), *others], self.takes)

    def named(self) -> dict[str, Tensor]:
        """By torchvision's names."""
        names = torchvision_names(self.architecture)
        return {
            name: tensor
            for row, pair in zip(names, self.pairs, strict=True)
            for name, tensor in zip(row, pair, strict=True)
        }


def torchvision_names(
    architecture: Architecture, *, normalized: bool = False
) -> list[tuple[str, str]]:
    """Torchvision counts convolutions, ReLUs and poolings; with batch normalization (`vgg16_bn`) that as well."""
    index, names = 0, []
    for row in convolutions(architecture):
        index += row.pooled
        names.append((f"features.{index}.weight", f"features.{index}.bias"))
        index += 3 if normalized else 2
    return names


def from_torchvision(tensors: Mapping[str, Tensor], takes: Input = TORCHVISION) -> Parameters:
    """From tensors by torchvision's names; batch normalization goes into the convolutions. Raises BadWeights."""
    weights = [
        name
        for name, tensor in tensors.items()
        if _CONVOLUTION.fullmatch(name) and tensor.ndim == 4
    ]
    architecture = _architecture(len(weights))
    normalized = any(name.endswith(".running_var") for name in tensors)
    try:
        pairs = [
            pair(tensors, *row, normalized=normalized)
            for row in torchvision_names(architecture, normalized=normalized)
        ]
    except KeyError as error:
        raise errors.BadWeights(
            f"The file has no {error.args[0]}; {title(architecture)} in torchvision's naming has."
        ) from error
    except RuntimeError as error:  # shapes that do not go together
        raise errors.BadWeights(
            "The file's batch normalization does not fit its convolutions."
        ) from error
    return Parameters.of(pairs, takes)


def pair(
    tensors: Mapping[str, Tensor], weight_name: str, bias_name: str, *, normalized: bool
) -> tuple[Tensor, Tensor]:
    """A convolution's weight and bias; with batch normalization, taken into them. Raises KeyError, RuntimeError."""
    weight = tensors[weight_name]
    if not normalized:
        return weight, tensors[bias_name]
    after = f"features.{int(weight_name.split('.')[1]) + 1}"
    gamma, beta, mean, variance = (
        tensors[f"{after}.{name}"].double()
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / (variance + _EPSILON).sqrt()
    bias = tensors[bias_name].double() if bias_name in tensors else torch.zeros_like(mean)
    return (weight.double() * scale.view(-1, 1, 1, 1)).float(), (
        (bias - mean) * scale + beta
    ).float()


def _architecture(count: int) -> Architecture:
    for architecture, blocks in BLOCKS.items():
        if sum(blocks) == count:
            return architecture
    raise errors.BadWeights(
        f"The file holds {count} convolutions; VGG-11, 13, 16 and 19 have "
        f"{', '.join(str(sum(blocks)) for blocks in BLOCKS.values())}."
    )
