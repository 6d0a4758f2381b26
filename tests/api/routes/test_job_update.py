"""PATCH /v1/jobs/{job_id}: new weights, and pinning."""

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from core.images import codec
from core.jobs.store import JobStore
from core.style.spec import UPDATABLE

RunJob = Callable[[Image.Image], bytes]
Submit = Callable[..., Any]


def test_patch_updates_the_spec_until_the_job_ends(
    client: TestClient, submit: Submit, store: JobStore
) -> None:
    path = f"/v1/jobs/{submit(strength='0.2').json()['id']}"
    both = client.patch(path, json={"spec": {"strength": 0.9}, "pinned": True}).json()
    again = client.patch(path, json={"spec": {"strength": 0.9}}).json()
    refused = client.patch(path, json={"spec": {"size": 128}, "pinned": False})
    nothing = client.patch(path, json={})
    client.post(f"{path}/cancel")
    after_end = client.patch(path, json={"spec": {"strength": 0.5}})

    assert (both["input"]["spec"]["strength"], both["pinned"]) == (0.9, True)
    assert again["version"] == both["version"]
    assert (refused.status_code, refused.json()["code"]) == (422, "bad_spec")
    assert "size cannot be changed any more; strength, content_weight" in refused.json()["detail"]
    assert (nothing.status_code, nothing.json()["code"]) == (422, "bad_input")
    assert (after_end.status_code, after_end.json()["code"]) == (409, "job_already_ended")
    ended = client.get(path).json()
    assert (ended["input"]["spec"]["strength"], ended["pinned"]) == (0.9, True)


def test_the_document_lists_the_updatable_parameters(client: TestClient) -> None:
    described = client.get("/openapi.json").json()["components"]["schemas"]["JobUpdate"]

    assert set(described["properties"]["spec"]["properties"]) == {*UPDATABLE}


@pytest.mark.parametrize("kind", ["mask", "style_mask"])
def test_an_update_cannot_give_a_share_to_a_black_mask(
    client: TestClient, files: dict[str, Any], notifications: list[int], kind: str
) -> None:
    """Such a mask would make the run fail."""
    masks = [codec.encode(Image.new("RGB", (40, 40), color)) for color in ("white", "black")]
    parts = [
        ("content", files["content"]),
        *[("style", files["style"])] * 2,
        *[(kind, ("m", m)) for m in masks],
    ]
    job = client.post("/v1/jobs", files=parts, data={"style_weights": "1,0"}).json()
    path = f"/v1/jobs/{job['id']}"
    refused = client.patch(path, json={"spec": {"style_weights": [1, 1]}})

    assert (refused.status_code, refused.json()["code"]) == (422, "bad_image")
    assert client.patch(path, json={"spec": {"style_weights": [2, 0]}}).status_code == 200


def test_a_pinned_job_does_not_expire(run_job: RunJob, client: TestClient, submit: Submit) -> None:
    path = submit().headers["location"]
    run_job(Image.new("RGB", (96, 72)))
    assert client.get(path).json()["expires_at"] is not None

    pinned = client.patch(path, json={"pinned": True}).json()
    assert (pinned["pinned"], pinned["expires_at"]) == (True, None)
    assert client.patch(path, json={"pinned": False}).json()["expires_at"] is not None
    assert client.patch(path, json={"pinned": "perhaps"}).status_code == 422
    assert client.patch("/v1/jobs/job_" + "a" * 26, json={"pinned": True}).status_code == 404
