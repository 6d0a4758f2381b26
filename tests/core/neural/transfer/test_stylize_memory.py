"""Runs with little memory: in tiles, and after an out-of-memory error."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

from core import errors
from core.neural.transfer import checkpoint
from core.neural.transfer.inputs import StyleInputs
from core.neural.transfer.optimize import LBFGS
from core.neural.transfer.planner import Planner
from core.neural.transfer.stylize import (
    Control,
    RunProgress,
    StepEvent,
    stylize,
)
from core.neural.vgg import Network
from core.style.schedule import schedule
from core.style.spec import parse_spec


def test_a_run_in_tiles_gives_the_same_picture(
    photo: Image.Image, painting: Image.Image, tiny_vgg16: Network
) -> None:
    large = photo.resize((400, 300))
    spec = parse_spec({"size": 400, "iterations": 1, "scales": 1})
    cramped = Planner(tiny_vgg16, free_bytes=470_000_000)
    free, tiled = (
        stylize(StyleInputs(large, [painting]), spec, tiny_vgg16, planner=p).picture
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
    photo: Image.Image, painting: Image.Image, tiny_vgg16: Network
) -> None:
    large, spec = photo.resize((400, 300)), parse_spec({"size": 400, "iterations": 1, "scales": 1})
    whole = stylize(StyleInputs(large, [painting]), spec, tiny_vgg16).picture
    cramped = stylize(StyleInputs(large, [painting]), spec, _Cramped(tiny_vgg16, 330 * 330)).picture

    assert max(high for _, high in ImageChops.difference(whole, cramped).getextrema()) <= 2
    with pytest.raises(errors.OutOfMemory, match="size"):
        stylize(StyleInputs(large, [painting]), spec, _Cramped(tiny_vgg16, 100 * 100))


def test_a_run_out_of_memory_in_a_later_scale_continues_in_smaller_tiles(
    record: Any, photo: Image.Image, painting: Image.Image, tiny_vgg16: Network
) -> None:
    """It continues from its image, and progress never falls."""
    large, spec = (
        photo.resize((400, 300)),
        parse_spec({"size": 400, "iterations": 4, "scales": 2, **SHALLOW}),
    )
    seen: list[RunProgress] = []
    cramped = _Cramped(
        tiny_vgg16, 330 * 330, after=8
    )  # in the second scale: four evaluations a scale, and one before
    stylize(StyleInputs(large, [painting]), spec, cramped, record(seen))

    assert [progress.iteration for progress in seen] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert sorted({progress.value for progress in seen}) == [progress.value for progress in seen]
    assert (seen[-1].value, seen[-1].iterations, seen[-1].seconds_left) == (1.0, 8, 0.0)
    assert seen[-1].losses["total"] < seen[5].losses["total"], "the loss still falls"


def test_a_scale_that_runs_out_of_memory_at_its_start_begins_from_the_whole_coarser_picture(
    photo: Image.Image, painting: Image.Image, tiny_vgg16: Network
) -> None:
    """Both scales have margins, of different widths; a margin is no part of the picture."""
    large = photo.resize((396, 297))
    spec = parse_spec({"size": 396, "iterations": 1, "scales": 2, **SHALLOW})
    sizes = [scale.size for scale in schedule(spec, *large.size)]
    assert sizes == [(280, 210), (396, 297)]  # with margins (304, 240), (416, 320)
    whole = stylize(StyleInputs(large, [painting]), spec, tiny_vgg16).picture
    cramped = stylize(StyleInputs(large, [painting]), spec, _Cramped(tiny_vgg16, 330 * 330)).picture

    assert max(high for _, high in ImageChops.difference(whole, cramped).getextrema()) <= 2


def test_a_resumed_run_out_of_memory_continues_from_its_checkpoint(
    record: Any, photo: Image.Image, painting: Image.Image, tiny_vgg16: Network, tmp_path: Path
) -> None:
    large, spec = (
        photo.resize((400, 300)),
        parse_spec({"size": 400, "iterations": 6, "scales": 1, **SHALLOW}),
    )
    file, seen = tmp_path / "c", []

    def save_and_stop(event: StepEvent) -> Control:
        return Control(stop=event.progress.iteration == 4 and event.checkpoint().save(file))

    stylize(StyleInputs(large, [painting]), spec, tiny_vgg16, save_and_stop)
    stylize(
        StyleInputs(large, [painting]),
        spec,
        _Cramped(tiny_vgg16, 330 * 330),
        record(seen),
        resume=checkpoint.load(file),
    )

    assert [progress.iteration for progress in seen] == [4, 5, 6]
    assert sorted(progress.value for progress in seen) == [progress.value for progress in seen]


@pytest.mark.parametrize("runs_out", [False, True], ids=["next scale", "after out of memory"])
def test_an_optimizer_is_gone_when_the_next_one_starts(
    photo: Image.Image,
    painting: Image.Image,
    tiny_vgg16: Network,
    monkeypatch: pytest.MonkeyPatch,
    runs_out: bool,
) -> None:
    """Although the callback keeps its last event, as a worker does."""
    kept: list[StepEvent] = []
    optimizers: list[weakref.ref[LBFGS]] = []
    alive_at_start: list[int] = []
    usual = LBFGS.__init__

    def count(self: LBFGS, *args: Any, **options: Any) -> None:
        alive_at_start.append(sum(reference() is not None for reference in optimizers))
        optimizers.append(weakref.ref(self))
        usual(self, *args, **options)

    def keep(event: StepEvent) -> Control:
        kept[:] = [event]
        event.checkpoint()
        return Control.CONTINUE

    monkeypatch.setattr(LBFGS, "__init__", count)
    large = photo.resize((400, 300))
    spec = parse_spec({"size": 400, "iterations": 3, "scales": 1 if runs_out else 2, **SHALLOW})
    network = _Cramped(tiny_vgg16, 330 * 330, after=3) if runs_out else tiny_vgg16
    gc.disable()  # the memory is free at once, not at the next collection
    try:
        stylize(StyleInputs(large, [painting]), spec, network, keep)
    finally:
        gc.enable()

    assert alive_at_start == [0, 0]
    with pytest.raises(RuntimeError, match="until its callback returns"):
        kept[0].checkpoint()
