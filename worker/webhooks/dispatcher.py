"""Dispatches the webhooks of ended jobs from the store's outbox.

A dispatcher claims due deliveries under a lease and sends several at a time: one at a time to one
host of one owner, and MAX_PER_OWNER for one owner. So a receiver that answers slowly delays no
other host and no other owner. A dispatcher that dies loses nothing: its deliveries become due again
when their leases expire. So each webhook arrives at least once, with the same id each time. No job
waits for its webhook. Knows no Celery and no tensors.
"""

import logging
import random
import secrets
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from urllib.parse import urlsplit

from core import errors
from core.jobs.models import Job
from core.jobs.store import DeliveryOutcome, JobStore
from core.webhooks.policy import WebhookPolicy
from core.webhooks.signing import Signer, event_body
from worker.webhooks.sender import DeliveryError, WebhookSender

# Seconds before each try. Up to a tenth is added at random, so that deliveries that failed
# together are not retried together.
DELAYS = (0.0, 5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 86_400.0)
MAX_CONCURRENT = 32
MAX_PER_OWNER = 8  # of these
POLL_SECONDS = 0.5  # between two polls of an outbox without due deliveries
LEASE_SECONDS = 15.0  # in addition to the time that a delivery may take
SHUTDOWN_SECONDS = 5.0  # how long a shutdown waits for deliveries that are in progress
GONE = 410

log = logging.getLogger(__name__)


class _Destinations:
    """The owners and hosts that this process is sending to. Thread-safe.

    The limits hold within one process. Several dispatchers may send different webhooks to one host
    at the same time; each webhook is claimed by one of them only.
    """

    def __init__(self) -> None:
        self._destinations: set[str] = set()
        self._owners: Counter[str] = Counter()
        self._lock = threading.Lock()

    def list_blocked(self) -> list[str]:
        """The busy destinations, and the owners at their limit."""
        with self._lock:
            owners = [owner for owner, count in self._owners.items() if count >= MAX_PER_OWNER]
            return [*self._destinations, *owners]

    def add(self, job: Job) -> None:
        """Mark the destination of the job as busy."""
        with self._lock:
            self._destinations.add(_destination_of(job))
            self._owners[job.owner] += 1

    def remove(self, job: Job) -> None:
        """Mark the destination of the job as free."""
        with self._lock:
            self._destinations.discard(_destination_of(job))
            self._owners[job.owner] -= 1
            if not self._owners[job.owner]:
                del self._owners[job.owner]


def _destination_of(job: Job) -> str:
    """The owner and the host with its port, as scripts/outbox.lua writes them."""
    return f"{job.owner} {urlsplit(job.webhook or '').netloc}"


class WebhookDispatcher:
    """Claims due webhooks and sends up to MAX_CONCURRENT of them in parallel."""

    def __init__(
        self,
        store: JobStore,
        policy: WebhookPolicy,
        signer: Signer,
        sender: WebhookSender,
        *,
        delays: tuple[float, ...] = DELAYS,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        """lease_seconds: in addition to the sender's timeout."""
        self._store, self._policy, self._signer, self._sender = store, policy, signer, sender
        self._delays, self._lease_seconds = delays, sender.timeout_seconds + lease_seconds
        self._destinations = _Destinations()
        self._free_slots = threading.Semaphore(MAX_CONCURRENT)
        self._stopping = threading.Event()

    def run(self) -> None:
        """Dispatch until `stop`; then wait SHUTDOWN_SECONDS at most for running deliveries.

        A delivery that the shutdown cuts off becomes due again when its lease expires.
        """
        while not self._stopping.is_set():
            if self._free_slots.acquire(timeout=POLL_SECONDS) and not self._dispatch_next():
                self._free_slots.release()
                self._stopping.wait(POLL_SECONDS)
        deadline = time.monotonic() + SHUTDOWN_SECONDS
        for _ in range(MAX_CONCURRENT):
            self._free_slots.acquire(timeout=max(0.0, deadline - time.monotonic()))

    def stop(self) -> None:
        """Claim no further delivery."""
        self._stopping.set()

    def _dispatch_next(self) -> bool:
        """Claim one delivery and send it on a daemon thread; False if none is due."""
        token, started = secrets.token_hex(16), time.monotonic()
        try:
            claimed = self._store.claim_delivery(
                token, self._lease_seconds, len(self._delays), self._destinations.list_blocked()
            )
            if claimed is not None:
                # The deadline counts from before the claim. A dispatcher that was suspended since
                # then sends nothing: another one may have claimed the delivery.
                self._start_delivery(*claimed, token, started + self._sender.timeout_seconds)
        except errors.StoreUnavailable as error:
            log.warning("%s", error.message)
        except Exception:  # a process that exits again and again would end `impasto up`
            log.exception("claiming a webhook failed")
        else:
            return claimed is not None
        return False

    def _start_delivery(self, job: Job, attempt: int, token: str, deadline: float) -> None:
        args = (job, attempt, token, deadline)
        thread = threading.Thread(target=self._deliver, args=args, name=job.id, daemon=True)
        self._destinations.add(job)  # before the next claim; the thread may start later
        try:
            thread.start()
        except RuntimeError:  # the system allows no further thread
            self._destinations.remove(job)
            raise

    def _deliver(self, job: Job, attempt: int, token: str, deadline: float) -> None:
        try:
            outcome, detail = self._send(job, deadline)
            retry_seconds = None
            if outcome is None:
                outcome, retry_seconds = "given_up", self._retry_delay(attempt)
                if retry_seconds is None:
                    detail += " (given up)"
                else:
                    detail += f" (next try in {retry_seconds:.0f} s)"
            log.info("%s: webhook, try %d: %s", job.id, attempt, detail)
            self._complete(job, token, outcome, retry_seconds)
        except Exception:  # the lease expires and the delivery becomes due again
            log.exception("%s: the webhook delivery failed", job.id)
        finally:
            self._destinations.remove(job)
            self._free_slots.release()

    def _send(self, job: Job, deadline: float) -> tuple[DeliveryOutcome | None, str]:
        """Send once. Returns the outcome, None if a retry may help, and a text for the log."""
        body = event_body(job)
        try:
            receiver = self._policy.parse_url(job.webhook or "")
            headers = self._signer.sign(job, body, datetime.now(UTC))
            headers |= {"Content-Type": "application/json", "User-Agent": "Impasto"}
            status = self._sender.post(receiver, headers, body, deadline)
        except errors.BadWebhook as error:  # the URL was accepted under other settings
            return None, error.message
        except DeliveryError as error:
            return None, str(error)
        if status == GONE:
            return "gone", f"status {status}"
        outcome: DeliveryOutcome | None = "delivered" if 200 <= status < 300 else None
        return outcome, f"status {status}"

    def _retry_delay(self, attempt: int) -> float | None:
        """The seconds until the next try; None after the last one."""
        if attempt >= len(self._delays):
            return None
        return self._delays[attempt] * random.uniform(1.0, 1.1)  # noqa: S311 - no secret

    def _complete(
        self, job: Job, token: str, outcome: DeliveryOutcome, retry_seconds: float | None
    ) -> None:
        """Report the outcome to the store, and retry while the lease may last.

        After the lease the webhook is sent once more.
        """
        deadline = time.monotonic() + self._lease_seconds
        while True:
            try:
                is_ours = self._store.complete_delivery(job.id, token, outcome, retry_seconds)
            except errors.StoreUnavailable as error:
                if time.monotonic() > deadline:
                    raise
                log.warning("%s", error.message)
                time.sleep(POLL_SECONDS)
            else:
                if not is_ours:
                    log.warning(
                        "%s: the outcome came too late or the job is deleted",
                        job.id,
                    )
                return
