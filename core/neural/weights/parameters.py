"""A network's parameters in host memory: validation, torchvision's names, input conversion.

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

# Weight (out, in, 3, 3) and bias (out,) of each convolution, in order.
Pairs = Sequence[tuple[Tensor, Tensor]]

# Input of the original Caffe networks (Simonyan and Zisserman 2014): BGR in 0 to 255, minus the
# mean of ImageNet. Here as for all our networks the first convolution's inputs are in RGB order
# and [0, 1], so the mean is divided by 255.
CAFFE = Input(mean=(123.68 / 255, 116.779 / 255, 103.939 / 255), std=(1 / 255, 1 / 255, 1 / 255))

_BATCH_NORM_EPSILON = 1e-5  # torch's default
_CONVOLUTION_NAME = re.compile(r"features\.(\d+)\.weight")


@dataclass(frozen=True)
class Parameters:
    """The convolutions of a VGG. Construct with `Parameters.of`, which validates them."""

    architecture: Architecture
    pairs: Pairs
    input_format: Input = TORCHVISION

    @classmethod
    def of(cls, pairs: Pairs, input_format: Input = TORCHVISION) -> "Parameters":
        """Validate the pairs and convert them to float32. Raises BadWeights.

        The number of convolutions determines the architecture.
        """
        architecture, checked = _find_architecture(len(pairs)), []
        for (weight, bias), row in zip(pairs, convolutions(architecture), strict=True):
            if weight.shape != (row.outputs, row.inputs, 3, 3) or bias.shape != (row.outputs,):
                hint = ""
                if weight.ndim == 4 and len(weight) < row.outputs:
                    hint = " For a narrow network of `impasto train`, import network.safetensors."
                raise errors.BadWeights(
                    f"The convolution before {row.layer} is {' x '.join(map(str, weight.shape))}; "
                    f"{title(architecture)} has {row.outputs} x {row.inputs} x 3 x 3.{hint}"
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
        return cls(architecture, checked, input_format)

    @property
    def sha256(self) -> str:
        """SHA-256 over the float32 bytes of every weight and bias, in order.

        It includes mean and standard deviation of the input if they differ from torchvision's.
        """
        digest = hashlib.sha256()
        for pair in self.pairs:
            for tensor in pair:
                digest.update(np.ascontiguousarray(tensor.numpy()).data)
        if self.input_format != TORCHVISION:
            mean_std = np.array([self.input_format.mean, self.input_format.std], np.float64)
            digest.update(mean_std.data)
        return digest.hexdigest()

    def convert_input(self, target: Input) -> "Parameters":
        """Adapt the first convolution to another mean and deviation; the function of RGB stays.

        Bit-identical if they are the same. Otherwise the function stays up to rounding, except at
        the outermost positions of images with zero padding: a zero stands for the mean color, and
        that color changes.
        """
        if target == self.input_format:
            return self
        (weight, bias), *others = self.pairs
        old_mean, old_std, mean, std = (
            torch.tensor(color, dtype=torch.float64)  # (3,)
            for color in (self.input_format.mean, self.input_format.std, target.mean, target.std)
        )
        # With x = (RGB - mean) / std: (RGB - old_mean) / old_std = x * ratio + shift.
        ratio = std / old_std  # (3,)
        shift = (mean - old_mean) / old_std  # (3,)
        exact = weight.double()  # (out, 3, 3, 3)
        bias = (bias.double() + (exact.sum((2, 3)) * shift).sum(1)).float()  # (out,)
        weight = (exact * ratio.view(1, 3, 1, 1)).float()
        return Parameters(self.architecture, [(weight, bias), *others], target)

    def swap_color_order(self) -> "Parameters":
        """Reverse the order of the first convolution's inputs: RGB to BGR, or BGR to RGB."""
        (weight, bias), *others = self.pairs
        return Parameters(self.architecture, [(weight.flip(1), bias), *others], self.input_format)

    def to_state_dict(self) -> dict[str, Tensor]:
        """The tensors by torchvision's names."""
        names = torchvision_names(self.architecture)
        return {
            name: tensor
            for row, pair in zip(names, self.pairs, strict=True)
            for name, tensor in zip(row, pair, strict=True)
        }


def torchvision_names(
    architecture: Architecture, *, batch_norm: bool = False
) -> list[tuple[str, str]]:
    """The names in torchvision for weight and bias of each convolution, in order.

    torchvision numbers convolutions, ReLUs and poolings; `vgg16_bn` also numbers batch
    normalizations.
    """
    index, names = 0, []
    for row in convolutions(architecture):
        index += row.pooled
        names.append((f"features.{index}.weight", f"features.{index}.bias"))
        index += 3 if batch_norm else 2
    return names


def from_torchvision(
    tensors: Mapping[str, Tensor], input_format: Input = TORCHVISION
) -> Parameters:
    """Parameters from tensors with torchvision's names. Raises BadWeights.

    Folds batch normalization into the convolutions. Ignores fully connected layers.
    """
    weights = [
        name
        for name, tensor in tensors.items()
        if _CONVOLUTION_NAME.fullmatch(name) and tensor.ndim == 4
    ]
    architecture = _find_architecture(len(weights))
    batch_norm = any(name.endswith(".running_var") for name in tensors)
    try:
        pairs = [
            fold_convolution(tensors, *row, batch_norm=batch_norm)
            for row in torchvision_names(architecture, batch_norm=batch_norm)
        ]
    except KeyError as error:
        raise errors.BadWeights(
            f"The file has no {error.args[0]}, which {title(architecture)} has in torchvision's "
            "naming."
        ) from error
    except RuntimeError as error:  # incompatible shapes
        raise errors.BadWeights(
            "The file's batch normalization does not fit its convolutions."
        ) from error
    return Parameters.of(pairs, input_format)


def fold_convolution(
    tensors: Mapping[str, Tensor], weight_name: str, bias_name: str, *, batch_norm: bool
) -> tuple[Tensor, Tensor]:
    """A convolution's weight and bias, with the batch normalization after it folded in.

    In inference, batch normalization (Ioffe and Szegedy 2015, algorithm 2) is the affine function
    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta of each filter, so the convolution's
    weights can absorb it. Raises KeyError for a missing tensor, RuntimeError for bad shapes.
    """
    weight = tensors[weight_name]
    if not batch_norm:
        return weight, tensors[bias_name]
    next_layer = f"features.{int(weight_name.split('.')[1]) + 1}"
    gamma, beta, mean, variance = (
        tensors[f"{next_layer}.{name}"].double()  # (out,)
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / (variance + _BATCH_NORM_EPSILON).sqrt()
    bias = tensors[bias_name].double() if bias_name in tensors else torch.zeros_like(mean)
    folded_weight = (weight.double() * scale.view(-1, 1, 1, 1)).float()
    folded_bias = ((bias - mean) * scale + beta).float()
    return folded_weight, folded_bias


def _find_architecture(count: int) -> Architecture:
    for architecture, blocks in BLOCKS.items():
        if sum(blocks) == count:
            return architecture
    raise errors.BadWeights(
        f"The file holds {count} convolutions; VGG-11, 13, 16 and 19 have "
        f"{', '.join(str(sum(blocks)) for blocks in BLOCKS.values())}."
    )
