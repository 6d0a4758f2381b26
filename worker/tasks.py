"""The one Celery task: somebody rang. And what a pool child does at birth, and a worker that is asked to go."""

import logging
import os
import signal
import threading
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from billiard.process import active_children
from celery import shared_task
from celery.signals import setup_logging, worker_process_init, worker_ready, worker_shutting_down

from core import errors
from core.celery_app import STYLIZE, notify_workers
from core.config import Settings, read_settings
from core.jobs.store import JobStore
from core.log import configure_logging
from worker import process
from worker.settings import WorkerSettings
from worker.supervisor import ChildMonitor, StallMonitor

if TYPE_CHECKING:  # torch is for the pool's child, not for the parent
    from worker.runner import JobRunner

log = logging.getLogger(__name__)

_unfit = (
    threading.Event()
)  # this process claims nothing: its parent has been asked to stop the worker


@cache
def _runner() -> "JobRunner":
    from core.neural.vgg import use_threads
    from worker.runner import JobRunner

    worker = read_settings(WorkerSettings)
    use_threads(worker.threads)
    return JobRunner(read_settings(Settings), worker)


@shared_task(name=STYLIZE)
def stylize() -> None:
    """Paint the next job, if there is one. A bell rung twice, or late, finds none."""
    if _unfit.is_set():
        return
    try:
        _runner().run_next()
    except errors.Unavailable as error:  # the reaper rings
        log.warning("%s", error.message)
    except errors.DeviceLost:
        process.exit_now(
            "the device is lost; this process ends, and its job goes on in the next", trace=True
        )


@setup_logging.connect
def _log(**_: Any) -> None:
    """Celery asks in the worker and in each child, and then leaves the logs alone."""
    configure_logging(read_settings(Settings).log_format)


@worker_process_init.connect
def _warm_up(**_: Any) -> None:
    """Load torch and the network before the first job, not during it.

    A worker that cannot would end every job it hears of, faster than any other could take one: it stops.
    """
    try:
        from worker import attempt

        # SIGURG is ignored by default, so a child that is told before it comes this far does not die of it.
        process.on_signals(attempt.shutting_down.set, signal.SIGURG)
        _runner().warm_up()
    except (Exception, errors.DeviceLost) as error:
        _unfit.set()
        if isinstance(error, errors.ImpastoError):
            log.error("this worker cannot paint and stops: %s", error.message)  # noqa: TRY400 - the sentence is enough
        else:
            log.exception("this worker cannot paint and stops")
        os.kill(os.getppid(), signal.SIGTERM)


@worker_ready.connect
def _watch_over(sender: Any, **_: Any) -> None:
    """From the parent: a child that dies leaves a job behind, and one that lives may do nothing."""
    store = JobStore(read_settings(Settings).redis_url)
    rings = partial(notify_workers, sender.app)
    ChildMonitor(store, rings, _children).start()
    StallMonitor(store, rings, _children).start()


def _children() -> list[int]:
    return [child.pid for child in active_children() if child.pid]


@worker_shutting_down.connect
def _hand_back(**_: Any) -> None:
    """Tell the children to hand their jobs back; Celery then waits for them to return."""
    for child in _children():
        os.kill(child, signal.SIGURG)
