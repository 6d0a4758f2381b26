"""Data-parallel training with the processes that `torchrun` starts, or one. Knows no network."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from core import errors
from core.neural.device import best_device
from core.neural.training.data import Shard

_MAX_READERS = 16


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train one network, as seen by this process."""

    shard: Shard = field(default_factory=Shard)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this process (rank 0) writes the files."""
        return self.shard.rank == 0

    def sum_over_processes(self, numbers: Tensor) -> Tensor:
        """The element-wise sum over all processes, in place."""
        if self.shard.world_size > 1:
            torch.distributed.all_reduce(numbers)
        return numbers

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with those of the main process."""
        if self.shard.world_size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor.detach(), 0)

    def average_gradients(self, model: nn.Module) -> None:
        """Replace the model's gradients by their mean over all processes.

        torch's DistributedDataParallel is no option: it never releases the process group, whose
        threads then outlive the interpreter, so that now and then a complete run ends with an
        abort. The price: communication does not overlap with the backward pass.
        """
        if self.shard.world_size > 1:
            gradients = [
                parameter.grad for parameter in model.parameters() if parameter.grad is not None
            ]
            # Start all transfers before waiting for the first.
            works = [
                torch.distributed.all_reduce(gradient, async_op=True) for gradient in gradients
            ]
            for gradient, work in zip(gradients, works, strict=True):
                work.wait()
                gradient.div_(self.shard.world_size)


@contextmanager
def join_process_group(device_name: str) -> Iterator[ProcessGroup]:
    """Join the process group that torchrun's environment describes; alone without torchrun.

    Uses NCCL between GPUs, else gloo. Raises BadSettings for a device that does not exist.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    shard = Shard(rank, world_size)
    device = _open_device(device_name)
    if world_size == 1:
        yield ProcessGroup(shard, device)
        return
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield ProcessGroup(shard, device)
    finally:
        torch.distributed.destroy_process_group()


def _open_device(name: str) -> torch.device:
    try:
        device = best_device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.zeros(1, device=device)  # raises if the device does not exist
        if device.type == "cuda":
            torch.cuda.set_device(device)
    # torch raises either of these for a device that does not exist.
    except (RuntimeError, AssertionError) as error:
        raise errors.BadSettings(
            f"The device {name} cannot be used here; cpu always can."
        ) from error
    return device


def default_reader_count(group: ProcessGroup) -> int:
    """Number of reader processes that keep the device busy.

    One next to a CPU, whose cores train; next to GPUs, each GPU's share of the cores.
    """
    if group.device.type != "cuda":
        return 1
    cores_per_gpu = (os.cpu_count() or 1) // max(1, torch.cuda.device_count())
    return max(1, min(_MAX_READERS, cores_per_gpu))
