"""Where the store of this machine's service is."""

import os
from pathlib import Path

from core import errors
from core.config import Settings


def find_store_url(config: Settings) -> str:
    """Return IMPASTO_REDIS_URL, or else the URL of the running `impasto up`, or else the default.

    Raises BadSettings if the file of `impasto up` cannot be read.
    """
    file = locate_store_file(config.data_dir)
    if os.environ.get("IMPASTO_REDIS_URL"):
        return config.redis_url
    try:
        return file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):  # none runs
        return config.redis_url
    except OSError as error:
        raise errors.BadSettings(
            f"{file} cannot be read ({error.strerror}): run this as the user of `impasto up`, or "
            "set IMPASTO_REDIS_URL."
        ) from error


def is_store_named(config: Settings) -> bool:
    """Return whether IMPASTO_REDIS_URL or a running `impasto up` says where the store is."""
    return bool(os.environ.get("IMPASTO_REDIS_URL")) or find_store_url(config) != config.redis_url


def locate_store_file(data_dir: Path) -> Path:
    """Return the file with the store's URL while `impasto up` runs; only its user may read it."""
    return data_dir / "store.url"
