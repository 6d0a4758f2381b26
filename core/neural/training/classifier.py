"""A VGG image classifier for training, and the conversion of its convolutions for style transfer.

Layers and their names are torchvision's. Knows no data and no optimizer.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from core import errors
from core.neural.vgg import TORCHVISION
from core.neural.weights.parameters import fold_convolution, torchvision_names
from core.neural.weights.torchvision_registry import import_torchvision
from core.training.config import TrainingConfig

# torchvision's keys for the columns of table 1 in Simonyan and Zisserman 2014.
_COLUMNS = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}

# Block and number of the convolutions that Simonyan and Zisserman (section 3.1) initialize the
# deeper networks with: the first four of VGG-11. They also reuse its fully connected layers.
_REUSED_CONVOLUTIONS = ((1, 1), (2, 1), (3, 1), (3, 2))
_FULLY_CONNECTED = (0, 3, 6)  # torchvision's indices in `classifier`

_MIN_FILTERS = 8

Pair = tuple[Tensor, Tensor]  # weight (out, in, 3, 3) and bias (out,)


class Classifier(nn.Module):
    """Maps images to class scores.

    With crops of 225 px the last pooling leaves 7 x 7 positions, and the network is torchvision's
    VGG.
    """

    def __init__(self, config: TrainingConfig, classes: int) -> None:
        super().__init__()
        self._config = config
        vgg = import_torchvision("models.vgg")
        layers = [
            entry if entry == "M" else max(_MIN_FILTERS, round(config.width * entry))
            for entry in vgg.cfgs[_COLUMNS[config.architecture]]
        ]
        self.features: nn.Sequential = vgg.make_layers(layers, config.batch_norm)
        # Five poolings divide the side by 32, rounding down.
        flat_size = layers[-2] * (config.crop_px // 32) ** 2
        self.classifier = nn.Sequential(
            nn.Linear(flat_size, config.hidden),
            nn.ReLU(True),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, config.hidden),
            nn.ReLU(True),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, classes),
        )
        self.mean: Tensor
        self.std: Tensor
        for name, values in (("mean", TORCHVISION.mean), ("std", TORCHVISION.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, 3, crop_px, crop_px), uint8, RGB. Returns scores (N, classes)."""
        x = (images.float() / 255 - self.mean) / self.std
        x = self.features(x.contiguous(memory_format=torch.channels_last))  # (N, C, h, w)
        return self.classifier(torch.flatten(x, 1))  # type: ignore[no-any-return]

    def initialize(self, init: str) -> None:
        """Draw the initial weights from torch's global generator; biases are 0.

        he: standard deviation sqrt(2 / fan_in), which keeps the scale of the activations from
        layer to layer (He et al. 2015, equation 10), but 0.01 in the last layer, so that the first
        scores are small. gaussian: 0.01 everywhere (Krizhevsky et al. 2012).
        """
        *hidden, last = [
            layer for layer in self.modules() if isinstance(layer, nn.Conv2d | nn.Linear)
        ]
        for layer in (*hidden, last):
            if init == "he" and layer is not last:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            else:
                nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def initialize_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the layers that Simonyan and Zisserman reuse from VGG-11 in the deeper networks.

        tensors: a trained VGG-11 by torchvision's names, with the same width, hidden units, crop
        and classes, and with batch normalization if this network has it. Raises BadWeights.
        """
        batch_norm = self._config.batch_norm
        if batch_norm != any(name.endswith(".running_var") for name in tensors):
            raise errors.BadWeights(
                "The network and the start weights differ: one has batch normalization and the "
                "other has not."
            )
        source_names = convolution_names("vgg11", batch_norm=batch_norm)
        target_names = convolution_names(self._config.architecture, batch_norm=batch_norm)
        sources = {target_names[place]: source_names[place] for place in _REUSED_CONVOLUTIONS}
        if batch_norm:
            sources |= {_next_layer(to): _next_layer(from_) for to, from_ in sources.items()}
        sources |= {f"classifier.{index}": f"classifier.{index}" for index in _FULLY_CONNECTED}
        for target, source in sources.items():
            for kind, tensor in self.get_submodule(target).state_dict().items():
                start = tensors.get(f"{source}.{kind}")
                if start is None or start.shape != tensor.shape:
                    raise errors.BadWeights(
                        "The start weights must be a whole VGG-11 of the same width, hidden "
                        f"units, crop and number of classes; {source}.{kind} is missing or of "
                        "another shape."
                    )
                tensor.copy_(start)

    def fold_convolutions(self) -> list[Pair]:
        """The convolutions with batch normalization folded in, float32, on the CPU."""
        # Copy to the CPU before folding: MPS has no double precision.
        tensors = {
            name: tensor.cpu()
            for name, tensor in self.features.state_dict(prefix="features.").items()
        }
        batch_norm = self._config.batch_norm
        names = torchvision_names(self._config.architecture, batch_norm=batch_norm)
        return [fold_convolution(tensors, *row, batch_norm=batch_norm) for row in names]


def _next_layer(name: str) -> str:
    return f"features.{int(name.removeprefix('features.')) + 1}"


def convolution_names(architecture: str, *, batch_norm: bool = False) -> dict[tuple[int, int], str]:
    """The name in torchvision of each convolution, by block and number in the block.

    (4, 2) is the convolution before relu4_2.
    """
    names = dict[tuple[int, int], str]()
    block, number, index = 1, 0, 0
    for entry in import_torchvision("models.vgg").cfgs[_COLUMNS[architecture]]:
        if entry == "M":
            block, number, index = block + 1, 0, index + 1
        else:
            number += 1
            names[block, number] = f"features.{index}"
            index += 3 if batch_norm else 2
    return names


def widen(pairs: list[Pair], filter_counts: list[int]) -> list[Pair]:
    """Pad a narrow network with filters of zeros; the function stays the same.

    Style transfer accepts only VGGs of full width.
    """
    wide, inputs = list[Pair](), 3
    for (weight, bias), count in zip(pairs, filter_counts, strict=True):
        # functional.pad takes (before, after) of each dimension, last dimension first.
        padding = (0, 0, 0, 0, 0, inputs - weight.shape[1], 0, count - weight.shape[0])
        wide.append(
            (functional.pad(weight, padding), functional.pad(bias, (0, count - bias.shape[0])))
        )
        inputs = count
    return wide


def full_width_filters(architecture: str) -> list[int]:
    """Number of filters of each convolution at full width."""
    layers = import_torchvision("models.vgg").cfgs[_COLUMNS[architecture]]
    return [entry for entry in layers if entry != "M"]
