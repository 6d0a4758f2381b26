"""A run that was cut off goes on to the same bits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from core.neural.transfer import checkpoint
from core.neural.transfer.checkpoint import Checkpoint
from core.neural.transfer.inputs import StyleInputs
from core.neural.transfer.optimize import SharedSnapshot
from core.neural.transfer.planner import USABLE, Planner
from core.neural.transfer.stylize import StepEvent, stylize
from core.neural.vgg import Network
from core.style.spec import parse_spec

LADDER = {"size": 96, "scales": 2, "iterations": 12}


class Killed(BaseException):
    """As if the process had died."""


def _cut_off(file: Path, at: int, *, leg: int = 0) -> Any:
    """A callback that saves a checkpoint at an iteration and kills the run two iterations later."""

    def watch(moment: StepEvent) -> None:
        if moment.progress.iteration == at:
            assert moment.checkpoint().save(file)
        if moment.progress.iteration == at + 2:
            raise Killed

    return watch


@pytest.mark.parametrize(
    ("parameters", "at"),
    [
        (LADDER, 3),  # before the pairs have come round
        (LADDER, 12),  # at the very end of a scale
        (LADDER, 17),
        (LADDER | {"scales": 1, "iterations": 30}, 25),  # the oldest pairs are gone
        (LADDER | {"optimizer": "adam"}, 9),
        (LADDER | {"init": "noise", "objective": "gatys", "style_weight": 1e5}, 14),
        (LADDER | {"preserve_color": "luminance", "seamless": True}, 16),
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(
    photo: Image.Image,
    painting: Image.Image,
    vgg16: Network,
    tmp_path: Path,
    parameters: dict[str, Any],
    at: int,
) -> None:
    subject, spec, file = StyleInputs(photo, [painting]), parse_spec(parameters), tmp_path / "c"
    whole = stylize(subject, spec, vgg16)
    with pytest.raises(Killed):
        stylize(subject, spec, vgg16, _cut_off(file, at))
    seen: list[int] = []
    resumed = stylize(
        subject,
        spec,
        vgg16,
        lambda moment: seen.append(moment.progress.iteration),  # type: ignore[func-returns-value]
        resume=checkpoint.load(file),
    )

    assert resumed.picture.tobytes() == whole.picture.tobytes()
    assert (resumed.losses, resumed.iterations) == (whole.losses, whole.iterations)
    assert [at, at + 1] == seen[:2]


def test_a_scale_that_ended_early_stays_ended(
    photo: Image.Image, vgg16: Network, tmp_path: Path
) -> None:
    """The painting is the photo: nothing to gain, and the run says so at its first window's end."""
    subject, spec, file = (
        StyleInputs(photo, [photo]),
        parse_spec({"size": 64, "scales": 1}),
        tmp_path / "c",
    )
    counts: list[int] = []

    def watch(moment: StepEvent) -> None:
        counts.append(moment.progress.iterations)
        if len(counts) > 1 and counts[-1] < counts[-2] and not file.exists():
            assert moment.checkpoint().save(file)

    whole = stylize(subject, spec, vgg16, watch)
    resumed = stylize(subject, spec, vgg16, resume=checkpoint.load(file))

    assert (resumed.iterations, resumed.picture.tobytes()) == (
        whole.iterations,
        whole.picture.tobytes(),
    )


def test_seconds_and_share_go_on_from_where_they_were(
    photo: Image.Image, painting: Image.Image, vgg16: Network, tmp_path: Path
) -> None:
    before: list[float] = []
    after: list[float] = []
    subject, spec, file = StyleInputs(photo, [painting]), parse_spec(LADDER), tmp_path / "c"

    def watch(moment: StepEvent) -> bool:
        before.append(moment.progress.value)
        return moment.progress.iteration == 15 and moment.checkpoint().save(file)

    seconds = stylize(subject, spec, vgg16, watch).seconds
    kept = checkpoint.load(file)
    assert kept is not None
    stylize(
        subject,
        spec,
        vgg16,
        lambda moment: after.append(moment.progress.value),  # type: ignore[func-returns-value]
        resume=kept,
    )

    assert before[-1] <= after[0] < after[-1] == 1
    assert 0 < kept.mark.seconds <= seconds


def test_with_another_route_the_image_is_kept(
    photo: Image.Image, painting: Image.Image, vgg16: Network, tmp_path: Path
) -> None:
    """Another machine, with less memory: it goes on with the image, by its own way."""
    large = photo.resize((320, 240))
    subject, spec, file = (
        StyleInputs(large, [painting]),
        parse_spec({"size": 320, "scales": 1, "iterations": 4}),
        tmp_path / "c",
    )
    first: list[float] = []
    with pytest.raises(Killed):
        stylize(subject, spec, vgg16, _cut_off(file, 2))
    planner = Planner(vgg16)
    roomy = planner.plan(large.size, [painting.size], subject.fitted(spec))
    smaller = planner.smaller(roomy.legs[0], [painting.size], spec)
    assert smaller is not None
    cramped = Planner(vgg16, free_bytes=int(smaller.memory_bytes / USABLE) + 1)
    resumed = stylize(
        subject,
        spec,
        vgg16,
        lambda moment: first.append(moment.progress.losses["total"]),  # type: ignore[func-returns-value]
        cramped,
        resume=checkpoint.load(file),
    )

    assert roomy.legs[0].route != resumed.plan.legs[0].route
    assert len(first) == 2
    kept = checkpoint.load(file)
    assert kept is not None
    assert first[0] < kept.mark.losses["total"]


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_checkpoint_from_before_a_steering_is_gone_on_from_by_the_new_weights(
    photo: Image.Image, painting: Image.Image, vgg16: Network, tmp_path: Path, optimizer: str
) -> None:
    """To the same bits as a run that was spec_updates there and then; and one from after it knows of it."""
    subject, spec, file = (
        StyleInputs(photo, [painting]),
        parse_spec(LADDER | {"optimizer": optimizer}),
        tmp_path / "c",
    )
    strong = spec.for_pictures().with_updates({"strength": 0.9})
    with pytest.raises(Killed):
        stylize(subject, spec, vgg16, _cut_off(file, 8))
    spec_updates = stylize(
        subject, spec, vgg16, lambda moment: strong if moment.progress.iteration == 8 else None
    )
    before = stylize(subject, strong, vgg16, resume=checkpoint.load(file))

    def steer_and_die(moment: StepEvent) -> Any:
        _cut_off(file, 15)(moment)
        return strong if moment.progress.iteration == 8 else None

    with pytest.raises(Killed):
        stylize(subject, spec, vgg16, steer_and_die)
    after = stylize(subject, strong, vgg16, resume=checkpoint.load(file))

    assert len({one.picture.tobytes() for one in (spec_updates, before, after)}) == 1
    assert [
        (one.spec_updates[0].iteration, one.spec_updates[0].after)
        for one in (spec_updates, before, after)
    ] == [(8, {"strength": 0.9})] * 3


def test_a_checkpoint_of_another_network_is_left_aside(
    photo: Image.Image, painting: Image.Image, vgg16: Network, tmp_path: Path
) -> None:
    subject, spec, file = StyleInputs(photo, [painting]), parse_spec(LADDER), tmp_path / "c"
    with pytest.raises(Killed):
        stylize(subject, spec, vgg16, _cut_off(file, 15))
    other = Network.__new__(Network)
    other.__dict__.update(vgg16.__dict__, sha256="another")

    assert (
        stylize(subject, spec, other, resume=checkpoint.load(file)).picture.tobytes()
        == stylize(subject, spec, vgg16).picture.tobytes()
    )


def test_a_torn_file_is_found_out(
    photo: Image.Image, painting: Image.Image, vgg16: Network, tmp_path: Path
) -> None:
    file = tmp_path / "c"
    with pytest.raises(Killed):
        stylize(StyleInputs(photo, [painting]), parse_spec(LADDER), vgg16, _cut_off(file, 5))
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(
        whole[:middle] + b"\xff" * 100 + whole[middle + 100 :]
    )  # a hole, as a power cut may leave one
    assert checkpoint.load(file) is None
    for cut in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        assert checkpoint.load(file) is None
    assert checkpoint.load(tmp_path / "none") is None
    torch.save({"format": 0}, file)
    assert checkpoint.load(file) is None


def test_a_reader_that_takes_too_long_is_told(
    photo: Image.Image, painting: Image.Image, vgg16: Network, tmp_path: Path
) -> None:
    """The run does not wait for it; and what it has read may be half of one iteration and half of the next."""
    kept: list[Checkpoint] = []

    def watch(moment: StepEvent) -> None:
        if moment.progress.iteration == 3:
            kept.append(moment.checkpoint())

    stylize(StyleInputs(photo, [painting]), parse_spec(LADDER), vgg16, watch)

    assert not kept[0].save(tmp_path / "c")


def test_what_is_given_back_in_time_is_good() -> None:
    loan = SharedSnapshot({"image": torch.zeros(3)})
    loan.give_back()
    loan.recall()

    assert not loan.spoiled
