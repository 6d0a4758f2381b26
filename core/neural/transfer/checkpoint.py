"""A checkpoint: the position of a run and the state of its optimizer.

A run that continues from it computes the same bits. A checkpoint lives in memory or in a file. This
module knows no network and no store: `stylize.py` uses checkpoints, and the worker decides where
the files lie.
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
from core.style.spec import SpecUpdate

# A file of another format is not read: the run then starts again.
_FORMAT = 10

# What zipfile, torch.load and the dataclasses raise for a damaged or foreign file.
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
class CheckpointHeader:
    """The position of a run, without its tensors."""

    scale: int  # number of the current scale, from 1
    iteration: int  # iterations done at this scale
    iterations: list[int]  # planned iterations of each scale, as extended or cut so far
    window_loss: float  # the loss at the end of the last window, for the early stop
    start_loss: float  # of the initial image, or of the image at the newest spec update
    losses: dict[str, float]  # of the image, by name
    seconds: float  # since the run began, earlier attempts included
    routes: list[Route]  # of each scale
    network: str  # digest of its weights, and its precision
    weights: dict[str, Any]  # the updatable parameters with which the image was made
    spec_updates: list[SpecUpdate]  # so far


class Checkpoint:
    """A header and a snapshot of the optimizer's state. Save it at once, on any thread."""

    def __init__(self, header: CheckpointHeader, snapshot: SharedSnapshot) -> None:
        self.header, self._snapshot = header, snapshot

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The optimizer's state by name."""
        return self._snapshot.tensors

    def save(self, file: Path) -> bool:
        """Write the file. False if the run changed the tensors meanwhile: then the file is useless.

        The file is not synced to disk (fsync) when this returns. `load` detects a file that a power
        cut has torn.
        """
        header = asdict(self.header)
        header["spec_updates"] = [update.model_dump() for update in self.header.spec_updates]
        content = {"format": _FORMAT, "header": header, "tensors": dict(self.tensors)}
        try:
            torch.save(content, file)
        finally:
            self._snapshot.release()
        return not self._snapshot.is_overwritten


def load(file: Path) -> Checkpoint | None:
    """Read a checkpoint.

    None if the file is missing, damaged or of another format: then the run starts again.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.testzip() is not None:  # torch.load verifies no checksum
                return None
        content = torch.load(file, weights_only=True)
        if content["format"] != _FORMAT:
            return None
        header = content["header"]
        routes = [Route(**route) for route in header.pop("routes")]
        spec_updates = [SpecUpdate(**update) for update in header.pop("spec_updates")]
        return Checkpoint(
            CheckpointHeader(routes=routes, spec_updates=spec_updates, **header),
            SharedSnapshot(content["tensors"]),
        )
    except _UNREADABLE:
        return None
