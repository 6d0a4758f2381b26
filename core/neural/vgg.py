"""A VGG network on a device: its features by layer name, and their gradient.

Source: Simonyan and Zisserman 2014. The network takes RGB in [0, 1]. It is frozen and has no fully
connected layers. Knows no losses.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from core import errors
from core.neural import torch_versions
from core.neural.convolution import FrozenConvolution, mask_where_zero
from core.neural.device import best_device
from core.neural.pooling import Pooling, pool, unpool
from core.style.vgg_layers import WIDTHS, Architecture, convolutions, missing_layer

Color = tuple[float, float, float]  # RGB
# What the first convolution reads beyond the image: the outermost pixels again, or zeros, the mean
# color. The paper's network has zeros; they form an edge like any other, which becomes a frame
# along the border of the result.
Edges = Literal["repeat", "zeros"]

# The normalization with which torchvision's weights were trained.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# Instructions of x86 processors that multiply in a half precision, by torch's names.
_INSTRUCTIONS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16"),
}

# Bytes per pixel of the normalized image: in float32 with and without padding, and in the network's
# precision.
_IMAGE_BYTES = 3 * (4 + 4 + 4)


@dataclass(frozen=True)
class Input:
    """The input normalization of a network: (RGB - mean) / std, with RGB in [0, 1].

    Zero padding is the mean color.
    """

    mean: Color = MEAN
    std: Color = STD


TORCHVISION = Input()

# A network with Caffe's input has responses some 60 times those of torchvision's, up to 25,000. In
# float16, whose largest number is 65,504, they are divided by this power of two.
_CAFFE_RESPONSE_UNIT = 64.0


def fast_dtype(device: torch.device) -> torch.dtype:
    """The half precision that the processor multiplies faster than float32, or else float32.

    Chosen by capabilities: of a processor, because two measurements may differ, and the same seed
    would then give two pictures; of a card, until it is measured (`WeightsCache.load`). float16 on
    cards with tensor cores before Ampere (Titan V, Titan RTX), bfloat16 since.
    """
    if device.type == "cpu":
        return torch.bfloat16 if _has_instructions(torch.bfloat16) else torch.float32
    if device.type != "cuda":
        return torch.float32
    capability = torch.cuda.get_device_capability(device)
    if capability >= (8, 0):
        return torch.bfloat16
    return torch.float16 if capability >= (7, 0) else torch.float32


def disable_tf32(dtype: torch.dtype) -> None:
    """For float32, forbid TF32, which has 10 bits of mantissa.

    cuDNN uses it by default since Ampere.
    """
    if dtype == torch.float32:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def is_emulated(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether an x86 processor is slower with a half precision, because it has no instructions.

    False on other processors: there it has not been measured.
    """
    x86 = device.type == "cpu" and torch_versions.cpu_capabilities()["architecture"] == "x86_64"
    return x86 and dtype in _INSTRUCTIONS and not _has_instructions(dtype)


def _has_instructions(dtype: torch.dtype) -> bool:
    capabilities = torch_versions.cpu_capabilities()
    return any(capabilities.get(name) for name in _INSTRUCTIONS[dtype])


@dataclass(frozen=True)
class Format:
    """The number format in which a network computes, and the memory layout of its tensors."""

    dtype: torch.dtype
    layout: torch.memory_format = torch.channels_last


def formats(device: torch.device, dtype: torch.dtype | None = None) -> list[Format]:
    """The formats among which a measurement of the device decides.

    dtype: only formats of this one. A CPU has a single format, which needs no measurement.
    """
    if device.type == "cpu":
        return [Format(dtype or fast_dtype(device))]
    dtypes = [dtype] if dtype else [torch.float32]
    if device.type == "cuda" and dtype is None:
        has_bfloat16 = torch.cuda.get_device_capability(device) >= (8, 0)
        dtypes.append(torch.bfloat16 if has_bfloat16 else torch.float16)
    layouts = (torch.channels_last, torch.contiguous_format)
    return [Format(number, layout) for number in dtypes for layout in layouts]


def stride(layer: str) -> int:
    """Pixels between two positions of a layer: 1, 2, 4, 8 or 16, for blocks 1 to 5."""
    return 1 << (int(layer[4]) - 1)


class Network:
    """A frozen VGG on one device in one precision. It stays loaded between runs."""

    def __init__(
        self,
        architecture: Architecture,
        parameters: Sequence[tuple[Tensor, Tensor]],
        *,
        name: str,
        sha256: str,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        layout: torch.memory_format = torch.channels_last,
        takes: Input = TORCHVISION,
    ) -> None:
        """parameters: weight (out, in, 3, 3) and bias (out,) of each convolution, in order.

        takes: the input normalization of the weights. dtype: None takes the fastest for the device
        (`fast_dtype`). layout: of weights and responses in memory. Raises BadSettings for a card
        that cannot be used.
        """
        self.architecture, self.name, self.sha256 = architecture, name, sha256
        self.device, self.layout = best_device(device), layout
        self.dtype = dtype or fast_dtype(self.device)
        disable_tf32(self.dtype)
        # The responses are those of the weights divided by this number.
        self.response_unit = 1.0
        if self.dtype == torch.float16 and max(takes.std) < 1 / _CAFFE_RESPONSE_UNIT:
            self.response_unit = _CAFFE_RESPONSE_UNIT
        self._convolutions = convolutions(architecture)
        # A network without its biases is homogeneous: if input and biases are divided by a number,
        # so is every response.
        self._kernels = [
            FrozenConvolution(
                weight.to(self.device, self.dtype),
                (bias / self.response_unit).to(self.device, self.dtype),
                layout,
            )
            for weight, bias in parameters
        ]
        exact = torch.promote_types(self.dtype, torch.float32)
        self._mean, self._std = (
            torch.tensor(color, device=self.device, dtype=exact).view(1, 3, 1, 1)
            for color in (takes.mean, [self.response_unit * std for std in takes.std])
        )

    @property
    def parameters(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each convolution, in order, as this network uses them."""
        return [(kernel.weight, kernel.bias) for kernel in self._kernels]

    def check_layers(self, layers: Collection[str]) -> None:
        """Raise BadSpec, with the names of the network's layers, if it lacks one of these."""
        message = missing_layer(self.architecture, layers, self.name)
        if message is not None:
            raise errors.BadSpec(message)

    def halo(self, layers: Collection[str]) -> int:
        """The radius of the receptive field of the deepest of these layers.

        In px, rounded up to whole positions.
        """
        radius = deepest = 0
        for convolution in self._convolutions:
            if convolution.pooled:
                radius += deepest  # the window of l2 pooling
            deepest = stride(convolution.layer)
            radius += deepest
            if convolution.layer == max(layers):
                break
        return -(-radius // deepest) * deepest

    def filters(self, layer: str) -> int:
        """N: the number of filters of a layer."""
        return next(
            convolution.outputs for convolution in self._convolutions if convolution.layer == layer
        )

    def relative_cost(self, layers: Collection[str]) -> float:
        """Multiplications per pixel up to the deepest of `layers`.

        As a share of those up to relu5_1.
        """
        return self._multiplications(layers) / self._multiplications(["relu5_1"])

    def _multiplications(self, layers: Collection[str]) -> float:
        return sum(
            9 * conv.inputs * conv.outputs / stride(conv.layer) ** 2
            for conv in self._convolutions
            if conv.layer <= max(layers)
        )

    def features_bytes(self, layers: Collection[str]) -> int:
        """Peak memory of `features`, in bytes per pixel."""
        kept = sum(
            conv.outputs / stride(conv.layer) ** 2
            for conv in self._convolutions
            if conv.layer in layers
        )
        # The last responses of the first block, their squares, and what is pooled from them.
        return int(self.dtype.itemsize * (kept + 2.25 * WIDTHS[0]) + _IMAGE_BYTES)

    def gradient_bytes(self, layers: Collection[str]) -> int:
        """Peak memory of `record` and `gradient`, in bytes per pixel.

        The peak is the larger of two: all responses, before and after the poolings; or, at the end
        of the backward pass, the two responses of the first block with two gradients (or one with
        three, in a region), and the positions of the maxima.
        """
        kept = sum(
            (conv.outputs + conv.pooled * conv.inputs) / stride(conv.layer) ** 2
            for conv in self._convolutions
            if conv.layer <= max(layers)
        )
        first = 4 * WIDTHS[0]
        return int(self.dtype.itemsize * max(kept, first) + 8 * WIDTHS[0] / 4 + _IMAGE_BYTES)

    def features(
        self,
        image: Tensor,
        layers: Collection[str],
        pooling: Pooling = "max",
        edges: Edges = "repeat",
    ) -> dict[str, Tensor]:
        """Responses after the ReLU of each layer in `layers`, in the network's precision.

        image: (B, 3, H, W) in [0, 1], any float dtype. Returns {layer: (B, C, h, w)}. Stops at the
        deepest of the layers, and keeps no other responses. Raises KeyError for a layer that the
        network lacks.
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
        """As `features`, with everything that the backward pass to the image needs."""
        return Recording(
            self, layers, pooling, edges, list(self._forward(image, layers, pooling, edges))
        )

    def responses(
        self,
        image: Tensor,
        layers: Collection[str],
        pooling: Pooling = "max",
        edges: Edges = "repeat",
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield each layer and its responses (B, C, h, w), up to the deepest of `layers`."""
        for step in self._forward(image, layers, pooling, edges):
            yield step.layer, step.responses

    @torch.no_grad()
    def _forward(
        self, image: Tensor, layers: Collection[str], pooling: Pooling, edges: Edges
    ) -> Iterator["_Step"]:
        missing = set(layers) - {convolution.layer for convolution in self._convolutions}
        if missing:
            raise KeyError(min(missing))
        if not layers:
            return
        x = ((image - self._mean) / self._std).to(self.dtype)  # (B, 3, H, W)
        x = functional.pad(x, (1, 1, 1, 1), mode="replicate" if edges == "repeat" else "constant")
        x = x.contiguous(memory_format=self.layout)
        for convolution, kernel in zip(self._convolutions, self._kernels, strict=True):
            pooled = None
            if convolution.pooled:
                x = pooled = pool(x, pooling)
            x = kernel.respond(
                x, padding=0 if convolution is self._convolutions[0] else 1
            )  # (B, C, h, w)
            yield _Step(convolution.layer, kernel, x, pooled)
            if convolution.layer == max(layers):
                return


@dataclass(frozen=True)
class _Step:
    """A layer of a forward pass.

    pooled: what its convolution has read, if a pooling precedes it.
    """

    layer: str
    kernel: FrozenConvolution
    responses: Tensor
    pooled: Tensor | None


class Recording:
    """One forward pass: the responses of every layer up to the deepest requested one.

    The backward pass needs nothing else. Autograd would also keep the positions of the maxima, and
    float32 copies of the responses that a loss reads.
    """

    def __init__(
        self,
        network: Network,
        layers: Collection[str],
        pooling: Pooling,
        edges: Edges,
        steps: list[_Step],
    ) -> None:
        self._network, self._pooling, self._edges, self._steps = network, pooling, edges, steps
        self.features = {step.layer: step.responses for step in steps if step.layer in layers}

    @torch.no_grad()
    def gradient(self, add_cotangent: Callable[[str, Tensor, Tensor], object]) -> Tensor:
        """dL/dimage, (B, 3, H, W), from dL/dresponses of each requested layer.

        add_cotangent: adds dL/dresponses to a gradient in place, given a layer's name, its
        responses and that gradient; called for the deepest layer first. Consumes the recording:
        call it once. The gradient is 0 where a response is 0 (Gatys et al. 2015, eq. 2 and 6).
        """
        g: Tensor | None = None
        has_passed_relu = False
        while self._steps:
            step = self._steps.pop()
            if g is None:
                g = torch.zeros_like(step.responses)  # (B, C, h, w)
            if step.layer in self.features:
                add_cotangent(step.layer, self.features.pop(step.layer), g)
                has_passed_relu = False
            if not has_passed_relu:
                mask_where_zero(g, step.responses)
            kernel, pooled = step.kernel, step.pooled
            del step
            # The first convolution read one more pixel on each side; `_unpad` adds their gradient
            # to the edge.
            g = kernel.gradient(g, padding=1 if self._steps else 2)
            has_passed_relu = pooled is not None
            if pooled is not None:
                g = unpool(g, self._steps[-1].responses, pooled, self._pooling)
        assert g is not None, "a layer is requested"
        g = g.to(self._network._mean.dtype)  # (B, 3, H + 2, W + 2)
        g = _unpad(g) if self._edges == "repeat" else g[:, :, 1:-1, 1:-1]
        return g / self._network._std


def _unpad(g: Tensor) -> Tensor:
    """The gradient for an image, from the gradient for the padded image.

    The padding repeats the edge pixels.
    """
    g[:, :, 1] += g[:, :, 0]
    g[:, :, -2] += g[:, :, -1]
    g[..., 1] += g[..., 0]
    g[..., -2] += g[..., -1]
    return g[:, :, 1:-1, 1:-1]
