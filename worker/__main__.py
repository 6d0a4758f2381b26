"""`python -m worker`: one worker with one pool child that runs jobs, until SIGTERM or SIGINT.

With IMPASTO_WORKER_DEVICES, it is the supervisor of one such worker per device.
"""

import os
import sys
from contextlib import closing

import celery.apps.worker

from core import errors
from core.celery_app import make_celery
from core.config import Settings, read_settings
from core.jobs.store import JobStore
from core.log import configure_logging
from worker import process
from worker.device_supervisor import DeviceSupervisor, list_devices
from worker.settings import WorkerSettings


def main() -> None:
    """Read the settings, then hand over to Celery; exit with 2 if a setting cannot be used."""
    try:
        shared = read_settings(Settings)
        settings = read_settings(WorkerSettings)
        configure_logging(shared.log_format)
        with closing(JobStore(shared.redis_url)) as store:
            store.monitor.require_usable()
        devices = list_devices(settings.devices)
    except errors.BadSettings as error:
        sys.stderr.write(f"impasto worker: {error.message}\n")
        sys.exit(process.WRONG_USAGE)
    if devices:
        sys.exit(DeviceSupervisor(devices, JobStore(shared.redis_url), settings).run())
    # Two messages of Celery bypass the logs: the one for a stop signal, which is silenced here, and
    # the banner of the start, which it prints only below WARNING.
    celery.apps.worker.safe_say = lambda *_: None  # type: ignore[attr-defined]
    process.on_signals(lambda: process.exit_codes.append(process.WRONG_USAGE), process.REFUSED)
    process.on_signals(lambda: process.exit_codes.append(process.DEVICE_BROKEN), process.BROKEN)
    options = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    name = f"--hostname=worker-{os.getpid()}@%h"
    try:
        make_celery(shared.redis_url).worker_main(
            ["--quiet", "worker", "--loglevel=WARNING", name, *options]
        )
    finally:
        if process.exit_codes:
            sys.exit(process.exit_codes[0])


if __name__ == "__main__":
    main()
