"""Runs at a small size: results, progress, the callback, memory errors, spec updates."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops, ImageStat

from core import errors
from core.neural.transfer import checkpoint, pixels
from core.neural.transfer.inputs import StyleInputs
from core.neural.transfer.objective import measure_style
from core.neural.transfer.planner import Planner
from core.neural.transfer.schedule import schedule
from core.neural.transfer.stylize import (
    Control,
    OnProgress,
    RunProgress,
    StepEvent,
    StyleResult,
    stylize,
)
from core.neural.vgg import Network
from core.neural.weights.cache import random_parameters
from core.style.spec import StyleSpec, parse_spec
from core.style.vgg_layers import Architecture

LAYERS = ["relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"]


@pytest.fixture(scope="module")
def finished_run(
    record: Any, photo: Image.Image, painting: Image.Image, vgg16: Network
) -> tuple[StyleResult, list[RunProgress]]:
    """A run shared by several tests: its result and its progress."""
    seen: list[RunProgress] = []
    spec = parse_spec({"size": 96, "iterations": 24, "scales": 2})
    return stylize(StyleInputs(photo, [painting]), spec, vgg16, record(seen)), seen


def _style_distance(
    network: Network, picture: Image.Image, painting: Image.Image
) -> dict[str, float]:
    """|G - A|^2 / |A|^2 at each layer."""
    styles = (
        measure_style(network, pixels.to_image(one), StyleSpec()) for one in (picture, painting)
    )
    g, a = ({layer: statistics.gram for layer, statistics in style.items()} for style in styles)
    return {
        layer: float((g[layer] - a[layer]).square().sum() / a[layer].square().sum())
        for layer in LAYERS
    }


def test_the_delivered_picture_is_closer_to_the_painting_in_every_layer(
    finished_run: tuple[StyleResult, list[RunProgress]],
    photo: Image.Image,
    painting: Image.Image,
    vgg16: Network,
) -> None:
    """Measured on the 8-bit picture."""
    before, after = (
        _style_distance(vgg16, picture, painting) for picture in (photo, finished_run[0].picture)
    )

    assert all(after[layer] < 0.6 * before[layer] for layer in LAYERS), (before, after)


def test_the_delivered_picture_keeps_the_photos_content(
    finished_run: tuple[StyleResult, list[RunProgress]],
    photo: Image.Image,
    painting: Image.Image,
    vgg16: Network,
) -> None:
    """Its content features are closer to the photo's than the painting's are."""
    with torch.no_grad():
        result, own, other = (
            vgg16.features(pixels.to_image(p, (96, 72)), ["relu4_2"])["relu4_2"]
            for p in (finished_run[0].picture, photo, painting)
        )

    assert float((result - own).norm()) < 0.75 * float((other - own).norm())


def test_the_loss_falls_at_every_scale(finished_run: tuple[StyleResult, list[RunProgress]]) -> None:
    for number, share in ((1, 0.5), (2, 0.8)):
        losses = [
            progress.losses["total"] for progress in finished_run[1] if progress.scale == number
        ]
        assert losses[-1] < share * losses[0]


def test_progress_counts_over_all_scales_and_estimates_the_end(
    finished_run: tuple[StyleResult, list[RunProgress]],
) -> None:
    result, seen = finished_run

    assert [progress.iteration for progress in seen] == list(range(1, 49))
    assert {(progress.scale, progress.scales, progress.width) for progress in seen} == {
        (1, 2, 68),
        (2, 2, 96),
    }
    assert all(set(progress.losses) == {"total", "content", "style", "tv"} for progress in seen)
    assert all(progress.iterations_per_second > 0 for progress in seen)
    assert [progress.value for progress in seen] == sorted(progress.value for progress in seen)
    assert (seen[-1].value, seen[-1].seconds_left) == (1.0, 0.0)
    assert (result.iterations, result.stopped, result.losses) == (48, False, seen[-1].losses)


def test_the_reported_losses_are_those_of_the_delivered_picture(
    finished_run: tuple[StyleResult, list[RunProgress]],
    photo: Image.Image,
    painting: Image.Image,
    vgg16: Network,
) -> None:
    """They differ only by rounding to 8 bits: nothing is clamped at the end."""
    result, _ = finished_run
    spec = parse_spec({"size": 96, "iterations": 24, "scales": 2}).for_pictures()
    objective = (
        StyleInputs(photo, [painting])
        .target_at(schedule(spec, *photo.size)[-1], spec, vgg16)
        .objective
    )
    with torch.no_grad():
        delivered = objective(pixels.to_image(result.picture)).by_name()

    assert delivered["total"] == pytest.approx(result.losses["total"], rel=0.02)


def _stylize(
    photo: Image.Image, painting: Image.Image, network: Network, **parameters: Any
) -> Image.Image:
    spec = parse_spec({"size": 64, "iterations": 8, "scales": 2, **parameters})
    return stylize(StyleInputs(photo, [painting]), spec, network).picture


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("init", ["content", "noise"])
def test_the_same_seed_gives_the_same_picture_to_the_bit(
    photo: Image.Image, painting: Image.Image, weights: Any, precision: str, init: str
) -> None:
    network = weights.load("vgg16", "cpu", precision)
    one, two = (_stylize(photo, painting, network, init=init, seed=7) for _ in range(2))

    assert two.tobytes() == one.tobytes()


def test_another_seed_gives_another_picture_from_noise(
    photo: Image.Image, painting: Image.Image, vgg16: Network
) -> None:
    one, two = (_stylize(photo, painting, vgg16, init="noise", seed=seed) for seed in (1, 2))

    assert two.tobytes() != one.tobytes()


@pytest.mark.parametrize(
    "parameters",
    [
        {"init": "style"},
        {"optimizer": "adam"},
        {"pooling": "average"},
        {"pooling": "l2"},
        {"strength": 0.2},
        {"quality": "draft", "iterations": 0},
        {"seamless": True},
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
        {"preserve_color": "match"},
        {"preserve_color": "histogram"},
    ],
    ids=str,
)
def test_with_every_parameter_a_run_lowers_its_loss_and_changes_the_picture(
    record: Any,
    photo: Image.Image,
    painting: Image.Image,
    vgg16: Network,
    parameters: dict[str, Any],
) -> None:
    losses: list[float] = []
    spec = parse_spec({"size": 64, "iterations": 16, "scales": 1, **parameters})
    result = stylize(
        StyleInputs(photo, [painting]),
        spec,
        vgg16,
        record(losses, lambda event: event.progress.losses["total"]),
    )

    assert result.picture.size == (64, 48)
    assert losses[-1] < 0.9 * losses[0]
    assert (
        _stylize(photo, painting, vgg16, iterations=16, scales=1).tobytes()
        != result.picture.tobytes()
    )


def test_two_paintings_mix_by_their_shares(
    photo: Image.Image, painting: Image.Image, vgg16: Network
) -> None:
    """A larger share of a red painting gives a redder picture."""
    red = Image.new("RGB", (64, 64), (220, 20, 20))

    def redness(shares: str) -> float:
        spec = parse_spec(
            {
                "size": 64,
                "iterations": 16,
                "scales": 1,
                "style_weights": shares,
                "style_weight": 100,
            }
        )
        r, g, b = ImageStat.Stat(
            stylize(StyleInputs(photo, [painting, red]), spec, vgg16).picture
        ).mean
        return r - (g + b) / 2

    assert redness("1,0") < redness("1,1") < redness("0,1")


def test_preserve_color_luminance_keeps_the_photos_color(
    photo: Image.Image, painting: Image.Image, vgg16: Network
) -> None:
    """The colors stay the photo's; the luminance does not."""

    def color_distance(picture: Image.Image) -> float:
        small = photo.resize(picture.size)
        difference = ImageStat.Stat(
            ImageChops.difference(picture.convert("YCbCr"), small.convert("YCbCr"))
        ).mean
        return difference[1] + difference[2]

    kept = _stylize(photo, painting, vgg16, preserve_color="luminance", iterations=16)
    free = _stylize(photo, painting, vgg16, iterations=16)

    assert color_distance(kept) < 0.25 * color_distance(free)
    assert ImageStat.Stat(ImageChops.difference(kept, photo.resize(kept.size))).mean[0] > 5


def _stop_after(count: int, render_into: list[Image.Image]) -> OnProgress:
    def on_progress(event: StepEvent) -> Control:
        render_into.append(event.picture())
        return Control(stop=event.progress.iteration == count)

    return on_progress


def test_a_callback_stops_the_run_which_returns_the_picture_at_full_size(
    photo: Image.Image, painting: Image.Image, vgg16: Network
) -> None:
    seen: list[Image.Image] = []
    spec = parse_spec({"size": 96, "iterations": 20, "scales": 2})
    result = stylize(StyleInputs(photo, [painting]), spec, vgg16, _stop_after(3, seen))

    assert (result.stopped, result.iterations, result.picture.size) == (True, 3, (96, 72))
    assert [picture.size for picture in seen] == [(68, 51)] * 3
    assert seen[2].tobytes() != seen[0].tobytes()


def test_an_exception_of_the_callback_leaves_the_run_unchanged(
    photo: Image.Image, painting: Image.Image, vgg16: Network
) -> None:
    def lose_lease(*_: Any) -> Control:
        raise errors.LeaseLost()

    with pytest.raises(errors.LeaseLost):
        stylize(StyleInputs(photo, [painting]), StyleSpec(size=64), vgg16, lose_lease)


def test_a_run_with_infinite_losses_raises_diverged(
    photo: Image.Image, painting: Image.Image, vgg16: Network
) -> None:
    with pytest.raises(errors.Diverged):
        stylize(
            StyleInputs(photo, [painting]),
            parse_spec(
                {"size": 64, "objective": "gatys", "style_weight": 1e9, "content_weight": 1e9}
            ),
            _Broken(vgg16),
        )


class _Broken(Network):
    """A network whose responses overflow after `after` evaluations."""

    def __init__(self, network: Network, after: int = 0) -> None:
        self.__dict__.update(network.__dict__)
        self._whole, self._evaluations_left = network._parameters, after

    @property
    def _parameters(self) -> Any:
        self._evaluations_left -= 1
        return (
            self._whole
            if self._evaluations_left >= 0
            else [(weight * 1e30, bias) for weight, bias in self._whole]
        )


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_run_that_diverges_late_returns_its_last_good_picture(
    record: Any, photo: Image.Image, painting: Image.Image, vgg16: Network, optimizer: str
) -> None:
    seen: list[Image.Image] = []
    spec = parse_spec({"size": 64, "iterations": 30, "optimizer": optimizer})
    with pytest.raises(errors.Diverged) as caught:
        stylize(
            StyleInputs(photo, [painting]),
            spec,
            _Broken(vgg16, after=12),
            record(seen, lambda event: event.picture()),
        )

    assert caught.value.picture is not None
    assert caught.value.picture.tobytes() == seen[-1].tobytes()


# ---------------------------------------------------------------------- masks, initial picture


def _half(size: tuple[int, int], *, left: bool) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]) if left else (size[0] // 2, 0, *size))
    return mask


def test_each_painting_applies_where_its_mask_is_white(photo: Image.Image, vgg16: Network) -> None:
    """Red on the left, blue on the right."""
    red, blue = (_speckled(color) for color in ((220, 30, 30), (30, 30, 220)))
    inputs = StyleInputs(
        photo, [red, blue], [_half(photo.size, left=True), _half(photo.size, left=False)]
    )
    spec = parse_spec({"size": 128, "iterations": 30, "scales": 1, "strength": 0.9})
    result = stylize(inputs, spec, vgg16).picture
    left, right = (
        ImageStat.Stat(result.crop(box)).mean for box in ((0, 0, 48, 96), (80, 0, 128, 96))
    )

    assert left[0] - left[2] > right[0] - right[2] + 50


def _speckled(color: tuple[int, int, int]) -> Image.Image:
    noise = Image.effect_noise((96, 96), 60).convert("RGB")
    return Image.blend(Image.new("RGB", (96, 96), color), noise, 0.15)


def test_a_wrong_number_of_masks_and_a_black_mask_are_refused(
    photo: Image.Image, painting: Image.Image, vgg16: Network
) -> None:
    black, white = Image.new("L", (8, 8), 0), Image.new("L", (8, 8), 255)
    with pytest.raises(errors.BadSpec, match="mask: send one for the one painting, or none"):
        stylize(StyleInputs(photo, [painting], [white, white]), StyleSpec(size=64), vgg16)
    with pytest.raises(errors.BadImage, match="black all over"):
        stylize(StyleInputs(photo, [painting], [black]), StyleSpec(size=64), vgg16)


def test_a_black_mask_of_a_painting_without_a_share_is_accepted(
    photo: Image.Image, painting: Image.Image, vgg16: Network
) -> None:
    black, left = Image.new("L", (8, 8), 0), _half((8, 8), left=True)
    parameters = {"size": 64, "iterations": 3, "scales": 1}
    alone = stylize(StyleInputs(photo, [painting], [left]), parse_spec(parameters), vgg16)
    both = parse_spec({**parameters, "style_weights": "1,0"})
    beside = stylize(StyleInputs(photo, [painting, photo], [left, black]), both, vgg16)

    assert 0 < alone.losses["style"] < beside.losses["style"] < float("inf")
    with pytest.raises(errors.BadImage, match="black all over"):
        stylize(StyleInputs(photo, [painting, photo], [black, left]), both, vgg16)


def test_a_run_starts_from_the_initial_picture(
    photo: Image.Image, painting: Image.Image, vgg16: Network
) -> None:
    green = Image.new("RGB", (50, 50), (0, 200, 0))
    spec = parse_spec({"size": 64, "iterations": 1, "scales": 1, "init": "picture"})
    red, own, blue = ImageStat.Stat(
        stylize(StyleInputs(photo, [painting], init=green), spec, vgg16).picture
    ).mean

    assert own > red + 150
    assert own > blue + 150
    with pytest.raises(errors.BadSpec, match="init_image"):
        stylize(StyleInputs(photo, [painting]), spec, vgg16)


# ------------------------------------------------------ memory, early end of a scale


def test_a_run_in_tiles_gives_the_same_picture(
    photo: Image.Image, painting: Image.Image, vgg16: Network
) -> None:
    large = photo.resize((400, 300))
    spec = parse_spec({"size": 400, "iterations": 1, "scales": 1})
    cramped = Planner(vgg16, free_bytes=360_000_000)
    free, tiled = (
        stylize(StyleInputs(large, [painting]), spec, vgg16, planner=p).picture
        for p in (None, cramped)
    )

    assert (
        cramped.plan(large.size, [painting.size], spec.for_pictures()).scales[0].route.tile_px
        is not None
    )
    assert max(high for _, high in ImageChops.difference(free, tiled).getextrema()) <= 2


class _Cramped(Network):
    """A network that runs out of memory above `most` pixels, after `after` evaluations."""

    def __init__(self, network: Network, most: int, after: int = 0) -> None:
        self.__dict__.update(network.__dict__)
        self.most, self.after = most, after

    def record(self, image: torch.Tensor, *rest: Any) -> Any:
        self.after -= 1
        if self.after < 0 and image.shape[2] * image.shape[3] > self.most:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"
            )
        return super().record(image, *rest)


# Two layers of the first block: quick.
SHALLOW = {"style_layers": "relu1_1", "content_layers": "relu1_2"}


def test_a_run_out_of_memory_is_retried_once_in_smaller_tiles(
    photo: Image.Image, painting: Image.Image, vgg16: Network
) -> None:
    large, spec = photo.resize((400, 300)), parse_spec({"size": 400, "iterations": 1, "scales": 1})
    whole = stylize(StyleInputs(large, [painting]), spec, vgg16).picture
    cramped = stylize(StyleInputs(large, [painting]), spec, _Cramped(vgg16, 330 * 330)).picture

    assert max(high for _, high in ImageChops.difference(whole, cramped).getextrema()) <= 2
    with pytest.raises(errors.OutOfMemory, match="size"):
        stylize(StyleInputs(large, [painting]), spec, _Cramped(vgg16, 100 * 100))


def test_a_run_out_of_memory_in_a_later_scale_continues_in_smaller_tiles(
    record: Any, photo: Image.Image, painting: Image.Image, vgg16: Network
) -> None:
    """It continues from its image, and progress never falls."""
    large, spec = (
        photo.resize((400, 300)),
        parse_spec({"size": 400, "iterations": 4, "scales": 2, **SHALLOW}),
    )
    seen: list[RunProgress] = []
    cramped = _Cramped(
        vgg16, 330 * 330, after=8
    )  # in the second scale: four evaluations a scale, and one before
    stylize(StyleInputs(large, [painting]), spec, cramped, record(seen))

    assert [progress.iteration for progress in seen] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert sorted({progress.value for progress in seen}) == [progress.value for progress in seen]
    assert (seen[-1].value, seen[-1].iterations, seen[-1].seconds_left) == (1.0, 8, 0.0)
    assert seen[-1].losses["total"] < seen[5].losses["total"], "the loss still falls"


def test_a_resumed_run_out_of_memory_continues_from_its_checkpoint(
    record: Any, photo: Image.Image, painting: Image.Image, vgg16: Network, tmp_path: Path
) -> None:
    large, spec = (
        photo.resize((400, 300)),
        parse_spec({"size": 400, "iterations": 6, "scales": 1, **SHALLOW}),
    )
    file, seen = tmp_path / "c", []

    def save_and_stop(event: StepEvent) -> Control:
        return Control(stop=event.progress.iteration == 4 and event.checkpoint().save(file))

    stylize(StyleInputs(large, [painting]), spec, vgg16, save_and_stop)
    stylize(
        StyleInputs(large, [painting]),
        spec,
        _Cramped(vgg16, 330 * 330),
        record(seen),
        resume=checkpoint.load(file),
    )

    assert [progress.iteration for progress in seen] == [4, 5, 6]
    assert sorted(progress.value for progress in seen) == [progress.value for progress in seen]


def test_the_papers_content_loss_has_the_same_size_at_every_scale(
    record: Any, photo: Image.Image, painting: Image.Image, vgg16: Network
) -> None:
    """Alpha makes up for the missing positions of a coarser scale, which would else ignore the
    photo.
    """
    seen: list[RunProgress] = []
    spec = parse_spec(
        {"size": 256, "iterations": 2, "scales": 3, "objective": "gatys", "init": "noise"}
    )
    stylize(StyleInputs(photo, [painting]), spec, vgg16, record(seen))
    first = {progress.scale: progress.losses["content"] for progress in reversed(seen)}

    assert 0.5 < first[1] / first[3] < 3


def test_a_scale_that_gains_nothing_ends_early(
    record: Any, painting: Image.Image, vgg16: Network
) -> None:
    """The photo is the painting itself, so the loss is 0 from the beginning."""
    seen: list[RunProgress] = []
    spec = parse_spec({"size": 64})
    result = stylize(StyleInputs(painting, [painting]), spec, vgg16, record(seen))

    assert result.iterations < 70
    assert seen[-1].iteration == seen[-1].iterations == result.iterations
    assert seen[-1].seconds_left == 0


def test_a_scale_that_still_gains_takes_all_its_iterations(
    photo: Image.Image, painting: Image.Image, vgg16: Network
) -> None:
    spec = parse_spec({"size": 64, "quality": "draft"})

    assert stylize(StyleInputs(photo, [painting]), spec, vgg16).iterations == 25


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"objective": "gatys"},
        {"preserve_color": "match"},
        {"preserve_color": "histogram"},
        {"preserve_color": "luminance"},
        {"init": "noise"},
        {"pooling": "l2"},
        {"optimizer": "adam"},
    ],
    ids=str,
)
@pytest.mark.parametrize("flat", ["photo", "painting", "both"])
def test_pictures_of_one_color_give_a_picture(
    photo: Image.Image,
    painting: Image.Image,
    vgg16: Network,
    parameters: dict[str, Any],
    flat: str,
) -> None:
    """Their variance of 0 causes no NaN."""
    gray, black = Image.new("RGB", (80, 60), (128, 128, 128)), Image.new("RGB", (60, 80), 0)
    inputs = StyleInputs(
        gray if flat != "painting" else photo, [black if flat != "photo" else painting]
    )
    result = stylize(inputs, parse_spec({"size": 64, "iterations": 5, **parameters}), vgg16)

    assert result.picture.size == (64, 48)
    assert not any(math.isnan(value) for value in result.losses.values())


def test_a_painting_of_one_color_gives_its_color_also_from_noise(vgg16: Network) -> None:
    red = Image.new("RGB", (64, 64), (200, 30, 30))
    spec = parse_spec({"size": 64, "init": "noise"})
    mean = ImageStat.Stat(stylize(StyleInputs(red, [red]), spec, vgg16).picture).mean

    assert mean[0] > 150
    assert max(mean[1:]) < 120


def test_a_very_wide_photo_and_a_tiny_painting_give_a_picture(
    vgg16: Network, photo: Image.Image
) -> None:
    wide, tiny = photo.resize((1000, 50)), photo.resize((32, 32))

    assert stylize(
        StyleInputs(wide, [tiny]), parse_spec({"size": 640, "iterations": 2}), vgg16
    ).picture.size == (640, 32)


@pytest.mark.parametrize("architecture", ["vgg11", "vgg13"])
def test_shallower_networks_run_with_the_default_layers(
    record: Any, photo: Image.Image, painting: Image.Image, architecture: Architecture
) -> None:
    network = Network(
        architecture, random_parameters(architecture), name="", sha256="", dtype=torch.float32
    )
    losses: list[dict[str, float]] = []
    spec = parse_spec({"size": 64, "iterations": 10, "scales": 1})
    stylize(
        StyleInputs(photo, [painting]),
        spec,
        network,
        record(losses, lambda event: event.progress.losses),
    )

    assert (
        losses[-1]["total"] < losses[0]["total"] < spec.beta
    )  # whatever the network: the style is 1 at the photo


def test_vgg19_runs_with_its_own_layers(
    record: Any, photo: Image.Image, painting: Image.Image, random_vgg19: Network
) -> None:
    """With random weights: this tests the code path, not the look."""
    losses: list[float] = []
    spec = parse_spec(
        {
            "size": 64,
            "iterations": 10,
            "scales": 1,
            "model": "vgg19",
            "style_layers": "relu1_1,relu3_4,relu5_4",
        }
    )
    stylize(
        StyleInputs(photo, [painting]),
        spec,
        random_vgg19,
        record(losses, lambda event: event.progress.losses["total"]),
    )

    assert losses[-1] < losses[0]


# ---------------------------------------------------------------------- spec updates


def _update_at(count: int, spec: StyleSpec, seen: list[RunProgress]) -> OnProgress:
    def on_progress(event: StepEvent) -> Control:
        seen.append(event.progress)
        return Control(spec=spec if event.progress.iteration == count else None)

    return on_progress


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_an_updated_run_ends_near_the_loss_of_a_run_with_the_new_weights(
    photo: Image.Image, painting: Image.Image, vgg16: Network, optimizer: str
) -> None:
    """Compared by the loss with the new weights: pixels of two good results may differ freely."""
    parameters = {"size": 96, "iterations": 40, "scales": 1, "optimizer": optimizer}
    inputs, weak, strong = (
        StyleInputs(photo, [painting]),
        {**parameters, "strength": 0.2},
        {**parameters, "strength": 0.9},
    )
    low, high = (stylize(inputs, parse_spec(spec), vgg16).picture for spec in (weak, strong))
    seen: list[RunProgress] = []
    updated = stylize(inputs, parse_spec(weak), vgg16, _update_at(20, parse_spec(strong), seen))
    objective = inputs.target_at(
        schedule(updated.spec, *photo.size)[-1], updated.spec, vgg16
    ).objective
    losses = [
        objective(pixels.to_image(picture)).by_name()["total"]
        for picture in (low, updated.picture, high)
    ]

    assert losses[1] - losses[2] < 0.2 * (losses[0] - losses[2]), losses
    assert losses[1] == pytest.approx(updated.losses["total"], rel=0.03)
    assert [(s.iteration, s.before, s.after) for s in updated.spec_updates] == [
        (20, {"strength": 0.2}, {"strength": 0.9})
    ]
    assert (
        seen[19].spec_updates,
        seen[20].spec_updates,
        updated.spec.strength,
    ) == ((), updated.spec_updates, 0.9)


def test_a_run_updated_at_its_last_iteration_is_extended(
    photo: Image.Image, painting: Image.Image, vgg16: Network
) -> None:
    weak = parse_spec({"size": 64, "iterations": 20, "scales": 1, "strength": 0.2})
    seen: list[RunProgress] = []
    result = stylize(
        StyleInputs(photo, [painting]),
        weak,
        vgg16,
        _update_at(20, weak.with_updates({"strength": 0.9}), seen),
    )
    low = stylize(StyleInputs(photo, [painting]), weak, vgg16)

    assert (result.iterations, seen[-1].iterations) == (30, 30)
    assert low.picture.tobytes() != result.picture.tobytes()


def test_a_run_that_is_updated_again_and_again_ends(
    photo: Image.Image, painting: Image.Image, vgg16: Network
) -> None:
    spec = parse_spec({"size": 64, "iterations": 6, "scales": 1})
    counts: list[int] = []

    def update_each_time(event: StepEvent) -> Control:
        counts.append(event.progress.iterations)
        if len(counts) == 16:
            return Control.CONTINUE
        return Control(spec=spec.with_updates({"tv_weight": len(counts)}))

    assert stylize(StyleInputs(photo, [painting]), spec, vgg16, update_each_time).iterations == 16
    assert counts[11] == 12  # at most twice the planned iterations, then one per update


def test_an_update_with_the_same_weights_changes_nothing(
    photo: Image.Image, painting: Image.Image, vgg16: Network
) -> None:
    spec = parse_spec({"size": 64, "iterations": 8, "scales": 2})
    plain = stylize(StyleInputs(photo, [painting]), spec, vgg16)
    same = stylize(StyleInputs(photo, [painting]), spec, vgg16, lambda _: Control(spec=spec))

    assert (same.picture.tobytes(), same.spec_updates) == (plain.picture.tobytes(), ())


def test_the_shares_of_paintings_can_be_updated(
    photo: Image.Image, painting: Image.Image, vgg16: Network
) -> None:
    red = Image.new("RGB", (64, 64), (220, 20, 20))
    spec = parse_spec(
        {"size": 64, "iterations": 16, "scales": 1, "style_weights": "1,0", "style_weight": 100}
    )
    inputs = StyleInputs(photo, [painting, red])
    more = spec.for_pictures(2).with_updates({"style_weights": "0,1"})

    def redness(picture: Image.Image) -> float:
        r, g, b = ImageStat.Stat(picture).mean
        return r - (g + b) / 2

    updated = stylize(inputs, spec, vgg16, _update_at(8, more, []))
    assert redness(updated.picture) > redness(stylize(inputs, spec, vgg16).picture) + 20
