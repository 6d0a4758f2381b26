"""The processes that train one network together, as `torchrun` starts them; or one alone. Knows no network."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from core import errors
from core.neural.training.data import Share
from core.neural.vgg import best_device


@dataclass(frozen=True)
class ProcessGroup:
    """One process among them."""

    share: Share = field(default_factory=Share)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether it is the one that writes."""
        return self.share.rank == 0

    def summed(self, numbers: Tensor) -> Tensor:
        """Over all processes."""
        if self.share.size > 1:
            torch.distributed.all_reduce(numbers)
        return numbers

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """They become those of the process that leads."""
        if self.share.size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor.detach(), 0)

    def average(self, model: nn.Module) -> None:
        """Its gradients become the mean over all processes.

        Not by torch's DistributedDataParallel: it never lets go of the process group, whose threads then outlive the
        interpreter, and now and then a run ended, all done, in an abort. What that costs: nothing is sent while the
        gradients are still being computed.
        """
        if self.share.size > 1:
            gradients = [
                parameter.grad for parameter in model.parameters() if parameter.grad is not None
            ]
            sent = [torch.distributed.all_reduce(gradient, async_op=True) for gradient in gradients]
            for gradient, one in zip(gradients, sent, strict=True):
                one.wait()
                gradient.div_(self.share.size)


@contextmanager
def join_process_group(wanted: str) -> Iterator[ProcessGroup]:
    """The team of this process. Raises BadSettings for a device that is not there."""
    share = Share(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    device = _device(wanted)
    if share.size == 1:
        yield ProcessGroup(share, device)
        return
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield ProcessGroup(share, device)
    finally:
        torch.distributed.destroy_process_group()


def _device(wanted: str) -> torch.device:
    try:
        device = best_device(wanted)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.zeros(1, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:  # torch's answers to a device that is not there
        raise errors.BadSettings(
            f"The device {wanted} cannot be used here; cpu always can."
        ) from error
    return device


def reader_processes(team: ProcessGroup) -> int:
    """As many as keep a device busy: one beside a CPU, whose cores have enough to do; a GPU's share of the cores."""
    if team.device.type != "cuda":
        return 1
    return max(1, min(16, (os.cpu_count() or 1) // max(1, torch.cuda.device_count())))
