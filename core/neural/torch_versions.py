"""The two sets of torch that the project runs on, and every difference between their interfaces.

The newest torch has no kernels for cards below compute capability 7.5. The legacy set has an older
one, which has. All other modules use only what both versions offer. Knows no network.
"""

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Capability = tuple[int, int]  # the compute capability of a card: major, minor


@dataclass(frozen=True)
class TorchSet:
    """A set of pinned packages with the cards that its torch has kernels for."""

    torch: str
    constraints: str
    install: str  # how a user installs it
    lowest: Capability
    highest: Capability
    driver: int  # the oldest major version of NVIDIA's driver on Linux


DEFAULT = TorchSet(
    "2.13.0",
    "constraints.txt",
    "`make up`, or `docker compose up --build`",
    (7, 5),
    (12, 1),
    580,
)
LEGACY = TorchSet(
    "2.7.1",
    "constraints-legacy-gpu.txt",
    "`make up GPU=legacy`, or docker-compose.legacy-gpu.yml",
    (5, 0),
    (9, 0),
    525,
)

# Whether a matrix product of half precisions can return its float32 sums.
HAS_MM_TO_FLOAT32 = hasattr(torch.ops.aten.mm, "dtype")


def installed_set() -> TorchSet:
    """The set of the installed torch; one of another version counts as the nearer set."""
    major, minor = (int(number) for number in torch.__version__.split(".")[:2])
    return LEGACY if (major, minor) <= (2, 7) else DEFAULT


def mm_to_float32(left: Tensor, right: Tensor) -> Tensor:
    """The product of two matrices in half precision on a card, summed and returned in float32.

    Only where `HAS_MM_TO_FLOAT32`.
    """
    return torch.mm(left, right, out_dtype=torch.float32)


@contextmanager
def allow_bfloat16_products() -> Iterator[None]:
    """Let oneDNN multiply float32 matrices, with factors rounded to bfloat16 where that is faster.

    Sums stay in float32. It rounds on processors with AMX; on others it is still faster than the
    library that torch takes else. The setting is the process's, not the thread's.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache
def has_bfloat16_kernels() -> bool:
    """Whether oneDNN runs bfloat16 on this CPU, and this build of torch has its fused kernels."""
    if not torch._C._has_mkldnn:
        return False
    names = ("_convolution_pointwise", "_convolution_pointwise_", "_reorder_convolution_weight")
    has_all = all(hasattr(torch.ops.mkldnn, name) for name in names)
    return has_all and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def cpu_capabilities() -> Mapping[str, Any]:
    """`architecture`, and true for each instruction set of the processor, by torch's names."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    # The kernel of Linux uses the same names.
    flags: set[str] = set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    return {"architecture": platform.machine(), **dict.fromkeys(flags, True)}


def set_allocator_settings(settings: str) -> None:
    """Configure CUDA's allocator, in the form of `PYTORCH_CUDA_ALLOC_CONF`."""
    if hasattr(torch._C, "_accelerator_setAllocatorSettings"):
        torch._C._accelerator_setAllocatorSettings(settings)
    else:
        torch.cuda.memory._set_allocator_settings(settings)


def cuda_of_build() -> str:
    """The version of CUDA that torch is built with; "" for a build without CUDA."""
    return torch.version.cuda or ""


def describe_build() -> str:
    """Version and kind of the installed torch, for people."""
    cuda = cuda_of_build()
    return f"{torch.__version__}, " + (f"built with CUDA {cuda}" if cuda else "built without CUDA")
