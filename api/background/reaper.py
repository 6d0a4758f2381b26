"""Brings back jobs whose worker is gone, rings again where a bell was lost, and deletes pictures that nobody uses.

A thread in every API process; one of them leads. Knows no HTTP. The numbers that move together: the beat of a worker's
lease (1 s), the lease (5 s), this tick (1 s): docs/operations.md.
"""

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable
from itertools import islice

from celery import Celery

from core import errors
from core.celery_app import notify_workers, pending_notifications, trim_notifications
from core.jobs.store import JobStore
from core.storage.blobs import Blobs, is_digest
from core.storage.checkpoints import Checkpoints

TICK_SECONDS = 1.0
TERM_SECONDS = 5.0
GAP_SECONDS = 3.0
SWEEP_SECONDS = 60.0
STRAY_LOOK_SECONDS = 3600.0
STRAY_SECONDS = (
    7 * 86_400.0
)  # time to notice that the store is not the one that belongs to the pictures
STRAYS_AT_ONCE = 1000
RECORD_SECONDS = 30 * 86_400.0
BELLS_AT_ONCE = 100

log = logging.getLogger(__name__)


class Reaper:
    """Started and stopped with the API."""

    def __init__(
        self,
        store: JobStore,
        blobs: Blobs,
        checkpoints: Checkpoints,
        celery: Celery,
        *,
        record_seconds: float = RECORD_SECONDS,
        disk_bytes: float = 0,
    ) -> None:
        """disk_bytes: what blobs and checkpoints may take, 0 for all there is."""
        self._store, self._blobs, self._checkpoints, self._celery = (
            store,
            blobs,
            checkpoints,
            celery,
        )
        self._record_seconds, self._disk_bytes = record_seconds, disk_bytes
        self._contact_since = self._last_contact = 0.0
        self._next_sweep = self._next_look = 0.0
        self._me = secrets.token_hex(8)
        self._bells_missing = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def start(self) -> None:
        """Begin to tick."""
        self._thread.start()

    def stop(self) -> None:
        """End after the present tick."""
        self._over.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._over.wait(TICK_SECONDS):
            try:
                self.tick()
            except errors.ImpastoError as error:
                log.warning("reaper: %s", error.message)
            except Exception:  # a reaper that has died would lose jobs in silence
                log.exception("reaper: tick failed")

    def tick(self) -> None:
        """One round, if this process leads."""
        leads = self._store.acquire_leadership(self._me, TERM_SECONDS)
        settled = self._in_contact_for_a_lease()
        if not leads:
            return
        if settled:
            self._try(self._reap)
        self._try(self._ring_lost_bells)
        if settled:  # a worker that could not speak for a while may still need what it holds
            self._try(self._expire)
            self._try(self._delete_unused)

    def _try(self, step: Callable[[], None]) -> None:
        """A step that fails keeps no other from its turn."""
        try:
            step()
        except errors.StoreUnavailable:
            raise
        except Exception:
            log.exception("reaper: %s failed", step.__name__)

    def _reap(self) -> None:
        requeued, ended = self._store.reap_expired_leases()
        if requeued or ended:
            log.warning("reaper: leases ran out: %d jobs put back, %d ended", requeued, ended)
        self._ring(requeued)

    def _expire(self) -> None:
        self._store.expire_due(self._record_seconds)

    def _in_contact_for_a_lease(self) -> bool:
        """Whether the store has answered without a gap for so long that every living worker must have renewed.

        After a restart of the server, a network failure or a suspended host, all leases look as if they had run out.
        By the wall clock: the other one stands still while a host sleeps.
        """
        now = time.time()
        if abs(now - self._last_contact) > GAP_SECONDS:
            self._contact_since = now
        self._last_contact = now
        return now - self._contact_since >= self._store.lease_seconds

    def _ring(self, times: int) -> None:
        for _ in range(min(times, BELLS_AT_ONCE)):
            if not notify_workers(self._celery):
                return  # the broker is away; the bells are missed again

    def _ring_lost_bells(self) -> None:
        """Each waiting job needs a bell. One that is missing twice in a row is lost, not on its way to a claim."""
        before = self._bells_missing
        queued = self._store.get_load().queued
        self._bells_missing = queued - pending_notifications(self._celery) if queued else 0
        lost = min(before, self._bells_missing)
        if lost > 0:
            log.warning("reaper: %d bells were lost; ringing again", lost)
            self._ring(lost)
            self._bells_missing = 0

    def _delete_unused(self) -> None:
        with self._blobs.try_deletion_lock() as alone:
            if not alone:
                return  # a leader that was frozen here still has the word; its late deletion must not meet a new upload
            for digest in self._store.mark_deleting():
                self._delete(digest)
            if time.monotonic() >= self._next_sweep:
                self._blobs.sweep()
                self._checkpoints.sweep(self._named)
                self._make_room()
                trim_notifications(self._celery, self._store.get_load().queued + BELLS_AT_ONCE)
                self._next_sweep = time.monotonic() + SWEEP_SECONDS
            if time.monotonic() >= self._next_look:
                self._adopt_strays()
                self._next_look = time.monotonic() + STRAY_LOOK_SECONDS

    def _delete(self, digest: str) -> None:
        try:
            if is_digest(digest):  # else the disk has damaged the record that named it
                self._blobs.delete(digest)
        except OSError as error:  # the next tick tries again
            log.warning("a picture cannot be deleted: %s", error.strerror)
        else:
            self._store.confirm_deleted(digest)

    def _adopt_strays(self) -> None:
        """Pictures whose record was lost with the end of a torn log, or is younger than the backup of the store."""
        digests = self._blobs.digests()
        strays = 0
        while some := [*islice(digests, STRAYS_AT_ONCE)]:
            strays += self._store.register_orphans(some, STRAY_SECONDS)
        if strays:
            log.warning(
                "%d pictures belong to no job that the store knows; they are deleted in a week",
                strays,
            )

    def _named(self, job_id: str) -> str | None:
        """The checkpoint that a job would go on from."""
        try:
            return self._store.get(job_id).checkpoint
        except errors.JobNotFound:
            return None

    def _make_room(self) -> None:
        """Let go of the oldest results while there is more than there may be; the next ticks delete them."""
        if not self._disk_bytes:
            return
        sizes = (
            self._blobs.sizes()
        )  # only blobs can go: a checkpoint is of a job that has not ended
        excess = sum(sizes) + sum(self._checkpoints.sizes()) - self._disk_bytes
        if excess > 0 and sizes:
            share = min(1.0, excess / max(1, sum(sizes)))
            most = min(
                len(sizes), self._store.count_expiring()
            )  # a job has many small blobs, frames, and a few large ones
            jobs = self._store.expire_early(math.ceil(share * most))
            log.warning(
                "the disk's quota is exceeded by %.1f MB: %d jobs expire early", excess / 1e6, jobs
            )
