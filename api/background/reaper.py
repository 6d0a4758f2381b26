"""Runs the periodic duties of the service in two threads of each API process; one process leads.

Knows no HTTP. Three periods belong together: the renewal of a worker's lease (0.8 s), the lease
(5 s), and this tick (1 s); see docs/operations.md.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from celery import Celery

from api.background import expiry, garbage, leases, notifications, orphans, quota
from core import errors
from core.jobs.deletion_lock import lock_deletions
from core.jobs.store import JobStore
from core.storage.blobs import Blobs
from core.storage.checkpoints import Checkpoints

TICK_SECONDS = 1.0
TERM_SECONDS = 5.0  # of the leadership
GAP_SECONDS = 3.0  # between two ticks: more breaks the contact with the store
SWEEP_SECONDS = 60.0
SHARED_SCAN_FACTOR = 10
ORPHAN_SCAN_SECONDS = 3600.0
INDEX_SECONDS = 86_400.0  # and at the start; a worker of an earlier version may run for a while
JOB_RETENTION_SECONDS = 30 * 86_400.0

log = logging.getLogger(__name__)


@dataclass
class Duty:
    """A periodic step."""

    name: str
    run: Callable[[], None]
    # Wait until each living worker must have renewed its lease: one that could not reach the store
    # for a while may still need what it holds.
    needs_contact: bool = True
    # Hold the lock on deletions. A leader that was frozen in this duty still has the lock, and its
    # late deletion must not hit a new upload.
    is_exclusive: bool = False
    # Run only on the store that the pictures belong to: it deletes files that it does not know.
    needs_same_store: bool = False
    interval_seconds: float = 0.0
    next_run: float = 0.0  # by the monotonic clock


class StoreContact:
    """Whether the store has answered without a gap for one lease.

    After a restart of the server, a network failure or a suspended host, all leases seem to have
    expired. Measured by the wall clock, because the monotonic one stops while a host sleeps.
    """

    def __init__(self, lease_seconds: float) -> None:
        self._lease_seconds = lease_seconds
        self._since = self._last = 0.0

    def record_answer(self) -> bool:
        """The store has answered. Returns whether each living worker must have renewed by now."""
        now = time.time()
        if abs(now - self._last) > GAP_SECONDS:
            self._since = now
        self._last = now
        return now - self._since >= self._lease_seconds


@dataclass
class _Part:
    """What one thread does."""

    duties: list[Duty]
    contact: StoreContact


class Reaper:
    """Started and stopped with the API."""

    def __init__(
        self,
        store: JobStore,
        blobs: Blobs,
        checkpoints: Checkpoints,
        celery: Celery,
        *,
        job_retention_seconds: float = JOB_RETENTION_SECONDS,
        storage_quota_bytes: float = 0,
    ) -> None:
        """storage_quota_bytes: the quota of blobs and checkpoints; 0 means no quota."""
        self._store, self._blobs = store, blobs
        # A scan of a bucket costs one request for each thousand blobs.
        quota_seconds = SWEEP_SECONDS * (SHARED_SCAN_FACTOR if blobs.is_shared else 1)
        duties = [
            Duty("requeuing", lambda: leases.requeue_expired(store)),
            Duty(
                "notifying",
                lambda: notifications.notify_idle_workers(store, celery),
                needs_contact=False,
            ),
            Duty("expiry", lambda: expiry.expire_jobs(store, job_retention_seconds)),
            Duty(
                "reading the identity",
                store.monitor.refresh_identity,
                needs_contact=False,
                is_exclusive=True,
                interval_seconds=SWEEP_SECONDS,
            ),
            Duty(
                "deleting unused blobs",
                lambda: garbage.delete_unused_blobs(store, blobs),
                is_exclusive=True,
                needs_same_store=True,
            ),
            Duty(
                "sweeping files",
                lambda: garbage.sweep_files(store, blobs, checkpoints),
                is_exclusive=True,
                needs_same_store=True,
                interval_seconds=SWEEP_SECONDS,
            ),
            Duty(
                "the disk quota",
                lambda: quota.enforce_quota(store, blobs, checkpoints, storage_quota_bytes),
                is_exclusive=True,
                needs_same_store=True,
                interval_seconds=quota_seconds,
            ),
            Duty(
                "registering orphans",
                lambda: orphans.register_orphans(store, blobs),
                is_exclusive=True,
                needs_same_store=True,
                interval_seconds=ORPHAN_SCAN_SECONDS,
            ),
            Duty(
                "rebuilding indexes",
                store.rebuild_indexes,
                needs_contact=False,
                interval_seconds=INDEX_SECONDS,
            ),
        ]
        # A slow disk or bucket must not delay the jobs of dead workers, so each part has a thread.
        self._parts = {
            name: _Part(
                [duty for duty in duties if duty.is_exclusive == is_exclusive],
                StoreContact(store.lease_seconds),
            )
            for name, is_exclusive in (("reaper", False), ("file-reaper", True))
        }
        self._process_id = secrets.token_hex(8)
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(part,), name=name, daemon=True)
            for name, part in self._parts.items()
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop after the current tick."""
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=5)

    def _run(self, part: "_Part") -> None:
        while not self._over.wait(TICK_SECONDS):
            try:
                self._tick(part)
            except errors.ImpastoError as error:
                log.warning("reaper: %s", error.message)
            except Exception:  # a thread that ended silently would lose jobs
                log.exception("reaper: a tick failed")

    def tick(self) -> None:
        """Run the duties that are due, if this process leads. Raises StoreUnavailable."""
        for part in self._parts.values():
            self._tick(part)

    def _tick(self, part: "_Part") -> None:
        is_same_store = self._store.monitor.check().may_delete_blobs
        leads = self._store.acquire_leadership(self._process_id, TERM_SECONDS)
        in_contact = part.contact.record_answer()
        if not leads or self._store.monitor.is_restoring:
            return
        for duty in part.duties:
            is_due = time.monotonic() >= duty.next_run
            is_safe = is_same_store or not duty.needs_same_store
            if is_due and is_safe and (in_contact or not duty.needs_contact):
                self._try(duty)

    def _try(self, duty: Duty) -> None:
        """Run the duty. A failure is logged and prevents no other duty. Raises StoreUnavailable."""
        try:
            if self._run_duty(duty):
                duty.next_run = time.monotonic() + duty.interval_seconds
        except errors.StoreUnavailable:
            raise
        except errors.Unavailable as error:
            log.warning("reaper: %s: %s", duty.name, error.message)
        except Exception:
            log.exception("reaper: %s failed", duty.name)

    def _run_duty(self, duty: Duty) -> bool:
        """Returns False if another process has the lock that the duty needs."""
        if not duty.is_exclusive:
            duty.run()
            return True
        with lock_deletions(self._store, self._blobs) as is_locked:
            if is_locked:
                duty.run()
        return is_locked
