"""A checkpoint: where a run stands, and all that it takes to go on from there to the same bits. A file, or in passing.

Knows no network and no store; what a run does with it is stylize.py's business, where files lie is the worker's.
"""

import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from core.neural.transfer.optimize import SharedSnapshot
from core.neural.transfer.planner import Route

_FORMAT = 2
_UNREADABLE = (
    OSError,
    zipfile.BadZipFile,
    EOFError,
    UnpicklingError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
)


@dataclass(frozen=True)
class AppliedUpdate:
    """A change of weights during a run: which, and after which iteration."""

    iteration: int
    before: dict[str, Any]
    after: dict[str, Any]


@dataclass(frozen=True)
class CheckpointHeader:
    """Where a run stands, in words and numbers."""

    leg: int  # from 1
    count: int  # iterations of this leg
    counts: list[int]  # iterations of each leg, as they are planned by now
    before: float  # the loss at the last window's end, for the early stop
    losses: dict[str, float]
    seconds: float
    routes: list[Route]
    network: str  # its weights' digest, and its precision
    weights: dict[str, Any]  # the parameters that may be spec_updates, as they were
    spec_updates: list[AppliedUpdate]  # so far


class Checkpoint:
    """A mark, and the optimiser's state, on loan: to be saved at once, on any thread."""

    def __init__(self, mark: CheckpointHeader, loan: SharedSnapshot) -> None:
        self.mark, self._loan = mark, loan

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The optimiser's state."""
        return self._loan.tensors

    def save(self, file: Path) -> bool:
        """Write it; False if the run went on before all was read, and the file is worth nothing.

        Not on disk (fsync) when this returns: a file that a power cut tore is found out by its checksums.
        """
        try:
            torch.save(
                {"format": _FORMAT, "mark": asdict(self.mark), "tensors": dict(self.tensors)}, file
            )
        finally:
            self._loan.give_back()
        return not self._loan.spoiled


def load(file: Path) -> Checkpoint | None:
    """None where there is none that this version can read: then the run begins again."""
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.testzip() is not None:  # torch looks at no checksum
                return None
        found = torch.load(file, weights_only=True)
        if found["format"] != _FORMAT:
            return None
        mark = found["mark"]
        routes = [Route(**route) for route in mark.pop("routes")]
        spec_updates = [AppliedUpdate(**change) for change in mark.pop("spec_updates")]
        return Checkpoint(
            CheckpointHeader(routes=routes, spec_updates=spec_updates, **mark),
            SharedSnapshot(found["tensors"]),
        )
    except _UNREADABLE:
        return None
