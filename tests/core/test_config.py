"""The settings that all programs share."""

from pathlib import Path

import pytest

from core.config import Settings


def test_measured_speeds_go_to_the_data_folder_where_the_weights_are_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path / "data", cache_dir=tmp_path / "cache")
    assert settings.throughput_file.parent == settings.weights_dir

    settings.weights_dir.mkdir(parents=True)
    assert settings.throughput_file.parent == settings.weights_dir
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write in any folder
    assert settings.throughput_file.parent == settings.data_dir
