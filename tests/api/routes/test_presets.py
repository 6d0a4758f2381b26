"""GET /v1/presets."""

from starlette.testclient import TestClient

from core.style.presets import PRESETS


def test_the_list_contains_every_preset(client: TestClient) -> None:
    listed = client.get("/v1/presets").json()["presets"]

    assert [(preset["name"], preset["description"], preset["spec"]) for preset in listed] == [
        (name, preset.description, dict(preset.parameters)) for name, preset in PRESETS.items()
    ]


def test_the_document_names_every_preset(client: TestClient) -> None:
    body = client.get("/openapi.json").json()["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]
    form = body["multipart/form-data"]["schema"]["properties"]
    spec = body["application/json"]["schema"]["properties"]["spec"]["properties"]

    assert [fields["preset"]["enum"] for fields in (form, spec)] == [[*PRESETS]] * 2
