"""Opens the blobs, the checkpoints and the store's identity where the settings say they are."""

from pathlib import Path
from typing import NamedTuple, Protocol

from core.blobs_url import IDENTITY_FILE, parse_blobs_url
from core.storage.blobs import Blobs
from core.storage.checkpoints import Checkpoints
from core.storage.files import SmallFile


class StorageSettings(Protocol):
    """The settings that say where the storage is: core.config.Settings."""

    @property
    def blobs_url(self) -> str:
        """The URL of a bucket, or empty."""

    @property
    def data_dir(self) -> Path:
        """The folder of the blobs, or of the copies of a bucket's."""

    @property
    def blobs_cache_gb(self) -> float:
        """How much these copies may take."""


class IdentityFile(Protocol):
    """Names the store that the blobs beside it belong to."""

    def read(self) -> str:
        """Return the text. Raises FileNotFoundError; OSError if it cannot be read."""

    def write(self, text: str) -> None:
        """Replace the text. Raises OSError, StorageFull, Unavailable."""

    def refresh(self) -> None:
        """Let the next `read` see what others have changed. Raises OSError."""


class Storage(NamedTuple):
    """All that is stored beside the job store."""

    blobs: Blobs
    checkpoints: Checkpoints
    identity: IdentityFile


def open_storage(settings: StorageSettings) -> Storage:
    """Return the storage in a bucket or in the data folder. Opens no connection.

    Raises BadSettings.
    """
    data_dir = settings.data_dir
    if not settings.blobs_url:
        blobs = data_dir / "blobs"
        return Storage(
            Blobs(blobs), Checkpoints(data_dir / "checkpoints"), SmallFile(blobs / IDENTITY_FILE)
        )
    from core.storage import s3  # its library is large

    bucket = s3.Bucket(parse_blobs_url(settings.blobs_url))
    return Storage(
        s3.S3Blobs(bucket, data_dir / "blobs-cache", round(settings.blobs_cache_gb * 1e9)),
        s3.S3Checkpoints(bucket, data_dir / "checkpoints-cache"),
        s3.S3Identity(bucket, f"{s3.BLOBS}/{IDENTITY_FILE}"),
    )
