"""`python -m worker.webhooks`: dispatches the webhooks of ended jobs until SIGTERM or SIGINT."""

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
    """Read the settings, then dispatch until a signal stops the process."""
    try:
        settings = read_settings(Settings)
        settings.webhook_signer.owner_secret("")  # fails without a secret
        configure_logging(settings.log_format)
        store = JobStore(settings.redis_url)
        store.monitor.require_usable()
    except errors.BadSettings as error:
        sys.stderr.write(f"impasto webhooks: {error.message}\n")
        sys.exit(2)
    policy = settings.webhooks
    dispatcher = WebhookDispatcher(store, policy, settings.webhook_signer, WebhookSender(policy))
    process.on_signals(dispatcher.stop, signal.SIGTERM, signal.SIGINT)
    log.info("the webhook dispatcher is running")
    dispatcher.run()


if __name__ == "__main__":
    main()
