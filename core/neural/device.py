"""Errors of a device (missing memory, a lost device), and its memory.

Knows no network and no pictures.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from core import errors

_NO_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
_LOST = ("CUDA error", "CUDA driver error")  # after most of these, every further call fails
_ABSENT = "invalid device ordinal"  # the setting names a card that does not exist


@contextmanager
def translate_device_errors() -> Iterator[None]:
    """Raise device errors of the block as OutOfMemory or DeviceLost."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        classify_error(error)
        raise


def classify_error(error: Exception) -> None:
    """Raise OutOfMemory or DeviceLost if that is what the error means; else do nothing."""
    if is_out_of_memory(error):
        raise errors.OutOfMemory() from None
    if any(words in str(error) for words in _LOST) and _ABSENT not in str(error):
        raise errors.DeviceLost() from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether the memory of a card or of the host ran out. torch has no common class for both."""
    return isinstance(error, MemoryError | errors.OutOfMemory) or any(
        words in str(error) for words in _NO_MEMORY
    )


def release_memory(device: torch.device) -> None:
    """Return the memory that torch caches for later allocations to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def device_busy_waits() -> bool:
    """Whether a thread that waits for its device uses the processor meanwhile.

    CUDA does by default.
    """
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
