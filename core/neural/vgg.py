"""A VGG network on a device: its features by layer name, and their gradient.

The network takes RGB in [0, 1]. It is frozen, has no fully connected layers, and knows nothing of losses.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from core import errors
from core.style.vgg_layers import WIDTHS, Architecture, convolutions, missing_layer

Pooling = Literal["max", "average", "l2"]
Color = tuple[float, float, float]  # RGB
# What the first convolution sees beyond the image: its outermost pixels once more, or the mean color, as the paper's
# network does. The latter is an edge like any other, and paints a frame along the border.
Edges = Literal["repeat", "zeros"]

# torchvision's normalization, which its weights were trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# The instructions of x86 processors that multiply in a half precision, as torch calls them.
_INSTRUCTIONS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16"),
}

# The image normalised and with its edges repeated, in float32 and once more in the network's precision, for a pixel.
_IMAGE_BYTES = 3 * (4 + 4 + 4)

# What brings the responses after another pooling back to the size that the deeper layers were trained with; measured on
# photos and paintings (docs/log.md). l2 is the root of the mean square.
POOLING_SCALES: dict[Pooling, float] = {"max": 1.0, "average": 1.7, "l2": 1.35}


@dataclass(frozen=True)
class Input:
    """What a network was trained on: (RGB - mean) / std. Zeros beyond the border are the mean color."""

    mean: Color = MEAN
    std: Color = STD


TORCHVISION = Input()


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
    """The half precision that the processor multiplies faster than float32, by what it is and not by a stopwatch:

    a measurement could come out differently twice, and the same seed would give two pictures. float16 on the cards
    before Ampere that have tensor cores (Titan V, Titan RTX); bfloat16 since.
    """
    if device.type == "cpu":
        return torch.bfloat16 if _has_instructions(torch.bfloat16) else torch.float32
    if device.type != "cuda":
        return torch.float32
    capability = torch.cuda.get_device_capability(device)
    if capability >= (8, 0):
        return torch.bfloat16
    return torch.float16 if capability >= (7, 0) else torch.float32


def keep_exact(dtype: torch.dtype) -> None:
    """Where float32 is asked for, no card may take its first ten bits for it, as cuDNN does by itself since Ampere."""
    if dtype == torch.float32:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def is_imitated(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the processor has no instructions for a half precision, and is slower with it than with float32.

    Told of x86 alone: how it is elsewhere, nobody has measured.
    """
    x86 = device.type == "cpu" and torch.cpu.get_capabilities()["architecture"] == "x86_64"
    return x86 and dtype in _INSTRUCTIONS and not _has_instructions(dtype)


def _has_instructions(dtype: torch.dtype) -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in _INSTRUCTIONS[dtype])


def stride(layer: str) -> int:
    """Pixels from one position of a layer to the next: 1, 2, 4, 8 or 16."""
    return 1 << (int(layer[4]) - 1)


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
        takes: Input = TORCHVISION,
    ) -> None:
        """`parameters`: weight (out, in, 3, 3) and bias (out,) of each convolution, in order."""
        self.architecture, self.name, self.sha256 = architecture, name, sha256
        self.device = best_device(device)
        self.dtype = dtype or fast_dtype(self.device)
        keep_exact(self.dtype)
        self._row = convolutions(architecture)
        self._parameters = [
            (_laid_out(weight.to(self.device, self.dtype)), bias.to(self.device, self.dtype))
            for weight, bias in parameters
        ]
        # The gradient of a convolution is a convolution with the kernel turned around, inputs and outputs exchanged.
        self._turned = [
            _laid_out(weight.flip(2, 3).transpose(0, 1)) for weight, _ in self._parameters
        ]
        exact = torch.promote_types(self.dtype, torch.float32)
        self._mean, self._std = (
            torch.tensor(row, device=self.device, dtype=exact).view(1, 3, 1, 1)
            for row in (takes.mean, takes.std)
        )

    def must_have(self, layers: Collection[str]) -> None:
        """Raises BadSpec, with the layers that there are."""
        refusal = missing_layer(self.architecture, layers, self.name)
        if refusal is not None:
            raise errors.BadSpec(refusal)

    def halo(self, layers: Collection[str]) -> int:
        """How far from its own pixels a position of these layers sees, in px, rounded up to whole positions."""
        radius = deepest = 0
        for convolution in self._row:
            deepest = stride(convolution.layer)
            radius += deepest
            if convolution.layer == max(layers):
                break
        return -(-radius // deepest) * deepest

    def filters(self, layer: str) -> int:
        """N of a layer."""
        return next(convolution.outputs for convolution in self._row if convolution.layer == layer)

    def work(self, layers: Collection[str]) -> float:
        """Multiplications for a pixel down to the deepest of `layers`, as a share of those down to relu5_1."""
        return self._multiplications(layers) / self._multiplications(["relu5_1"])

    def _multiplications(self, layers: Collection[str]) -> float:
        return sum(
            9 * row.inputs * row.outputs / stride(row.layer) ** 2
            for row in self._row
            if row.layer <= max(layers)
        )

    def features_bytes(self, layers: Collection[str]) -> int:
        """Memory that `features` takes at the most for a pixel."""
        kept = sum(row.outputs / stride(row.layer) ** 2 for row in self._row if row.layer in layers)
        return int(self.dtype.itemsize * (kept + 2 * WIDTHS[0]) + _IMAGE_BYTES)

    def gradient_bytes(self, layers: Collection[str]) -> int:
        """Memory that `record` and `gradient` take at the most for a pixel.

        Either all responses are there, or, deep in the first block, half of them with three gradients and the positions
        of the maxima.
        """
        kept = sum(
            row.outputs / stride(row.layer) ** 2 for row in self._row if row.layer <= max(layers)
        )
        first = 5 * WIDTHS[0] if max(layers) > "relu2" else 4 * WIDTHS[0]
        return int(self.dtype.itemsize * max(kept, first) + 8 * WIDTHS[0] / 4 + _IMAGE_BYTES)

    def features(
        self,
        image: Tensor,
        layers: Collection[str],
        pooling: Pooling = "max",
        edges: Edges = "repeat",
    ) -> dict[str, Tensor]:
        """Responses after the ReLU of each layer in `layers`, in the network's precision.

        image: (B, 3, H, W) in [0, 1], any float dtype. Returns {layer: (B, C, h, w)}. Stops at the deepest layer asked
        for, and keeps no other. Raises KeyError for a layer the network does not have.
        """
        forward = self.responses(image, layers, pooling, edges)
        return {layer: responses for layer, responses in forward if layer in layers}

    def record(
        self,
        image: Tensor,
        layers: Collection[str],
        pooling: Pooling = "max",
        edges: Edges = "repeat",
    ) -> "Recording":
        """As `features`, with what the way back to the image needs."""
        return Recording(
            self, layers, pooling, edges, dict(self.responses(image, layers, pooling, edges))
        )

    @torch.no_grad()
    def responses(
        self,
        image: Tensor,
        layers: Collection[str],
        pooling: Pooling = "max",
        edges: Edges = "repeat",
    ) -> Iterator[tuple[str, Tensor]]:
        """Every layer and its responses, one after the other, down to the deepest of `layers`."""
        missing = set(layers) - {convolution.layer for convolution in self._row}
        if missing:
            raise KeyError(min(missing))
        if not layers:
            return
        x = ((image - self._mean) / self._std).to(self.dtype)  # (B, 3, H, W)
        x = _laid_out(
            functional.pad(x, (1, 1, 1, 1), mode="replicate" if edges == "repeat" else "constant")
        )
        for convolution, (weight, bias) in zip(self._row, self._parameters, strict=True):
            if convolution.pooled:
                x = _pool(x, pooling)
            padding = 0 if convolution is self._row[0] else 1
            # In place: the value before the ReLU is never needed again.
            x = functional.relu_(
                functional.conv2d(x, weight, bias, padding=padding)
            )  # (B, C, h, w)
            yield convolution.layer, x
            if convolution.layer == max(layers):
                return


class Recording:
    """One forward pass: the responses of every layer up to the deepest that was asked for.

    They are all that the way back needs. Autograd would keep the positions of the maxima as well, and copies in
    float32 of what a loss looks at.
    """

    def __init__(
        self,
        network: Network,
        layers: Collection[str],
        pooling: Pooling,
        edges: Edges,
        responses: dict[str, Tensor],
    ) -> None:
        self._network, self._pooling, self._edges, self._responses = (
            network,
            pooling,
            edges,
            responses,
        )
        self.features = {layer: responses[layer] for layer in layers}

    @torch.no_grad()
    def gradient(self, cotangent: Callable[[str, Tensor], Tensor]) -> Tensor:
        """dL/dimage, (B, 3, H, W), from dL/dresponses of each layer that was asked for.

        cotangent: called with the layer's name and responses when its turn comes, deepest first. Uses the recording up:
        it can be called once. A response of 0 passes nothing on (Gatys et al. 2015, eq. 2 and 6: 0 where F < 0).
        """
        network, g = self._network, None
        for index in reversed(range(len(self._responses))):
            layer, responses = self._responses.popitem()
            if layer in self.features:
                own = cotangent(layer, self.features.pop(layer))
                g = own if g is None else g.add_(own)
            g = torch.ops.aten.threshold_backward(g, responses, 0)  # (B, C, h, w)
            del responses
            # The first convolution saw one pixel more on each side: its share goes back to where it was copied from.
            g = functional.conv2d(g, network._turned[index], padding=1 if index else 2)
            if network._row[index].pooled:
                g = _unpool(g, next(reversed(self._responses.values())), self._pooling)
        assert g is not None, "a layer was asked for"
        g = g.to(network._mean.dtype)  # (B, 3, H + 2, W + 2)
        return (_unpad(g) if self._edges == "repeat" else g[:, :, 1:-1, 1:-1]) / network._std


def _laid_out(tensor: Tensor) -> Tensor:
    """Channels last in memory: what the fast kernels of CPUs and GPUs want."""
    return tensor.contiguous(memory_format=torch.channels_last)


def _pool(x: Tensor, pooling: Pooling) -> Tensor:
    if pooling == "max":
        return functional.max_pool2d(x, 2)
    if pooling == "average":
        return functional.avg_pool2d(x, 2).mul_(POOLING_SCALES[pooling])
    return functional.avg_pool2d(x.square(), 2).sqrt_().mul_(POOLING_SCALES[pooling])


def _unpool(g: Tensor, x: Tensor, pooling: Pooling) -> Tensor:
    """dL/dx from dL/dpool(x). Finds the maxima again: their positions take more memory than time."""
    if pooling == "max":
        positions = torch.ops.aten.max_pool2d_with_indices(x, [2, 2])[1]
        return torch.ops.aten.max_pool2d_with_indices_backward(  # type: ignore[no-any-return]
            g, x, [2, 2], [2, 2], [0, 0], [1, 1], False, positions
        )
    g = g * POOLING_SCALES[pooling]
    if pooling == "l2":  # d sqrt(mean x^2) = x / (4 sqrt(mean x^2)); nothing where all four are 0
        g = g / functional.avg_pool2d(x.square(), 2).sqrt_().clamp_min_(
            max(1e-12, torch.finfo(x.dtype).tiny)
        )
    g = torch.ops.aten.avg_pool2d_backward(g, x, [2, 2], [2, 2], [0, 0], False, True, None)
    return g * x if pooling == "l2" else g


def _unpad(g: Tensor) -> Tensor:
    """The gradient with respect to an image, from that with respect to the image with its edge pixels repeated."""
    g[:, :, 1] += g[:, :, 0]
    g[:, :, -2] += g[:, :, -1]
    g[..., 1] += g[..., 0]
    g[..., -2] += g[..., -1]
    return g[:, :, 1:-1, 1:-1]
