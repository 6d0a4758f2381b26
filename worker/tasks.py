"""The one Celery task: somebody rang. And what a pool child does at birth, and a worker that is asked to go."""

import logging
import os
import signal
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from billiard.process import active_children
from celery import shared_task
from celery.signals import setup_logging, worker_process_init, worker_ready, worker_shutting_down

from core import errors, logs, settings
from core.queue import STYLIZE, ring
from core.settings import Settings
from core.store import JobStore
from worker.mourner import Mourner
from worker.settings import WorkerSettings

if TYPE_CHECKING:  # torch is for the pool's child, not for the parent
    from worker.painter import Painter

log = logging.getLogger(__name__)


@cache
def _painter() -> "Painter":
    from core.neural.vgg import use_threads
    from worker.painter import Painter

    worker = settings.read(WorkerSettings)
    use_threads(worker.threads)
    return Painter(settings.read(Settings), worker)


@shared_task(name=STYLIZE)
def stylize() -> None:
    """Paint the next job, if there is one. A bell rung twice, or late, finds none."""
    try:
        _painter().run_next()
    except errors.Unavailable as error:  # the job comes back when its lease has run out; the reaper rings
        log.warning("%s", error.message)
    except errors.DeviceLost:
        log.exception("the device is lost; this process ends, and its job goes on in the next")
        logging.shutdown()
        os._exit(1)  # without asking the device to tidy up; the parent puts the job back


@setup_logging.connect
def _log(**_: Any) -> None:
    """Celery asks in the worker and in each child, and then leaves the logs alone."""
    logs.install(settings.read(Settings).log_format)


@worker_process_init.connect
def _warm_up(**_: Any) -> None:
    """Load torch and the network before the first job, not during it."""
    from worker import attempt

    # SIGURG is ignored by default, so a child that is told before it comes this far does not die of it.
    signal.signal(signal.SIGURG, lambda *_: attempt.shutting_down.set())
    try:
        _painter().warm_up()
    except errors.ImpastoError as error:
        # A worker without a network would end every job it hears of, faster than any other could take one.
        log.error("this worker cannot paint and stops: %s", error.message)  # noqa: TRY400 - the sentence is enough
        os.kill(os.getppid(), signal.SIGTERM)


@worker_ready.connect
def _watch_over(sender: Any, **_: Any) -> None:
    """From the parent: a child that dies leaves a job behind."""
    store = JobStore(settings.read(Settings).redis_url)
    Mourner(store, partial(ring, sender.app), lambda: [child.pid for child in active_children() if child.pid]).start()


@worker_shutting_down.connect
def _hand_back(**_: Any) -> None:
    """Tell the children to hand their jobs back; Celery then waits for them to return."""
    for child in active_children():
        if child.pid is not None:
            os.kill(child.pid, signal.SIGURG)
