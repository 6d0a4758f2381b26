"""Sends the webhooks of ended jobs, until it is asked to go.

Takes what is due from the store's outbox under a lease, several at once, to one host one at a time. A courier that dies
loses nothing: its deliveries are due again when their leases are over. So a webhook comes at least once, with the same
id each time. No job waits for it. Knows no Celery and no tensors.
"""

import logging
import random
import secrets
import threading
import time
from datetime import UTC, datetime

from core import errors
from core.jobs.models import Job
from core.jobs.store import DeliveryOutcome, JobStore
from core.webhooks.policy import WebhookPolicy, body
from worker.webhooks.sender import DeliveryError, WebhookSender

# Seconds before each try, and a tenth more by chance, so that what failed together does not come back together.
DELAYS = (0.0, 5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 86_400.0)
MAX_CONCURRENT = 32
POLL_SECONDS = 0.5  # between two looks at an empty outbox
LEASE_SECONDS = 15.0  # beyond what a delivery may take
SHUTDOWN_SECONDS = 5.0  # that a delivery may still take, when the courier is asked to go
GONE = 410

log = logging.getLogger(__name__)


class WebhookDispatcher:
    """Takes and carries."""

    def __init__(
        self,
        store: JobStore,
        policy: WebhookPolicy,
        delivery: WebhookSender,
        *,
        delays: tuple[float, ...] = DELAYS,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        """lease_seconds: beyond the delivery's."""
        self._store, self._policy, self._delivery = store, policy, delivery
        self._delays, self._lease_seconds = delays, delivery.seconds + lease_seconds
        self._free = threading.Semaphore(MAX_CONCURRENT)
        self._over = threading.Event()

    def run(self) -> None:
        """Until `leave`; then wait for what is on its way, not for long: what is cut off is due again."""
        while not self._over.is_set():
            if self._free.acquire(timeout=POLL_SECONDS) and not self._take():
                self._free.release()
                self._over.wait(POLL_SECONDS)
        until = time.monotonic() + SHUTDOWN_SECONDS
        for _ in range(MAX_CONCURRENT):
            self._free.acquire(timeout=max(0.0, until - time.monotonic()))

    def leave(self) -> None:
        """Take nothing more."""
        self._over.set()

    def _take(self) -> bool:
        """Send one on its way, on a thread that nobody waits for at the end; False if none is due."""
        token, began = secrets.token_hex(16), time.monotonic()
        try:
            found = self._store.claim_delivery(token, self._lease_seconds, len(self._delays))
            if found is not None:
                # By the clock from before the lease began: a courier that was frozen since does not send any more.
                given = (*found, token, began + self._delivery.seconds)
                threading.Thread(
                    target=self._carry, args=given, name=found[0].id, daemon=True
                ).start()
        except errors.StoreUnavailable as error:
            log.warning("%s", error.message)
        except Exception:  # one that keeps dying would end `impasto up`
            log.exception("no webhook is taken")
        else:
            return found is not None
        return False

    def _carry(self, job: Job, attempt: int, token: str, until: float) -> None:
        try:
            end, words = self._sent(job, until)
            again = None
            if end is None:
                end, again = "given_up", self._pause(attempt)
                words += " (given up)" if again is None else f" (again in {again:.0f} s)"
            log.info("%s: webhook, try %d: %s", job.id, attempt, words)
            self._settle(job, token, end, again)
        except Exception:  # its lease runs out, and it is due again
            log.exception("%s: webhook failed", job.id)
        finally:
            self._free.release()

    def _sent(self, job: Job, until: float) -> tuple[DeliveryOutcome | None, str]:
        """How it ended, if it did, and what to write down."""
        told = body(job)
        try:
            receiver = self._policy.receiver(job.webhook or "")
            headers = self._policy.headers(job, told, datetime.now(UTC))
            headers |= {"Content-Type": "application/json", "User-Agent": "Impasto"}
            status = self._delivery.post(receiver, headers, told, until)
        except errors.BadWebhook as error:  # it was taken under other settings
            return None, error.message
        except DeliveryError as error:
            return None, str(error)
        if status == GONE:
            return "gone", "it is gone"
        return ("delivered" if 200 <= status < 300 else None), f"answered {status}"

    def _pause(self, attempt: int) -> float | None:
        """Seconds until the next try, if there is one."""
        if attempt >= len(self._delays):
            return None
        return self._delays[attempt] * random.uniform(1.0, 1.1)  # noqa: S311 - no secret

    def _settle(self, job: Job, token: str, end: DeliveryOutcome, again: float | None) -> None:
        """Say so to the store, as long as the lease may last; after it, the webhook is sent once more."""
        until = time.monotonic() + self._lease_seconds
        while True:
            try:
                ours = self._store.complete_delivery(job.id, token, end, again)
            except errors.StoreUnavailable as error:
                if time.monotonic() > until:
                    raise
                log.warning("%s", error.message)
                time.sleep(POLL_SECONDS)
            else:
                if not ours:
                    log.warning("%s: its webhook was no longer ours", job.id)
                return
