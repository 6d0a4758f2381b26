"""Checks the URL of the store, and that the files it names can be read.

Opens no connection and does not load redis-py.
"""

from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

# Those that redis-py, kombu and limits all understand.
URL_PARAMETERS = (
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_cert_reqs",
    "ssl_check_hostname",
    "ssl_keyfile",
)
_VALUES = {
    "ssl_cert_reqs": ("required", "optional", "none"),
    "ssl_check_hostname": ("true", "false"),
}


def check_redis_url(url: str) -> str:
    """Return the URL. Raises ValueError with a sentence that names the wrong part.

    redis-py itself ignores a database that is no number, and fails only at the first call for a
    wrong port or an unknown parameter. The sentence never contains the URL: it has a password.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # its message contains the password
        raise ValueError(
            "It is no URL: brackets are only for an IPv6 address; in a password, write [ ] as %5B "
            "%5D, and other special characters likewise."
        ) from None
    try:
        port = parts.port
    except ValueError:
        port = 0
    if parts.scheme not in ("redis", "rediss"):
        raise ValueError("It must begin with redis:// or rediss://.")
    if parts.fragment or port == 0:
        raise ValueError(
            "The port must be a number from 1 to 65535; in a password, write # / ? @ as %23 %2F "
            "%3F %40."
        )
    if not parts.hostname:
        raise ValueError("It names no host.")
    database = parts.path.removeprefix("/")
    if database and not (database.isascii() and database.isdigit() and len(database) < 10):
        raise ValueError("The database, after the last /, must be a number such as 0.")
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        _check_parameter(name, value, is_tls=parts.scheme == "rediss")
    return url


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
