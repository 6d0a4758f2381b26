"""What a card can do, without a card."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from core.neural.capacity import Capacity, card_capacity
from core.neural.transfer import planner
from core.neural.transfer.planner import Throughput, throughput_key
from core.neural.vgg import formats

GB = 10**9


@pytest.fixture(autouse=True)
def _titan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA TITAN X (Pascal)")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 1))
    monkeypatch.setattr(planner, "_host_limits", lambda: [64 * GB])


def test_a_titan_x_runs_2048_px_whole_and_8192_px_in_tiles(tmp_path: Path) -> None:
    """Before its first measurement the sizes are those of float32."""
    capacity = card_capacity(0, int(11.5 * GB), tmp_path / "none.json")

    assert capacity == Capacity(None, None, 2048, 8192)


def test_the_format_is_the_measured_one(tmp_path: Path) -> None:
    file, device = tmp_path / "throughput.json", torch.device("cuda", 0)
    seconds = {
        throughput_key(device, "vgg19", one): asdict(Throughput(0, number * 1e-6))
        for one, number in zip(formats(device), (4, 3, 9, 9), strict=True)
    }
    file.write_text(json.dumps(seconds))

    capacity = card_capacity(0, 2 * GB, file)
    assert (capacity.dtype, capacity.layout) == ("float32", "channels first")
    assert 0 < capacity.whole_px < capacity.tiled_px < 8192
