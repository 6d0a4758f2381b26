"""The audit log: who has changed what, when, from where, and with which outcome.

Two streams on Redis, to which entries are only ever appended. An operation of the store appends its
entry in the same atomic step (scripts/common.lua), so an accepted job has one. What the operator
does has a stream of its own, because its entries must not be displaced by those of busy callers.
No function changes or deletes an entry; beyond MAX_ENTRIES the oldest ones go.
"""

import json
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from heapq import merge
from typing import Any, Literal, NamedTuple

import redis
from pydantic import BaseModel, ConfigDict

from core.redis_client import PREFIX, CircuitBreaker

MAX_ENTRIES = 100_000  # of each stream; as MAX_AUDITED in scripts/common.lua
MAX_SCANNED = 2_000  # entries of each stream that one read with filters examines
BLOCKING_SECONDS = 0.5  # of a blocking command; must be below the socket timeout

Log = Literal["operator", "callers"]
LOGS: tuple[Log, ...] = ("operator", "callers")


class Actor(NamedTuple):
    """Who acts. id: of the API key, never its secret; `local` where no keys are required."""

    id: str
    address: str = ""
    is_operator: bool = False  # by a route or command for operators
    request_id: str | None = None


# Set while a request or a command runs that may change something; without it nothing is logged.
actor: ContextVar[Actor | None] = ContextVar("actor", default=None)


class AuditEntry(BaseModel):
    """One entry. target: the id of the job, batch or key; empty if the action has none."""

    model_config = ConfigDict(frozen=True)

    id: str  # grows with time
    log: Log
    time: datetime  # by the store's clock
    actor: str
    address: str
    action: str
    target: str
    outcome: str  # ok, created, or why not: quota, paused, not_found, denied, ...
    request_id: str | None = None
    details: dict[str, Any] = {}


class AuditFilter(NamedTuple):
    """Which entries to return; None: all."""

    actor: str | None = None
    action: str | None = None  # its beginning: `job.` or `job.cancel`
    target: str | None = None
    outcome: str | None = None

    def accepts(self, entry: AuditEntry) -> bool:
        """Whether the entry passes."""
        return (
            self.actor in (None, entry.actor)
            and self.target in (None, entry.target)
            and self.outcome in (None, entry.outcome)
            and entry.action.startswith(self.action or "")
        )


_EVERY_ENTRY = AuditFilter()


def build_entry(action: str, target: str = "", **details: Any) -> tuple[str, str] | None:
    """Return the stream and the JSON of an entry for the current actor; None without one."""
    who = actor.get()
    if who is None:
        return None
    entry = {"actor": who.id, "address": who.address, "action": action, "target": target}
    if who.request_id:
        entry["request_id"] = who.request_id
    return _stream("operator" if who.is_operator else "callers"), json.dumps(entry | details)


def append(pipe: Any, action: str, target: str = "", outcome: str = "ok", **details: Any) -> None:
    """Add an entry for the current actor to a transaction, so that both happen or none."""
    if (built := build_entry(action, target, **details)) is not None:
        stream, entry = built
        fields = {"entry": entry, "outcome": outcome, "target": ""}
        pipe.xadd(stream, fields, maxlen=MAX_ENTRIES, approximate=True)


class AuditReader:
    """Reads both streams. Raises StoreUnavailable when the server does not answer in time."""

    def __init__(self, client: redis.Redis, circuit_breaker: CircuitBreaker) -> None:
        self._redis, self._circuit_breaker = client, circuit_breaker

    def read(
        self,
        limit: int,
        before: str | None = None,
        accept: AuditFilter = _EVERY_ENTRY,
        log: Log | None = None,
    ) -> tuple[list[AuditEntry], str | None]:
        """Return the newest entries, newest first, and the cursor of older ones or None.

        before: the cursor. log: one of the streams; None: both. Examines MAX_SCANNED entries of
        each at most, so that its time is bounded: with filters a page may be short, or empty, and
        still have a cursor.
        """
        upper = "+" if before is None else f"({before}"
        count = limit + 1 if accept == _EVERY_ENTRY else MAX_SCANNED
        streams = [log] if log else LOGS
        with self._circuit_breaker, self._redis.pipeline(transaction=False) as pipe:
            for name in streams:
                pipe.xrevrange(_stream(name), upper, "-", count=count)
            rows = pipe.execute()
        pages = [
            [_parse_entry(name, *row) for row in page]
            for name, page in zip(streams, rows, strict=True)
        ]
        # A stream that has more entries may have them before this one.
        horizon = max((_order(page[-1].id) for page in pages if len(page) == count), default=None)
        entries = [
            entry
            for entry in merge(*pages, key=lambda entry: _order(entry.id), reverse=True)
            if horizon is None or _order(entry.id) >= horizon
        ]
        found: list[AuditEntry] = []
        for index, entry in enumerate(entries):
            # A page ends between two ids: both streams may have an entry with the same one.
            if len(found) >= limit and entry.id != entries[index - 1].id:
                return found, entries[index - 1].id
            if accept.accepts(entry):
                found.append(entry)
        return found, entries[-1].id if horizon is not None else None

    def follow(self, after: str = "$", accept: AuditFilter = _EVERY_ENTRY) -> Iterator[AuditEntry]:
        """Yield each entry that is appended from now on, or after this id, without end."""
        position: Any = {
            _stream(log): self._find_newest(log) if after == "$" else after for log in LOGS
        }
        while True:
            with self._circuit_breaker:
                answer: Any = self._redis.xread(position, block=round(BLOCKING_SECONDS * 1000))
            new = []
            for stream, rows in answer or ():
                log: Any = stream.rpartition(":")[2]
                new += [_parse_entry(log, *row) for row in rows]
                position[stream] = rows[-1][0]
            yield from filter(accept.accepts, sorted(new, key=lambda entry: _order(entry.id)))

    def _find_newest(self, log: Log) -> str:
        with self._circuit_breaker:
            rows: Any = self._redis.xrevrange(_stream(log), count=1)
        return str(rows[0][0]) if rows else "0-0"


def _stream(log: str) -> str:
    return f"{PREFIX}audit:{log}"


def _order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number)


def _parse_entry(log: Log, entry_id: str, fields: dict[str, str]) -> AuditEntry:
    entry = json.loads(fields["entry"])
    known = {name: entry.pop(name, "") for name in ("actor", "address", "action", "target")}
    known["target"] = fields.get("target") or known["target"]
    return AuditEntry(
        id=entry_id,
        log=log,
        time=datetime.fromtimestamp(_order(entry_id)[0] / 1000, UTC),
        outcome=fields["outcome"],
        request_id=entry.pop("request_id", None),
        details=entry,
        **known,
    )
