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
from core.neural.device import best_device
from core.style.vgg_layers import WIDTHS, Architecture, convolutions, missing_layer

Pooling = Literal["max", "average", "l2"]
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

# Factors that give the responses after another pooling the size with which the deeper layers were
# trained. Measured with the paper's VGG-19 on photos and paintings; torchvision's VGG-16 would need
# more (docs/benchmarks/style.md).
POOLING_SCALES: dict[Pooling, float] = {"max": 1.0, "average": 1.4, "l2": 1.3}

# The window of l2 pooling along an axis: binomial, over the two positions of a cell and one more on
# each side.
_WINDOW = (1 / 8, 3 / 8, 3 / 8, 1 / 8)
# In float16, responses are divided by this before they are squared, so that they stay below 65,504.
_SQUARE_UNIT = 16.0


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
        self._parameters = [
            (
                self._in_layout(weight.to(self.device, self.dtype)),
                (bias / self.response_unit).to(self.device, self.dtype),
            )
            for weight, bias in parameters
        ]
        # The gradient of a convolution is a convolution with the flipped kernel, inputs and outputs
        # exchanged.
        self._backward_weights = [
            self._in_layout(weight.flip(2, 3).transpose(0, 1)) for weight, _ in self._parameters
        ]
        exact = torch.promote_types(self.dtype, torch.float32)
        self._mean, self._std = (
            torch.tensor(color, device=self.device, dtype=exact).view(1, 3, 1, 1)
            for color in (takes.mean, [self.response_unit * std for std in takes.std])
        )

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
        # The responses of the first block, their squares, and these with a margin for pooling.
        return int(self.dtype.itemsize * (kept + 3 * WIDTHS[0]) + _IMAGE_BYTES)

    def gradient_bytes(self, layers: Collection[str]) -> int:
        """Peak memory of `record` and `gradient`, in bytes per pixel.

        The peak is the larger of two: all responses; or, at the end of the backward pass in the
        first block, half of them with three gradients and the positions of the maxima.
        """
        kept = sum(
            conv.outputs / stride(conv.layer) ** 2
            for conv in self._convolutions
            if conv.layer <= max(layers)
        )
        first = 5 * WIDTHS[0] if max(layers) > "relu2" else 4 * WIDTHS[0]
        return int(self.dtype.itemsize * max(kept, first) + 8 * WIDTHS[0] / 4 + _IMAGE_BYTES)

    def _in_layout(self, tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=self.layout)

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
        """Yield each layer and its responses (B, C, h, w), up to the deepest of `layers`."""
        missing = set(layers) - {convolution.layer for convolution in self._convolutions}
        if missing:
            raise KeyError(min(missing))
        if not layers:
            return
        x = ((image - self._mean) / self._std).to(self.dtype)  # (B, 3, H, W)
        x = self._in_layout(
            functional.pad(x, (1, 1, 1, 1), mode="replicate" if edges == "repeat" else "constant")
        )
        for convolution, (weight, bias) in zip(self._convolutions, self._parameters, strict=True):
            if convolution.pooled:
                x = _pool(x, pooling)
            padding = 0 if convolution is self._convolutions[0] else 1
            # In place: the value before the ReLU is never needed again.
            x = functional.relu_(
                functional.conv2d(x, weight, bias, padding=padding)
            )  # (B, C, h, w)
            yield convolution.layer, x
            if convolution.layer == max(layers):
                return


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
        """dL/dimage, (B, 3, H, W), from dL/dresponses of each requested layer.

        cotangent: returns dL/dresponses for a layer's name and responses; called for the deepest
        layer first. Consumes the recording: call it once. The gradient is 0 where a response is 0
        (Gatys et al. 2015, eq. 2 and 6).
        """
        network, g = self._network, None
        for index in reversed(range(len(self._responses))):
            layer, responses = self._responses.popitem()
            if layer in self.features:
                added = cotangent(layer, self.features.pop(layer))
                g = added if g is None else g.add_(added)
            # Takes the layout of the responses; the losses put channels last.
            g = torch.ops.aten.threshold_backward(g, responses, 0)  # (B, C, h, w)
            del responses
            # The first convolution read one more pixel on each side; `_unpad` adds their gradient
            # to the edge.
            g = functional.conv2d(g, network._backward_weights[index], padding=1 if index else 2)
            if network._convolutions[index].pooled:
                g = _unpool(g, next(reversed(self._responses.values())), self._pooling)
        assert g is not None, "a layer is requested"
        g = g.to(network._mean.dtype)  # (B, 3, H + 2, W + 2)
        g = _unpad(g) if self._edges == "repeat" else g[:, :, 1:-1, 1:-1]
        return g / network._std


def _pool(x: Tensor, pooling: Pooling) -> Tensor:
    if pooling == "max":
        return functional.max_pool2d(x, 2)
    if pooling == "average":
        return functional.avg_pool2d(x, 2).mul_(POOLING_SCALES[pooling])
    return _l2_pool(x)


def _unpool(g: Tensor, x: Tensor, pooling: Pooling) -> Tensor:
    """dL/dx from dL/dpool(x).

    Computes the positions of the maxima, or the pooled responses, again: storing them costs more.
    """
    if pooling == "max":
        positions = torch.ops.aten.max_pool2d_with_indices(x, [2, 2])[1]
        return torch.ops.aten.max_pool2d_with_indices_backward(  # type: ignore[no-any-return]
            g, x, [2, 2], [2, 2], [0, 0], [1, 1], False, positions
        )
    if pooling == "average":
        g = g * POOLING_SCALES[pooling]
        return torch.ops.aten.avg_pool2d_backward(  # type: ignore[no-any-return]
            g, x, [2, 2], [2, 2], [0, 0], False, True, None
        )
    return _l2_unpool(g, x)


def _l2_pool(x: Tensor) -> Tensor:
    """The root of the weighted mean of the squares in a window, (B, C, h, w) -> (B, C, h/2, w/2).

    The windows overlap, so that a pattern is seen in the same way wherever it lies. The cells of
    max and average pooling do not: the optimization then finds dots and grids that they do not see.
    Source: Henaff and Simoncelli 2016, "Geodesics of Learned Representations", section 2.3.

    Beyond the edge the outermost responses repeat.
    """
    unit = _SQUARE_UNIT if x.dtype == torch.float16 else 1.0
    squares = _even_part(x).div(unit).square_() if unit != 1 else _even_part(x).square()
    squares = functional.pad(squares, (1, 1, 1, 1), mode="replicate")
    window = torch.tensor(_WINDOW, dtype=x.dtype, device=x.device)
    windows = torch.outer(window, window).expand(x.shape[1], 1, 4, 4)
    mean = functional.conv2d(squares, windows, stride=2, groups=x.shape[1])
    return mean.sqrt_().mul_(unit * POOLING_SCALES["l2"])


def _l2_unpool(g: Tensor, x: Tensor) -> Tensor:
    """dL/dx from dL/dl2_pool(x): x B^T(scale^2 g / l2_pool(x)), with the windowed mean B.

    0 where all responses in a window are 0. B^T is a quarter of bilinear interpolation, whose
    weights of 3/4 and 1/4 are twice the window's.
    """
    if x.dtype == torch.float16:
        # g / l2_pool(x) can exceed float16, although the product with x does not. A part of the
        # channels at a time, because float32 takes twice the memory.
        size = max(1, x.shape[1] // 4)
        gradient = torch.empty_like(x)
        for begin in range(0, x.shape[1], size):
            channels = slice(begin, begin + size)
            part = _l2_unpool(g[:, channels].float(), x[:, channels].float())
            gradient[:, channels] = part
        return gradient
    pooled = _l2_pool(x)
    ratio = (g * (POOLING_SCALES["l2"] ** 2 / 4)).div_(pooled.clamp_min(torch.finfo(x.dtype).tiny))
    ratio.masked_fill_(pooled == 0, 0)
    spread = functional.interpolate(ratio, scale_factor=2, mode="bilinear")
    rest = (0, x.shape[3] - spread.shape[3], 0, x.shape[2] - spread.shape[2])
    return (functional.pad(spread, rest) if any(rest) else spread).mul_(x)


def _even_part(x: Tensor) -> Tensor:
    """The responses without the last row and column of an odd side, which no pooling reads."""
    return x[..., : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]


def _unpad(g: Tensor) -> Tensor:
    """The gradient for an image, from the gradient for the padded image.

    The padding repeats the edge pixels.
    """
    g[:, :, 1] += g[:, :, 0]
    g[:, :, -2] += g[:, :, -1]
    g[..., 1] += g[..., 0]
    g[..., -2] += g[..., -1]
    return g[:, :, 1:-1, 1:-1]
