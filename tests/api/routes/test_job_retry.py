"""POST /v1/jobs/{job_id}/retry."""

from collections.abc import Callable
from typing import Any

from PIL import Image
from starlette.testclient import TestClient

from core.jobs.store import JobStore
from core.storage.blobs import Blobs, digest_of
from core.style.presets import PRESETS
from core.style.spec import GATYS_DEFAULTS

RunJob = Callable[[Image.Image], bytes]
Submit = Callable[..., Any]


def test_a_retry_creates_a_new_job_with_the_changes(
    client: TestClient, submit: Submit, store: JobStore, notifications: list[int]
) -> None:
    old = submit(strength="0.7", style_layers="relu1_1=1").json()
    early = client.post(f"/v1/jobs/{old['id']}/retry")
    client.post(f"/v1/jobs/{old['id']}/cancel")
    same = client.post(f"/v1/jobs/{old['id']}/retry")
    changed = client.post(f"/v1/jobs/{old['id']}/retry", json={"spec": {"strength": 0.9}})
    wrong = client.post(f"/v1/jobs/{old['id']}/retry", json={"spec": {"strength": 9}})

    assert (early.status_code, early.json()["code"]) == (409, "job_not_ended")
    assert (same.status_code, same.json()["retried_from"], same.json()["input"]) == (
        202,
        old["id"],
        old["input"],
    )
    assert changed.json()["input"]["spec"] == {**old["input"]["spec"], "strength": 0.9}
    assert (wrong.status_code, wrong.json()["code"]) == (422, "bad_spec")
    assert notifications == [1, 1, 1]


def test_a_retry_can_continue_from_the_result(
    run_job: RunJob, client: TestClient, submit: Submit, store: JobStore, photo: Image.Image
) -> None:
    path = f"/v1/jobs/{(old := submit(strength='0.7').json())['id']}"
    result = digest_of(run_job(photo))
    on = client.post(
        f"{path}/retry", json={"continue": True, "spec": {"size": 128, "iterations": 9}}
    )
    otherwise = client.post(f"{path}/retry", json={"continue": True, "spec": {"init": "noise"}})
    again = client.post(f"/v1/jobs/{on.json()['id']}/cancel").json()

    spec = {**old["input"]["spec"], "init": "picture", "size": 128, "iterations": 9}
    assert (on.status_code, on.json()["input"]) == (
        202,
        {**old["input"], "init_image": result, "spec": spec},
    )
    assert on.json()["retried_from"] == old["id"]
    assert (otherwise.status_code, otherwise.json()["code"]) == (422, "bad_spec")
    none = client.post(f"/v1/jobs/{again['id']}/retry", json={"continue": True})
    assert (none.status_code, none.json()["code"]) == (409, "no_result")
    client.delete(path)
    assert store.is_owner("local", result), "the new job needs it"
    plain = client.post(f"/v1/jobs/{again['id']}/retry").json()
    assert (plain["input"]["init_image"], plain["input"]["spec"]["init"]) == (result, "picture")


def test_a_retry_cannot_continue_from_a_deleted_result(
    run_job: RunJob, client: TestClient, submit: Submit, blobs: Blobs, photo: Image.Image
) -> None:
    path = f"/v1/jobs/{submit().json()['id']}"
    blobs.delete(digest_of(run_job(photo)))
    refused = client.post(f"{path}/retry", json={"continue": True})

    assert (refused.status_code, refused.json()["code"]) == (410, "result_gone")


def test_a_retry_with_a_preset_changes_the_parameters_of_the_preset(
    client: TestClient, submit: Submit
) -> None:
    old = submit(strength="0.7", seed="5").json()
    client.post(f"/v1/jobs/{old['id']}/cancel")
    spec = client.post(
        f"/v1/jobs/{old['id']}/retry", json={"spec": {"preset": "gatys-2016"}}
    ).json()["input"]["spec"]

    expected = old["input"]["spec"] | GATYS_DEFAULTS | dict(PRESETS["gatys-2016"].parameters)
    assert spec == expected
