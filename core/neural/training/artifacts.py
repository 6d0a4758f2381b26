"""The files of a training run, each written atomically. Knows no data.

- `network.safetensors`: the convolutions for style transfer, at full width, with batch
  normalization folded in, and with metadata
- `whole.safetensors`: the complete classifier as trained, with the same metadata
- `network.pth`: the complete classifier as a state dict with torchvision's names
- `checkpoint.pt`: the state that a run resumes from
"""

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Json
from pydantic.dataclasses import dataclass
from torch import Tensor

from core import errors
from core.neural.training.classifier import Classifier, full_width_filters, widen
from core.neural.vgg import TORCHVISION
from core.neural.weights import files
from core.neural.weights.parameters import Parameters
from core.storage.files import atomic_write
from core.training.config import TrainingConfig

_CHECKPOINT_FORMAT: Literal[2] = 2


class RunInfo(BaseModel):
    """What a network is trained on, and how."""

    model_config = ConfigDict(frozen=True)

    dataset_sha256: str
    classes: list[str]
    config: TrainingConfig
    start_sha256: str = ""
    precision: str = ""  # what `auto` meant when the run started; empty before that is known


@dataclass
class RunPosition:
    """How far a run has come, without its tensors."""

    step: int = 0
    best_top1: float = -1.0  # share from 0 to 1, of the best validation; -1 without validation
    best_epoch: int = 0
    last_top1: float | None = None
    log_bytes: int = 0  # length of log.csv at the checkpoint
    has_ended: bool = False


class Checkpoint(BaseModel):
    """The state that a run resumes from."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    info: Json[RunInfo]
    position: RunPosition
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]


def publish(
    folder: Path, model: Classifier, info: RunInfo, epoch: int, validation: list[float] | None
) -> None:
    """Write the three network files. Raises StorageFull, OSError.

    validation: loss, top-1 and top-5; None without validation pictures.
    """
    metadata = _build_metadata(info, epoch, validation)
    filter_counts = full_width_filters(info.config.architecture)
    parameters = Parameters.of(widen(model.fold_convolutions(), filter_counts))
    whole = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    files.write_safetensors(folder / "network.safetensors", parameters, metadata)
    atomic_write(
        folder / "whole.safetensors", lambda part: files.save_tensors(part, whole, metadata)
    )
    atomic_write(folder / "network.pth", lambda part: files.save_pth(part, whole))


def _build_metadata(info: RunInfo, epoch: int, validation: list[float] | None) -> dict[str, str]:
    metadata = {
        "architecture": info.config.architecture,
        "program": f"impasto {version('impasto')}",
        "dataset_sha256": info.dataset_sha256,
        "classes": json.dumps(info.classes),
        "config": info.config.model_dump_json(),
        "precision": info.precision,
        "epoch": str(epoch),
        "mean": json.dumps(TORCHVISION.mean),
        "std": json.dumps(TORCHVISION.std),
    }
    if info.start_sha256:
        metadata["start_sha256"] = info.start_sha256
    if validation is not None:
        names = ("validation_loss", "validation_top1", "validation_top5")
        metadata |= {name: f"{value:.6g}" for name, value in zip(names, validation, strict=True)}
    return metadata


def save_checkpoint(
    path: Path,
    info: RunInfo,
    position: RunPosition,
    *,
    model: dict[str, Tensor],
    optimizer: Any,
    scaler: Any,
) -> None:
    """Replace the checkpoint atomically; it is on disk on return. Raises StorageFull, OSError."""
    content = {
        "format": _CHECKPOINT_FORMAT,
        "info": info.model_dump_json(),
        "position": asdict(position),
    }
    content |= {"model": model, "optimizer": optimizer, "scaler": scaler}
    atomic_write(path, lambda part: files.save_pth(part, content))


def load_checkpoint(path: Path) -> Checkpoint:
    """Load and validate a checkpoint. Raises BadWeights."""
    content = files.load_torch_file(path)
    if content.get("format") != _CHECKPOINT_FORMAT:
        raise errors.BadWeights(f"{path} is of another version; start another run.")
    try:
        return Checkpoint.model_validate(content)
    except ValueError as error:  # includes pydantic's ValidationError
        raise errors.BadWeights(f"{path} is damaged; start another run.") from error


def read_start_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` or `.pth` file. Raises BadWeights."""
    if path.suffix.lower() == ".safetensors":
        return files.read_safetensors(path)[0]
    return files.read_pth(path)


def compute_sha256(path: Path | None) -> str:
    """SHA-256 of a file in hex; empty for None. Raises BadWeights."""
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise errors.BadWeights(f"{path} cannot be read.") from error
