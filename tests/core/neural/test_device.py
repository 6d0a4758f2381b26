"""Device errors are translated wherever they occur."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from core import errors
from core.neural.transfer import planner
from core.neural.transfer.inputs import StyleInputs
from core.neural.transfer.planner import Planner, measure_throughput
from core.neural.transfer.stylize import stylize
from core.neural.vgg import Network
from core.neural.weights.cache import WeightsCache
from core.style.spec import parse_spec

LOST = RuntimeError("CUDA error: an illegal memory access was encountered")


def _raise(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("place", ["plan", "scale", "picture"])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (LOST, errors.DeviceLost),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            ),
            errors.OutOfMemory,
        ),
        (MemoryError(), errors.OutOfMemory),
        (RuntimeError("something else"), RuntimeError),
    ],
)
def test_a_run_recognizes_a_lost_device_and_missing_memory_at_every_step(
    tiny_vgg16: Network,
    photo: Image.Image,
    painting: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    error: Exception,
    expected: type[BaseException],
) -> None:
    where = {
        "plan": (Planner, "free_bytes"),
        "scale": (StyleInputs, "target_at"),
        "picture": (StyleInputs, "render"),
    }[place]
    monkeypatch.setattr(*where, _raise(error))
    with pytest.raises(expected):
        stylize(
            StyleInputs(photo, [painting]),
            parse_spec({"size": 64, "iterations": 1}).for_pictures(),
            tiny_vgg16,
        )


def test_a_device_lost_while_loading_a_network_is_not_reported_as_a_bad_setting(
    weights: WeightsCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.neural.weights.cache.Network", _raise(LOST))
    with pytest.raises(errors.DeviceLost):
        weights.load("vgg19")
    monkeypatch.setattr(
        "core.neural.weights.cache.Network",
        _raise(RuntimeError("CUDA error: invalid device ordinal")),
    )
    with pytest.raises(errors.BadSettings):
        weights.load("vgg19")


def test_throughput_is_measured_at_smaller_sizes_if_memory_is_short(
    tiny_vgg16: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = list[int]()

    def cramped(network: Network, side: int) -> tuple[int, float, float]:
        sides.append(side)
        if side > 160:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return side * side, 1e-6 * side * side, 0.0

    monkeypatch.setattr(planner, "_time_evaluation", cramped)
    assert measure_throughput(tiny_vgg16).pixel_seconds == pytest.approx(1e-6)
    assert sides == [128, 320, 64, 160]

    monkeypatch.setattr(
        planner, "_time_evaluation", _raise(torch.OutOfMemoryError("CUDA out of memory."))
    )
    with pytest.raises(torch.OutOfMemoryError):
        measure_throughput(tiny_vgg16)
