"""Who may be told that a job has ended, what they are told, and how they know that it was us.

Decides by the text of a URL and by addresses that somebody else looked up. Knows no network and no store. The body, its
headers and the secrets are those of Standard Webhooks.
"""

import hashlib
import hmac
import json
import re
from base64 import b64decode, b64encode
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from standardwebhooks import Webhook

from core import errors
from core.jobs.models import Job, Status

Address = IPv4Address | IPv6Address

MAX_URL = 2000
PORTS = {"https": 443, "http": 80}

# Nothing but plain words: what two programs may read in two ways (user@, \, spaces, %-escapes in a host) is not taken.
_URL = re.compile(
    r"(?P<scheme>[a-z]+)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::(?P<port>[0-9]{1,5}))?(?P<target>[/?][!$-;=?-Z_a-z~]*)?",
    re.IGNORECASE | re.ASCII,
)
_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")
_NUMBER = re.compile(
    r"[0-9]+|0x[0-9a-f]*"
)  # a last label that makes a host an address, in whatever notation

_INTRANET = [
    *map(
        ip_network,
        ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8"),
    )
]
_INTRANET += [*map(ip_network, ("::1/128", "fc00::/7"))]
# Where clouds answer their machines, among addresses that the rest would let pass.
_METADATA = [*map(ip_network, ("168.63.129.16/32", "100.100.100.200/32", "fd00:ec2::254/128"))]
# What `ipaddress` calls global in some versions of Python: protocol assignments, relays of 6to4.
_NOT_GLOBAL = [*map(ip_network, ("192.0.0.0/24", "192.88.99.0/24"))]
_NAT64 = ip_network("64:ff9b::/96")  # an IPv4 address, as a network without IPv4 reaches it
_UNICAST = ip_network(
    "2000::/3"
)  # all that IANA gives out; not mapped, compatible, link-local, multicast, ...
# Of those: Teredo and other protocols, 6to4, documentation.
_NOT_UNICAST = [*map(ip_network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))]


@dataclass(frozen=True)
class Receiver:
    """Where a webhook goes. `host` without brackets; `target`: path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def address(self) -> Address | None:
        """If the host is an address and no name."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None

    @property
    def url(self) -> str:
        """Written in the one way."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.target}"


@dataclass(frozen=True)
class WebhookPolicy:
    """What this service takes. secret: `whsec_…`, or empty: no webhooks. old_secret: the one before, still valid."""

    secret: str = ""
    ports: frozenset[int] = frozenset({443})
    allow_http: bool = False
    allow_private: bool = False
    previous_secret: str = ""

    def receiver(self, url: str) -> Receiver:
        """The receiver at a URL, as far as its text tells. Raises BadWebhook."""
        if not self.secret:
            raise errors.BadWebhook(
                "This service sends no webhooks: IMPASTO_WEBHOOK_SECRET is not set."
            )
        match = _URL.fullmatch(url) if len(url) <= MAX_URL else None
        if match is None:
            raise errors.BadWebhook()
        scheme = match["scheme"].lower()
        if scheme != "https" and not (self.allow_http and scheme == "http"):
            raise errors.BadWebhook("A webhook's URL must begin with https://.")
        port = int(match["port"] or PORTS[scheme])
        if port not in self.ports:
            raise errors.BadWebhook(
                f"A webhook's port must be one of {', '.join(map(str, sorted(self.ports)))}."
            )
        target = match["target"] or ""
        target = target if target.startswith("/") else f"/{target}"
        receiver = Receiver(scheme, match["host"].lower().strip("[]"), port, target)
        self._check_host(receiver, match["host"])
        return receiver

    def _check_host(self, receiver: Receiver, written: str) -> None:
        address = receiver.address
        if address is not None:
            if (address.version == 6) is not written.startswith("[") or not self.may_reach(address):
                raise errors.BadWebhook("A webhook's host must be one that everybody can reach.")
            return
        labels = receiver.host.split(".")
        if (
            len(receiver.host) > 253
            or not all(map(_LABEL.fullmatch, labels))
            or _NUMBER.fullmatch(labels[-1])
        ):
            raise errors.BadWebhook("A webhook's host must be a plain name, such as example.org.")
        if not self.allow_private and (
            len(labels) == 1 or labels[-1] in ("localhost", "local", "internal")
        ):
            raise errors.BadWebhook("A webhook's host must be one that everybody can reach.")

    def may_reach(self, address: Address) -> bool:
        """Whether a webhook may be sent to this address: one of the internet, or of the intranet if that is allowed."""
        if any(address in network for network in _METADATA):
            return False
        if any(address in network for network in _INTRANET):
            return self.allow_private
        if isinstance(address, IPv4Address):
            special = address.is_multicast or any(address in network for network in _NOT_GLOBAL)
            return address.is_global and not special
        if address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
            return WebhookPolicy().may_reach(inner)
        return address in _UNICAST and not any(address in network for network in _NOT_UNICAST)

    def owner_secret(self, owner: str) -> str:
        """What an owner verifies their webhooks with. Raises BadSettings if there is no secret to derive it from."""
        if not self.secret:
            raise errors.BadSettings(
                "IMPASTO_WEBHOOK_SECRET is not set; docs/operations.md tells how to make one."
            )
        return _derived(self.secret, owner)

    def headers(self, job: Job, body: str, now: datetime) -> dict[str, str]:
        """The signature; two while there is an old secret, either of which will do. now: with its time zone.

        The id stays the same however often a job's webhook is sent.
        """
        message = f"msg_{job.id.removeprefix('job_')}"
        secrets = [self.owner_secret(job.owner)]
        secrets += [_derived(self.previous_secret, job.owner)] if self.previous_secret else []
        return {
            "webhook-id": message,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(
                Webhook(secret).sign(message, now, body) for secret in secrets
            ),
        }


def _derived(secret: str, owner: str) -> str:
    key = b64decode(secret.removeprefix("whsec_"))
    return (
        "whsec_"
        + b64encode(hmac.digest(key, f"impasto webhooks {owner}".encode(), hashlib.sha256)).decode()
    )


def body(job: Job) -> str:
    """What is told of an ended job: little; the links, those of the API, lead to the rest."""
    assert job.completed_at is not None, "only the end of a job is told"
    itself = f"/v1/jobs/{job.id}"
    links = {"self": itself} | (
        {"result": f"{itself}/result"} if job.outputs and not job.images_deleted else {}
    )
    data = {
        "id": job.id,
        "status": job.status,
        "created_at": _written(job.created_at),
        "completed_at": _written(job.completed_at),
        "error": None if job.error is None else job.error.model_dump(),
        "links": links,
    }
    told = {
        "type": f"job.{Status(job.status)}",
        "timestamp": _written(job.completed_at),
        "data": data,
    }
    return json.dumps(told, separators=(",", ":"))


def _written(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")
