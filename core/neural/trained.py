"""What comes out of a training, as files that are whole or not there. Knows no data and no optimiser.

- `network.safetensors`: the convolutions for painting, at full width, batch normalization taken into them, with a card
- `whole.safetensors`: all that was trained, as it was, with the same card
- `network.pth`: the same as a state dict in torchvision's naming
"""

import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors
import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import save_file
from torch import Tensor

from core import errors
from core.neural.classifier import Classifier, full_outputs, places, widened
from core.neural.vgg import TORCHVISION
from core.recipe import Recipe


class About(BaseModel):
    """What a network was trained on, and how."""

    model_config = ConfigDict(frozen=True)

    dataset_sha256: str
    classes: list[str]
    recipe: Recipe
    start_sha256: str = ""


def publish(folder: Path, model: Classifier, about: About, epoch: int, validation: list[float] | None) -> None:
    """Write the three files. validation: loss, top-1, top-5. Raises StorageFull."""
    recipe = about.recipe
    card = _card(about, epoch, validation)
    names = places(recipe.architecture).values()
    pairs = widened(model.folded(), full_outputs(recipe.architecture))
    folded = {
        f"{name}.{kind}": tensor
        for name, pair in zip(names, pairs, strict=True)
        for kind, tensor in zip(("weight", "bias"), pair, strict=True)
    }
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    digest = hashlib.sha256()  # as core/neural/weights.py has it: over every weight and bias, in order
    for pair in pairs:
        for tensor in pair:
            digest.update(tensor.contiguous().numpy().tobytes())
    _written(
        folder / "network.safetensors", lambda file: save_file(folded, file, {**card, "sha256": digest.hexdigest()})
    )
    _written(folder / "whole.safetensors", lambda file: save_file(whole, file, card))
    _written(folder / "network.pth", lambda file: torch.save(whole, file))


def _card(about: About, epoch: int, validation: list[float] | None) -> dict[str, str]:
    card = {
        "architecture": about.recipe.architecture,
        "program": f"impasto {version('impasto')}",
        "dataset_sha256": about.dataset_sha256,
        "classes": json.dumps(about.classes),
        "recipe": about.recipe.model_dump_json(),
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


def save(file: Path, content: Mapping[str, Any]) -> None:
    """A checkpoint, on disk when it returns, in the place of the one before. Raises StorageFull."""
    _written(file, lambda part: torch.save(dict(content), part))


def load(file: Path) -> dict[str, Any]:
    """A checkpoint. Raises BadWeights."""
    try:
        with zipfile.ZipFile(file) as archive:
            torn = archive.testzip() is not None  # torch looks at no checksum
        if not torn:
            return dict(torch.load(file, map_location="cpu", weights_only=True))
    except (OSError, zipfile.BadZipFile, EOFError, pickle.UnpicklingError, RuntimeError, ValueError) as error:
        raise errors.BadWeights(f"{file} is damaged, or is something else.") from error
    raise errors.BadWeights(f"{file} is damaged.")


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` or `.pth` file. Raises BadWeights."""
    if file.suffix != ".safetensors":
        return {name: tensor for name, tensor in load(file).items() if isinstance(tensor, Tensor)}
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    except (safetensors.SafetensorError, OSError) as error:
        raise errors.BadWeights(f"{file} is no file of weights that can be read.") from error


def digest_of(file: Path | None) -> str:
    """SHA-256 of a file; empty for none. Raises BadWeights."""
    if file is None:
        return ""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise errors.BadWeights(f"{file} cannot be read.") from error


def _written(file: Path, write: Callable[[Path], object]) -> None:
    part = file.with_name(f"{file.name}.part")
    try:
        write(part)
        with part.open("rb") as opened:
            os.fsync(opened.fileno())
        part.replace(file)
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # torch tells a full disk as a RuntimeError
        part.unlink(missing_ok=True)
        raise errors.StorageFull(f"There is no room for {file}; make some and go on with the run.") from error
