"""The reference for comparisons: neural-style-pt's recipe, implemented again with plain autograd.

Both pictures are scaled to the long side first. float32, the photo as initial image, torch's L-BFGS
without bounds, the result clamped at the end. Its unit: mean (F - P)^2 + lambda sum_l |G/M - A/M|^2
/ N^4 + total variation. The peer's default is lambda = 20, for Caffe's networks. Uses only our
network's weights.
"""

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from core.neural.transfer import pixels
from core.neural.vgg import TORCHVISION, Network
from core.style.spec import StyleSpec, parse_spec

CONTENT = "relu4_2"
FILTERS = {"relu1_1": 64, "relu2_1": 128, "relu3_1": 256, "relu4_1": 512, "relu5_1": 512}
# By content weight. Style is of fourth order in the responses and content of second, so networks
# with smaller responses need another one for the same look.
STYLE_WEIGHT_CAFFE, STYLE_WEIGHT_TORCHVISION = 20.0, 1e6
TV_WEIGHT = 2e-4  # of the sum of absolute differences, in 0 to 255


class Peer:
    """The peer's loss and its optimization."""

    def __init__(
        self, network: Network, content: Image.Image, style: Image.Image, tv_weight: float = 0.0
    ) -> None:
        """network: must be in float32."""
        self._network, self._tv_weight = network, tv_weight
        is_torchvision = torch.allclose(
            network._std.flatten().cpu(), torch.tensor(TORCHVISION.std), atol=1e-6
        )
        self._style_weight = STYLE_WEIGHT_TORCHVISION if is_torchvision else STYLE_WEIGHT_CAFFE
        self._photo = pixels.to_image(content).to(network.device)
        with torch.no_grad():
            self._content = self._features(self._photo)[CONTENT]
            painting = self._features(pixels.to_image(style).to(network.device))
            self._grams = {layer: _gram(painting[layer]) for layer in FILTERS}

    def spec(self, size: int) -> StyleSpec:
        """The same loss in our parameters."""
        return parse_spec(
            {
                "size": size,
                "objective": "gatys",
                "content_weight": 2 / self._content.numel(),
                "style_weight": sum(
                    4 * self._style_weight / filters**2 for filters in FILTERS.values()
                ),
                "style_layers": {layer: 1 / filters**2 for layer, filters in FILTERS.items()},
            }
        )

    def loss(self, image: Tensor) -> Tensor:
        """The loss of an image (1, 3, H, W), in the peer's unit."""
        features = self._features(image)
        loss = (features[CONTENT] - self._content).square().mean()
        for layer, filters in FILTERS.items():
            distance = (_gram(features[layer]) - self._grams[layer]).square().sum()
            loss = loss + self._style_weight * distance / filters**4
        if self._tv_weight:
            for dim in (2, 3):
                loss = loss + self._tv_weight * 255 * image.diff(dim=dim).abs().sum()
        return loss

    @torch.no_grad()
    def delivered_loss(self, picture: Image.Image) -> float:
        """The loss of an 8-bit picture."""
        return float(self.loss(pixels.to_image(picture).to(self._network.device)))

    def stylize(self, iterations: int) -> Image.Image:
        """The peer's result after some iterations of L-BFGS."""
        # In 0 to 255, as the peer: the first step of its L-BFGS depends on the unit.
        image = (255 * self._photo).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [image], max_iter=iterations, history_size=100, tolerance_change=-1, tolerance_grad=-1
        )

        def closure() -> float:
            loss = self.loss(image / 255)
            (gradient,) = torch.autograd.grad(loss, image)
            image.grad = gradient.contiguous()  # torch's L-BFGS accepts no other layout
            return float(loss.detach())

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        return pixels.to_picture(image / 255)

    def gradient(self, image: Tensor) -> Tensor:
        """One evaluation, to be timed."""
        leaf = image.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(leaf), leaf)
        return gradient

    def _features(self, image: Tensor) -> dict[str, Tensor]:
        x, features = (image - self._network._mean) / self._network._std, {}
        for conv, (weight, bias) in zip(
            self._network._convolutions, self._network.parameters, strict=True
        ):
            if conv.pooled:
                x = functional.max_pool2d(x, 2)
            x = functional.relu(functional.conv2d(x, weight.contiguous(), bias, padding=1))
            features[conv.layer] = x
            if conv.layer == max(FILTERS):
                break
        return features


def _gram(features: Tensor) -> Tensor:
    flat = features[0].flatten(1)  # (N, M)
    return flat @ flat.T / flat.shape[1]
