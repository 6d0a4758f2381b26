"""Checks the store itself: its settings, its kind, and whether it is still the same store.

The promise of a 202 holds only on a server that syncs every write and evicts nothing. A store that
comes back empty must not cause the deletion of the pictures that it no longer knows.
"""

import logging
import re
import secrets
import threading
import time
from contextlib import suppress
from typing import Any

from redis import Redis
from redis.exceptions import InvalidResponse, NoPermissionError, ResponseError
from redis.sentinel import SentinelConnectionPool

from core import errors
from core.jobs.store_report import Identity, StoreReport
from core.redis_client import NO_DATABASE, PREFIX, CircuitBreaker, is_outage
from core.storage.location import IdentityFile

CHECK_SECONDS = 1.0  # a verdict is valid for so long, unless the connection is a new one
IDENTITY = f"{PREFIX}identity"
RESTORING = f"{PREFIX}restoring"  # set while a backup is being restored
# Setting -> the only value that keeps what was accepted, in a crash and without free memory.
REQUIRED = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}
MIN_VERSION = 7  # the first with functions
_NO_DATABASE = "The server has no database of the number after the last /; 0 always exists."
_FAILOVER_RISK = (
    "a failover of the store may lose jobs that were accepted just before; "
    "IMPASTO_STORE_REPLICAS prevents it"
)
_NO_REDIS = "There is no Redis server on this port, but another one."

log = logging.getLogger(__name__)


class StoreMonitor:
    """The checks of one server. Thread-safe."""

    def __init__(
        self,
        client: Redis,
        circuit_breaker: CircuitBreaker,
        identity_file: IdentityFile | None = None,
        *,
        accepts_unsafe: bool = False,
        replicas: int = 0,
    ) -> None:
        """identity_file: names the store that the pictures beside it belong to.

        accepts_unsafe: `require_safe` tolerates wrong settings. replicas: how many must have a job.
        """
        self._redis, self._circuit_breaker = client, circuit_breaker
        self._identity_file, self._accepts_unsafe = identity_file, accepts_unsafe
        self._replicas = replicas
        self._report: StoreReport | None = None
        self.unusable: str | None = None  # why this kind of server cannot be the store
        self.is_restoring = False  # a restore has not ended: nothing may change the store
        self._valid_until = 0.0
        self._lock = threading.Lock()  # of a check: an older answer must not replace a newer one
        self.identity = ""  # that the pictures belong to; empty: not known

    def invalidate(self) -> None:
        """Check again before the next use: a new connection may lead to another server."""
        self._valid_until = 0.0

    def check(self) -> StoreReport:
        """Check now, and log what has changed. Raises StoreUnavailable."""
        with self._lock:
            return self._check()

    def _check(self) -> StoreReport:
        self._valid_until = time.monotonic() + CHECK_SECONDS
        with self._circuit_breaker:
            report, self.unusable = self._read()
        if report != self._report:
            self._log_report(report)
        self._report = report
        return report

    def refresh_identity(self) -> None:
        """Read the identity of the pictures again, if it is in a bucket."""
        if self._identity_file is not None:
            with suppress(OSError):
                self._identity_file.refresh()

    def require_safe(self) -> None:
        """Raise StoreUnsafe if an accepted job could be lost; StoreUnavailable."""
        with self._lock:  # so that one check serves all who wait for it
            report = self._report
            if report is None or time.monotonic() >= self._valid_until:
                report = self._check()
        if self.unusable:
            raise errors.StoreUnsafe(f"No job is accepted: {self.unusable}")
        if self.is_restoring:
            raise errors.StoreUnsafe(
                "No job is accepted: a backup is being restored. If its command has ended, repeat "
                "`impasto restore`."
            )
        if report.problems and not self._accepts_unsafe:
            raise errors.StoreUnsafe(
                f"No job is accepted, because the store may lose it: {'; '.join(report.problems)}."
            )

    def require_usable(self) -> None:
        """Check at the start of a process. An unavailable server is only logged.

        Raises BadSettings if the server is of a kind that cannot be the store.
        """
        try:
            self.check()
        except errors.StoreUnavailable as error:
            log.warning("%s", error.message)
        if self.unusable:
            raise errors.BadSettings(f"IMPASTO_REDIS_URL: {self.unusable}")

    # ------------------------------------------------------------------ internal

    def _read(self) -> tuple[StoreReport, str | None]:
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.config_get(*REQUIRED)
            pipe.info()  # servers before 7 refuse a list of sections
            pipe.get(IDENTITY)
            pipe.get(RESTORING)
            try:
                answers = pipe.execute(raise_on_error=False)
            except InvalidResponse:
                return StoreReport(problems=[_NO_REDIS]), _NO_REDIS
            except ResponseError as error:  # of the connection
                if NO_DATABASE not in str(error):
                    raise
                return StoreReport(problems=[_NO_DATABASE]), _NO_DATABASE
        config, info = map(_tolerate_refusal, answers[:2])
        if unusable := _find_unusable(info):
            return StoreReport(problems=[unusable]), unusable
        self.is_restoring = bool(_tolerate_refusal(answers[3]))
        problems, unchecked = _check_settings(config, info)
        shortage, risks = self._check_replicas(info)
        identity = self._check_identity(_tolerate_refusal(answers[2]) or None)
        return StoreReport(
            problems=problems + shortage, risks=risks, unchecked=unchecked, identity=identity
        ), None

    def _check_replicas(self, info: dict[str, Any]) -> tuple[list[str], list[str]]:
        """Return what is wrong with the number of replicas, and what it risks."""
        if "connected_slaves" not in info:  # the server does not show it; `create` waits anyway
            return [], []
        states = (info.get(f"slave{number}", {}) for number in range(info["connected_slaves"]))
        online = sum(state.get("state") == "online" for state in states)
        if online < self._replicas:
            connected = f"{online} {'replica is' if online == 1 else 'replicas are'} connected"
            return [f"{connected} and IMPASTO_STORE_REPLICAS is {self._replicas}"], []
        has_failover = isinstance(self._redis.connection_pool, SentinelConnectionPool) or online
        return [], [_FAILOVER_RISK] if has_failover and not self._replicas else []

    def _check_identity(self, stored: str | None) -> Identity:
        """Compare the store's identity with the file's. At the first start, write both."""
        if self._identity_file is None:
            return "unchecked"
        try:
            self.identity = self._identity_file.read().strip()
        except FileNotFoundError:
            self.identity = stored or self._create_identity()
            return self._write_identity(self._identity_file)
        except (OSError, UnicodeDecodeError):
            return "unknown"
        if stored is None:
            return "missing"
        return "same" if stored == self.identity else "changed"

    def _create_identity(self) -> str:
        self._redis.set(IDENTITY, secrets.token_hex(16), nx=True)
        return str(self._redis.get(IDENTITY))  # perhaps that of another process

    def _write_identity(self, file: IdentityFile) -> Identity:
        try:
            file.write(self.identity + "\n")
        except (OSError, errors.Unavailable):  # the next check tries again
            return "unknown"
        return "same"

    def _log_report(self, report: StoreReport) -> None:
        before = self._report or StoreReport()
        if report.problems != before.problems:
            level = logging.ERROR if report.problems else logging.INFO
            log.log(level, "the store's settings: %s", "; ".join(report.problems) or "safe again")
        if report.risks and report.risks != before.risks:
            log.warning("%s", "; ".join(report.risks))
        if report.unchecked and report.unchecked != before.unchecked:
            log.warning("the store does not show %s", ", ".join(report.unchecked))
        if report.identity == before.identity:
            return
        if report.may_delete_blobs:
            log.info("the store is that of the pictures")
        else:
            log.error("%s (%s)", report.describe_identity(), self._identity_file)


def _tolerate_refusal(answer: Any) -> Any:
    """Return {} for a command that the server forbids. Raises any outage."""
    is_refusal = isinstance(answer, ResponseError) and not is_outage(answer)
    if is_refusal or isinstance(answer, NoPermissionError):
        return {}
    if isinstance(answer, Exception):
        raise answer
    return answer


def _find_unusable(info: dict[str, Any]) -> str | None:
    if info.get("cluster_enabled") or info.get("redis_mode") == "cluster":
        return "The server is a Redis Cluster; Impasto needs a single server."
    # Valkey reports the version of Redis that it is compatible with.
    major = re.match(r"\d+", str(info.get("redis_version", "")))
    if major and int(major[0]) < MIN_VERSION:
        return f"The server is Redis {info['redis_version']}; Impasto needs Redis or Valkey 7."
    return None


def _check_settings(config: dict[str, str], info: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the wrong settings, and those that the server does not show."""
    seen = dict(config)
    if "aof_enabled" in info:  # what is in force, whatever the configuration says
        seen["appendonly"] = "yes" if info["aof_enabled"] else "no"
    if "maxmemory_policy" in info:
        seen["maxmemory-policy"] = str(info["maxmemory_policy"])
    problems = [
        f"{name} is {seen[name]} and must be {value}"
        for name, value in REQUIRED.items()
        if seen.get(name, value) != value
    ]
    return problems, [name for name in REQUIRED if name not in seen]
