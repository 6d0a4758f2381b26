"""The frozen 3 x 3 convolution with its ReLU, forward and backward.

Between two convolutions, memory is the limit: each operation reads and writes all responses. On a
CPU, oneDNN therefore applies the ReLU, and adds to a gradient, within a convolution, and the
weights are packed once for its kernels. Other devices and number formats take plain operations.
Knows no network.
"""

import torch
from torch import Tensor
from torch.nn import functional

from core.neural import torch_versions

# The image has fewer channels than oneDNN's packed kernels read at once.
_LEAST_PACKED_INPUTS = 16


def can_fuse(tensor: Tensor) -> bool:
    """Whether oneDNN's fused kernels take this tensor of responses or weights."""
    return (
        tensor.device.type == "cpu"
        and tensor.dtype == torch.bfloat16
        and tensor.is_contiguous(memory_format=torch.channels_last)
        and torch_versions.has_bfloat16_kernels()
    )


class FrozenConvolution:
    """A 3 x 3 convolution and its ReLU."""

    def __init__(self, weight: Tensor, bias: Tensor, layout: torch.memory_format) -> None:
        """weight: (out, in, 3, 3). bias: (out,). layout: of weights and responses in memory."""
        self._weight, self.bias = weight.contiguous(memory_format=layout), bias
        # The gradient of a convolution is a convolution with the flipped kernel, inputs and outputs
        # exchanged.
        flipped = weight.flip(2, 3).transpose(0, 1)
        self._backward_weight = flipped.contiguous(memory_format=layout)
        self._is_fused = can_fuse(self._weight)
        if self._is_fused:
            self._backward_weight = _pack(self._backward_weight)
            if weight.shape[1] >= _LEAST_PACKED_INPUTS:
                self._weight = _pack(self._weight)

    @property
    def weight(self) -> Tensor:
        """The weight (out, in, 3, 3) in the precision of the responses."""
        return self._weight.to_dense() if self._weight.is_mkldnn else self._weight

    def respond(self, x: Tensor, padding: int = 1) -> Tensor:
        """The responses after the ReLU, (B, out, h, w)."""
        if self._is_fused:
            return _convolve(x, self._weight, self.bias, padding, "relu")
        # In place: the value before the ReLU is never needed again.
        return functional.relu_(functional.conv2d(x, self._weight, self.bias, padding=padding))

    def gradient(self, g: Tensor, padding: int = 1) -> Tensor:
        """dL/dx, from dL/dy of the value y before the ReLU."""
        if self._is_fused:
            return _convolve(g, self._backward_weight, None, padding, "none")
        return functional.conv2d(g, self._backward_weight, padding=padding)


def mask_where_zero(g: Tensor, responses: Tensor) -> Tensor:
    """The gradient before the ReLU, in place: 0 where a response is 0."""
    return torch.ops.aten.threshold_backward.grad_input(  # type: ignore[no-any-return]
        g, responses, 0, grad_input=g
    )


def add_product(total: Tensor, x: Tensor, matrix: Tensor, vector: Tensor, columns: slice) -> None:
    """Add matrix x + vector to `total` in place, at all positions in these columns.

    total, x: (1, N, h, w), for which `can_fuse` is true. matrix: (N, N). vector: (N,).
    """
    # The kernel takes whole rows, so the other columns are restored.
    others = [total[..., : columns.start], total[..., columns.stop :]]
    saved = [part.clone() for part in others]
    torch.ops.mkldnn._convolution_pointwise_.binary(
        total, x, matrix[..., None, None], vector, [0, 0], [1, 1], [1, 1], 1, "add", 1, None, [], ""
    )
    for part, before in zip(others, saved, strict=True):
        part.copy_(before)


def _pack(weight: Tensor) -> Tensor:
    """The weights in the layout that oneDNN's kernels read; no other operation takes them."""
    return torch.ops.mkldnn._reorder_convolution_weight(  # type: ignore[no-any-return]
        weight, [1, 1], [1, 1], [1, 1], 1
    )


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, after: str) -> Tensor:
    return torch.ops.mkldnn._convolution_pointwise(  # type: ignore[no-any-return]
        x, weight, bias, [padding, padding], [1, 1], [1, 1], 1, after, [], ""
    )
