"""POST /v1/jobs: pictures, parameters and presets, as a form or as JSON."""

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from core.images import codec
from core.jobs.models import is_job_id
from core.jobs.store import JobStore
from core.storage.blobs import digest_of
from core.style.presets import PRESETS

Submit = Callable[..., Any]


def test_a_submission_returns_202_a_location_and_the_job(
    submit: Submit, notifications: list[int]
) -> None:
    answer = submit(style_weight="12", style_layers="relu1_1=1,relu2_1=0.5")
    job = answer.json()

    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/jobs/{job['id']}")
    assert is_job_id(job["id"])
    assert (job["status"], job["attempt"], job["queue"]) == (
        "queued",
        0,
        {"position": 0, "start_seconds": None, "waits_for": None, "has_worker": False},
    )
    assert tuple(
        job["input"]["spec"][name] for name in ("size", "style_weight", "style_layers")
    ) == (64, 12.0, {"relu1_1": 1.0, "relu2_1": 0.5})
    assert set(job["links"]) == {"self", "events", "cancel"}
    assert notifications == [1]


def test_json_with_digests_creates_the_same_job_as_a_form(
    client: TestClient, files: dict[str, Any], submit: Submit, notifications: list[int]
) -> None:
    content, style = (
        client.post("/v1/images", files={"image": files[name]}).json()["id"]
        for name in ("content", "style")
    )
    body = {"content": content, "styles": [style], "spec": {"size": 64}}

    by_json, by_form = client.post("/v1/jobs", json=body), submit()

    assert (by_json.status_code, by_form.status_code) == (202, 202)
    assert by_json.json()["input"] == by_form.json()["input"]
    by_digest = client.post(
        "/v1/jobs", files={"style": files["style"]}, data={"content": content, "size": "64"}
    )
    assert by_digest.json()["input"] == by_form.json()["input"]


def test_masks_and_init_image_may_be_files_or_digests(
    client: TestClient, files: dict[str, Any], photo: Image.Image
) -> None:
    mask, first = (
        codec.encode(photo.convert(mode).convert("RGB").resize(size))
        for mode, size in (("L", (40, 40)), ("RGB", (50, 50)))
    )
    more = [("style_mask", ("n.png", first)), ("mask", ("m.png", mask))]
    more += [("init_image", ("i.png", first))]
    by_form = client.post(
        "/v1/jobs", files=[*files.items(), *more], data={"size": "64", "init": "picture"}
    )
    wanted = by_form.json()["input"]

    assert (wanted["masks"], wanted["init_image"]) == ([digest_of(mask)], digest_of(first))
    assert wanted["style_masks"] == [digest_of(first)]
    assert client.post("/v1/jobs", json=wanted).json()["input"] == wanted


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("mask", "mask: send one for the one painting, or none."),
        ("style_mask", "style_mask: send one for the one painting, or none."),
        ("init_image", "init=picture"),
    ],
)
def test_pictures_that_do_not_fit_the_spec_are_refused_and_leave_no_files(
    client: TestClient, files: dict[str, Any], tmp_path: Any, field: str, words: str
) -> None:
    extra = (
        [(field, ("x.png", files["style"][1]))] * 2
        if field != "init_image"
        else [(field, ("x.png", files["style"][1]))]
    )
    answer = client.post("/v1/jobs", files=[*files.items(), *extra], data={"size": "64"})

    assert (answer.status_code, answer.json()["code"]) == (422, "bad_spec")
    assert words in answer.json()["detail"]
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.stem != "store"] == []


BLACK, CLEAR, WHITE = (
    Image.new("LA", (40, 40), shade) for shade in ((0, 255), (255, 0), (255, 255))
)


@pytest.mark.parametrize("kind", ["mask", "style_mask"])
@pytest.mark.parametrize("by_digest", [False, True])
@pytest.mark.parametrize(
    ("masks", "shares", "status"),
    [
        pytest.param((WHITE, BLACK), "", 422, id="black"),
        pytest.param((CLEAR, WHITE), "1,1", 422, id="transparent"),
        pytest.param((WHITE, BLACK), "1,0", 202, id="black, of a painting without a share"),
        pytest.param((BLACK, WHITE), "1,0", 422, id="black, of the painting with the share"),
    ],
)
def test_an_entirely_black_mask_is_refused_unless_its_painting_has_no_share(
    client: TestClient,
    files: dict[str, Any],
    store: JobStore,
    masks: tuple[Image.Image, ...],
    shares: str,
    status: int,
    by_digest: bool,
    kind: str,
) -> None:
    many = [("content", files["content"]), *[("style", files["style"])] * 2]
    many += [(kind, ("m.png", _saved(mask))) for mask in masks]
    if by_digest:
        ids = [client.post("/v1/images", files={"image": file}).json()["id"] for _, file in many]
        body = {
            "content": ids[0],
            "styles": ids[1:3],
            f"{kind}s": ids[3:],
            "spec": {"style_weights": shares or []},
        }
        answer = client.post("/v1/jobs", json=body)
    else:
        answer = client.post("/v1/jobs", files=many, data={"style_weights": shares})

    assert (answer.status_code, int(status == 202)) == (status, store.get_load().queued)
    if status == 422:
        assert answer.json()["code"] == "bad_image"
        assert answer.json()["reason"] == "black_mask"
        assert "A mask is black all over" in answer.json()["detail"]


def _saved(picture: Image.Image) -> bytes:
    """With its transparency."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_a_parameter_field_overrides_the_spec_field(submit: Submit) -> None:
    spec = submit(spec=json.dumps({"size": 96, "seed": 5})).json()["input"]["spec"]

    assert (spec["size"], spec["seed"]) == (64, 5)


@pytest.mark.parametrize("field", ["preset", "spec"])
def test_a_preset_sets_the_parameters_that_are_not_sent(submit: Submit, field: str) -> None:
    value = (
        json.dumps({"preset": "brushwork", "style_scale": 2}) if field == "spec" else "brushwork"
    )
    spec = submit(**{field: value}).json()["input"]["spec"]

    parameters = PRESETS["brushwork"].parameters
    expected = (64, parameters["strength"], 2 if field == "spec" else parameters["style_scale"])
    assert (spec["size"], spec["strength"], spec["style_scale"]) == expected
    assert "preset" not in spec


def test_an_unknown_preset_is_refused_with_the_list_of_presets(
    submit: Submit, notifications: list[int]
) -> None:
    for refused in (submit(preset="<b>"), submit(spec='{"preset": ["draft"]}')):
        assert (refused.status_code, refused.json()["code"]) == (422, "bad_spec")
        assert refused.json()["detail"].startswith("preset must be one of draft,")
    assert notifications == []


def test_an_empty_form_field_means_the_default(submit: Submit) -> None:
    assert submit(seed="", tv_weight=" ", preset="").status_code == 202


def test_several_paintings_keep_their_order_and_have_equal_shares(
    client: TestClient, files: dict[str, Any]
) -> None:
    three = [("content", files["content"]), ("style", files["style"]), ("style", files["content"])]
    job = client.post("/v1/jobs", files=three, data={"size": "64"}).json()

    assert job["input"]["styles"] == [digest_of(files["style"][1]), digest_of(files["content"][1])]
    assert job["input"]["spec"]["style_weights"] == [0.5, 0.5]


def test_the_document_describes_every_parameter_of_the_form(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    form = described["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["multipart/form-data"][
        "schema"
    ]

    assert {"content", "style", "spec", "size", "style_layers", "model"} <= set(form["properties"])
    assert all(
        "description" in form["properties"][name] for name in ("size", "style_layers", "seed")
    )
