"""`python -m worker`: one worker with one painting process, until it is asked to go."""

import os
import sys

from core import errors, settings
from core.queue import make_celery
from core.settings import Settings
from worker.settings import WorkerSettings


def main() -> None:
    """Read the settings, then hand over to Celery."""
    try:
        redis_url = settings.read(Settings).redis_url
        settings.read(WorkerSettings)
    except errors.BadSettings as error:
        sys.stderr.write(f"impasto worker: {error.message}\n")
        sys.exit(2)
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    name = f"--hostname=worker-{os.getpid()}@%h"
    make_celery(redis_url).worker_main(["worker", "--loglevel=INFO", name, *quiet])


if __name__ == "__main__":
    main()
