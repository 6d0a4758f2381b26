"""GET /v1/presets."""

from starlette.testclient import TestClient

from core.style.presets import PRESETS


def test_all_are_told_and_what_is_told_can_be_sent(client: TestClient) -> None:
    told = client.get("/v1/presets").json()["presets"]

    assert [(preset["name"], preset["description"], preset["spec"]) for preset in told] == [
        (name, preset.description, dict(preset.parameters)) for name, preset in PRESETS.items()
    ]


def test_the_description_of_the_api_names_each(client: TestClient) -> None:
    body = client.get("/openapi.json").json()["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]
    form = body["multipart/form-data"]["schema"]["properties"]
    spec = body["application/json"]["schema"]["properties"]["spec"]["properties"]

    assert [fields["preset"]["enum"] for fields in (form, spec)] == [[*PRESETS]] * 2
