"""The frames and the time-lapse of a job."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image, ImageSequence
from starlette.testclient import TestClient

from api.http.image_response import create_cache
from core.images import codec
from core.jobs.models import Frame
from core.jobs.store import JobStore
from core.storage.blobs import Blobs, digest_of


def _add_frames(store: JobStore, blobs: Blobs, *pictures: Image.Image) -> None:
    """Claim the next job and add these frames."""
    job = store.claim("t", "worker")
    assert job is not None
    for number, picture in enumerate(pictures):
        digest = blobs.put(codec.encode(picture, "jpeg"))
        store.reserve(digest)
        frame = Frame(index=0, iteration=10 * number, scale=1, seconds=number / 2, digest=digest)
        assert store.add_frame(job.id, "t", frame) == 0


def _color(picture: Image.Image) -> tuple[int, ...]:
    pixel = picture.convert("RGB").getpixel((5, 5))
    assert isinstance(pixel, tuple)
    return tuple(round(value / 64) for value in pixel)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The frames of all tests are the same."""
    monkeypatch.setattr("api.http.image_response._cache", create_cache(1_000_000))


@pytest.fixture
def path(submit: Callable[..., Any], store: JobStore, blobs: Blobs) -> str:
    """A running job with a red and, at a finer scale, a blue frame."""
    path = f"/v1/jobs/{submit().json()['id']}"
    _add_frames(store, blobs, Image.new("RGB", (32, 24), "red"), Image.new("RGB", (64, 48), "blue"))
    return path


def test_frames_are_listed_and_returned_while_the_job_runs(client: TestClient, path: str) -> None:
    links = client.get(path).json()["links"]
    listed = client.get(links["frames"]).json()["frames"]
    shown = client.get(listed[1]["url"])
    again = client.get(listed[1]["url"], headers={"If-None-Match": shown.headers["etag"]})

    assert [(one["index"], one["iteration"], one["seconds"]) for one in listed] == [
        (0, 0, 0.0),
        (1, 10, 0.5),
    ]
    assert (
        shown.headers["content-type"],
        _color(Image.open(io.BytesIO(shown.content))),
    ) == ("image/jpeg", (0, 0, 4))
    assert (again.status_code, again.content) == (304, b"")
    assert (
        (missing := client.get(f"{path}/frames/2")).status_code,
        missing.json()["code"],
    ) == (404, "image_not_found")


def test_the_timelapse_is_an_animation_of_one_size(client: TestClient, path: str) -> None:
    answer = client.get(f"{path}/timelapse?format=webp")
    with Image.open(io.BytesIO(answer.content)) as animation:
        colors = [_color(frame) for frame in ImageSequence.Iterator(animation)]

    assert (answer.headers["content-type"], animation.size) == ("image/webp", (64, 48))
    assert colors == [(4, 0, 0), (0, 0, 4)]
    assert (
        client.get(
            f"{path}/timelapse", headers={"If-None-Match": answer.headers["etag"]}
        ).status_code
        == 304
    )
    assert client.get(f"{path}/timelapse?format=gif").status_code == 422


def test_the_timelapse_omits_a_damaged_frame(client: TestClient, path: str, blobs: Blobs) -> None:
    """It has a tag of its own: with the frame, neither cache answers with the shorter one."""
    first = client.get(f"{path}/frames").json()["frames"][0]
    data = client.get(first["url"]).content
    file = blobs.path(digest_of(data))
    file.write_bytes(b"\xff\xd8\xffjunk")
    short = client.get(f"{path}/timelapse")
    blobs.put(data)
    known = {"If-None-Match": short.headers["etag"]}
    whole = client.get(f"{path}/timelapse", headers=known)
    file.unlink()
    again = client.get(f"{path}/timelapse", headers=known)

    assert (short.status_code, whole.status_code, again.status_code) == (200, 200, 304)
    for answer, colors in ((short, [(0, 0, 4)]), (whole, [(4, 0, 0), (0, 0, 4)])):
        with Image.open(io.BytesIO(answer.content)) as animation:
            assert [_color(frame) for frame in ImageSequence.Iterator(animation)] == colors


def test_a_frame_that_is_deleted_while_the_timelapse_is_made_spoils_no_cache(
    client: TestClient, path: str, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = client.get(f"{path}/frames").json()["frames"][0]
    file = blobs.path(digest_of(client.get(first["url"]).content))
    data, real = file.read_bytes(), Blobs.get

    def delete_and_get(self: Blobs, digest: str) -> bytes:
        file.unlink(missing_ok=True)
        return real(self, digest)

    with monkeypatch.context() as patched:
        patched.setattr(Blobs, "get", delete_and_get)
        changing = client.get(f"{path}/timelapse")
    blobs.put(data)
    whole = client.get(f"{path}/timelapse")

    assert (changing.status_code, whole.status_code) == (503, 200)
    with Image.open(io.BytesIO(whole.content)) as animation:
        assert animation.n_frames == 2  # type: ignore[attr-defined]


def test_a_job_without_frames_has_no_timelapse(
    client: TestClient, submit: Callable[..., Any]
) -> None:
    path = f"/v1/jobs/{submit().json()['id']}"
    none = client.get(f"{path}/timelapse")

    assert client.get(f"{path}/frames").json() == {"frames": []}
    assert (none.status_code, none.json()["code"]) == (409, "no_result")
    assert "frames" not in client.get(path).json()["links"]
    assert client.get("/v1/jobs/job_" + "a" * 26 + "/frames").status_code == 404
    assert client.get("/v1/jobs/x/timelapse").status_code == 404
