"""The wire contract of version 1 stays compatible: docs/api.md, "What stays".

v1.txt records the contract: paths, request and response fields with their types, and error codes.
`python tests/api/openapi/test_stays.py` records additions; run it for a release.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.app import create_app
from api.settings import ApiSettings
from core.config import Settings

CONTRACT = Path(__file__).with_name("v1.txt")


def _describe_type(schema: dict[str, Any]) -> str:
    """Return the schema's type in a word."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema and "type" not in schema:
        return " or ".join(sorted(map(_describe_type, schema["anyOf"])))
    if schema.get("type") == "array":
        return f"list of {_describe_type(schema.get('items', {}))}"
    return str(schema.get("format", schema.get("type", "any")))


def _describe_contract(document: Any) -> Iterator[str]:
    """Yield a line for each detail on which a client may rely."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            name = f"{method.upper()} {path}"
            yield name
            for parameter in operation.get("parameters", []):
                yield f"{name} {parameter['in']} {parameter['name'].lower()}"
            for kind, media in operation.get("requestBody", {}).get("content", {}).items():
                yield f"{name} takes {kind}"
                for field, schema in media["schema"].get("properties", {}).items():
                    yield f"{name} takes {kind} {field}: {_describe_type(schema)}"
                    yield from (
                        f"{name} takes {kind} {field}: {value}" for value in schema.get("enum", [])
                    )
            for status, answer in operation["responses"].items():
                for kind, media in answer.get("content", {}).items():
                    yield f"{name} {status} {kind}: {_describe_type(media.get('schema', {}))}"
    for name, schema in document["components"]["schemas"].items():
        for field, inner in schema.get("properties", {}).items():
            yield f"{name}.{field}: {_describe_type(inner)}"
        for value in schema.get("enum", []):
            yield f"{name} may be {value}"
    for code in document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]:
        yield f"code {code}"


def _describe_requirements(document: Any) -> Iterator[str]:
    """Yield a line for each required parameter and field."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for parameter in operation.get("parameters", []):
                if parameter.get("required"):
                    name = parameter["name"].lower()
                    yield f"{method.upper()} {path} needs {parameter['in']} {name}"
            for kind, media in operation.get("requestBody", {}).get("content", {}).items():
                for field in media["schema"].get("required", []):
                    yield f"{method.upper()} {path} needs {kind} {field}"


def _build_document() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return create_app(
            Settings(redis_url="redis://127.0.0.1:1/0", data_dir=Path(folder)), ApiSettings()
        ).openapi()


@pytest.fixture(scope="module")
def document() -> Any:
    return _build_document()


@pytest.fixture(scope="module")
def contract() -> set[str]:
    return set(CONTRACT.read_text(encoding="utf-8").splitlines())


def test_nothing_is_removed_from_the_contract(document: Any, contract: set[str]) -> None:
    removed = {line for line in contract if " needs " not in line} - set(
        _describe_contract(document)
    )

    assert removed == set()


def test_no_new_field_is_required(document: Any, contract: set[str]) -> None:
    new = {line for line in _describe_requirements(document) if line not in contract}
    operations = {line for line in contract if line.count(" ") == 1}

    assert {line for line in new if line.partition(" needs ")[0] in operations} == set()


if __name__ == "__main__":
    lines = sorted(
        {*_describe_contract(_build_document()), *_describe_requirements(_build_document())}
    )
    CONTRACT.write_text("\n".join(lines) + "\n", encoding="utf-8")
