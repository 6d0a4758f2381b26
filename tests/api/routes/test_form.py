"""GET /v1/form."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.testclient import TestClient

from api.app import create_app
from api.settings import ApiSettings
from core.config import Settings
from core.jobs.models import SubmissionOptions
from core.style.spec import PARAMETERS, UPDATABLE, StyleSpec


def _without_titles(fields: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: {key: value for key, value in field.items() if key != "title"}
        for name, field in fields.items()
    }


def test_the_form_agrees_with_the_openapi_document(client: TestClient) -> None:
    form = client.get("/v1/form").json()
    paths = client.get("/openapi.json").json()["paths"]
    body = paths["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fields = body["properties"]
    parameters = fields.pop("spec")["properties"]
    presets = parameters.pop("preset")["enum"]

    assert form["parameters"] == parameters
    options = {name: fields[name] for name in SubmissionOptions.model_fields if name != "webhook"}
    assert _without_titles(form["options"]) == options
    assert [preset["name"] for preset in form["presets"]] == presets
    assert form["presets"] == client.get("/v1/presets").json()["presets"]
    assert form["limits"] == client.get("/v1/system").json()["limits"]


def test_the_form_has_each_parameter_with_default_and_title(client: TestClient) -> None:
    form = client.get("/v1/form").json()
    updatable = [name for name, field in form["parameters"].items() if field.get("updatable")]

    assert tuple(form["parameters"]) == PARAMETERS
    assert tuple(updatable) == UPDATABLE
    defaults = {name: field["default"] for name, field in form["parameters"].items()}
    assert StyleSpec.model_validate(defaults) == StyleSpec()
    fields = [*form["parameters"].items(), *form["options"].items()]
    titles = {name: field["title"] for name, field in fields}
    assert titles["style_scale"] == "Brush size"
    assert len({*titles.values()}) == len(titles)
    assert not [title for name, title in titles.items() if "_" in title or title == name]


def test_the_form_is_small_and_sent_once(client: TestClient) -> None:
    with client.stream("GET", "/v1/form", headers={"Accept-Encoding": "gzip"}) as answer:
        sent = b"".join(answer.iter_raw())
    tag = {"If-None-Match": answer.headers["etag"]}
    again = client.get("/v1/form", headers=tag)

    assert json.loads(gzip.decompress(sent)) == client.get("/v1/form").json()
    assert len(sent) < 4_500
    assert answer.headers["cache-control"] == "private, no-cache"
    assert (again.status_code, again.content) == (304, b"")


def test_the_form_has_a_webhook_only_where_the_service_sends_one(
    app: FastAPI, connect: Callable[[FastAPI], TestClient], valkey: Any, tmp_path: Path
) -> None:
    settings = Settings(redis_url=valkey.url, data_dir=tmp_path, webhook_secret="whsec_" + "A" * 32)
    forms = [
        connect(each).get("/v1/form").json() for each in (app, create_app(settings, ApiSettings()))
    ]

    assert ["webhook" in form["options"] for form in forms] == [False, True]


def test_the_operators_settings_change_the_form_and_the_page(
    app: FastAPI, connect: Callable[[FastAPI], TestClient], valkey: Any, tmp_path: Path
) -> None:
    settings = Settings(redis_url=valkey.url, data_dir=tmp_path, max_size_px=1024)
    clients = connect(app), connect(create_app(settings, ApiSettings(max_queued=7)))
    forms = [client.get("/v1/form") for client in clients]

    assert [form.json()["limits"]["max_size"] for form in forms] == [8192, 1024]
    assert forms[1].json()["limits"]["max_queued"] == 7
    assert forms[0].headers["etag"] != forms[1].headers["etag"]
    for path in ("/", "/j/job_x"):
        for client, form in zip(clients, forms, strict=True):
            _, _, rest = client.get(path).text.partition('type="application/json" id="form">')
            assert json.loads(rest.partition("</script>")[0]) == form.json(), path
