"""`python -m api`: runs one API process until a signal stops it."""

import gc
import resource
import socket
import sys
from contextlib import suppress

import uvicorn

from api.app import create_app
from api.job_feed import JobFeed
from api.server import request_cycle
from api.server.slow_clients import ConnectionLimits, slow_client_protocol
from api.settings import ApiSettings
from core import errors
from core.config import Settings, read_settings
from core.log import configure_logging

# The event loop accepts one connection per listening socket in each of its rounds, and a round
# takes long while there is much to do. So many sockets share the port; otherwise a crowd of new
# clients waits in the kernel until it gives up.
LISTENERS = 16
# For so long a thread may run while another one waits to. With Python's 5 ms, threads that compute
# answers hardly get on beside a busy event loop, and delay it.
SWITCH_SECONDS = 0.001


def main() -> None:
    """Read the settings, then run uvicorn. Exits with 2 if a setting or the store is unusable."""
    try:
        shared, own = read_settings(Settings), read_settings(ApiSettings)
        configure_logging(shared.log_format)
        app = create_app(shared, own)
        app.state.store.monitor.require_usable()
    except errors.BadSettings as error:
        sys.stderr.write(f"impasto api: {error.message}\n")
        sys.exit(2)
    _raise_file_limit()
    request_cycle.install()
    config = uvicorn.Config(
        app,
        host=own.host,
        port=own.port,
        http=slow_client_protocol(
            ConnectionLimits(own.client_timeout_seconds, own.min_client_bytes_per_second)
        ),
        proxy_headers=False,  # api/middleware/reverse_proxy.py applies them
        ws="none",
        log_config=None,
        access_log=False,  # api/middleware/access_log.py writes it
        server_header=False,
        timeout_graceful_shutdown=10,
    )
    _tune_garbage_collector()
    sys.setswitchinterval(SWITCH_SECONDS)
    with suppress(KeyboardInterrupt):
        Server(config, app.state.job_feed).run(listen(config))


def listen(config: uvicorn.Config) -> list[socket.socket]:
    """Return the sockets of the configured address. Exits with 3 if it is in use."""
    listener = config.bind_socket()
    listener.set_inheritable(False)  # a child must not keep the port
    return [listener, *(listener.dup() for _ in range(LISTENERS - 1))]


class Server(uvicorn.Server):
    """uvicorn's server, which closes event streams before it shuts down.

    uvicorn waits for open responses before it notifies the application, and streams have no end of
    their own.
    """

    def __init__(self, config: uvicorn.Config, feed: JobFeed) -> None:
        super().__init__(config)
        self._feed = feed

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the event streams, then shut down."""
        self._feed.close_subscriptions()
        await super().shutdown(sockets)


def _tune_garbage_collector() -> None:
    """Let garbage collections stall requests less, and less often.

    What exists now stays: without `freeze`, each full collection examines all of it, for some
    100 ms. Requests and streams leave no cyclic garbage, but thousands of them allocate so much at
    once that the default thresholds (700, 10, 10) start full collections all the time. One takes
    0.6 s with 10,000 event streams.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 50)


def _raise_file_limit() -> None:
    """Raise the soft limit of open files: each connection is one, and the default is often 1024."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
