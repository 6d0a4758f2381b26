"""`python -m worker`: one worker with one painting process, until it is asked to go."""

import os
import sys

import celery.apps.worker

from core import errors
from core.celery_app import make_celery
from core.config import Settings, read_settings
from core.log import configure_logging
from worker.settings import WorkerSettings


def main() -> None:
    """Read the settings, then hand over to Celery."""
    try:
        shared = read_settings(Settings)
        read_settings(WorkerSettings)
    except errors.BadSettings as error:
        sys.stderr.write(f"impasto worker: {error.message}\n")
        sys.exit(2)
    configure_logging(shared.log_format)
    # These two speak past the logs: what stops a worker, and (below WARNING) what starts its child.
    celery.apps.worker.safe_say = lambda *_: None  # type: ignore[attr-defined]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    name = f"--hostname=worker-{os.getpid()}@%h"
    make_celery(shared.redis_url).worker_main(
        ["--quiet", "worker", "--loglevel=WARNING", name, *quiet]
    )


if __name__ == "__main__":
    main()
