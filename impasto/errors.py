"""The errors of the client: those of core/errors.py, each with a `code` and a `message`."""

from core.errors import *  # noqa: F403
