"""What a device says when it cannot go on: memory that is not there, or nothing but errors from now on.

Knows no network and no pictures.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from core import errors

_NO_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
_LOST = ("CUDA error", "CUDA driver error")  # after most of them every call fails, whatever it asks
_ABSENT = "invalid device ordinal"  # of a card that has never been there


@contextmanager
def translate_device_errors() -> Iterator[None]:
    """Inside, what `classify_error` knows is raised as it says."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        classify_error(error)
        raise


def classify_error(error: Exception) -> None:
    """Raises OutOfMemory, DeviceLost; nothing where the error is another."""
    if is_out_of_memory(error):
        raise errors.OutOfMemory() from None
    if any(words in str(error) for words in _LOST) and _ABSENT not in str(error):
        raise errors.DeviceLost() from error


def is_out_of_memory(error: Exception) -> bool:
    """Of a card, or of the host: torch has no one class for it."""
    return isinstance(error, MemoryError | errors.OutOfMemory) or any(
        words in str(error) for words in _NO_MEMORY
    )


def release_memory(device: torch.device) -> None:
    """What torch keeps for later allocations."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def device_busy_waits() -> bool:
    """Whether a thread of this process that waits for its device may compute meanwhile."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
