"""The check of the store's URL."""

import pytest

from core.redis_url import check_redis_url


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0",
        "redis://store",
        "redis://:secret@[::1]:6379/15",
        "rediss://user:p%40ss@store.example:6380/0?ssl_ca_certs=/dev/null&ssl_cert_reqs=required",
    ],
)
def test_a_valid_url_is_returned(url: str) -> None:
    assert check_redis_url(url) == url


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("foo", "redis://"),
        ("http://127.0.0.1:6379/0", "redis://"),
        ("unix:///tmp/redis.sock", "redis://"),
        ("redis://127.0.0.1:99999/0", "port"),
        ("redis://127.0.0.1:0/0", "port"),
        ("redis://127.0.0.1:x/0", "port"),
        ("redis://:se/cret@127.0.0.1:6379/0", "%2F"),
        ("redis://:se#cret@127.0.0.1:6379/0", "%23"),
        ("redis:///0", "host"),
        ("redis://127.0.0.1:6379/x", "database"),
        ("redis://127.0.0.1:6379/-1", "database"),
        ("redis://127.0.0.1:6379/0/1", "database"),
        ("redis://127.0.0.1:6379/9999999999", "database"),
        ("redis://:se[cret@127.0.0.1:6379/0", "%5B"),
        ("redis://:se℀cret@127.0.0.1:6379/0", "special characters"),
        ("redis://:secret@[::1:6379/0", "brackets"),
        ("redis://127.0.0.1:6379/0?foo=bar", "parameter"),
        ("redis://127.0.0.1:6379/0?db=3", "parameter"),
        ("redis://127.0.0.1:6379/0?ssl_ca_certs=/ca.pem", "rediss://"),
        ("rediss://127.0.0.1:6379/0?ssl_cert_reqs=maybe", "required, optional, none"),
        ("rediss://127.0.0.1:6379/0?ssl_check_hostname=yes", "true, false"),
        ("rediss://127.0.0.1:6379/0?ssl_ca_certs=", "ssl_ca_certs"),
        ("rediss://127.0.0.1/0?ssl_ca_certs=/nowhere", "The file /nowhere of ssl_ca_certs"),
        ("rediss://127.0.0.1/0?ssl_certfile=/", "The file / of ssl_certfile"),
        ("rediss://127.0.0.1/0?ssl_keyfile=%00", "ssl_keyfile"),
    ],
)
def test_a_wrong_url_is_refused_by_the_part_that_is_wrong(url: str, named: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        check_redis_url(url)

    assert named in str(refused.value)
    assert "cret" not in str(refused.value), "a password must not reach a log"
