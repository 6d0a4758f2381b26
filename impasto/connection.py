"""The HTTP connection to a service: certificates, proxies, and the causes of failures.

Knows no path of the API.
"""

import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from urllib.request import getproxies, proxy_bypass

import httpx2

from impasto import errors


def open_http(
    url: str, headers: Mapping[str, str], ca_file: str | os.PathLike[str] | None = None
) -> httpx2.Client:
    """Return a client for the URL.

    It trusts the certificates of SSL_CERT_FILE and SSL_CERT_DIR if one is set, otherwise those of
    the system, and beside them those of `ca_file` (PEM). It uses the proxy of HTTPS_PROXY,
    HTTP_PROXY or ALL_PROXY, except for the hosts of NO_PROXY. Raises BadSettings.
    """
    try:
        address = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise errors.BadSettings(f"{url} is not a URL; give one like http://host:8000.") from error
    if address.scheme not in ("http", "https") or not address.host:
        raise errors.BadSettings(f"{url} is not a URL; give one like http://host:8000.")
    verify = _load_certificates(ca_file) if address.scheme == "https" else True
    try:
        return httpx2.Client(
            base_url=url, headers=headers, verify=verify, trust_env=_may_use_proxy(address)
        )
    except ImportError as error:
        raise errors.BadSettings(
            "HTTPS_PROXY, HTTP_PROXY or ALL_PROXY: a SOCKS proxy is not supported."
        ) from error
    except (ValueError, httpx2.InvalidURL) as error:
        raise errors.BadSettings(f"HTTPS_PROXY, HTTP_PROXY or ALL_PROXY: {error}") from error


def _may_use_proxy(address: httpx2.URL) -> bool:
    """Whether the environment's proxies apply: not to `impasto up` on this machine."""
    if address.scheme == "https":
        return True
    try:
        ip = ip_address(address.host.strip("[]"))
    except ValueError:
        return address.host != "localhost"
    return not (ip.is_loopback or ip.is_unspecified)


def _load_certificates(ca_file: str | os.PathLike[str] | None) -> ssl.SSLContext:
    file, folder = (os.environ.get(name) or None for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"))
    name = "SSL_CERT_FILE or SSL_CERT_DIR"
    try:
        if file is not None:
            Path(file).stat()
        if folder is not None:
            _require_folder(folder.split(os.pathsep))
        if file or folder:
            context = ssl.create_default_context(cafile=file, capath=folder)
        else:
            context = httpx2.create_ssl_context(trust_env=False)
        name = f"the CA file {ca_file}"
        if ca_file is not None:
            context.load_verify_locations(cafile=ca_file)
    except OSError as error:  # also ssl.SSLError
        reason = error.strerror or str(error)
        raise errors.BadSettings(f"{name}: no certificates can be read ({reason}).") from error
    return context


def _require_folder(paths: list[str]) -> None:
    """Raise OSError unless one of the folders exists. OpenSSL itself ignores missing ones."""
    failures = []
    for path in paths:
        try:
            Path(path).stat()
        except OSError as error:
            failures.append(error)
        else:
            return
    raise failures[0]


def describe_failure(error: httpx2.HTTPError, url: str) -> str:
    """Return a sentence that names the cause of a request without an answer, and what to do."""
    proxy = describe_proxy(url)
    cause, advice = _find_cause(error, url, has_proxy=bool(proxy))
    return f"No Impasto service answers at {url}{proxy}: {cause}. {advice}"


def _find_cause(error: httpx2.HTTPError, url: str, *, has_proxy: bool) -> tuple[str, str]:
    host = httpx2.URL(url).host
    check, start = (
        "Check the URL (--url, IMPASTO_URL).",
        "Start one with `impasto up`, or set --url.",
    )
    if has_proxy:  # the request goes no farther
        check = start = f"Check HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, or add {host} to NO_PROXY."
    for one in _causes(error):
        if isinstance(one, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not trusted ({one.verify_message.rstrip('.')})",
                "If a CA of your own has signed it, name the file of the CA's certificate: "
                "--ca-file, or SSL_CERT_FILE.",
            )
        if isinstance(one, ssl.SSLError):
            return f"it speaks no TLS, or another version ({one.reason})", check
        if isinstance(one, socket.gaierror):
            return f"the name {'of the proxy' if has_proxy else host} is not found", check
        if isinstance(one, ConnectionRefusedError):
            return "the connection is refused", start
        if isinstance(one, httpx2.TimeoutException | TimeoutError):
            return "there is no answer in time", check
        if isinstance(one, httpx2.ProxyError):
            return f"the proxy refuses ({one})", check
        if isinstance(one, OSError) and one.strerror:
            return one.strerror[0].lower() + one.strerror[1:], check
    return "the connection broke off", start


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, the one that caused it, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def describe_proxy(url: str) -> str:
    """Name the proxy of the environment that the request took, without its credentials."""
    address = httpx2.URL(url)
    proxies = getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if not proxy or not _may_use_proxy(address) or proxy_bypass(address.host):
        return ""
    via = httpx2.URL(proxy if "://" in proxy else f"http://{proxy}")
    return f" through the proxy {via.host}:{via.port or 80}"
