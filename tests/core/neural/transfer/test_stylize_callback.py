"""The callback of a run: stopping, exceptions, divergence, spec updates."""

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageStat

from core import errors
from core.neural.convolution import FrozenConvolution
from core.neural.transfer import pixels
from core.neural.transfer.inputs import StyleInputs
from core.neural.transfer.stylize import (
    Control,
    OnProgress,
    RunProgress,
    StepEvent,
    stylize,
)
from core.neural.vgg import Network
from core.style.schedule import schedule
from core.style.spec import StyleSpec, parse_spec


def _stop_after(count: int, render_into: list[Image.Image]) -> OnProgress:
    def on_progress(event: StepEvent) -> Control:
        render_into.append(event.picture())
        return Control(stop=event.progress.iteration == count)

    return on_progress


def test_a_callback_stops_the_run_which_returns_the_picture_at_full_size(
    photo: Image.Image, painting: Image.Image, tiny_vgg16: Network
) -> None:
    seen: list[Image.Image] = []
    spec = parse_spec({"size": 96, "iterations": 20, "scales": 2})
    result = stylize(StyleInputs(photo, [painting]), spec, tiny_vgg16, _stop_after(3, seen))

    assert (result.stopped, result.iterations, result.picture.size) == (True, 3, (96, 72))
    assert [picture.size for picture in seen] == [(96, 72)] * 3
    assert seen[2].tobytes() != seen[0].tobytes()


def test_the_initial_image_is_shown_before_the_first_iteration(
    photo: Image.Image, painting: Image.Image, tiny_vgg16: Network
) -> None:
    seen: list[Image.Image | int] = []

    def on_progress(event: StepEvent) -> Control:
        seen.append(event.progress.iteration)
        return Control.CONTINUE

    spec = parse_spec({"size": 96, "iterations": 4, "scales": 2})
    inputs = StyleInputs(photo, [painting])
    result = stylize(inputs, spec, tiny_vgg16, on_progress, on_start=seen.append)
    without = stylize(inputs, spec, tiny_vgg16)

    start, *iterations = seen
    assert isinstance(start, Image.Image)
    assert iterations == [1, 2, 3, 4, 5, 6, 7, 8]
    assert start.size == (96, 72)
    mean, photo_mean, painting_mean = (
        np.array(ImageStat.Stat(picture).mean) for picture in (start, photo, painting)
    )
    assert np.abs(mean - painting_mean).max() < 0.2 * np.abs(photo_mean - painting_mean).max()
    assert result.picture.tobytes() == without.picture.tobytes()


def test_an_exception_of_the_callback_is_raised_unchanged(
    photo: Image.Image, painting: Image.Image, tiny_vgg16: Network
) -> None:
    def lose_lease(*_: Any) -> Control:
        raise errors.LeaseLost()

    with pytest.raises(errors.LeaseLost):
        stylize(StyleInputs(photo, [painting]), StyleSpec(size=64), tiny_vgg16, lose_lease)


def test_a_run_with_infinite_losses_raises_diverged(
    photo: Image.Image, painting: Image.Image, tiny_vgg16: Network
) -> None:
    with pytest.raises(errors.Diverged):
        stylize(
            StyleInputs(photo, [painting]),
            parse_spec(
                {"size": 64, "objective": "gatys", "style_weight": 1e9, "content_weight": 1e9}
            ),
            _Broken(tiny_vgg16),
        )


class _Broken(Network):
    """A network whose responses overflow after `after` evaluations."""

    def __init__(self, network: Network, after: int = 0) -> None:
        self.__dict__.update(network.__dict__)
        self._whole, self._evaluations_left = network._kernels, after

    @property
    def _kernels(self) -> Any:
        self._evaluations_left -= 1
        if self._evaluations_left >= 0:
            return self._whole
        return [
            FrozenConvolution(kernel.weight * 1e30, kernel.bias, self.layout)
            for kernel in self._whole
        ]


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_run_that_diverges_late_returns_its_last_good_picture(
    record: Any, photo: Image.Image, painting: Image.Image, tiny_vgg16: Network, optimizer: str
) -> None:
    seen: list[Image.Image] = []
    spec = parse_spec({"size": 64, "iterations": 30, "optimizer": optimizer})
    with pytest.raises(errors.Diverged) as caught:
        stylize(
            StyleInputs(photo, [painting]),
            spec,
            _Broken(tiny_vgg16, after=12),
            record(seen, lambda event: event.picture()),
        )

    assert caught.value.picture is not None
    assert caught.value.picture.tobytes() == seen[-1].tobytes()


def test_the_picture_of_a_run_that_diverges_at_a_coarse_scale_has_the_requested_size(
    photo: Image.Image, painting: Image.Image, tiny_vgg16: Network
) -> None:
    spec = parse_spec({"size": 96, "iterations": 30, "scales": 2})
    sizes = [scale.size for scale in schedule(spec, *photo.size)]
    with pytest.raises(errors.Diverged) as caught:
        stylize(StyleInputs(photo, [painting]), spec, _Broken(tiny_vgg16, after=12))

    assert len(sizes) == 2
    assert caught.value.picture is not None
    assert caught.value.picture.size == sizes[-1]


@pytest.fixture
def stripes() -> Image.Image:
    """A photo of stripes so fine that a coarser scale cannot hold them."""
    pixels = np.zeros((96, 96, 3), np.uint8)
    pixels[:, ::2] = 255
    return Image.fromarray(pixels)


def _contrast(picture: Image.Image) -> float:
    """The mean difference of horizontal neighbors."""
    return float(np.abs(np.diff(np.array(picture.convert("L"), np.float32), axis=1)).mean())


def test_a_coarse_image_is_shown_in_the_size_of_the_result_with_the_photo_detail(
    record: Any, stripes: Image.Image, painting: Image.Image, tiny_vgg16: Network
) -> None:
    seen: list[Image.Image] = []
    for parameters in ({}, {"optimizer": "adam"}):  # Adam's runs have no detail
        spec = parse_spec({"size": 96, "iterations": 1, "scales": 2, **parameters})
        inputs = StyleInputs(stripes, [painting])
        stylize(inputs, spec, tiny_vgg16, record(seen, lambda event: event.picture()))
    sharp, _, blurred, _ = seen

    assert sharp.size == blurred.size == (96, 96)
    assert _contrast(sharp) > 3 * _contrast(blurred)


def test_a_run_that_is_stopped_at_a_coarse_scale_has_the_photo_detail(
    stripes: Image.Image, painting: Image.Image, tiny_vgg16: Network
) -> None:
    spec = parse_spec({"size": 96, "iterations": 2, "scales": 2})
    inputs = StyleInputs(stripes, [painting])
    result = stylize(inputs, spec, tiny_vgg16, lambda _: Control.STOP)

    assert result.picture.size == (96, 96)
    assert _contrast(result.picture) > 60


def _update_at(count: int, spec: StyleSpec, seen: list[RunProgress]) -> OnProgress:
    def on_progress(event: StepEvent) -> Control:
        seen.append(event.progress)
        return Control(spec=spec if event.progress.iteration == count else None)

    return on_progress


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_an_updated_run_ends_near_the_loss_of_a_run_with_the_new_weights(
    photo: Image.Image, painting: Image.Image, vgg19: Network, optimizer: str
) -> None:
    """Compared by the loss with the new weights: pixels of two good results may differ freely."""
    parameters = {"size": 64, "iterations": 30, "scales": 1, "optimizer": optimizer}
    inputs, weak, strong = (
        StyleInputs(photo, [painting]),
        {**parameters, "strength": 0.2},
        {**parameters, "strength": 0.9},
    )
    low, high = (stylize(inputs, parse_spec(spec), vgg19) for spec in (weak, strong))
    seen: list[RunProgress] = []
    updated = stylize(inputs, parse_spec(weak), vgg19, _update_at(15, parse_spec(strong), seen))
    objective = inputs.target_at(
        schedule(updated.spec, *photo.size)[-1], updated.spec, vgg19
    ).objective
    before = objective(objective.margin.mirror(pixels.to_image(low.picture))).by_name()["total"]
    after, best = updated.losses["total"], high.losses["total"]

    assert after - best < 0.2 * (before - best), (before, after, best)
    assert [(s.iteration, s.before, s.after) for s in updated.spec_updates] == [
        (15, {"strength": 0.2}, {"strength": 0.9})
    ]
    assert (
        seen[14].spec_updates,
        seen[15].spec_updates,
        updated.spec.strength,
    ) == ((), updated.spec_updates, 0.9)


def test_a_run_updated_at_its_last_iteration_is_extended(
    photo: Image.Image, painting: Image.Image, tiny_vgg16: Network
) -> None:
    weak = parse_spec({"size": 64, "iterations": 20, "scales": 1, "strength": 0.2})
    seen: list[RunProgress] = []
    result = stylize(
        StyleInputs(photo, [painting]),
        weak,
        tiny_vgg16,
        _update_at(20, weak.with_updates({"strength": 0.9}), seen),
    )
    low = stylize(StyleInputs(photo, [painting]), weak, tiny_vgg16)

    assert (result.iterations, seen[-1].iterations) == (30, 30)
    assert low.picture.tobytes() != result.picture.tobytes()


def test_a_run_that_is_updated_again_and_again_ends(
    photo: Image.Image, painting: Image.Image, tiny_vgg16: Network
) -> None:
    spec = parse_spec({"size": 64, "iterations": 6, "scales": 1})
    counts: list[int] = []

    def update_each_time(event: StepEvent) -> Control:
        counts.append(event.progress.iterations)
        if len(counts) == 16:
            return Control.CONTINUE
        return Control(spec=spec.with_updates({"tv_weight": len(counts)}))

    assert (
        stylize(StyleInputs(photo, [painting]), spec, tiny_vgg16, update_each_time).iterations == 16
    )
    assert counts[11] == 12  # at most twice the planned iterations, then one per update


def test_an_update_with_the_same_weights_changes_nothing(
    photo: Image.Image, painting: Image.Image, tiny_vgg16: Network
) -> None:
    spec = parse_spec({"size": 64, "iterations": 8, "scales": 2})
    plain = stylize(StyleInputs(photo, [painting]), spec, tiny_vgg16)
    same = stylize(StyleInputs(photo, [painting]), spec, tiny_vgg16, lambda _: Control(spec=spec))

    assert (same.picture.tobytes(), same.spec_updates) == (plain.picture.tobytes(), ())


def test_the_shares_of_paintings_can_be_updated(
    photo: Image.Image, painting: Image.Image, tiny_vgg16: Network
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

    updated = stylize(inputs, spec, tiny_vgg16, _update_at(8, more, []))
    assert redness(updated.picture) > redness(stylize(inputs, spec, tiny_vgg16).picture) + 20
