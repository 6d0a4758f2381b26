"""`python -m api`: one API process, until it is asked to go."""

import sys

import uvicorn

from api import cycle
from api.app import create_app
from api.settings import ApiSettings
from core import errors, settings


def main() -> None:
    """Read the settings, then hand over to uvicorn."""
    try:
        own = settings.read(ApiSettings)
        app = create_app(own=own)
    except errors.BadSettings as error:
        sys.stderr.write(f"impasto api: {error.message}\n")
        sys.exit(2)
    cycle.install()
    uvicorn.run(app, host=own.host, port=own.port, timeout_graceful_shutdown=10)


if __name__ == "__main__":
    main()
