"""The network's features by layer name, against torchvision's own network with the same weights."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.neural.torchvision_registry import vgg19_source
from core.neural.vgg import MEAN, STD, Architecture, Network, convolutions
from core.neural.weights import random_parameters

# Position of each ReLU in torchvision's `features`, as documented: docs/algorithm.md.
RELUS = {
    "vgg16": {"relu1_1": 1, "relu2_1": 6, "relu3_1": 11, "relu4_1": 18, "relu4_2": 20, "relu5_1": 25, "relu5_3": 29},
    "vgg19": {"relu1_1": 1, "relu2_1": 6, "relu3_1": 11, "relu4_1": 20, "relu4_2": 22, "relu5_1": 29, "relu5_4": 35},
}


def _image(height: int = 40, width: int = 56) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))


def _torchvision(architecture: Architecture) -> tuple[nn.Sequential, Network]:
    vgg19_source()  # makes torchvision importable beside a CPU build of torch
    from torchvision import models

    parameters = random_parameters(architecture)
    reference: Any = getattr(models, architecture)()
    reference.features.load_state_dict(
        {
            key.removeprefix("features."): tensor
            for key, tensor in zip(reference.features.state_dict(prefix="features."), sum(parameters, ()), strict=True)
        }
    )
    network = Network(architecture, parameters, name=architecture, sha256="", dtype=torch.float32)
    return reference.features.eval(), network


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("architecture", ["vgg16", "vgg19"])
def test_features_are_torchvisions_at_the_named_layers(architecture: Architecture) -> None:
    reference, network = _torchvision(architecture)
    x = (_image() - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    found = network.features(_image(), RELUS[architecture])

    for layer, index in RELUS[architecture].items():
        with torch.no_grad():
            expected = reference[: index + 1](x)
        assert torch.allclose(expected, found[layer], rtol=1e-4, atol=1e-4), layer


def test_the_row_of_data_is_simonyan_and_zissermans() -> None:
    assert 13 == len(convolutions("vgg16"))
    assert 16 == len(convolutions("vgg19"))
    assert [3, 64, 64, 128] == [row.inputs for row in convolutions("vgg19")[:4]]
    assert ["relu2_1", "relu3_1", "relu4_1", "relu5_1"] == [row.layer for row in convolutions("vgg16") if row.pooled]


def test_average_pooling_averages(random_vgg19: Network) -> None:
    """On a constant image both poolings see the same; on noise the average sees less."""
    flat, noise = torch.full((1, 3, 64, 64), 0.7), _image(64, 64)
    by_max, by_mean = (random_vgg19.features(noise, ["relu2_1"], pooling)["relu2_1"] for pooling in ("max", "average"))  # type: ignore[arg-type]
    inner = (slice(None), slice(None), slice(8, 24), slice(8, 24))

    assert float(by_mean.mean()) < float(by_max.mean())
    assert torch.allclose(
        random_vgg19.features(flat, ["relu2_1"], "max")["relu2_1"][inner],
        random_vgg19.features(flat, ["relu2_1"], "average")["relu2_1"][inner],
        atol=1e-4,
    )


def test_bfloat16_features_are_close_to_float32(vgg16: Network, weights: Any) -> None:
    exact = vgg16.features(_image(64, 64), ["relu4_2"])["relu4_2"]
    fast = weights.load("vgg16", "cpu", "bfloat16").features(_image(64, 64), ["relu4_2"])["relu4_2"]

    assert torch.bfloat16 == fast.dtype
    assert float((fast.float() - exact).norm() / exact.norm()) < 0.03


def test_a_layer_that_the_network_does_not_have_is_an_error(vgg16: Network) -> None:
    with pytest.raises(KeyError, match="relu5_4"):
        vgg16.features(_image(), ["relu1_1", "relu5_4"])
