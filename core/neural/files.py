"""Files that networks come in and go out in: .safetensors, .pth, .caffemodel, by their suffix.

What a file tells of its network is its card, names and texts, which safetensors alone keeps. Nothing that can run code
is ever unpickled. Knows no cache.
"""

import hashlib
import io
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from core import errors
from core.neural import caffe
from core.neural.parameters import CAFFE, Parameters, from_torchvision
from core.neural.vgg import TORCHVISION, Color, Input

Card = Mapping[str, str]

# What a file's network takes: RGB less torchvision's mean, by its deviation; or BGR in 0 to 255 less Caffe's mean.
Convention = Literal["torchvision", "caffe"]
_INPUTS: dict[Convention, Input] = {"torchvision": TORCHVISION, "caffe": CAFFE}

# Conversions of the Caffe networks for torch, which take what those take; known by the first digits of the SHA-256, as
# they are in their names: vgg16-00b39a1b.pth, vgg19-d01eb7cb.pth.
_CAFFE_IN_TORCH = ("00b39a1b", "d01eb7cb")

SUFFIXES = (".safetensors", ".pth", ".caffemodel")


def read(path: Path, convention: Convention | None = None) -> tuple[Parameters, Card]:
    """The network in a file, and its card; without a convention, the file's own. Raises BadWeights."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    card = {"from": path.name, "from_sha256": sha256}
    if path.suffix == ".caffemodel":
        parameters = Parameters.of(caffe.read(path), _INPUTS[convention := convention or "caffe"])
    elif path.suffix == ".safetensors":
        tensors, told = read_safetensors(path)
        card = {**told, **card}
        parameters = from_torchvision(tensors, _INPUTS[convention] if convention else input_of(told))
    else:
        convention = convention or ("caffe" if sha256.startswith(_CAFFE_IN_TORCH) else "torchvision")
        parameters = from_torchvision(read_pth(path), _INPUTS[convention])
    return parameters.turned() if convention == "caffe" else parameters, card


def write(path: Path, parameters: Parameters, card: Card, convention: Convention | None = None) -> None:
    """The network as a file, a .caffemodel with its .prototxt. A .safetensors tells what the network takes as it is."""
    if path.suffix == ".safetensors":
        write_safetensors(path, parameters, card)
        return
    convention = convention or ("caffe" if path.suffix == ".caffemodel" else "torchvision")
    parameters = parameters.taking(_INPUTS[convention])
    parameters = parameters.turned() if convention == "caffe" else parameters
    if path.suffix == ".caffemodel":
        caffe.write(path, parameters)
    else:
        data = io.BytesIO()  # torch tells a folder that is not there, or a full disk, in a way of its own
        torch.save(parameters.named(), data)
        path.write_bytes(data.getbuffer())


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], Card]:
    """Tensors and what is told of them. Raises BadWeights."""
    with opened(path) as file:
        try:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 - no mapping
        except safetensors.SafetensorError as error:
            raise errors.BadWeights(f"{path} is no file of weights that can be read.") from error


def write_safetensors(path: Path, parameters: Parameters, card: Card) -> None:
    """By torchvision's names, with the card completed. Whole or not at all."""
    mean, std = json.dumps(parameters.takes.mean), json.dumps(parameters.takes.std)
    own = {"architecture": parameters.architecture, "sha256": parameters.sha256, "mean": mean, "std": std}
    written = path.with_suffix(".part")
    written.write_bytes(save(parameters.named(), metadata={**card, **own}))
    written.replace(path)


def opened(path: Path) -> Any:
    """A .safetensors file, to read from. Raises BadWeights."""
    try:
        return safetensors.safe_open(path, framework="pt")
    except (safetensors.SafetensorError, OSError) as error:
        raise errors.BadWeights(f"{path} is no file of weights that can be read.") from error


def input_of(card: Card) -> Input:
    """What the card says that the network takes; torchvision's, if it says nothing. Raises BadWeights."""
    try:
        mean = _color(card["mean"]) if "mean" in card else TORCHVISION.mean
        std = _color(card["std"]) if "std" in card else TORCHVISION.std
    except (ValueError, TypeError, RecursionError) as error:
        raise errors.BadWeights("What the file tells as mean and std must be three numbers each.") from error
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise errors.BadWeights("What the file tells as mean and std must be finite, std above 0.")
    return Input(mean, std)


def _color(text: str) -> Color:
    red, green, blue = map(float, json.loads(text))
    return red, green, blue


def read_pth(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that torch saved. Raises BadWeights."""
    try:
        with warnings.catch_warnings(action="ignore"):  # what torch finds odd in a bad file, our error says in words
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what the unpickler raises on garbage belongs to no one family
        raise errors.BadWeights(f"{path} is no file of weights that can be read safely.") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise errors.BadWeights(f"{path} is no dictionary of tensors.")
    return tensors
