"""What comes out of a training, and where it stands, as files that are whole or not there. Knows no data.

- `network.safetensors`: the convolutions for painting, at full width, batch normalization taken into them, with a card
- `whole.safetensors`: all that was trained, as it was, with the same card
- `network.pth`: the same as a state dict in torchvision's naming
- `checkpoint.pt`: all that a run needs to go on
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
from core.neural.training.classifier import Classifier, full_outputs, widened
from core.neural.vgg import TORCHVISION
from core.neural.weights import files
from core.neural.weights.parameters import Parameters
from core.storage.files import atomic_write
from core.training.config import TrainingConfig

_FORMAT: Literal[1] = 1


class RunInfo(BaseModel):
    """What a network was trained on, and how."""

    model_config = ConfigDict(frozen=True)

    dataset_sha256: str
    classes: list[str]
    recipe: TrainingConfig
    start_sha256: str = ""
    precision: str = ""  # what `auto` meant where the run began; empty before it is known


@dataclass
class RunPosition:
    """Where a run stands, beside its tensors."""

    step: int = 0
    best: float = -1.0  # top-1 of the best validation
    best_epoch: int = 0
    last_top1: float | None = None
    log_bytes: int = 0
    ended: bool = False


class Checkpoint(BaseModel):
    """All that a run needs to go on."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    about: Json[RunInfo]
    position: RunPosition
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]


def publish(
    folder: Path, model: Classifier, about: RunInfo, epoch: int, validation: list[float] | None
) -> None:
    """Write the three files. validation: loss, top-1, top-5. Raises StorageFull, OSError."""
    card = _card(about, epoch, validation)
    parameters = Parameters.of(widened(model.folded(), full_outputs(about.recipe.architecture)))
    whole = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    files.write_safetensors(folder / "network.safetensors", parameters, card)
    atomic_write(folder / "whole.safetensors", lambda part: files.save_tensors(part, whole, card))
    atomic_write(folder / "network.pth", lambda part: files.save_pth(part, whole))


def _card(about: RunInfo, epoch: int, validation: list[float] | None) -> dict[str, str]:
    card = {
        "architecture": about.recipe.architecture,
        "program": f"impasto {version('impasto')}",
        "dataset_sha256": about.dataset_sha256,
        "classes": json.dumps(about.classes),
        "recipe": about.recipe.model_dump_json(),
        "precision": about.precision,
        "epoch": str(epoch),
        "mean": json.dumps(TORCHVISION.mean),
        "std": json.dumps(TORCHVISION.std),
    }
    if about.start_sha256:
        card["start_sha256"] = about.start_sha256
    if validation is not None:
        names = ("validation_loss", "validation_top1", "validation_top5")
        card |= {name: f"{value:.6g}" for name, value in zip(names, validation, strict=True)}
    return card


def save(
    file: Path,
    about: RunInfo,
    position: RunPosition,
    *,
    model: dict[str, Tensor],
    optimizer: Any,
    scaler: Any,
) -> None:
    """A checkpoint, on disk when it returns, in the place of the one before. Raises StorageFull, OSError."""
    content = {"format": _FORMAT, "about": about.model_dump_json(), "position": asdict(position)}
    content |= {"model": model, "optimizer": optimizer, "scaler": scaler}
    atomic_write(file, lambda part: files.save_pth(part, content))


def load(file: Path) -> Checkpoint:
    """A checkpoint. Raises BadWeights."""
    content = files.load(file)
    if content.get("format") != _FORMAT:
        raise errors.BadWeights(f"{file} is of another version; begin another run.")
    try:
        return Checkpoint.model_validate(content)
    except ValueError as error:  # pydantic's are
        raise errors.BadWeights(f"{file} is damaged; begin another run.") from error


def read_start_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` or `.pth` file. Raises BadWeights."""
    if file.suffix.lower() == ".safetensors":
        return files.read_safetensors(file)[0]
    return files.read_pth(file)


def digest_of(file: Path | None) -> str:
    """SHA-256 of a file; empty for none. Raises BadWeights."""
    if file is None:
        return ""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise errors.BadWeights(f"{file} cannot be read.") from error
