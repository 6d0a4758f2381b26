"""A run that was interrupted continues to the same bits."""

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
from core.neural.transfer.stylize import Control, StepEvent, stylize
from core.neural.vgg import Network
from core.style.spec import StyleSpec, parse_spec

PARAMETERS = {"size": 96, "scales": 2, "iterations": 12}


class Killed(BaseException):
    """Raised instead of the end of the process."""


def _save_and_die(file: Path, at: int) -> Any:
    """A callback that saves a checkpoint at an iteration and kills the run two iterations later."""

    def on_progress(event: StepEvent) -> Control:
        if event.progress.iteration == at:
            assert event.checkpoint().save(file)
        if event.progress.iteration == at + 2:
            raise Killed
        return Control.CONTINUE

    return on_progress


def _update_at(iteration: int, spec: StyleSpec) -> Any:
    """A callback that updates the spec after an iteration."""

    def on_progress(event: StepEvent) -> Control:
        return Control(spec=spec if event.progress.iteration == iteration else None)

    return on_progress


@pytest.mark.parametrize(
    ("parameters", "at"),
    [
        (PARAMETERS, 3),  # not all pairs are filled
        (PARAMETERS, 12),  # at the end of a scale
        (PARAMETERS, 17),
        (PARAMETERS | {"scales": 1, "iterations": 30}, 25),  # pairs have been replaced
        (PARAMETERS | {"optimizer": "adam"}, 9),
        (PARAMETERS | {"init": "noise", "objective": "gatys", "style_weight": 1e5}, 14),
        (PARAMETERS | {"preserve_color": "luminance", "seamless": True}, 16),
        (PARAMETERS | {"regions": "auto"}, 12),
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(
    record: Any,
    photo: Image.Image,
    painting: Image.Image,
    tiny_vgg16: Network,
    tmp_path: Path,
    parameters: dict[str, Any],
    at: int,
) -> None:
    inputs, spec, file = StyleInputs(photo, [painting]), parse_spec(parameters), tmp_path / "c"
    whole = stylize(inputs, spec, tiny_vgg16)
    with pytest.raises(Killed):
        stylize(inputs, spec, tiny_vgg16, _save_and_die(file, at))
    seen: list[int] = []
    resumed = stylize(
        inputs,
        spec,
        tiny_vgg16,
        record(seen, lambda event: event.progress.iteration),
        resume=checkpoint.load(file),
        on_start=lambda _: pytest.fail("a resumed run shows the initial image"),
    )

    assert resumed.picture.tobytes() == whole.picture.tobytes()
    assert (resumed.losses, resumed.iterations) == (whole.losses, whole.iterations)
    assert [at, at + 1] == seen[:2]


@pytest.mark.parametrize("factor", [0.5, 0.995])
@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_resumed_run_uses_the_loss_of_its_own_machine(
    photo: Image.Image,
    painting: Image.Image,
    tiny_vgg16: Network,
    tmp_path: Path,
    optimizer: str,
    factor: float,
) -> None:
    """Another machine may have reported a loss that this one cannot reach."""
    spec = parse_spec(PARAMETERS | {"optimizer": optimizer, "scales": 1, "iterations": 12})
    inputs, file = StyleInputs(photo, [painting]), tmp_path / "c"
    with pytest.raises(Killed):
        stylize(inputs, spec, tiny_vgg16, _save_and_die(file, 10))
    loaded = checkpoint.load(file)
    assert loaded is not None
    loaded.tensors["losses"].mul_(factor)
    resumed = stylize(inputs, spec, tiny_vgg16, resume=loaded)

    before = loaded.header.losses["total"]
    assert 0.6 * before < resumed.losses["total"] < before
    assert resumed.iterations == 12


def test_a_scale_that_ended_early_is_not_continued(
    photo: Image.Image, tiny_vgg16: Network, tmp_path: Path
) -> None:
    """The painting is the photo, so the scale ends early at the end of its first window."""
    inputs, spec, file = (
        StyleInputs(photo, [photo]),
        parse_spec({"size": 64, "scales": 1}),
        tmp_path / "c",
    )
    counts: list[int] = []

    def save_when_it_ends(event: StepEvent) -> Control:
        counts.append(event.progress.iterations)
        if len(counts) > 1 and counts[-1] < counts[-2] and not file.exists():
            assert event.checkpoint().save(file)
        return Control.CONTINUE

    whole = stylize(inputs, spec, tiny_vgg16, save_when_it_ends)
    resumed = stylize(inputs, spec, tiny_vgg16, resume=checkpoint.load(file))

    assert (resumed.iterations, resumed.picture.tobytes()) == (
        whole.iterations,
        whole.picture.tobytes(),
    )


def test_seconds_and_progress_continue_after_a_resume(
    record: Any, photo: Image.Image, painting: Image.Image, tiny_vgg16: Network, tmp_path: Path
) -> None:
    before: list[float] = []
    after: list[float] = []
    inputs, spec, file = StyleInputs(photo, [painting]), parse_spec(PARAMETERS), tmp_path / "c"

    def save_and_stop(event: StepEvent) -> Control:
        before.append(event.progress.value)
        return Control(stop=event.progress.iteration == 15 and event.checkpoint().save(file))

    seconds = stylize(inputs, spec, tiny_vgg16, save_and_stop).seconds
    loaded = checkpoint.load(file)
    assert loaded is not None
    stylize(
        inputs,
        spec,
        tiny_vgg16,
        record(after, lambda event: event.progress.value),
        resume=loaded,
    )

    assert before[-1] <= after[0] < after[-1] == 1
    assert 0 < loaded.header.seconds <= seconds


def test_a_run_with_another_route_continues_from_the_image(
    record: Any, photo: Image.Image, painting: Image.Image, tiny_vgg16: Network, tmp_path: Path
) -> None:
    """As on another machine with less memory: only the image is reusable."""
    large = photo.resize((320, 240))
    inputs, spec, file = (
        StyleInputs(large, [painting]),
        parse_spec({"size": 320, "scales": 1, "iterations": 4}),
        tmp_path / "c",
    )
    first: list[float] = []
    with pytest.raises(Killed):
        stylize(inputs, spec, tiny_vgg16, _save_and_die(file, 2))
    planner = Planner(tiny_vgg16)
    roomy = planner.plan(large.size, [painting.size], inputs.fit_spec(spec))
    smaller = planner.shrink(roomy.scales[0], [painting.size], spec)
    assert smaller is not None
    cramped = Planner(tiny_vgg16, free_bytes=int(smaller.memory_bytes / USABLE) + 1)
    resumed = stylize(
        inputs,
        spec,
        tiny_vgg16,
        record(first, lambda event: event.progress.losses["total"]),
        cramped,
        resume=checkpoint.load(file),
    )

    assert roomy.scales[0].route != resumed.plan.scales[0].route
    assert len(first) == 2
    loaded = checkpoint.load(file)
    assert loaded is not None
    # Without its pairs the optimizer's first step may go wrong and be rejected.
    assert first[0] <= loaded.header.losses["total"]
    assert first[1] < loaded.header.losses["total"]


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_checkpoint_from_before_a_spec_update_is_continued_with_the_new_weights(
    photo: Image.Image, painting: Image.Image, tiny_vgg16: Network, tmp_path: Path, optimizer: str
) -> None:
    """To the same bits as a run that was updated there.

    A checkpoint from after the update records it.
    """
    inputs, spec, file = (
        StyleInputs(photo, [painting]),
        parse_spec(PARAMETERS | {"optimizer": optimizer}),
        tmp_path / "c",
    )
    strong = spec.for_pictures().with_updates({"strength": 0.9})
    with pytest.raises(Killed):
        stylize(inputs, spec, tiny_vgg16, _save_and_die(file, 8))
    updated = stylize(inputs, spec, tiny_vgg16, _update_at(8, strong))
    before = stylize(inputs, strong, tiny_vgg16, resume=checkpoint.load(file))

    def update_and_die(event: StepEvent) -> Control:
        _save_and_die(file, 15)(event)
        control: Control = _update_at(8, strong)(event)
        return control

    with pytest.raises(Killed):
        stylize(inputs, spec, tiny_vgg16, update_and_die)
    after = stylize(inputs, strong, tiny_vgg16, resume=checkpoint.load(file))

    assert len({one.picture.tobytes() for one in (updated, before, after)}) == 1
    assert [
        (one.spec_updates[0].iteration, one.spec_updates[0].after)
        for one in (updated, before, after)
    ] == [(8, {"strength": 0.9})] * 3


def test_a_checkpoint_of_another_network_is_ignored(
    record: Any, photo: Image.Image, painting: Image.Image, tiny_vgg16: Network, tmp_path: Path
) -> None:
    inputs, spec, file = StyleInputs(photo, [painting]), parse_spec(PARAMETERS), tmp_path / "c"
    with pytest.raises(Killed):
        stylize(inputs, spec, tiny_vgg16, _save_and_die(file, 15))
    other = Network.__new__(Network)
    other.__dict__.update(tiny_vgg16.__dict__, sha256="another")
    seen: list[int] = []
    stylize(
        inputs,
        spec,
        other,
        record(seen, lambda event: event.progress.iteration),
        resume=checkpoint.load(file),
    )

    assert seen == list(range(1, 25))


def test_a_torn_file_is_not_loaded(
    photo: Image.Image, painting: Image.Image, tiny_vgg16: Network, tmp_path: Path
) -> None:
    file = tmp_path / "c"
    with pytest.raises(Killed):
        stylize(
            StyleInputs(photo, [painting]),
            parse_spec(PARAMETERS),
            tiny_vgg16,
            _save_and_die(file, 5),
        )
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


def test_a_reader_that_takes_too_long_gets_an_invalid_file(
    photo: Image.Image, painting: Image.Image, tiny_vgg16: Network, tmp_path: Path
) -> None:
    """The run does not wait longer, so the file may mix two iterations."""
    kept: list[Checkpoint] = []

    def keep_checkpoint(event: StepEvent) -> Control:
        if event.progress.iteration == 3:
            kept.append(event.checkpoint())
        return Control.CONTINUE

    stylize(StyleInputs(photo, [painting]), parse_spec(PARAMETERS), tiny_vgg16, keep_checkpoint)

    assert not kept[0].save(tmp_path / "c")


def test_a_snapshot_that_is_released_in_time_is_valid() -> None:
    snapshot = SharedSnapshot({}, {"rows": torch.zeros(3)})
    snapshot.release()
    snapshot.reclaim()

    assert not snapshot.is_overwritten
