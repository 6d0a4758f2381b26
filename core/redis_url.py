"""Checks the URL of the store, and that the files it names can be read.

Opens no connection and does not load redis-py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

# Those that redis-py, kombu and limits all understand.
URL_PARAMETERS = (
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_cert_reqs",
    "ssl_check_hostname",
    "ssl_keyfile",
)
# Of the Sentinels; the user and the password in front of the hosts are those of the store.
SENTINEL_PARAMETERS = ("sentinel_username", "sentinel_password")
SENTINEL_PORT = 26379
_VALUES = {
    "ssl_cert_reqs": ("required", "optional", "none"),
    "ssl_check_hostname": ("true", "false"),
}
_SCHEMES = ("redis", "rediss", "redis+sentinel", "rediss+sentinel")


@dataclass(frozen=True)
class SentinelAddress:
    """What a URL says about a store with Sentinel.

    name: under which the Sentinels know the store. options, sentinel_options: arguments of a
    connection to the store, and to a Sentinel.
    """

    sentinels: list[tuple[str, int]]
    name: str
    options: dict[str, Any]
    sentinel_options: dict[str, Any]


def parse_sentinel_url(url: str) -> SentinelAddress | None:
    """Return the parts of a valid URL with Sentinel; None for a URL without."""
    scheme, user, hosts, tail = _split(url)
    if not scheme.endswith("+sentinel"):
        return None
    name, _, database = tail.path.removeprefix("/").partition("/")
    username, _, password = user.partition(":")
    parameters = dict(parse_qsl(tail.query))
    tls: dict[str, Any] = {key: parameters[key] for key in URL_PARAMETERS if key in parameters}
    if "ssl_check_hostname" in tls:
        tls["ssl_check_hostname"] = tls["ssl_check_hostname"] == "true"
    if scheme == "rediss+sentinel":
        tls["ssl"] = True
    account = {"username": unquote(username), "password": unquote(password)}
    sentinel_account = {
        key.removeprefix("sentinel_"): parameters.get(key, "") for key in SENTINEL_PARAMETERS
    }
    return SentinelAddress(
        sentinels=[(host.hostname or "", host.port or SENTINEL_PORT) for host in hosts],
        name=unquote(name),
        options=tls | _drop_empty(account) | {"db": int(database or 0)},
        sentinel_options=tls | _drop_empty(sentinel_account),
    )


def _drop_empty(values: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in values.items() if value}


def check_redis_url(url: str) -> str:
    """Return the URL. Raises ValueError with a sentence that names the wrong part.

    redis-py itself ignores a database that is no number, and fails only at the first call for a
    wrong port or an unknown parameter. The sentence never contains the URL: it has a password.
    """
    try:
        scheme, _, hosts, tail = _split(url)
    except ValueError:  # its message contains the password
        raise ValueError(
            "It is no URL: brackets are only for an IPv6 address; in a password, write [ ] as %5B "
            "%5D, and other special characters likewise."
        ) from None
    if scheme not in _SCHEMES:
        raise ValueError("It must begin with redis://, rediss:// or redis+sentinel://.")
    if tail.fragment or not all(map(_has_valid_port, hosts)):
        raise ValueError(
            "The port must be a number from 1 to 65535; in a password, write # / ? @ as %23 %2F "
            "%3F %40."
        )
    if not all(host.hostname for host in hosts):
        raise ValueError("It names no host.")
    database, is_sentinel = tail.path.removeprefix("/"), scheme.endswith("+sentinel")
    if is_sentinel:
        name, _, database = database.partition("/")
        if not name:
            raise ValueError(
                "After the Sentinels it must name the store: redis+sentinel://host1,host2/NAME/0."
            )
    elif len(hosts) > 1:
        raise ValueError("Several hosts need redis+sentinel://.")
    if database and not (database.isascii() and database.isdigit() and len(database) < 10):
        raise ValueError("The database, after the last /, must be a number such as 0.")
    for name, value in parse_qsl(tail.query, keep_blank_values=True):
        if not (is_sentinel and name in SENTINEL_PARAMETERS and value):
            _check_parameter(name, value, is_tls=scheme.startswith("rediss"))
    return url


def _split(url: str) -> tuple[str, str, list[SplitResult], SplitResult]:
    """Return the scheme, `user:password`, each host with its port, and what follows the hosts.

    urlsplit alone knows only one host.
    """
    scheme, _, rest = url.partition("://")
    end = min((at for mark in "/?#" if (at := rest.find(mark)) >= 0), default=len(rest))
    user, _, hosts = rest[:end].rpartition("@")
    urlsplit(f"//{user}@")  # refuses characters that a password must not have
    tail = urlsplit(f"//{rest[end:]}" if rest[end : end + 1] == "/" else rest[end:])
    return scheme.lower(), user, [urlsplit(f"//{host}") for host in hosts.split(",")], tail


def _has_valid_port(host: SplitResult) -> bool:
    try:
        return host.port != 0
    except ValueError:
        return False


def _check_parameter(name: str, value: str, *, is_tls: bool) -> None:
    if name not in URL_PARAMETERS:
        raise ValueError(f"It has an unknown parameter; there are {', '.join(URL_PARAMETERS)}.")
    if not is_tls:
        raise ValueError(f"The parameter {name} needs rediss://.")
    if not value or value not in _VALUES.get(name, (value,)):
        allowed = ", ".join(_VALUES.get(name, ("the path of a file",)))
        raise ValueError(f"The parameter {name} must be one of: {allowed}.")
    if name not in _VALUES:
        _check_readable(name, value)


def _check_readable(name: str, path: str) -> None:
    # The error of a connection does not say which file is missing.
    try:
        Path(path).open("rb").close()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no path"
        raise ValueError(f"The file {path} of {name} cannot be read: {reason}.") from None
