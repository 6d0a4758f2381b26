"""What version 1 has promised is still there: docs/api.md, What stays.

The promise is v1.txt: addresses, what they take, what they answer, codes, and of which type. What is new is
promised with a release: `python tests/api/openapi/test_stays.py` records it.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.app import create_app
from api.settings import ApiSettings
from core.config import Settings

PROMISED = Path(__file__).with_name("v1.txt")


def _kind(schema: dict[str, Any]) -> str:
    """Its type, in a word."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema and "type" not in schema:
        return " or ".join(sorted(map(_kind, schema["anyOf"])))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("format", schema.get("type", "any")))


def _told(document: Any) -> Iterator[str]:
    """A line for each thing that a program may rely on."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            name = f"{method.upper()} {path}"
            yield name
            for parameter in operation.get("parameters", []):
                yield f"{name} {parameter['in']} {parameter['name'].lower()}"
            for kind, media in operation.get("requestBody", {}).get("content", {}).items():
                yield f"{name} takes {kind}"
                for field, schema in media["schema"].get("properties", {}).items():
                    yield f"{name} takes {kind} {field}: {_kind(schema)}"
                    yield from (
                        f"{name} takes {kind} {field}: {value}" for value in schema.get("enum", [])
                    )
            for status, answer in operation["responses"].items():
                for kind, media in answer.get("content", {}).items():
                    yield f"{name} {status} {kind}: {_kind(media.get('schema', {}))}"
    for name, schema in document["components"]["schemas"].items():
        for field, inner in schema.get("properties", {}).items():
            yield f"{name}.{field}: {_kind(inner)}"
        for value in schema.get("enum", []):
            yield f"{name} may be {value}"
    for code in document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]:
        yield f"code {code}"


def _needed(document: Any) -> Iterator[str]:
    """A line for each thing that a request cannot do without."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for parameter in operation.get("parameters", []):
                if parameter.get("required"):
                    yield f"{method.upper()} {path} needs {parameter['in']} {parameter['name'].lower()}"
            for kind, media in operation.get("requestBody", {}).get("content", {}).items():
                for field in media["schema"].get("required", []):
                    yield f"{method.upper()} {path} needs {kind} {field}"


def _document() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return create_app(
            Settings(redis_url="redis://127.0.0.1:1/0", data_dir=Path(folder)), ApiSettings()
        ).openapi()


@pytest.fixture(scope="module")
def document() -> Any:
    return _document()


@pytest.fixture(scope="module")
def promised() -> set[str]:
    return set(PROMISED.read_text(encoding="utf-8").splitlines())


def test_nothing_that_was_promised_is_gone(document: Any, promised: set[str]) -> None:
    gone = {line for line in promised if " needs " not in line} - set(_told(document))

    assert gone == set()


def test_no_request_that_was_good_lacks_something_now(document: Any, promised: set[str]) -> None:
    new = {line for line in _needed(document) if line not in promised}
    addresses = {line for line in promised if line.count(" ") == 1}

    assert {line for line in new if line.partition(" needs ")[0] in addresses} == set()


if __name__ == "__main__":
    lines = sorted({*_told(_document()), *_needed(_document())})
    PROMISED.write_text("\n".join(lines) + "\n", encoding="utf-8")
