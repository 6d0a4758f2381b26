"""The check of the store's URL."""

import pytest

from core.redis_url import SentinelAddress, check_redis_url, parse_sentinel_url


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0",
        "redis://store",
        "redis://:secret@[::1]:6379/15",
        "rediss://user:p%40ss@store.example:6380/0?ssl_ca_certs=/dev/null&ssl_cert_reqs=required",
        "redis+sentinel://s1,s2:26380,[::1]:26379/impasto/0",
        "rediss+sentinel://u:p%40ss@s1/impasto?ssl_ca_certs=/dev/null&sentinel_password=x",
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
        ("redis://a,b/0", "redis+sentinel://"),
        ("redis+sentinel://:secret@a,b:x/impasto/0", "port"),
        ("redis+sentinel://a,/impasto/0", "host"),
        ("redis+sentinel://a,b", "NAME"),
        ("redis+sentinel://a,b/impasto/x", "database"),
        ("redis+sentinel://a/impasto?ssl_keyfile=/dev/null", "rediss://"),
        ("redis+sentinel://a/impasto?sentinel_password=", "parameter"),
        ("redis://a/0?sentinel_password=secret", "parameter"),
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


def test_a_url_with_sentinel_has_sentinels_a_name_and_two_accounts() -> None:
    url = (
        "rediss+sentinel://ada:p%40ss@s1,[::1]:26380/impasto/2"
        "?ssl_cert_reqs=none&ssl_check_hostname=false&sentinel_password=s%2Fx"
    )
    tls = {"ssl": True, "ssl_cert_reqs": "none", "ssl_check_hostname": False}

    assert parse_sentinel_url(check_redis_url(url)) == SentinelAddress(
        sentinels=[("s1", 26379), ("::1", 26380)],
        name="impasto",
        options=tls | {"username": "ada", "password": "p@ss", "db": 2},
        sentinel_options=tls | {"password": "s/x"},
    )
    assert parse_sentinel_url("redis://127.0.0.1/0") is None
