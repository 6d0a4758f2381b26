"""The URL of the bucket."""

import pytest

from core import errors
from core.blobs_url import BucketLocation, check_blobs_url, parse_blobs_url
from core.config import Settings, read_settings


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://pictures", BucketLocation("pictures", "")),
        ("s3://pictures/a/b/", BucketLocation("pictures", "a/b")),
        (
            "s3://p-1.x/studio?endpoint=http://minio:9000/&region=eu-1",
            BucketLocation("p-1.x", "studio", "http://minio:9000", "eu-1"),
        ),
        (
            "s3://pictures?public_endpoint=https://s3.example.org",
            BucketLocation("pictures", "", public_endpoint="https://s3.example.org"),
        ),
    ],
    ids=["bucket", "prefix", "endpoint", "public"],
)
def test_a_url_names_bucket_prefix_endpoints_and_region(url: str, expected: BucketLocation) -> None:
    assert parse_blobs_url(url) == expected
    assert check_blobs_url(url) == url


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://pictures", "s3://"),
        ("s3://", "bucket"),
        ("s3://Pictures", "bucket"),
        ("s3://key:secret@pictures", "AWS_"),
        ("s3://pictures/../other", "prefix"),
        ("s3://pictures/a b", "prefix"),
        ("s3://pictures?zone=1", "zone"),
        ("s3://pictures?endpoint=minio:9000", "endpoint"),
        ("s3://pictures?endpoint=http://key:secret@minio", "endpoint"),
        ("s3://[", "URL"),
    ],
    ids=str,
)
def test_a_wrong_url_is_refused_without_repeating_it(
    url: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMPASTO_BLOBS_URL", url)
    with pytest.raises(errors.BadSettings, match=reason) as refused:
        read_settings(Settings)
    assert "secret" not in str(refused.value)
