"""The state of a pool child between jobs."""

from pathlib import Path
from typing import Any

import pytest

from core.config import Settings
from core.jobs.models import WorkerInfo
from core.neural.vgg import Network
from worker import runner
from worker.settings import WorkerSettings


def test_a_heartbeat_tells_which_networks_are_there_now(
    valkey: Any, tmp_path: Path, random_vgg19: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that is imported while the worker runs can be named by a job."""
    settings = Settings(redis_url=valkey.url, data_dir=tmp_path, cache_dir=tmp_path)
    settings.weights_dir.mkdir()
    made = runner.JobRunner(settings, WorkerSettings())
    sent: list[list[str]] = []

    def record(_: str, info: WorkerInfo, *__: Any) -> None:
        sent.append(info.networks)
        if len(sent) == 2:
            raise SystemExit  # ends the endless loop
        (settings.weights_dir / "mine.safetensors").touch()

    monkeypatch.setattr(made._store, "heartbeat", record)
    monkeypatch.setattr(runner, "HEARTBEAT_SECONDS", 0.0)
    info = WorkerInfo(device="cpu", precision="float32", network="vgg19", networks=["vgg19"])
    with pytest.raises(SystemExit):
        made._send_heartbeats(info, random_vgg19)

    assert sent == [[], ["mine"]]
