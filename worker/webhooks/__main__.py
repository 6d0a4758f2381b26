"""`python -m worker.webhooks`: sends the webhooks of ended jobs until SIGTERM or SIGINT."""

import logging
import signal
import sys

from core import errors
from core.config import Settings, read_settings
from core.jobs.store import JobStore
from core.log import configure_logging
from worker import process
from worker.webhooks.dispatcher import WebhookDispatcher
from worker.webhooks.sender import WebhookSender

log = logging.getLogger(__name__)


def main() -> None:
    """Read the settings, then send until the process is asked to stop."""
    try:
        settings = read_settings(Settings)
        settings.webhooks.owner_secret("")
    except errors.BadSettings as error:
        sys.stderr.write(f"impasto webhooks: {error.message}\n")
        sys.exit(2)
    configure_logging(settings.log_format)
    courier = WebhookDispatcher(
        JobStore(settings.redis_url), settings.webhooks, WebhookSender(settings.webhooks)
    )
    process.on_signals(courier.leave, signal.SIGTERM, signal.SIGINT)
    log.info("sending webhooks")
    courier.run()


if __name__ == "__main__":
    main()
