"""The settings that all programs share."""

from pathlib import Path

import pytest

from api.settings import ApiSettings
from core import errors
from core.config import Settings, _describe_values, read_settings
from worker.settings import WorkerSettings


def test_measured_speeds_go_to_the_data_folder_where_the_weights_are_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path / "data", cache_dir=tmp_path / "cache")
    assert settings.throughput_file.parent == settings.weights_dir

    settings.weights_dir.mkdir(parents=True)
    assert settings.throughput_file.parent == settings.weights_dir
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write in any folder
    assert settings.throughput_file.parent == settings.data_dir


@pytest.mark.parametrize(
    ("kind", "variable", "value", "message"),
    [
        (Settings, "IMPASTO_MAX_SIZE_PX", "large", "a whole number, at least 64 and at most 8192."),
        (Settings, "IMPASTO_MAX_SIZE_PX", "9000", "a whole number, at least 64 and at most 8192."),
        (Settings, "IMPASTO_MAX_JOB_SECONDS", "nan", "a number, at least 0."),
        (Settings, "IMPASTO_LOG_FORMAT", "xml", "one of text, json."),
        (Settings, "IMPASTO_WEBHOOK_ALLOW_HTTP", "perhaps", "true or false."),
        (ApiSettings, "IMPASTO_API_PORT", "99999", "a whole number, at least 1 and at most 65535."),
        (
            ApiSettings,
            "IMPASTO_API_UPLOAD_RETENTION_HOURS",
            "0",
            "a number, above 0 and at most 8760.",
        ),
    ],
)
def test_a_wrong_setting_is_refused_with_the_values_that_it_may_have(
    kind: type[Settings], variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(errors.BadSettings) as refused:
        read_settings(kind)
    assert refused.value.message == f"{variable}: It must be {message}"


@pytest.mark.parametrize("kind", [Settings, ApiSettings, WorkerSettings])
def test_every_setting_can_be_described_and_an_empty_one_is_not_set(
    kind: type[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in kind.model_fields:
        monkeypatch.setenv(f"{kind.model_config['env_prefix']}{name}".upper(), "")

    without = read_settings(kind)
    for name in kind.model_fields:
        monkeypatch.delenv(f"{kind.model_config['env_prefix']}{name}".upper())

    assert without == read_settings(kind)
    assert all(_describe_values(kind, name) for name in kind.model_fields)
