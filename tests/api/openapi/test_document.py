"""The OpenAPI document: everything has an example, and every example matches its schema."""

from typing import Any

import jsonschema_rs
import pytest
from fastapi import FastAPI

from api.http.problems import REFUSALS, problem
from core import errors

Media = dict[str, Any]


@pytest.fixture
def document(app: FastAPI) -> Any:
    return app.openapi()


def _operations(document: Any) -> list[tuple[str, Any]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]


def _assert_valid(document: Any, schema: Any, example: Any, where: str) -> None:
    whole = {**schema, "components": document["components"]}
    wrong = [error.message for error in jsonschema_rs.validator_for(whole).iter_errors(example)]
    assert not wrong, (where, wrong)


def _bodies(document: Any) -> list[tuple[str, Media]]:
    """Return the media of all JSON and form bodies; pictures and streams have no example."""
    found = []
    for name, operation in _operations(document):
        media = operation.get("requestBody", {}).get("content", {})
        found += [(f"{name} {kind}", one) for kind, one in media.items()]
        for status, answer in operation["responses"].items():
            media = answer.get("content", {})
            found += [
                (f"{name} {status} {kind}", one)
                for kind, one in media.items()
                if kind == "application/json"
            ]
    return found


def test_every_body_has_an_example_that_matches_its_schema(document: Any) -> None:
    for where, media in _bodies(document):
        assert "example" in media, where
        _assert_valid(document, media["schema"], media["example"], where)


def test_every_parameter_and_every_field_of_a_body_is_described(document: Any) -> None:
    schemas = document["components"]["schemas"]
    for name, operation in _operations(document):
        fields = [(one["name"], one) for one in operation.get("parameters", [])]
        for media in operation.get("requestBody", {}).get("content", {}).values():
            schema = media["schema"]
            schema = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
            fields += schema.get("properties", {}).items()
        for field, described in fields:
            assert described.get("description"), f"{name}: {field}"


def test_every_path_parameter_has_an_example_that_matches_its_pattern(document: Any) -> None:
    for name, operation in _operations(document):
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "path":
                assert "example" in parameter, name
                _assert_valid(document, parameter["schema"], parameter["example"], name)


def test_every_operation_documents_its_errors(document: Any) -> None:
    for name, operation in _operations(document):
        assert operation["responses"]["4XX"] == {"$ref": "#/components/responses/Refused"}, name
        later = operation["responses"].get("503")
        assert (
            {"$ref": "#/components/responses/Unavailable"} if name != "GET /livez" else None
        ) == later, name


def test_every_error_code_has_an_example_equal_to_the_real_response(document: Any) -> None:
    def walk(kind: type[errors.ImpastoError]) -> list[type[errors.ImpastoError]]:
        return [kind, *(found for child in kind.__subclasses__() for found in walk(child))]

    answers = document["components"]["responses"]
    bodies: dict[str, Any] = {}
    for answer in answers.values():
        media = answer["content"]["application/problem+json"]
        for code, case in media["examples"].items():
            _assert_valid(document, media["schema"], case["value"], code)
            bodies[code] = case["value"]

    answered = {
        kind.code for kind in walk(errors.ImpastoError) if problem(kind()).status_code != 500
    } | set(REFUSALS)
    assert set(bodies) == answered
    assert all(
        code == body["code"] and body["detail"].endswith(".") for code, body in bodies.items()
    )
    assert "Retry-After" in answers["Unavailable"]["headers"]
