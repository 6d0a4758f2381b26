"""The run, with real weights at a small size: it paints, it tells, it stops, it repeats."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops, ImageStat

from core import errors
from core.neural import pixels
from core.neural.losses import gram
from core.neural.schedule import schedule
from core.neural.stylize import Painting, Progress, stylize, targets
from core.neural.vgg import Network
from core.spec import StyleSpec, parse_spec

LAYERS = ["relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"]


@pytest.fixture(scope="module")
def painted(photo: Image.Image, painting: Image.Image, vgg16: Network) -> tuple[Painting, list[Progress]]:
    """One run that several tests look at."""
    seen: list[Progress] = []
    spec = parse_spec({"size": 96, "iterations": 24, "scales": 2})
    return stylize(photo, [painting], spec, vgg16, lambda progress, _: seen.append(progress)), seen


def _style_distance(network: Network, picture: Image.Image, painting: Image.Image) -> dict[str, float]:
    """|G - A|^2 / |A|^2 at each layer."""
    with torch.no_grad():
        g, a = (
            {layer: gram(f) for layer, f in network.features(pixels.to_image(p), LAYERS).items()}
            for p in (picture, painting)
        )
    return {layer: float((g[layer] - a[layer]).square().sum() / a[layer].square().sum()) for layer in LAYERS}


def test_the_delivered_picture_is_closer_to_the_painting_in_every_layer(
    painted: tuple[Painting, list[Progress]], photo: Image.Image, painting: Image.Image, vgg16: Network
) -> None:
    """Measured in the 8-bit picture that a user gets."""
    before, after = (_style_distance(vgg16, picture, painting) for picture in (photo, painted[0].picture))

    assert all(after[layer] < 0.6 * before[layer] for layer in LAYERS), (before, after)


def test_the_delivered_picture_still_shows_the_photo(
    painted: tuple[Painting, list[Progress]], photo: Image.Image, painting: Image.Image, vgg16: Network
) -> None:
    """Its content features are nearer to the photo's than the painting's are."""
    with torch.no_grad():
        result, own, other = (
            vgg16.features(pixels.to_image(p, (96, 72)), ["relu4_2"])["relu4_2"]
            for p in (painted[0].picture, photo, painting)
        )

    assert float((result - own).norm()) < 0.75 * float((other - own).norm())


def test_the_loss_falls_at_every_scale(painted: tuple[Painting, list[Progress]]) -> None:
    for number, share in ((1, 0.5), (2, 0.8)):
        losses = [progress.losses["total"] for progress in painted[1] if progress.scale == number]
        assert losses[-1] < share * losses[0]


def test_progress_counts_over_all_scales_and_foretells_the_end(painted: tuple[Painting, list[Progress]]) -> None:
    result, seen = painted

    assert list(range(1, 37)) == [progress.iteration for progress in seen]
    assert {(1, 2, 68), (2, 2, 96)} == {(progress.scale, progress.scales, progress.width) for progress in seen}
    assert all(set(progress.losses) == {"total", "content", "style", "tv"} for progress in seen)
    assert all(progress.iterations_per_second > 0 for progress in seen)
    assert sorted(progress.value for progress in seen) == [progress.value for progress in seen]
    assert (1.0, 0.0) == (seen[-1].value, seen[-1].seconds_left)
    assert (36, False, seen[-1].losses) == (result.iterations, result.stopped, result.losses)


def test_the_losses_told_are_those_of_the_picture_delivered(
    painted: tuple[Painting, list[Progress]], photo: Image.Image, painting: Image.Image, vgg16: Network
) -> None:
    """Rounding to 8 bits is all that lies between them: nothing is clamped away."""
    result, _ = painted
    spec = parse_spec({"size": 96, "iterations": 24, "scales": 2}).for_styles(1)
    _, objective = targets(photo, [painting], spec, vgg16, schedule(spec, *photo.size)[-1])
    with torch.no_grad():
        delivered = objective(pixels.to_image(result.picture)).by_name()

    assert delivered["total"] == pytest.approx(result.losses["total"], rel=0.02)


def _paint(photo: Image.Image, painting: Image.Image, network: Network, **knobs: Any) -> Image.Image:
    spec = parse_spec({"size": 64, "iterations": 8, "scales": 2, **knobs})
    return stylize(photo, [painting], spec, network).picture


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("init", ["content", "noise"])
def test_the_same_seed_gives_the_same_picture_to_the_bit(
    photo: Image.Image, painting: Image.Image, weights: Any, precision: str, init: str
) -> None:
    network = weights.load("vgg16", "cpu", precision)
    one, two = (_paint(photo, painting, network, init=init, seed=7) for _ in range(2))

    assert one.tobytes() == two.tobytes()


def test_another_seed_gives_another_picture_from_noise(
    photo: Image.Image, painting: Image.Image, vgg16: Network
) -> None:
    one, two = (_paint(photo, painting, vgg16, init="noise", seed=seed) for seed in (1, 2))

    assert one.tobytes() != two.tobytes()


@pytest.mark.parametrize(
    "knobs",
    [
        {"init": "style"},
        {"optimizer": "adam"},
        {"pooling": "average"},
        {"objective": "gatys"},
        {"objective": "gatys", "init": "noise", "scales": 1},
        {"tv_weight": 10},
        {"style_scale": 2},
        {"style_scale": 0.5},
        {"style_layers": "relu1_1=1,relu3_1=0.2"},
        {"content_layers": "relu3_1"},
        {"content_weight": 0},
        {"style_weight": 0, "init": "noise"},
        {"preserve_color": "luminance"},
    ],
    ids=str,
)
def test_every_knob_runs_lowers_its_loss_and_changes_the_picture(
    photo: Image.Image, painting: Image.Image, vgg16: Network, knobs: dict[str, Any]
) -> None:
    losses: list[float] = []
    spec = parse_spec({"size": 64, "iterations": 16, "scales": 1, **knobs})
    result = stylize(photo, [painting], spec, vgg16, lambda progress, _: losses.append(progress.losses["total"]))

    assert (64, 48) == result.picture.size
    assert losses[-1] < 0.9 * losses[0]
    assert result.picture.tobytes() != _paint(photo, painting, vgg16, iterations=16, scales=1).tobytes()


def test_two_paintings_mix_by_their_shares(photo: Image.Image, painting: Image.Image, vgg16: Network) -> None:
    """More of a red painting, more red."""
    red = Image.new("RGB", (64, 64), (220, 20, 20))

    def redness(shares: str) -> float:
        spec = parse_spec({"size": 64, "iterations": 16, "scales": 1, "style_weights": shares, "style_weight": 100})
        r, g, b = ImageStat.Stat(stylize(photo, [painting, red], spec, vgg16).picture).mean
        return r - (g + b) / 2

    assert redness("1,0") < redness("1,1") < redness("0,1")


def test_keeping_luminance_keeps_the_photos_color(photo: Image.Image, painting: Image.Image, vgg16: Network) -> None:
    """Hue and saturation stay the photo's; light and dark do not."""

    def color_distance(picture: Image.Image) -> float:
        small = photo.resize(picture.size)
        difference = ImageStat.Stat(ImageChops.difference(picture.convert("YCbCr"), small.convert("YCbCr"))).mean
        return difference[1] + difference[2]

    kept = _paint(photo, painting, vgg16, preserve_color="luminance", iterations=16)
    free = _paint(photo, painting, vgg16, iterations=16)

    assert color_distance(kept) < 0.25 * color_distance(free)
    assert ImageStat.Stat(ImageChops.difference(kept, photo.resize(kept.size))).mean[0] > 5


def _stop_after(count: int, render_into: list[Image.Image]) -> Callable[..., bool]:
    def watch(progress: Progress, render: Callable[[], Image.Image]) -> bool:
        render_into.append(render())
        return progress.iteration == count

    return watch


def test_a_callback_may_stop_the_run_and_keeps_the_picture_at_full_size(
    photo: Image.Image, painting: Image.Image, vgg16: Network
) -> None:
    seen: list[Image.Image] = []
    spec = parse_spec({"size": 96, "iterations": 20, "scales": 2})
    result = stylize(photo, [painting], spec, vgg16, _stop_after(3, seen))

    assert (True, 3, (96, 72)) == (result.stopped, result.iterations, result.picture.size)
    assert [(68, 51)] * 3 == [picture.size for picture in seen]
    assert seen[0].tobytes() != seen[2].tobytes()


def test_an_interrupt_goes_through_the_run_untouched(photo: Image.Image, painting: Image.Image, vgg16: Network) -> None:
    def lost(*_: Any) -> bool:
        raise errors.LeaseLost()

    with pytest.raises(errors.LeaseLost):
        stylize(photo, [painting], StyleSpec(size=64), vgg16, lost)


def test_a_run_that_leaves_the_finite_numbers_says_so(
    photo: Image.Image, painting: Image.Image, vgg16: Network
) -> None:
    with pytest.raises(errors.Diverged):
        stylize(
            photo,
            [painting],
            parse_spec({"size": 64, "objective": "gatys", "style_weight": 1e9, "content_weight": 1e9}),
            _Broken(vgg16),
        )


class _Broken(Network):
    """A network whose deepest features overflow."""

    def __init__(self, network: Network) -> None:
        self.__dict__.update(network.__dict__)
        self._parameters = [(weight * 1e30, bias) for weight, bias in network._parameters]


def test_vgg19_paints_with_its_own_layers(photo: Image.Image, painting: Image.Image, random_vgg19: Network) -> None:
    """With random weights: the code path, not the look."""
    losses: list[float] = []
    spec = parse_spec(
        {"size": 64, "iterations": 10, "scales": 1, "model": "vgg19", "style_layers": "relu1_1,relu3_4,relu5_4"}
    )
    stylize(photo, [painting], spec, random_vgg19, lambda progress, _: losses.append(progress.losses["total"]))

    assert losses[-1] < losses[0]
