"""VGG-16 and VGG-19 (Simonyan and Zisserman 2014) as a row of data; their features by layer name.

The network takes RGB in [0, 1]. It is frozen, has no fully connected layers, and knows nothing of losses.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Pooling = Literal["max", "average"]
Architecture = Literal["vgg16", "vgg19"]

# Convolutions in each of the five blocks; a pooling ends each block.
BLOCKS: dict[Architecture, tuple[int, ...]] = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)

# torchvision's normalisation, which its weights were trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Convolution:
    """One 3 x 3 convolution, its ReLU's name, and whether a pooling comes before it."""

    layer: str
    inputs: int
    outputs: int
    pooled: bool


def convolutions(architecture: Architecture) -> list[Convolution]:
    """All convolutions in order, `relu1_1` to `relu5_3` or `relu5_4`."""
    row: list[Convolution] = []
    inputs = 3
    for block, (count, width) in enumerate(zip(BLOCKS[architecture], WIDTHS, strict=True), start=1):
        for number in range(1, count + 1):
            row.append(Convolution(f"relu{block}_{number}", inputs, width, pooled=block > 1 and number == 1))
            inputs = width
    return row


def best_device(wanted: str = "auto") -> torch.device:
    """`auto` is a CUDA card, else Apple's, else the CPU; anything else is torch's own name for a device."""
    if wanted != "auto":
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def use_threads(count: int) -> None:
    """CPU threads for every network of this process; 0 leaves torch's choice, the cores it sees."""
    if count:
        torch.set_num_threads(count)


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies it faster than float32, by what it is and not by a stopwatch:

    a measurement could come out differently twice, and the same seed would give two pictures.
    """
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    else:
        native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if native else torch.float32


class Network:
    """A frozen VGG on one device in one precision, resident between runs."""

    def __init__(
        self,
        architecture: Architecture,
        parameters: Sequence[tuple[Tensor, Tensor]],
        *,
        name: str,
        sha256: str,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        """`parameters`: weight (out, in, 3, 3) and bias (out,) of each convolution, in order."""
        self.architecture, self.name, self.sha256 = architecture, name, sha256
        self.device = best_device(device)
        self.dtype = dtype or fast_dtype(self.device)
        self._row = convolutions(architecture)
        self._parameters = [
            (
                # channels_last: the layout that the fast kernels of CPUs and GPUs want
                weight.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last),
                bias.to(self.device, self.dtype),
            )
            for weight, bias in parameters
        ]
        shift = [torch.tensor(row, device=self.device).view(1, 3, 1, 1) for row in (MEAN, STD)]
        self._mean, self._std = shift

    def features(self, image: Tensor, layers: Collection[str], pooling: Pooling = "max") -> dict[str, Tensor]:
        """Responses after the ReLU of each layer in `layers`, in the network's precision.

        image: (1, 3, H, W) in [0, 1], any float dtype. Returns {layer: (1, C, h, w)}. Stops at the deepest layer asked
        for. Raises KeyError for a layer the network does not have.
        """
        found: dict[str, Tensor] = {}
        x = ((image - self._mean) / self._std).to(self.dtype)
        x = x.contiguous(memory_format=torch.channels_last)  # (1, 3, H, W)
        for convolution, (weight, bias) in zip(self._row, self._parameters, strict=True):
            if convolution.pooled:
                x = functional.max_pool2d(x, 2) if pooling == "max" else functional.avg_pool2d(x, 2)
            # In place: the value before the ReLU is never needed again.
            x = functional.relu_(functional.conv2d(x, weight, bias, padding=1))  # (1, C, h, w)
            if convolution.layer in layers:
                found[convolution.layer] = x
                if len(found) == len(layers):
                    return found
        raise KeyError(min(set(layers) - set(found)))
