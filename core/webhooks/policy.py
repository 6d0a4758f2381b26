"""Decides which webhook URLs and which network addresses are allowed.

Checks the text of a URL, and addresses that the caller has resolved. Knows no network and no store.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from core import errors

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_URL = 2000  # characters
PORTS = {"https": 443, "http": 80}  # the default port of each scheme

# Plain characters only. Whatever two programs may read in two ways is refused: user@, \, spaces,
# and %-escapes in a host.
_URL = re.compile(
    r"(?P<scheme>[a-z]+)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<target>[/?][!$-;=?-Z_a-z~]*)?",
    re.IGNORECASE | re.ASCII,
)
_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")
# A last label that turns a host into an address, in decimal, octal or hexadecimal notation.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


def _parse_networks(text: str) -> tuple[Network, ...]:
    return tuple(map(ip_network, text.split()))


# RFC 1918, RFC 6598 (carrier-grade NAT), loopback, and unique local IPv6.
_INTRANET = _parse_networks(
    "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 127.0.0.0/8 ::1/128 fc00::/7"
)
# Metadata services of clouds, at addresses that the other rules would allow.
_METADATA = _parse_networks("168.63.129.16/32 100.100.100.200/32 fd00:ec2::254/128")
# Some Python versions call these global in `ipaddress`: protocol assignments, and 6to4 relays.
_NOT_GLOBAL = _parse_networks("192.0.0.0/24 192.88.99.0/24")
_NAT64 = ip_network("64:ff9b::/96")  # an IPv4 address, as an IPv6-only network reaches it
# All unicast addresses that IANA assigns: excludes IPv4-mapped, IPv4-compatible, link-local and
# multicast addresses, among others.
_UNICAST = ip_network("2000::/3")
# Parts of it that are not: Teredo and other protocols, documentation, 6to4, documentation.
_NOT_UNICAST = _parse_networks("2001::/23 2001:db8::/32 2002::/16 3fff::/20")


def _is_in(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)


@dataclass(frozen=True)
class Receiver:
    """The destination of a webhook. `host`: without brackets; `target`: path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def address(self) -> Address | None:
        """The host as an address; None if it is a name."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None

    @property
    def url(self) -> str:
        """The URL in normal form."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.target}"


@dataclass(frozen=True)
class WebhookPolicy:
    """The webhook destinations that this service allows. It allows none unless `enabled`."""

    enabled: bool = False
    ports: frozenset[int] = frozenset({443})
    allow_http: bool = False
    allow_private: bool = False

    def parse_url(self, url: str) -> Receiver:
        """Parse and check a URL by its text alone. Raises BadWebhook."""
        if not self.enabled:
            raise errors.BadWebhook(
                "This service sends no webhooks: IMPASTO_WEBHOOK_SECRET is not set.",
                reason="webhooks_disabled",
            )
        match = _URL.fullmatch(url) if len(url) <= MAX_URL else None
        if match is None:
            raise errors.BadWebhook()
        scheme = match["scheme"].lower()
        if scheme != "https" and not (self.allow_http and scheme == "http"):
            raise errors.BadWebhook("A webhook's URL must begin with https://.")
        port = int(match["port"] or PORTS[scheme])
        if port not in self.ports:
            allowed = ", ".join(map(str, sorted(self.ports)))
            raise errors.BadWebhook(f"A webhook's port must be one of {allowed}.")
        target = match["target"] or ""
        if not target.startswith("/"):
            target = f"/{target}"
        receiver = Receiver(scheme, match["host"].lower().strip("[]"), port, target)
        self._check_host(receiver, has_brackets=match["host"].startswith("["))
        return receiver

    def _check_host(self, receiver: Receiver, *, has_brackets: bool) -> None:
        address = receiver.address
        if address is not None:
            is_ipv6 = address.version == 6
            if is_ipv6 is not has_brackets or not self.is_allowed(address):
                raise errors.BadWebhook("A webhook's host must be reachable from the internet.")
            return
        labels = receiver.host.split(".")
        if (
            len(receiver.host) > 253
            or not all(map(_LABEL.fullmatch, labels))
            or _NUMBER.fullmatch(labels[-1])
        ):
            raise errors.BadWebhook("A webhook's host must be a plain name, such as example.org.")
        is_local = len(labels) == 1 or labels[-1] in ("localhost", "local", "internal")
        if is_local and not self.allow_private:
            raise errors.BadWebhook("A webhook's host must be reachable from the internet.")

    def is_allowed(self, address: Address) -> bool:
        """Whether a webhook may go to this address: a public one, or an intranet one if allowed."""
        if _is_in(address, _METADATA):
            return False
        if _is_in(address, _INTRANET):
            return self.allow_private
        if isinstance(address, IPv4Address):
            return (
                address.is_global and not address.is_multicast and not _is_in(address, _NOT_GLOBAL)
            )
        if address in _NAT64:
            embedded = IPv4Address(int(address) & 0xFFFFFFFF)
            return WebhookPolicy().is_allowed(embedded)  # private addresses stay out in any case
        return address in _UNICAST and not _is_in(address, _NOT_UNICAST)
