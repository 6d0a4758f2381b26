"""The errors of the client: those of core/errors.py, each with a `code` and a `message`.

In impasto-client, this module is a copy of core/errors.py (integrations/client/pyproject.toml).
"""

from core.errors import *  # noqa: F403
