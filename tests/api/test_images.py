"""Uploads."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from core.blobs import Blobs, digest_of
from core.store import JobStore


def test_an_upload_is_named_by_its_digest_and_found_again(
    client: TestClient, files: dict[str, Any], blobs: Blobs
) -> None:
    data = files["content"][1]
    unknown = client.head(f"/v1/images/{digest_of(data)}")
    kept = client.post("/v1/images", files={"image": files["content"]})
    again = client.post("/v1/images", files={"image": files["content"]})

    assert 404 == unknown.status_code
    assert (201, {"id": digest_of(data), "width": 96, "height": 72, "size_bytes": len(data)}) == (
        kept.status_code,
        kept.json(),
    )
    assert kept.json() == again.json()
    assert 200 == client.head(kept.headers["location"]).status_code
    assert data == blobs.get(kept.json()["id"])


def test_an_upload_is_safe_from_the_janitor(client: TestClient, files: dict[str, Any], store: JobStore) -> None:
    client.post("/v1/images", files={"image": files["content"]})

    assert [] == store.condemn()


@pytest.mark.parametrize("digest", ["x", "sha256:" + "0" * 64, "..%2f..", "%00"])
def test_what_is_not_here_is_404(client: TestClient, digest: str) -> None:
    assert 404 == client.head(f"/v1/images/{digest}").status_code


def test_a_bad_upload_is_refused_and_leaves_nothing(client: TestClient, tmp_path: Any) -> None:
    answer = client.post("/v1/images", files={"image": ("x.png", b"GIF89a")})

    assert (415, "unsupported_image") == (answer.status_code, answer.json()["code"])
    assert 422 == client.post("/v1/images").status_code
    assert [] == [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_body_beyond_the_limit_is_413(client: TestClient) -> None:
    answer = client.post("/v1/images", files={"image": ("x", b"\0" * 21_000_000)})

    assert (413, "upload_too_large") == (answer.status_code, answer.json()["code"])
