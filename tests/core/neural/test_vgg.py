"""The network's features, compared with torchvision's own network with the same weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from core.neural import torch_versions
from core.neural.pooling import POOLING_SCALES, pool, unpool
from core.neural.transfer import pixels
from core.neural.transfer.objective import Objective, Region, measure_style
from core.neural.vgg import MEAN, STD, Network, formats
from core.neural.weights.cache import random_parameters
from core.neural.weights.torchvision_registry import vgg19_source
from core.style.spec import StyleSpec
from core.style.vgg_layers import Architecture, convolutions

# Index of each ReLU in torchvision's `features`.
RELUS = {
    "vgg16": {
        "relu1_1": 1,
        "relu2_1": 6,
        "relu3_1": 11,
        "relu4_1": 18,
        "relu4_2": 20,
        "relu5_1": 25,
        "relu5_3": 29,
    },
    "vgg19": {
        "relu1_1": 1,
        "relu2_1": 6,
        "relu3_1": 11,
        "relu4_1": 20,
        "relu4_2": 22,
        "relu5_1": 29,
        "relu5_4": 35,
    },
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
            for key, tensor in zip(
                reference.features.state_dict(prefix="features."), sum(parameters, ()), strict=True
            )
        }
    )
    network = Network(architecture, parameters, name=architecture, sha256="", dtype=torch.float32)
    return reference.features.eval(), network


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("architecture", ["vgg16", "vgg19"])
def test_features_equal_torchvisions_at_every_named_layer(architecture: Architecture) -> None:
    reference, network = _torchvision(architecture)
    x = (_image() - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    actual = network.features(_image(), RELUS[architecture], edges="zeros")

    for layer, index in RELUS[architecture].items():
        with torch.no_grad():
            expected = reference[: index + 1](x)
        assert torch.allclose(actual[layer], expected, rtol=1e-4, atol=1e-4), layer


def test_the_architectures_are_simonyan_and_zissermans() -> None:
    assert len(convolutions("vgg16")) == 13
    assert len(convolutions("vgg19")) == 16
    assert [row.inputs for row in convolutions("vgg19")[:4]] == [3, 64, 64, 128]
    assert [row.layer for row in convolutions("vgg16") if row.pooled] == [
        "relu2_1",
        "relu3_1",
        "relu4_1",
        "relu5_1",
    ]


def test_responses_to_noise_are_lower_after_average_and_l2_pooling(random_vgg19: Network) -> None:
    """Without the rescaling factors: max above L2 above average."""
    noise = _image(64, 64)
    by_max, by_l2, by_average = (
        _block_end(random_vgg19, noise, pooling) / POOLING_SCALES[pooling]
        for pooling in ("max", "l2", "average")
    )

    assert by_average < by_l2 < by_max


def _block_end(network: Network, image: Tensor, pooling: Any) -> float:
    return float(network.features(image, ["relu2_1"], pooling)["relu2_1"].mean())


@pytest.mark.parametrize("pooling", ["average", "l2"])
def test_rescaled_deep_responses_have_about_the_size_of_those_after_max_pooling(
    vgg19: Network, painting: Image.Image, pooling: Any
) -> None:
    """The deep layers then get inputs of the size with which they were trained."""
    image = pixels.to_image(painting)
    after_max, other = (
        float(vgg19.features(image, ["relu4_1"], p)["relu4_1"].norm()) for p in ("max", pooling)
    )

    assert other / after_max == pytest.approx(1, abs=0.5)


def test_the_edge_mode_repeat_repeats_the_outermost_pixels(random_vgg19: Network) -> None:
    """A one-color picture then has the same responses at its border; with zeros they differ."""
    flat = torch.full((1, 3, 40, 40), 0.9)
    repeated, framed = (
        random_vgg19.features(flat, ["relu1_1"], edges=e)["relu1_1"] for e in ("repeat", "zeros")
    )  # type: ignore[arg-type]

    assert torch.allclose(repeated[..., 0, 0], repeated[..., 20, 20], atol=1e-5)
    assert not torch.allclose(framed[..., 0, 0], framed[..., 20, 20], atol=1e-2)


def test_record_and_features_give_the_same_responses(vgg19: Network) -> None:
    layers = ["relu1_1", "relu4_2"]
    features, recording = vgg19.features(_image(), layers), vgg19.record(_image(), layers)

    assert all(torch.equal(recording.features[layer], features[layer]) for layer in layers)


@pytest.mark.parametrize(
    ("architecture", "layers", "halo"),
    [
        ("vgg16", ["relu1_1", "relu5_1"], 80),
        ("vgg19", ["relu5_1"], 96),
        ("vgg19", ["relu4_2"], 48),
    ],
)
def test_the_halo_is_the_receptive_field_in_whole_positions(
    architecture: Architecture, layers: list[str], halo: int
) -> None:
    """73 px for VGG-16's relu5_1, 85 for VGG-19's, with the windows of l2 pooling."""
    network = Network(
        architecture, random_parameters(architecture), name="", sha256="", dtype=torch.float32
    )

    assert network.halo(layers) == halo


def test_bfloat16_features_are_close_to_float32(vgg19: Network, weights: Any) -> None:
    exact = vgg19.features(_image(64, 64), ["relu4_2"])["relu4_2"]
    fast = weights.load("vgg19", "cpu", "bfloat16").features(_image(64, 64), ["relu4_2"])["relu4_2"]

    assert fast.dtype == torch.bfloat16
    assert float((fast.float() - exact).norm() / exact.norm()) < 0.03


@pytest.mark.parametrize(
    ("precision", "has", "architecture", "warned"),
    [
        ("float16", (), "x86_64", True),
        ("float16", ("avx512_bf16",), "x86_64", True),
        ("float16", ("avx512_fp16",), "x86_64", False),
        ("bfloat16", ("avx512_fp16",), "x86_64", True),
        ("bfloat16", ("amx_bf16",), "x86_64", False),
        ("float32", (), "x86_64", False),
        ("auto", (), "x86_64", False),
        ("float16", (), "arm64", False),
    ],
)
def test_a_precision_that_the_processor_emulates_gives_one_warning(
    weights: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    precision: str,
    has: tuple[str, ...],
    architecture: str,
    warned: bool,
) -> None:
    capabilities = {"architecture": architecture, **dict.fromkeys(has, True)}
    monkeypatch.setattr(torch_versions, "cpu_capabilities", lambda: capabilities)
    weights.load("vgg19", "cpu", precision)

    assert [record.message for record in caplog.records] == [
        f"this processor emulates {precision}, several times slower than float32; use auto"
    ] * warned


def test_a_layer_that_the_network_lacks_raises_key_error(vgg19: Network) -> None:
    with pytest.raises(KeyError, match="relu6_1"):
        vgg19.features(_image(), ["relu1_1", "relu6_1"])


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("pooling", ["max", "average", "l2"])
def test_both_layouts_give_the_same_features_and_gradient(
    layout: torch.memory_format, pooling: Any
) -> None:
    image, layers = _image(), ["relu1_1", "relu3_1"]

    def run(**options: Any) -> tuple[dict[str, Tensor], Tensor]:
        network = Network(
            "vgg16",
            random_parameters("vgg16"),
            name="",
            sha256="",
            dtype=torch.float32,
            device="cpu",
            **options,
        )
        recording = network.record(image, layers, pooling)
        features = dict(recording.features)
        return features, recording.gradient(lambda _, responses, total: total.add_(responses))

    features, gradient = run(layout=layout)
    expected_features, expected = run()

    for layer in layers:
        assert features[layer].is_contiguous(memory_format=layout)
        assert torch.allclose(features[layer], expected_features[layer], rtol=1e-4, atol=1e-5)
    assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_the_layout_stays_through_a_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor in another layout would be converted in each convolution."""
    network = Network(
        "vgg16",
        random_parameters("vgg16"),
        name="",
        sha256="",
        device="cpu",
        dtype=torch.float32,
        layout=torch.contiguous_format,
    )
    usual, seen = torch.nn.functional.conv2d, list[bool]()

    def convolve(x: Tensor, *args: Any, **more: Any) -> Tensor:
        seen.append(x.is_contiguous())
        return usual(x, *args, **more)

    monkeypatch.setattr(torch.nn.functional, "conv2d", convolve)
    recording = network.record(_image(), ["relu2_1", "relu3_1"])
    recording.gradient(lambda _, responses, total: total.add_(responses))

    assert len(seen) == 10
    assert all(seen)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pooling", ["max", "average", "l2"])
@pytest.mark.parametrize("objective", ["relative", "gatys"])
def test_a_gradient_in_half_precision_is_finite_and_close(
    make_tiny_network: Callable[..., Network],
    photo: Image.Image,
    painting: Image.Image,
    dtype: torch.dtype,
    pooling: Any,
    objective: Any,
) -> None:
    spec = StyleSpec(pooling=pooling, objective=objective).for_pictures()
    start, style = (pixels.to_image(picture, (64, 48)) for picture in (photo, painting))
    image = start.lerp(style, 0.3)

    def gradient(network: Network) -> Tensor:
        target = Region(measure_style(network, style, spec))
        objective = Objective(network, spec, start, [target])
        return objective.value_and_gradient(objective.margin.mirror(image))[1]

    exact, half = (gradient(make_tiny_network("vgg16", one)) for one in (torch.float32, dtype))

    assert bool(half.isfinite().all())
    limit = 0.2 if dtype == torch.float16 else 0.5
    assert float((half - exact).norm() / exact.norm()) < limit


def test_the_gradient_of_l2_pooling_is_finite_where_float16_cannot_hold_the_quotient() -> None:
    """Gradients of the paper's objective are large where responses of real networks are small."""
    x = torch.full((1, 8, 8, 8), 0.02)
    x[..., ::3] = 0
    g = torch.full((1, 8, 4, 4), 20000.0)
    expected = unpool(g.clone(), x, pool(x, "l2"), "l2")
    actual = unpool(g.half(), x.half(), pool(x.half(), "l2"), "l2")

    assert float(g.max() / x[x > 0].min()) > 65504
    assert actual.dtype == torch.float16
    assert torch.allclose(actual.float(), expected, rtol=0.02)


@pytest.mark.parametrize(
    ("wanted", "device", "capability", "expected"),
    [
        (None, "cuda", (5, 2), ["float32", "float32", "float16", "float16"]),
        (None, "cuda", (8, 0), ["float32", "float32", "bfloat16", "bfloat16"]),
        (torch.float16, "cuda", (8, 0), ["float16", "float16"]),
        (None, "mps", None, ["float32", "float32"]),
        (torch.float32, "cpu", None, ["float32"]),
    ],
)
def test_the_formats_to_measure_depend_on_the_device(
    monkeypatch: pytest.MonkeyPatch, wanted: Any, device: str, capability: Any, expected: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    found = formats(torch.device(device), wanted)

    assert [str(one.dtype).removeprefix("torch.") for one in found] == expected
    layouts = [one.layout for one in found]
    assert layouts == ([torch.channels_last, torch.contiguous_format] * 2)[: len(expected)]
