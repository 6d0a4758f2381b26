"""The objective, compared with autograd through an independent network, whole and in tiles."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from core.neural import torch_versions
from core.neural.pooling import POOLING_SCALES
from core.neural.transfer import losses
from core.neural.transfer.losses import Statistics
from core.neural.transfer.margin import Margin
from core.neural.transfer.objective import (
    Objective,
    Region,
    _balance,
    measure_style,
    mix_styles,
)
from core.neural.vgg import Network, stride
from core.neural.weights.cache import WeightsCache
from core.neural.weights.parameters import CAFFE
from core.style.spec import StyleSpec, parse_spec
from core.style.vgg_layers import convolutions

PARAMETERS: list[dict[str, Any]] = [
    {},
    {"objective": "gatys"},
    {"objective": "gatys", "pooling": "average", "style_layers": "relu1_1=1,relu3_1=0.3"},
    {"pooling": "average", "tv_weight": 3},
    {"pooling": "max", "content_layers": "relu3_2=1,relu4_2=2"},
    {"objective": "gatys", "pooling": "l2", "content_layers": "relu2_1,relu4_2"},
    {"content_weight": 0},
    {"style_weight": 0},
    {"style_layers": "relu2_1,relu5_4", "content_layers": "relu1_2"},
]


def _rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def double() -> Network:
    """A VGG-19 in float64, for exact comparisons, with an eighth of its filters, for speed."""
    generator = torch.Generator().manual_seed(0)
    parameters = []
    for conv in convolutions("vgg19"):
        inputs, outputs = max(3, conv.inputs // 8), conv.outputs // 8
        weight = (
            torch.randn(outputs, inputs, 3, 3, generator=generator, dtype=torch.float64)
            * (2 / (9 * inputs)) ** 0.5
        )
        parameters.append((weight, torch.full((outputs,), 0.01, dtype=torch.float64)))
    return Network("vgg19", parameters, name="vgg19", sha256="", dtype=torch.float64)


def _spec(**parameters: Any) -> StyleSpec:
    return parse_spec({"model": "vgg19", **parameters}).for_pictures()


def _region(network: Network, spec: StyleSpec, **more: Any) -> Region:
    return Region(measure_style(network, _rand(1, 3, 130, 99, seed=2) ** 2, spec), **more)


def _image(spec: StyleSpec, height: int, width: int, seed: int = 3) -> Tensor:
    """A random image with its margin."""
    return _rand(1, 3, *Margin.of_image(height, width, spec).padded, seed=seed)


def _with_margin(spec: StyleSpec, photo: Tensor) -> Tensor:
    return Margin.of_image(photo.shape[2], photo.shape[3], spec).mirror(photo)


def _autograd_of(
    network: Network, spec: StyleSpec, photo: Tensor, region: Region, image: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss and gradient by a second implementation, differentiated by torch."""
    leaf, (height, width) = image.clone().requires_grad_(), photo.shape[2:]
    top = 0 if spec.objective == "gatys" else 8
    if top:
        sides = (8, 8 + -width % 16, 8, 8 + -height % 16)
        photo = functional.pad(photo, sides, mode="reflect")
    layers = [*spec.style_layers, *spec.content_layers]
    own, target = (
        {  # what lies in the margin altogether does not count
            layer: responses[
                :,
                :,
                top // step : -(-(top + height) // step),
                top // step : -(-(top + width) // step),
            ]
            for layer, responses in _features(network, spec, picture, layers).items()
            for step in [stride(layer)]
        }
        for picture in (leaf, photo)
    )
    inner = leaf[:, :, top : top + height, top : top + width]
    total = spec.tv_weight * losses.tv_loss(inner)
    for layer, share in spec.content_layers.items():
        away = (own[layer] - target[layer]).square().sum()
        if spec.objective == "gatys":
            away = away / 2
        elif spec.style_weight and spec.content_weight:
            positions = target[layer][0, 0].numel()
            least = positions * region.style[layer].gram.trace() / 4
            away = away / torch.maximum(_square(target[layer]), least)
        else:
            away = away / _square(target[layer])
        total = total + spec.content_weight * share / sum(spec.content_layers.values()) * away
    for layer, share in spec.style_layers.items():
        aim = region.style[layer]
        found, start = (_aspects(features[layer]) for features in (own, target))
        if spec.objective == "gatys":
            away = (found[0] - aim.gram).square().sum() / (4 * len(aim.gram) ** 2)
        else:
            start = (
                start
                if spec.content_weight
                else tuple(torch.zeros_like(aspect) for aspect in start)
            )
            if not spec.content_weight:
                start = (
                    *start[:2],
                    start[2] + 1e-3,
                )  # the deviation of zero responses is the minimum
            triples = zip(found, (aim.gram, aim.mean, aim.deviation), start, strict=True)
            energy = aim.gram.trace()
            sizes = (_square(aim.gram), energy, energy)
            away = sum(
                _square(x - to) / (_square(at - to) + 0.01 * size)
                for (x, to, at), size in zip(triples, sizes, strict=True)
            )
            away = away / 3
            if spec.content_weight:
                ratio = aim.gram.trace() / _aspects(target[layer])[0].trace()
                away = away * ratio.clamp(0.125, 8).sqrt()
        total = total + spec.beta * share / sum(spec.style_layers.values()) * away
    return total.detach(), torch.autograd.grad(total, leaf)[0]


def _features(
    network: Network, spec: StyleSpec, image: Tensor, layers: list[str]
) -> dict[str, Tensor]:
    found, paper = {}, spec.objective == "gatys"
    x = (image - network._mean) / network._std
    x = functional.pad(x, (1, 1, 1, 1), mode="constant" if paper else "replicate")
    for row, (weight, bias) in zip(network._convolutions, network.parameters, strict=True):
        if row.pooled:
            pool = {"max": functional.max_pool2d, "average": functional.avg_pool2d, "l2": _l2}
            x = pool[spec.pooling](x, 2) * POOLING_SCALES[spec.pooling]
        x = functional.relu(functional.conv2d(x, weight, bias, padding=int(row.layer != "relu1_1")))
        found[row.layer] = x
    return {layer: found[layer] for layer in layers}


def _l2(x: Tensor, step: int) -> Tensor:
    """The root of the mean square in windows of 4 x 4, by its definition: position by position."""
    window = torch.tensor([1.0, 3, 3, 1], dtype=x.dtype) / 8
    even = x[..., : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]
    padded = functional.pad(even, (1, 1, 1, 1), mode="replicate")
    patches = padded.unfold(2, 4, step).unfold(3, 4, step)
    return (patches.square() * torch.outer(window, window)).sum((4, 5)).sqrt()


def _aspects(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    flat = features[0].flatten(1)
    deviation = (flat.var(1, correction=0) + 1e-6).sqrt()
    return flat @ flat.T / flat.shape[1], flat.mean(1), deviation


def _square(x: Tensor) -> Tensor:
    return x.square().sum()


@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
def test_loss_and_gradient_equal_autograds(double: Network, parameters: dict[str, Any]) -> None:
    spec = _spec(**parameters)
    photo, image = _rand(1, 3, 90, 75, seed=1), _image(spec, 90, 75)
    region = _region(double, spec)
    loss, gradient = Objective(double, spec, photo, [region]).value_and_gradient(image)
    total, slope = _autograd_of(double, spec, photo, region, image)

    assert float(loss.total) == pytest.approx(float(total), rel=1e-10)
    assert float((gradient - slope).norm() / slope.norm()) < 1e-10


@pytest.mark.parametrize(
    ("parameters", "size"),
    [*product(PARAMETERS, [(150, 203), (97, 333)]), ({"seamless": True}, (160, 208))],
    ids=str,
)
def test_loss_and_gradient_in_tiles_equal_those_of_the_whole(
    double: Network, parameters: dict[str, Any], size: tuple[int, int]
) -> None:
    """Up to rounding; tiling is no approximation."""
    spec = _spec(**parameters)
    photo, image = _rand(1, 3, *size, seed=1), _image(spec, *size)
    region = _region(double, spec)
    whole, tiled = (
        Objective(double, spec, photo, [region], side).value_and_gradient(image)
        for side in (None, 64)
    )

    assert float(tiled[0].total) == pytest.approx(float(whole[0].total), rel=1e-10)
    assert float((tiled[1] - whole[1]).norm() / whole[1].norm()) < 1e-11


@pytest.mark.parametrize(("tile_px", "passes"), [(None, (1, 0, 0)), (64, (12, 12, 24))])
def test_a_whole_picture_takes_one_forward_pass_and_tiles_take_two(
    double: Network,
    monkeypatch: pytest.MonkeyPatch,
    tile_px: int | None,
    passes: tuple[int, int, int],
) -> None:
    """Tiles also compute the targets of relu2_1 twice, from the photo; these passes stop there.

    They come before the recording, so that both do not take memory at once.
    """
    spec, photo = _spec(), _rand(1, 3, 150, 203, seed=1)
    objective = Objective(double, spec, photo, [_region(double, spec)], tile_px)
    calls: list[str] = []
    for name in ("record", "features"):
        stock = getattr(Network, name)

        def count(*args: Any, name: str = name, stock: Any = stock) -> Any:
            calls.append("shallow" if set(args[2]) == {"relu2_1"} else name)
            return stock(*args)

        monkeypatch.setattr(Network, name, count)
    objective.value_and_gradient(_image(spec, 150, 203))

    assert tuple(calls.count(name) for name in ("record", "features", "shallow")) == passes
    if tile_px is not None:
        assert calls[-24:] == ["shallow", "record"] * 12


def test_the_content_loss_of_the_photo_is_zero_in_tiles_and_half_precision(
    weights: WeightsCache,
) -> None:
    """The targets that are computed again are equal to the bit."""
    network = weights.load("vgg19", "cpu", "bfloat16")
    spec = parse_spec({}).for_pictures()
    photo = _rand(1, 3, 96, 160, seed=1).float()
    region = Region(measure_style(network, photo.flip(3), spec))

    for side in (None, 64):
        assert (
            float(
                Objective(network, spec, photo, [region], side)(_with_margin(spec, photo)).content
            )
            == 0
        )


@pytest.mark.parametrize("size", [(70, 195), (195, 70)])
def test_a_last_tile_may_own_no_position_of_a_layer(double: Network, size: tuple[int, int]) -> None:
    """The paper's objective does not pad the picture; 3 px are less than a position of relu4_2."""
    spec = _spec(objective="gatys")
    photo, image = _rand(1, 3, *size, seed=1), _image(spec, *size)
    whole, tiled = (
        Objective(double, spec, photo, [_region(double, spec)], side).value_and_gradient(image)
        for side in (None, 64)
    )

    assert float(tiled[0].total) == pytest.approx(float(whole[0].total), rel=1e-10)
    assert float((tiled[1] - whole[1]).norm() / whole[1].norm()) < 1e-11


def test_a_smaller_halo_changes_the_gradient(
    double: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = _spec()
    photo, image = _rand(1, 3, 150, 203, seed=1), _image(spec, 150, 203)
    region = _region(double, spec)
    _, whole = Objective(double, spec, photo, [region]).value_and_gradient(image)
    monkeypatch.setattr(Network, "halo", lambda *_: 48)
    _, tiled = Objective(double, spec, photo, [region], 64).value_and_gradient(image)

    assert float((tiled - whole).norm() / whole.norm()) > 1e-8


def test_tiles_in_float32_agree_within_1e_5(vgg19: Network) -> None:
    spec = parse_spec({}).for_pictures()
    photo, image = _rand(1, 3, 150, 203, seed=1).float(), _image(spec, 150, 203).float()
    region = Region(measure_style(vgg19, _rand(1, 3, 130, 99, seed=2).float() ** 2, spec))
    (_, whole), (_, tiled) = (
        Objective(vgg19, spec, photo, [region], side).value_and_gradient(image)
        for side in (None, 64)
    )

    assert float((tiled - whole).norm() / whole.norm()) < 1e-5


def test_a_painting_has_the_same_style_in_tiles(double: Network) -> None:
    whole, tiled = (
        measure_style(double, _rand(1, 3, 200, 170), _spec(), side) for side in (None, 64)
    )

    for layer, statistics in whole.items():
        assert torch.allclose(statistics.gram, tiled[layer].gram, rtol=1e-10)
        assert torch.allclose(statistics.mean, tiled[layer].mean, rtol=1e-10)


@pytest.mark.skipif(
    not torch_versions.has_bfloat16_kernels(), reason="oneDNN has no bfloat16 on this CPU"
)
@pytest.mark.parametrize(
    ("pooling", "tile_px"), [("l2", None), ("max", None), ("average", None), ("l2", 64)]
)
def test_the_fused_kernels_give_the_losses_and_the_gradient_of_plain_operations(
    vgg19: Network, monkeypatch: pytest.MonkeyPatch, pooling: str, tile_px: int | None
) -> None:
    spec = parse_spec({"pooling": pooling}).for_pictures()
    photo, image = _rand(1, 3, 64, 90, seed=1).float(), _image(spec, 64, 90).float()
    painting = _rand(1, 3, 64, 48, seed=2).float() ** 2

    def evaluate(dtype: torch.dtype) -> tuple[float, Tensor]:
        network = Network(
            "vgg19", vgg19.parameters, name="", sha256="", device="cpu", dtype=dtype, takes=CAFFE
        )
        region = Region(measure_style(network, painting, spec))
        objective = Objective(network, spec, photo, [region], tile_px)
        losses, gradient = objective.value_and_gradient(image)
        return float(losses.total), gradient

    (loss, fused), (exact_loss, exact) = evaluate(torch.bfloat16), evaluate(torch.float32)
    monkeypatch.setattr(torch_versions, "has_bfloat16_kernels", lambda: False)
    plain_loss, plain = evaluate(torch.bfloat16)
    fused_error, plain_error = (
        float((gradient - exact).norm() / exact.norm()) for gradient in (fused, plain)
    )

    assert not torch.equal(fused, plain)
    assert loss == pytest.approx(plain_loss, rel=1e-3)
    assert loss == pytest.approx(exact_loss, rel=1e-2)
    assert fused_error < 0.1
    assert fused_error < 1.2 * plain_error


@pytest.mark.parametrize("factor", [0.1, 100.0])
def test_the_scale_of_a_networks_responses_does_not_matter(vgg19: Network, factor: float) -> None:
    """Responses of Caffe's networks are about sixty times torchvision's; every term is relative."""
    (weight, bias), *others = vgg19.parameters
    scaled = [
        (weight * factor, bias * factor),
        *((weight, bias * factor) for weight, bias in others),
    ]
    other = Network("vgg19", scaled, name="", sha256="", dtype=torch.float32, takes=CAFFE)
    spec = parse_spec({}).for_pictures()
    photo, painting = (_rand(1, 3, 64, 64, seed=seed).float() for seed in range(2))
    image = _image(spec, 64, 64, seed=2).float()
    usual, changed = (
        Objective(
            network, spec, photo, [Region(measure_style(network, painting**2, spec))]
        ).value_and_gradient(image)
        for network in (vgg19, other)
    )

    assert float(changed[0].total) == pytest.approx(float(usual[0].total), rel=1e-3)
    assert float((changed[1] - usual[1]).norm() / usual[1].norm()) < 1e-2


@pytest.mark.parametrize("objective", ["relative", "gatys"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_value_and_gradient_in_half_precision_are_those_of_float32(
    vgg19: Network, weights: WeightsCache, precision: Any, objective: str
) -> None:
    """float16 has no numbers below 6e-8 or above 65,504.

    So the backward pass uses a loss scale, and the responses of a Caffe network another unit.
    """
    weighting = {"content_weight": 1e-5, "style_weight": 8e-5, "objective": objective}
    spec = parse_spec(weighting).for_pictures()
    photo, image = _rand(1, 3, 64, 80, seed=1).float(), _image(spec, 64, 80).float()
    values, gradients = [], []
    for network in (vgg19, weights.load("vgg19", "cpu", precision)):
        region = Region(measure_style(network, _rand(1, 3, 64, 64, seed=2).float() ** 2, spec))
        value, gradient = Objective(network, spec, photo, [region]).value_and_gradient(image)
        values.append(value.by_name())
        gradients.append(gradient)

    assert values[1] == pytest.approx(values[0], rel=0.02)
    assert (
        float(torch.cosine_similarity(*(gradient.flatten() for gradient in gradients), dim=0))
        > 0.99
    )
    assert float(gradients[1].norm() / gradients[0].norm()) == pytest.approx(1, abs=0.05)


def test_every_border_gets_as_much_of_the_style_at_any_size(vgg19: Network) -> None:
    """79 px are 15 more than a multiple of 16, which four poolings would drop."""
    spec = _spec(style_layers="relu4_1,relu5_1", content_weight=0)
    sides = torch.zeros(4)
    for seed in range(3):
        photo = _rand(1, 3, 79, 79, seed=seed).float()
        region = Region(measure_style(vgg19, _rand(1, 3, 80, 80, seed=9).float() ** 2, spec))
        image, margin = _image(spec, 79, 79, seed=seed).float(), Margin.of_image(79, 79, spec)
        _, gradient = Objective(vgg19, spec, photo, [region]).value_and_gradient(image)
        size = margin.cut(gradient).abs().mean((0, 1))  # (H, W)
        strips = (size[:8], size[-8:], size[:, :8], size[:, -8:])
        sides += torch.tensor([float(strip.mean()) for strip in strips])

    assert float(sides.min() / sides.max()) > 0.6


def test_a_plain_photo_does_not_forbid_every_stroke(double: Network) -> None:
    """Relative to the photo's own responses the painting would have a content loss of hundreds."""
    plain, painting = torch.full((1, 3, 64, 64), 0.5, dtype=torch.float64), _rand(1, 3, 64, 64)
    plain += 0.01 * _rand(1, 3, 64, 64, seed=1)
    spec = _spec()
    region = Region(measure_style(double, painting, spec))
    content = Objective(double, spec, plain, [region])(_with_margin(spec, painting)).content

    assert float(content) < 4.5
    assert (
        float(Objective(double, spec, painting, [region])(_with_margin(spec, plain)).content) < 1.1
    )


def test_a_painting_in_a_small_region_hardly_changes_the_content_loss(double: Network) -> None:
    """The lower bound of its divisor averages the paintings by their area."""
    plain = double._mean.expand(1, 3, 64, 64) + 0.01 * _rand(1, 3, 64, 64, seed=1)
    spec = _spec()
    image = _with_margin(spec, _rand(1, 3, 64, 64))
    small = torch.zeros(64, 64, dtype=torch.float64)
    small[:4, :4] = 1
    bright, faint = (
        measure_style(double, torch.lerp(plain, _rand(1, 3, 64, 64, seed=2), contrast), spec)
        for contrast in (1, 0.2)
    )
    one, both = (
        Objective(double, spec, plain, regions)(image).content
        for regions in (
            [Region(faint)],
            [Region(bright, guide=small), Region(faint, guide=1 - small)],
        )
    )

    assert float(both) == pytest.approx(float(one), rel=0.2)


def test_the_balance_of_a_layer_is_bounded() -> None:
    """A photo without contrast, or a painting without, neither multiplies the style nor ends it."""
    photo = Statistics(torch.eye(3), torch.zeros(3))
    found = [float(_balance(photo * factor, photo)) for factor in (1e6, 4, 1, 1e-6)]

    assert found == pytest.approx([8**0.5, 2, 1, 8**-0.5])


# ---------------------------------------------------------------------- what the weights mean


@pytest.mark.parametrize("objective", ["gatys", "relative"])
def test_the_total_is_the_sum_of_the_weighted_parts(double: Network, objective: str) -> None:
    image, photo = _image(_spec(objective=objective), 64, 48), _rand(1, 3, 64, 48, seed=1)

    def parts(**weights: float) -> dict[str, float]:
        spec = _spec(objective=objective, **weights)
        return Objective(double, spec, photo, [_region(double, spec)])(image).by_name()

    one = parts(style_weight=1, content_weight=1, tv_weight=1)
    many = parts(style_weight=3, content_weight=2, tv_weight=5)

    assert set(one) == {"total", "content", "style", "tv"}
    assert all(value > 0 for value in one.values())
    for name, factor in (("style", 3), ("content", 2), ("tv", 5)):
        assert factor * one[name] == pytest.approx(many[name])
    assert many["total"] == pytest.approx(many["content"] + many["style"] + many["tv"])


def test_the_content_loss_is_zero_only_at_the_photo(double: Network) -> None:
    spec, photo = _spec(), _rand(1, 3, 64, 48, seed=1)
    objective = Objective(double, spec, photo, [_region(double, spec)])
    image = _with_margin(spec, photo)

    assert float(objective(image).content) == 0
    assert float(objective(image * 0.9).content) > 0


def test_equal_steps_of_strength_are_equal_factors_of_the_style_loss(double: Network) -> None:
    photo = _rand(1, 3, 64, 48, seed=1)
    specs = [_spec(strength=strength) for strength in (0.25, 0.5, 0.75)]
    image = _with_margin(specs[0], photo)
    low, middle, high = (
        float(Objective(double, spec, photo, [_region(double, spec)])(image).style)
        for spec in specs
    )

    assert high / middle == pytest.approx(middle / low)
    assert high > 2 * middle


def test_mixing_styles_has_the_same_gradient_as_mixing_losses(double: Network) -> None:
    """sum_k s_k |G - A_k|^2 and |G - sum_k s_k A_k|^2 have the same gradient."""
    spec = _spec(objective="gatys", content_weight=0)
    styles = [measure_style(double, _rand(1, 3, 64, 64, seed=seed), spec) for seed in (5, 6)]
    image = _image(spec, 64, 48)
    _, together = Objective(
        double, spec, image, [Region(mix_styles(styles, [0.75, 0.25]))]
    ).value_and_gradient(image)
    apart = torch.zeros_like(image)
    for style, share in zip(styles, (0.75, 0.25), strict=True):
        apart += (
            share * Objective(double, spec, image, [Region(style)]).value_and_gradient(image)[1]
        )

    assert float((apart - together).norm() / together.norm()) < 1e-9


# ---------------------------------------------------------------------- guides


def test_a_white_guide_is_the_same_as_no_guide(double: Network) -> None:
    spec = _spec()
    photo, image = _rand(1, 3, 70, 90, seed=1), _image(spec, 70, 90)
    white = torch.ones(70, 90, dtype=torch.float64)
    (plain, plain_gradient), (guided, guided_gradient) = (
        Objective(double, spec, photo, [_region(double, spec, guide=guide)]).value_and_gradient(
            image
        )
        for guide in (None, white)
    )

    assert float(guided.total) == pytest.approx(float(plain.total), rel=1e-12)
    assert torch.allclose(guided_gradient, plain_gradient, rtol=1e-9, atol=1e-15)


def test_style_has_a_gradient_only_inside_its_guide(double: Network) -> None:
    """The gradient is 0 where the guide is black, beyond the receptive field."""
    spec = _spec(content_weight=0)
    photo, image = _rand(1, 3, 64, 400, seed=1), _image(spec, 64, 400)
    left = torch.zeros(64, 400, dtype=torch.float64)
    left[:, :168] = 1  # with the margin, a multiple of 16
    _, gradient = Objective(
        double, spec, photo, [_region(double, spec, guide=left)]
    ).value_and_gradient(image)
    gradient = Margin.of_image(64, 400, spec).cut(gradient)

    assert float(gradient[..., :168].abs().max()) > 0
    assert float(gradient[..., 168 + double.halo(spec.style_layers) :].abs().max()) == 0


def test_a_guide_that_vanishes_at_a_coarse_resolution_gives_finite_losses(double: Network) -> None:
    """The guide's white columns lie beyond the last whole position of the deep layers."""
    spec = _spec()
    photo, image = _rand(1, 3, 64, 100, seed=1), _image(spec, 64, 100)
    guide = torch.zeros(64, 100, dtype=torch.float64)
    guide[:, 97:] = 1
    loss, gradient = Objective(
        double, spec, photo, [_region(double, spec, guide=guide)]
    ).value_and_gradient(image)

    assert torch.isfinite(loss.total)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("side", "layers"),
    [
        (3, "relu1_1=2"),
        (20, "relu1_1=2,relu2_1=1,relu3_1=1"),
        (40, "relu1_1=2,relu2_1=1,relu3_1=1,relu4_1=1"),
    ],
)
def test_a_small_region_does_without_layers_that_have_few_positions_there(
    double: Network, side: int, layers: str
) -> None:
    """Some 16 positions are enough; the layers that are left share the weight of the others."""
    spec = _spec(style_layers="relu1_1=2,relu2_1=1,relu3_1=1,relu4_1=1,relu5_1=1")
    photo, image = _rand(1, 3, 96, 96, seed=1), _image(spec, 96, 96)
    guide = torch.zeros(96, 96, dtype=torch.float64)
    guide[24 : 24 + side, 40 : 40 + side] = 1
    actual, expected = (
        float(Objective(double, one, photo, [_region(double, spec, guide=guide)])(image).style)
        for one in (spec, _spec(style_layers=layers))
    )

    assert actual == pytest.approx(expected, rel=1e-9)


def test_a_small_region_has_no_stronger_gradient_than_a_large_one(double: Network) -> None:
    """The loss of a region is weighted by its area, so the gradient per pixel is about the same."""
    spec, photo = _spec(content_weight=0), _rand(1, 3, 32, 32, seed=1).repeat(1, 1, 2, 12)
    slopes = []
    for width in (96, 288):
        guide = torch.zeros(64, 384, dtype=torch.float64)
        guide[:, :width] = 1
        _, gradient = Objective(
            double, spec, photo, [_region(double, spec, guide=guide)]
        ).value_and_gradient(_with_margin(spec, photo * 0.9))
        slopes.append(float(gradient[..., :48].norm()))

    assert slopes[0] == pytest.approx(slopes[1], rel=0.2)


def test_guides_in_tiles_give_the_gradient_of_the_whole(double: Network) -> None:
    spec = _spec()
    photo, image = _rand(1, 3, 150, 203, seed=1), _image(spec, 150, 203)
    guide = _rand(150, 203, seed=4)
    regions = [
        _region(double, spec, guide=guide),
        _region(double, spec, guide=1 - guide, share=0.5),
    ]
    whole, tiled = (
        Objective(double, spec, photo, regions, side).value_and_gradient(image)
        for side in (None, 64)
    )

    assert float((tiled[1] - whole[1]).norm() / whole[1].norm()) < 1e-11


@pytest.mark.parametrize("objective", ["relative", "gatys"])
def test_an_objective_with_new_weights_equals_a_new_objective(
    double: Network, objective: str
) -> None:
    """To the bit, although photo and paintings are not evaluated again."""
    spec = _spec(objective=objective)
    other = spec.with_updates({"strength": 0.9, "content_weight": 3, "tv_weight": 2})
    photo, image = _rand(1, 3, 64, 96, seed=1), _image(spec, 64, 96)
    one, two = (
        _region(double, spec),
        Region(measure_style(double, _rand(1, 3, 64, 64, seed=5), spec), 0.4),
    )
    updated = Objective(double, spec, photo, [one])
    updated.set_weights(other, [two])
    loss, gradient = updated.value_and_gradient(image)
    expected_loss, expected_gradient = Objective(double, other, photo, [two]).value_and_gradient(
        image
    )

    assert loss.by_name() == expected_loss.by_name()
    assert torch.equal(gradient, expected_gradient)


# ---------------------------------------------------------------------- seamless


def test_a_seamless_objective_does_not_depend_on_where_the_picture_begins(double: Network) -> None:
    """A picture rolled by whole positions has the same loss, and the rolled gradient."""
    spec, photo = _spec(seamless=True, content_weight=0, tv_weight=5), _rand(1, 3, 64, 96, seed=1)
    image = _image(spec, 64, 96)
    objective = Objective(double, spec, photo, [_region(double, spec)])
    (loss, gradient), (rolled_loss, rolled) = (
        objective.value_and_gradient(picture) for picture in (image, image.roll((16, 48), (2, 3)))
    )

    assert float(rolled_loss.total) == pytest.approx(float(loss.total), rel=1e-10)
    assert float((rolled - gradient.roll((16, 48), (2, 3))).norm() / gradient.norm()) < 1e-10


def test_a_seamless_gradient_equals_the_difference_quotient(double: Network) -> None:
    spec = _spec(seamless=True, tv_weight=5)
    photo, image = _rand(1, 3, 64, 96, seed=1), _image(spec, 64, 96)
    objective = Objective(double, spec, photo, [_region(double, spec)])
    direction, step = _rand(1, 3, 64, 96, seed=4) - 0.5, 1e-6
    ahead, behind = (
        objective(image + step * direction).total,
        objective(image - step * direction).total,
    )
    _, gradient = objective.value_and_gradient(image)

    assert float(ahead - behind) / (2 * step) == pytest.approx(
        float((gradient * direction).sum()), rel=1e-5
    )


def test_the_stride_doubles_with_each_block() -> None:
    assert [stride(f"relu{block}_1") for block in range(1, 6)] == [1, 2, 4, 8, 16]
