"""A normalized network has mean activations of 1 and the same function up to a factor a filter."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from core import errors
from core.neural.pooling import Pooling
from core.neural.transfer import pixels
from core.neural.vgg import Network
from core.neural.weights import normalization
from core.neural.weights.cache import WeightsCache, random_parameters
from core.neural.weights.normalization import ActivationMeans
from core.neural.weights.parameters import CAFFE, Parameters
from core.style.vgg_layers import layers


def _network(parameters: Parameters) -> Network:
    return Network(
        parameters.architecture,
        parameters.pairs,
        name="",
        sha256="",
        dtype=torch.float32,
        takes=parameters.input_format,
    )


def _means(network: Network, pictures: list[Image.Image]) -> dict[str, Tensor]:
    """A second implementation: all activations at once, by layer."""
    names = layers(network.architecture)
    activations = [network.features(pixels.to_image(picture), names) for picture in pictures]
    return {
        name: torch.cat([one[name][0].flatten(1) for one in activations], 1).double().mean(1)
        for name in names
    }


def test_every_filter_of_vgg16_has_mean_one_and_the_function_stays(
    vgg19: Network, weights: WeightsCache, photo: Image.Image, painting: Image.Image
) -> None:
    """Two pictures of different sizes: each position has the same weight."""
    pictures = [photo, painting.resize((64, 64))]
    activations = normalization.measure_activations(vgg19, pictures)
    parameters, _ = weights.load_parameters("vgg19")
    normalized = normalization.normalize(parameters, activations)
    before_means, after_means = _means(vgg19, pictures), _means(_network(normalized), pictures)
    image = pixels.to_image(photo)
    names = layers("vgg19")
    before, after = (network.features(image, names) for network in (vgg19, _network(normalized)))

    for layer in names:
        minimum = normalization.MIN_SHARE * before_means[layer].mean()
        alive = before_means[layer] > minimum
        assert torch.allclose(activations.by_layer[layer], before_means[layer], rtol=1e-4), layer
        assert torch.allclose(after_means[layer][alive], torch.ones(()).double(), rtol=1e-3), layer
        assert all(after_means[layer][~alive] <= 1.001)
        assert alive.sum() > len(alive) / 3
        factors = before_means[layer].clamp_min(minimum).float().view(1, -1, 1, 1)
        back = after[layer] * factors
        assert float((back - before[layer]).norm() / before[layer].norm()) < 1e-4, layer


@pytest.mark.parametrize("pooling", ["average", "l2"])
def test_average_and_l2_pooling_commute_with_the_factors(
    vgg19: Network, weights: WeightsCache, photo: Image.Image, pooling: Pooling
) -> None:
    activations = normalization.measure_activations(vgg19, [photo])
    normalized = _network(normalization.normalize(weights.load_parameters("vgg19")[0], activations))
    image = pixels.to_image(photo)
    (before,), (after,) = (
        network.features(image, ["relu5_1"], pooling).values() for network in (vgg19, normalized)
    )
    means = activations.by_layer["relu5_1"]
    factors = means.clamp_min(normalization.MIN_SHARE * means.mean()).float().view(1, -1, 1, 1)

    assert float((after * factors - before).norm() / before.norm()) < 1e-4


def test_dead_filters_stay_dead_and_weak_filters_stay_weak(photo: Image.Image) -> None:
    """Filter 0 never responds and filter 1 hardly: neither is scaled up to 1."""
    pairs = random_parameters("vgg11")
    pairs[0][0][0], pairs[0][1][0] = 0, -1
    pairs[0][0][1] *= 1e-6
    parameters = Parameters.of(pairs, CAFFE)
    activations = normalization.measure_activations(_network(parameters), [photo])
    normalized = normalization.normalize(parameters, activations)
    responses = (
        _network(normalized)
        .features(pixels.to_image(photo), ["relu1_1"])["relu1_1"][0]
        .mean((1, 2))
    )

    assert {
        layer: count
        for layer, count in activations.count_weak_filters().items()
        if layer == "relu1_1"
    } == {"relu1_1": 2}
    assert responses[0] == 0
    assert 0 < responses[1] < 1e-4
    assert torch.allclose(responses[2:], torch.ones(()), rtol=1e-3)
    assert normalized.input_format == CAFFE


def test_pictures_are_read_one_after_the_other_and_scaled_down(photo: Image.Image) -> None:
    events: list[str] = []

    class Watched(Network):
        def responses(
            self, image: Tensor, *arguments: Any, **more: Any
        ) -> Iterator[tuple[str, Tensor]]:
            events.append(f"measure {image.shape[3]} x {image.shape[2]}")
            return super().responses(image, *arguments, **more)

    def pictures() -> Iterator[Image.Image]:
        for _ in range(2):
            events.append("read")
            yield photo.resize((1600, 40))

    network = Watched("vgg11", random_parameters("vgg11"), name="", sha256="", dtype=torch.float32)

    assert normalization.measure_activations(network, pictures()).pictures == 2
    assert events == ["read", "measure 512 x 32"] * 2


def test_no_picture_or_no_response_is_refused(photo: Image.Image) -> None:
    parameters = Parameters.of(random_parameters("vgg11"))
    with pytest.raises(errors.BadInput, match="no picture"):
        normalization.measure_activations(_network(parameters), [])
    silent = ActivationMeans({layer: torch.zeros(64).double() for layer in layers("vgg11")}, 1)
    with pytest.raises(errors.BadInput, match="relu1_1 does not respond"):
        normalization.normalize(parameters, silent)
