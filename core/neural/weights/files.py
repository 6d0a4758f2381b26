"""Files that networks come in and go out in: .safetensors, .pth, .caffemodel, by their suffix.

What a file tells of its network is its card, names and texts, which safetensors alone keeps. Nothing that can run code
is ever unpickled. Knows no cache.
"""

import hashlib
import json
import math
import re
import stat
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from core import errors
from core.neural.vgg import TORCHVISION, Color, Input
from core.neural.weights import caffe
from core.neural.weights.parameters import CAFFE, Parameters, from_torchvision
from core.storage.files import atomic_write

Card = Mapping[str, str]

# What a file's network takes: RGB less torchvision's mean, by its deviation; or BGR in 0 to 255 less Caffe's mean.
Convention = Literal["torchvision", "caffe"]
_INPUTS: dict[Convention, Input] = {"torchvision": TORCHVISION, "caffe": CAFFE}

# Conversions of the Caffe networks for torch, which take what those take; known by the first digits of the SHA-256, as
# they are in their names: vgg16-00b39a1b.pth, vgg19-d01eb7cb.pth.
_CAFFE_IN_TORCH = ("00b39a1b", "d01eb7cb")

SUFFIXES = (".safetensors", ".pth", ".caffemodel")


def read_network(path: Path, convention: Convention | None = None) -> tuple[Parameters, Card]:
    """The network in a file, and its card; without a convention, the file's own. Raises BadWeights."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    card = {"from": path.name, "from_sha256": sha256}
    if path.suffix.lower() == ".caffemodel":
        parameters = Parameters.of(
            caffe.read_caffemodel(path), _INPUTS[convention := convention or "caffe"]
        )
    elif path.suffix.lower() == ".safetensors":
        tensors, told = read_safetensors(path)
        card = {**told, **card}
        parameters = from_torchvision(
            tensors, _INPUTS[convention] if convention else input_of(told)
        )
    else:
        convention = convention or (
            "caffe" if sha256.startswith(_CAFFE_IN_TORCH) else "torchvision"
        )
        parameters = from_torchvision(read_pth(path), _INPUTS[convention])
    return parameters.turned() if convention == "caffe" else parameters, card


def write_network(
    path: Path, parameters: Parameters, card: Card, convention: Convention | None = None
) -> None:
    """The network as a file, a .caffemodel with its .prototxt; whole, or what was there before.

    A .safetensors tells what the network takes: without a convention as it is. Raises BadInput, StorageFull, OSError.
    """
    suffix = path.suffix.lower()
    if convention is None and suffix != ".safetensors":
        convention = "caffe" if suffix == ".caffemodel" else "torchvision"
    if convention is not None:
        parameters = parameters.taking(_INPUTS[convention])
    if suffix == ".safetensors":
        write_safetensors(path, parameters, card)
        return
    parameters = parameters.turned() if convention == "caffe" else parameters
    if suffix == ".caffemodel":
        caffe.write_caffemodel(path, parameters)
    else:
        atomic_write(path, lambda part: save_pth(part, parameters.named()))


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], Card]:
    """Tensors and what is told of them. Raises BadWeights."""
    with open_weights_file(path) as file:
        try:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 - no mapping
        except safetensors.SafetensorError as error:
            raise errors.BadWeights(f"{path} is no file of weights that can be read.") from error


def write_safetensors(path: Path, parameters: Parameters, card: Card) -> None:
    """By torchvision's names, with the card completed. Whole or not at all. Raises StorageFull, OSError."""
    mean, std = json.dumps(parameters.takes.mean), json.dumps(parameters.takes.std)
    own = {
        "architecture": parameters.architecture,
        "sha256": parameters.sha256,
        "mean": mean,
        "std": std,
    }
    atomic_write(path, lambda part: save_tensors(part, parameters.named(), {**card, **own}))


def save_tensors(path: Path, tensors: Mapping[str, Tensor], card: Card) -> None:
    """A .safetensors file. Raises OSError."""
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    try:
        save_file(dict(tensors), path, dict(card))
        path.chmod(mode)  # or nobody else could read it, such as a worker of another user
    except safetensors.SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        raise OSError(int(number[1]) if number else None, str(error), str(path)) from error


def save_pth(path: Path, content: Mapping[str, Any]) -> None:
    """What torch saves. Raises OSError."""
    with path.open("wb") as file:
        sink = _Sink(file)
        torch.save(dict(content), sink)  # type: ignore[arg-type]
        if sink.error is not None:
            raise sink.error


class _Sink:
    """A file that keeps its error to itself until torch is done: torch tells of none in a way that says which."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Nothing: it is closed soon."""


def open_weights_file(path: Path) -> Any:
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
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise errors.BadWeights(
            "What the file tells as mean and std must be three numbers each."
        ) from error
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise errors.BadWeights("What the file tells as mean and std must be finite, std above 0.")
    return Input(mean, std)


def _color(text: str) -> Color:
    red, green, blue = map(float, json.loads(text))
    return red, green, blue


def load(path: Path) -> dict[str, Any]:
    """The dictionary that torch saved in a file. Runs nothing in it. Raises BadWeights."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                # torch looks at no checksum, and packs nothing: what is packed may be a thousand times as large
                whole = (
                    not any(entry.compress_type for entry in archive.infolist())
                    and archive.testzip() is None
                )
        else:
            whole = True  # the form of before 2020, which has no checksums
        with warnings.catch_warnings(
            action="ignore"
        ):  # what torch finds odd in a bad file, our error says in words
            found = torch.load(path, map_location="cpu", weights_only=True) if whole else None
    except Exception as error:  # what the unpickler raises on garbage belongs to no one family
        raise errors.BadWeights(f"{path} is no file of weights that can be read safely.") from error
    if not whole:
        raise errors.BadWeights(f"{path} is damaged.")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise errors.BadWeights(f"{path} is no dictionary of tensors.")
    return found


def read_pth(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that torch saved. Raises BadWeights."""
    tensors = load(path)
    if not all(isinstance(tensor, Tensor) and _is_plain(tensor) for tensor in tensors.values()):
        raise errors.BadWeights(
            f"{path} is no dictionary of tensors with all their numbers; save a network's state_dict() alone."
        )
    return tensors


def _is_plain(tensor: Tensor) -> bool:
    """Whether every number is in the file: a few bytes can stand for terabytes that nobody must ask for."""
    if (
        tensor.is_nested
        or tensor.is_quantized
        or tensor.layout != torch.strided
        or tensor.device.type != "cpu"
    ):
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
