"""A VGG that tells classes apart, to be trained: its layers, its first weights, and what of it is kept for painting.

Layers and their names are torchvision's. Knows no data and no optimiser.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from core import errors
from core.neural.vgg import TORCHVISION
from core.neural.weights.parameters import pair, torchvision_names
from core.neural.weights.torchvision_registry import module
from core.training.config import TrainingConfig

_ROWS = {
    "vgg11": "A",
    "vgg13": "B",
    "vgg16": "D",
    "vgg19": "E",
}  # the columns of the paper's table, in torchvision
# What the deep networks of the paper take over from VGG-11: its first four convolutions, and all after the last.
_STAGED = ((1, 1), (2, 1), (3, 1), (3, 2))

Pair = tuple[Tensor, Tensor]  # weight and bias


class Classifier(nn.Module):
    """Pictures to scores. Where the last pooling leaves 7 × 7 positions, as with 225 px, it is torchvision's VGG."""

    def __init__(self, recipe: TrainingConfig, classes: int) -> None:
        super().__init__()
        self._recipe = recipe
        vgg = module("models.vgg")
        row = [
            entry if entry == "M" else max(8, round(recipe.width * entry))
            for entry in vgg.cfgs[_ROWS[recipe.architecture]]
        ]
        self.features: nn.Sequential = vgg.make_layers(row, recipe.batch_norm)
        outputs = (
            row[-2] * (recipe.crop_px // 32) ** 2
        )  # five poolings halve the side, rounding down
        self.classifier = nn.Sequential(
            nn.Linear(outputs, recipe.hidden),
            nn.ReLU(True),
            nn.Dropout(recipe.dropout),
            nn.Linear(recipe.hidden, recipe.hidden),
            nn.ReLU(True),
            nn.Dropout(recipe.dropout),
            nn.Linear(recipe.hidden, classes),
        )
        self.mean: Tensor
        self.std: Tensor
        for name, values in (("mean", TORCHVISION.mean), ("std", TORCHVISION.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """pictures: (N, 3, H, W), 8 bits. Returns (N, classes)."""
        x = (pictures.float() / 255 - self.mean) / self.std
        x = self.features(x.contiguous(memory_format=torch.channels_last))  # (N, C, h, w)
        return self.classifier(torch.flatten(x, 1))  # type: ignore[no-any-return]

    def begin(self, init: str) -> None:
        """First weights, from torch's own random numbers.

        he: the deviation that keeps the size of the responses from layer to layer (He et al. 2015), but small for the
        scores. gaussian: 0.01 everywhere. Biases are 0.
        """
        *inner, scores = [
            layer for layer in self.modules() if isinstance(layer, nn.Conv2d | nn.Linear)
        ]
        for layer in (*inner, scores):
            if init == "he" and layer is not scores:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            else:
                nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def begin_with(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what Simonyan and Zisserman took over from VGG-11 for the deeper ones. Raises BadWeights.

        tensors: a trained VGG-11 of the same width, hidden units, input and classes, with batch normalization if this
        network has it, by torchvision's names.
        """
        normalized = self._recipe.batch_norm
        if normalized != any(name.endswith(".running_var") for name in tensors):
            raise errors.BadWeights(
                "Of this network and the file to begin with one has batch normalization and the other has not."
            )
        theirs = places("vgg11", batch_norm=normalized)
        ours = places(self._recipe.architecture, batch_norm=normalized)
        taken = {ours[place]: theirs[place] for place in _STAGED}
        if normalized:
            taken |= {_after(mine): _after(other) for mine, other in taken.items()}
        taken |= {f"classifier.{index}": f"classifier.{index}" for index in (0, 3, 6)}
        for mine, other in taken.items():
            for kind, wanted in self.get_submodule(mine).state_dict().items():
                found = tensors.get(f"{other}.{kind}")
                if found is None or found.shape != wanted.shape:
                    raise errors.BadWeights(
                        "The file to begin with must hold a whole VGG-11 of the same width, hidden units, crop and "
                        f"number of classes; its {other}.{kind} is missing or of another shape."
                    )
                wanted.copy_(found)

    def folded(self) -> list[Pair]:
        """Weight and bias of each convolution, batch normalization taken into them, in float32 on the CPU."""
        # To the CPU first: an Apple card has no numbers of double precision.
        tensors = {
            name: tensor.cpu()
            for name, tensor in self.features.state_dict(prefix="features.").items()
        }
        normalized = self._recipe.batch_norm
        names = torchvision_names(self._recipe.architecture, normalized=normalized)
        return [pair(tensors, *row, normalized=normalized) for row in names]


def _after(layer: str) -> str:
    return f"features.{int(layer.removeprefix('features.')) + 1}"


def places(architecture: str, *, batch_norm: bool = False) -> dict[tuple[int, int], str]:
    """The name in torchvision of each convolution, by its block and its number in it: (4, 2) is before relu4_2."""
    found, block, number, index = dict[tuple[int, int], str](), 1, 0, 0
    for entry in module("models.vgg").cfgs[_ROWS[architecture]]:
        if entry == "M":
            block, number, index = block + 1, 0, index + 1
        else:
            number += 1
            found[block, number] = f"features.{index}"
            index += 3 if batch_norm else 2
    return found


def widened(pairs: list[Pair], outputs: list[int]) -> list[Pair]:
    """The same network with filters beside its own that answer 0: painting takes VGGs of full width only."""
    wide, inputs = list[Pair](), 3
    for (weight, bias), count in zip(pairs, outputs, strict=True):
        more = (0, 0, 0, 0, 0, inputs - weight.shape[1], 0, count - weight.shape[0])
        wide.append(
            (functional.pad(weight, more), functional.pad(bias, (0, count - bias.shape[0])))
        )
        inputs = count
    return wide


def full_outputs(architecture: str) -> list[int]:
    """Filters of each convolution at full width."""
    return [entry for entry in module("models.vgg").cfgs[_ROWS[architecture]] if entry != "M"]
