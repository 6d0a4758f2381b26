"""`python -m worker`: one worker with one pool child that runs jobs, until SIGTERM or SIGINT."""

import os
import sys
import threading
from contextlib import closing

import celery.apps.worker

from core import errors
from core.celery_app import make_celery
from core.config import Settings, read_settings
from core.jobs.store import JobStore
from core.log import configure_logging
from worker import process
from worker.settings import WorkerSettings

WRONG_USAGE = 2  # exit code for a wrong setting, or a device that cannot be used


def main() -> None:
    """Read the settings, then hand over to Celery; exit with 2 if a setting cannot be used."""
    try:
        shared = read_settings(Settings)
        read_settings(WorkerSettings)
        configure_logging(shared.log_format)
        with closing(JobStore(shared.redis_url)) as store:
            store.monitor.require_usable()
    except errors.BadSettings as error:
        sys.stderr.write(f"impasto worker: {error.message}\n")
        sys.exit(WRONG_USAGE)
    # Two messages of Celery bypass the logs: the one for a stop signal, which is silenced here, and
    # the banner of the start, which it prints only below WARNING.
    celery.apps.worker.safe_say = lambda *_: None  # type: ignore[attr-defined]
    is_refused = threading.Event()
    process.on_signals(is_refused.set, process.REFUSED)
    options = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    name = f"--hostname=worker-{os.getpid()}@%h"
    try:
        make_celery(shared.redis_url).worker_main(
            ["--quiet", "worker", "--loglevel=WARNING", name, *options]
        )
    finally:
        if is_refused.is_set():
            sys.exit(WRONG_USAGE)


if __name__ == "__main__":
    main()
