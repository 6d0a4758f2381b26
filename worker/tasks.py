"""The Celery task that runs the queued jobs, plus the pool's signal handlers."""

import logging
import os
import signal
import threading
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from billiard.process import active_children
from celery import shared_task
from celery.signals import (
    setup_logging,
    worker_process_init,
    worker_process_shutdown,
    worker_ready,
    worker_shutting_down,
)

from core import errors, tracing
from core.celery_app import STYLIZE, notify_workers
from core.config import Settings, read_settings
from core.jobs.store import JobStore
from core.log import configure_logging
from worker import process
from worker.settings import WorkerSettings
from worker.supervisor import ChildMonitor, DrainMonitor, StallMonitor

if TYPE_CHECKING:  # only the pool's child loads torch, not the parent
    from worker.runner import JobRunner

# A task ends after so many jobs and sends a message for the next one, because Celery replaces a
# child after worker_max_tasks_per_child tasks, as a guard against growing memory.
JOBS_PER_TASK = 10

log = logging.getLogger(__name__)

# Set when the start failed: this process claims no job, and its parent was asked to stop the
# worker.
_start_failed = threading.Event()


@cache
def _get_runner() -> "JobRunner":
    from core.neural.device import use_threads
    from worker.runner import JobRunner

    worker = read_settings(WorkerSettings)
    use_threads(worker.threads)
    return JobRunner(read_settings(Settings), worker)


@shared_task(name=STYLIZE, bind=True)
def stylize(self: Any) -> None:
    """Run jobs until none is queued. A second or late message finds none."""
    if _start_failed.is_set():
        return
    try:
        if _get_runner().run_queued(JOBS_PER_TASK):
            notify_workers(self.app)
    except errors.Unavailable as error:  # the reaper notifies the workers again
        log.warning("%s", error.message)
    except errors.DeviceLost:
        if _get_runner().is_device_broken:
            _stop_parent(process.BROKEN)
        process.exit_now(
            "the device is lost; this process ends, and the next one resumes its job", trace=True
        )


@setup_logging.connect
def _configure_logging(**_: Any) -> None:
    """Celery calls this in the worker and in each child, and then leaves the logs alone."""
    configure_logging(read_settings(Settings).log_format)


@worker_process_init.connect
def _warm_up(**_: Any) -> None:
    """Load torch and the network before the first job, not during it.

    A worker that cannot start would fail each job that it claims, and would claim faster than any
    other worker. So it stops.
    """
    try:
        # A signal that arrives earlier does no harm: the default action of SIGURG is to ignore it.
        process.on_signals(process.shutting_down.set, signal.SIGURG)
        tracing.configure(read_settings(Settings).traces_url, "impasto-worker")
        _get_runner().warm_up()
    except (Exception, errors.DeviceLost) as error:
        _start_failed.set()
        if isinstance(error, errors.ImpastoError):
            reason = error.message  # a traceback would add nothing
            log.error("this worker cannot run jobs and stops: %s", reason)  # noqa: TRY400
        else:
            log.exception("this worker cannot run jobs and stops")
        if isinstance(error, errors.BadSettings):  # a restart would not help; `impasto up` ends
            _stop_parent(process.REFUSED)
        elif isinstance(error, errors.DeviceLost):
            _stop_parent(process.BROKEN)
        else:
            _stop_parent()


def _stop_parent(*reason: signal.Signals) -> None:
    for number in (*reason, signal.SIGTERM):
        os.kill(os.getppid(), number)


@worker_process_shutdown.connect
def _flush_traces(**_: Any) -> None:
    tracing.flush()


@worker_ready.connect
def _start_monitors(sender: Any, **_: Any) -> None:
    """In the parent: a child that exits leaves a job behind, and a living child may do nothing."""
    store = JobStore(read_settings(Settings).redis_url)
    notify = partial(notify_workers, sender.app)
    ChildMonitor(store, notify, _list_children).start()
    StallMonitor(store, notify, _list_children).start()
    worker_id = read_settings(WorkerSettings).worker_id
    DrainMonitor(store, worker_id, _list_children, _release_jobs).start()


def _list_children() -> list[int]:
    return [child.pid for child in active_children() if child.pid]


@worker_shutting_down.connect
def _release_jobs(**_: Any) -> None:
    """Ask the children to release their jobs; Celery then waits until their tasks return."""
    for child in _list_children():
        os.kill(child, signal.SIGURG)
