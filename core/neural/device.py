"""A device: which one to use, whether this torch can run on it, its errors, and its memory.

Knows no network and no pictures.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from core import errors
from core.neural import torch_versions
from core.neural.torch_versions import Capability, TorchSet

# What torch and its libraries say when memory is short, also where a library has no status of its
# own for it. A lost device says some of it, too; then the next call fails as well.
_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "cudaErrorMemoryAllocation",
    "ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUSOLVER_STATUS_NOT_INITIALIZED",
    "CUSOLVER_STATUS_INTERNAL_ERROR",
    "unable to find an engine to execute this computation",
    "Invalid buffer size",  # mps
    "NVML_SUCCESS == r",  # the allocator's report of missing memory failed
)
# After most of these, every further call fails.
_LOST = (
    "CUDA error",
    "CUDA driver error",
    "CUDNN_STATUS_MAPPING_ERROR",
    "GPU is lost",
    "No CUDA GPUs are available",
)
_ABSENT = "invalid device ordinal"  # the setting names a card that does not exist


def best_device(wanted: str = "auto") -> torch.device:
    """The device for a setting.

    `auto` takes CUDA, else Apple's GPU (mps), else the CPU; other names are torch's. Raises
    BadSettings if the name means a card that is absent or that this torch has no kernels for.
    """
    if wanted != "auto":
        device = torch.device(wanted)
    elif torch.cuda.is_available():
        device = torch.device("cuda")
    else:
        device = torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if device.type == "cuda":
        _check_card(device)
    return device


def _check_card(device: torch.device) -> None:
    used = torch_versions.installed_set()
    if not torch.cuda.is_available():
        raise errors.BadSettings(
            f"CUDA does not work here: torch {torch.__version__} needs an NVIDIA card and driver "
            f"{used.driver} or newer. `impasto doctor` says what there is."
        )
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise errors.BadSettings(
            f"There is no device {device}; `impasto doctor` lists the cards, from cuda:0."
        )
    problem = kernel_problem(torch.cuda.get_device_capability(device))
    if problem:
        name = torch.cuda.get_device_name(device)
        raise errors.BadSettings(f"{name} cannot be used: {problem}")


def kernel_problem(capability: Capability) -> str:
    """Why this torch cannot run on cards of a compute capability, and what to do; "" if it can."""
    if _has_kernels(capability, torch.cuda.get_arch_list()):
        return ""
    used = torch_versions.installed_set()
    reason = (
        f"torch {torch.__version__} has no kernels for compute capability "
        f"{capability[0]}.{capability[1]}."
    )
    other = torch_versions.LEGACY if used is torch_versions.DEFAULT else torch_versions.DEFAULT
    return f"{reason} {_describe_remedy(other, capability)}"


def _describe_remedy(other: TorchSet, capability: Capability) -> str:
    if other.lowest <= capability <= other.highest:
        return f"The set of {other.constraints} (torch {other.torch}) has them: {other.install}."
    return "No version that Impasto supports has them; set the device to cpu."


def _has_kernels(capability: Capability, architectures: Iterable[str]) -> bool:
    """Whether one of torch's architectures (sm_75, compute_120 …) runs on a card.

    Machine code (sm) runs on cards of the same major capability and at least its minor one, PTX
    (compute) on all later cards; a suffix restricts that. True if torch names no architecture.
    """
    parsed = [re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name) for name in architectures]
    known = [match.groups() for match in parsed if match]
    for kind, major, minor, suffix in known:
        built = (int(major), int(minor))
        is_same_family = built[0] == capability[0]
        if suffix == "a":
            fits = built == capability
        elif kind == "sm" or suffix == "f":
            fits = is_same_family and built <= capability
        else:
            fits = built <= capability
        if fits:
            return True
    return not known


@dataclass(frozen=True)
class Card:
    """A card that torch sees. problem: why it cannot be used, and what to do; "" if it can."""

    name: str
    capability: Capability
    total_bytes: int
    free_bytes: int
    problem: str


def list_cards() -> list[Card]:
    """The CUDA cards that torch sees. Raises DeviceLost, OutOfMemory."""
    cards = []
    with translate_device_errors():
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            capability = torch.cuda.get_device_capability(index)
            free, total = torch.cuda.mem_get_info(index)
            name, problem = torch.cuda.get_device_name(index), kernel_problem(capability)
            cards.append(Card(name, capability, total, free, problem))
    return cards


def use_threads(count: int) -> None:
    """Set the number of CPU threads for this process.

    0 leaves torch's default, the number of cores.
    """
    if count:
        torch.set_num_threads(count)


# ---------------------------------------------------------------------- errors


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


# ---------------------------------------------------------------------- memory


def configure_allocator(device: torch.device) -> None:
    """Let a card's allocator grow its segments, so that free memory does not fall into pieces.

    Call it before the first allocation. It changes nothing that the user has configured. Some
    drivers cannot do it (a first allocation then fails, for example under WSL 2); they keep fixed
    segments.
    """
    is_configured = any(
        name in os.environ for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    )
    if device.type != "cuda" or is_configured:
        return
    torch_versions.set_allocator_settings("expandable_segments:True")
    try:
        torch.empty(1, device=device)
    except RuntimeError:
        torch_versions.set_allocator_settings("expandable_segments:False")


def limit_memory(device: torch.device, more_bytes: int | None) -> None:
    """Let this process take at most so many bytes more than now; None removes the limit.

    An allocation beyond the limit fails as if the card were full. Only cards have such a limit.
    """
    if device.type != "cuda":
        return
    share = 1.0
    if more_bytes is not None:
        _, total = torch.cuda.mem_get_info(device)
        share = min(1.0, (torch.cuda.memory_allocated(device) + more_bytes) / total)
    torch.cuda.set_per_process_memory_fraction(share, device)


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


def device_label(device: torch.device) -> str:
    """Return a name that tells the cards of a host apart: cpu, mps, cuda:1, or a card's UUID.

    With CUDA_VISIBLE_DEVICES, torch numbers the visible cards from 0; the name is the host's.
    """
    if device.type != "cuda":
        return device.type
    index = device.index or 0
    visible = [one.strip() for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    name = visible[index] if index < len(visible) and visible[index] else str(index)
    return f"cuda:{name}" if name.isdigit() else name


def measure_memory(device: torch.device) -> tuple[int, int]:
    """Return the bytes in use, and those that there are: of the card; of this process on a CPU."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total - free, total
    if device.type == "mps":
        return torch.mps.driver_allocated_memory(), torch.mps.recommended_max_memory()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 0, total
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"), total


def measure_utilization(device: torch.device) -> float | None:
    """Return how busy the card is, 0 to 1, by its driver; None if that is not known."""
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.utilization(device) / 100
    except (RuntimeError, ModuleNotFoundError, AttributeError):
        return None  # without NVML, or a card that does not count
