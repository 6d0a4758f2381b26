"""The client's models: they have the fields that the service sends, and refuse other forms."""

from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest
from pydantic import BaseModel

from api.openapi import examples
from api.routes.form import Form
from api.routes.presets import PresetResource
from core.jobs import models as core_models
from core.jobs import service_info
from core.jobs.store_report import StoreReport
from core.style import spec
from impasto import models

SERVICE_MODELS: dict[str, type[BaseModel]] = {
    **{
        name: value
        for module in (core_models, service_info, spec)
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, BaseModel)
    },
    "Preset": PresetResource,
    "Form": Form,
    "StoreReport": StoreReport,
}
RECORDS = [
    value
    for value in vars(models).values()
    if is_dataclass(value) and getattr(value, "__module__", "") == models.__name__
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_a_record_has_the_fields_that_the_service_sends(record: Any) -> None:
    sent = SERVICE_MODELS[record.__name__].model_fields.items()

    assert {field.name for field in fields(record)} == {
        name for name, field in sent if not field.exclude
    }
    for name, hint in get_type_hints(record).items():
        field = SERVICE_MODELS[record.__name__].model_fields[name]
        assert (type(None) in get_args(hint)) == (type(None) in get_args(field.annotation)), name


@pytest.mark.parametrize("name", ["Status", "Priority"])
def test_an_enumeration_has_the_services_values(name: str) -> None:
    ours, theirs = getattr(models, name), getattr(core_models, name)

    assert [*ours] == [*theirs]
    for value in ours:
        assert getattr(value, "has_ended", None) == getattr(theirs(value), "has_ended", None)


@pytest.mark.parametrize(
    ("record", "body"),
    [
        (models.Job, examples.JOB),
        (models.Job, examples.WAITING),
        (models.Batch, examples.RESPONSES["BatchResource"]),
        (models.Estimate, examples.RESPONSES["Estimate"]),
        (models.SystemInfo, examples.RESPONSES["SystemInfo"]),
        (models.Form, examples.RESPONSES["Form"]),
    ],
    ids=["ended job", "queued job", "batch", "estimate", "system", "form"],
)
def test_the_examples_of_the_document_are_read(record: Any, body: dict[str, Any]) -> None:
    read = models.parse(record, {**body, "a_later_version": 1})

    for name in {field.name for field in fields(record)} & body.keys():
        if isinstance(body[name], str | int | float | None) and not name.endswith("_at"):
            assert getattr(read, name) == body[name], name


@pytest.mark.parametrize(
    "change",
    [
        {"id": None},
        {"id": 1},
        {"version": "42"},
        {"pinned": 1},
        {"status": "painting"},
        {"created_at": "yesterday"},
        {"input": []},
        {"outputs": {}},
        {"outputs": [{"id": "sha256:"}]},
        {"metrics": {"run_seconds": "1"}},
    ],
    ids=str,
)
def test_a_value_of_another_form_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|missing|valid|format"):
        models.parse(models.Job, {**examples.JOB, **change})


def test_a_missing_field_is_refused_unless_earlier_versions_lack_it() -> None:
    body = {name: value for name, value in examples.JOB.items() if name != "batch_id"}

    assert models.parse(models.Job, body).batch_id is None
    del body["version"]
    with pytest.raises(ValueError, match="version is missing"):
        models.parse(models.Job, body)
