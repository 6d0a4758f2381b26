"""Reads and writes network files: .safetensors, .pth and .caffemodel, chosen by suffix.

Only safetensors keeps metadata about the network (a mapping of strings). Never unpickles anything
that could run code. Knows no cache.
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

Metadata = Mapping[str, str]

# The input that a network expects. torchvision: RGB in [0, 1], minus the mean, divided by the
# standard deviation. caffe: BGR in 0 to 255, minus Caffe's mean.
Convention = Literal["torchvision", "caffe"]
_INPUT_FORMATS: dict[Convention, Input] = {"torchvision": TORCHVISION, "caffe": CAFFE}

# Prefixes of the SHA-256 of well-known .pth conversions of the Caffe networks, which expect
# Caffe's input. Their file names hold them too: vgg16-00b39a1b.pth, vgg19-d01eb7cb.pth.
_CAFFE_CONVERSION_HASHES = ("00b39a1b", "d01eb7cb")

SUFFIXES = (".safetensors", ".pth", ".caffemodel")


def read_network(
    path: Path, convention: Convention | None = None
) -> tuple[Parameters, dict[str, str]]:
    """Read a network file: its parameters, with RGB input, and its metadata. Raises BadWeights.

    convention: what input the file's network expects. None uses the one that the file states or
    implies.
    """
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    source = {"from": path.name, "from_sha256": sha256}
    suffix = path.suffix.lower()
    metadata = source
    if suffix == ".caffemodel":
        convention = convention or "caffe"
        parameters = Parameters.of(caffe.read_caffemodel(path), _INPUT_FORMATS[convention])
    elif suffix == ".safetensors":
        tensors, stated = read_safetensors(path)
        metadata = {**stated, **source}
        if convention is None:
            parameters = from_torchvision(tensors, parse_input_format(stated))
        else:
            parameters = from_torchvision(tensors, _INPUT_FORMATS[convention])
    else:
        if convention is None:
            is_conversion = sha256.startswith(_CAFFE_CONVERSION_HASHES)
            convention = "caffe" if is_conversion else "torchvision"
        parameters = from_torchvision(read_pth(path), _INPUT_FORMATS[convention])
    if convention == "caffe":
        parameters = parameters.swap_color_order()  # BGR to RGB
    return parameters, metadata


def write_network(
    path: Path, parameters: Parameters, metadata: Metadata, convention: Convention | None = None
) -> None:
    """Write a network file atomically; a .caffemodel with its .prototxt.

    convention: the input that the written network expects. None means the network's own input for
    .safetensors, which records it, Caffe's for .caffemodel, and torchvision's for .pth.
    Raises BadInput, StorageFull, OSError.
    """
    suffix = path.suffix.lower()
    if convention is None and suffix != ".safetensors":
        convention = "caffe" if suffix == ".caffemodel" else "torchvision"
    if convention is not None:
        parameters = parameters.convert_input(_INPUT_FORMATS[convention])
    if suffix == ".safetensors":
        write_safetensors(path, parameters, metadata)
        return
    if convention == "caffe":
        parameters = parameters.swap_color_order()  # RGB to BGR
    if suffix == ".caffemodel":
        caffe.write_caffemodel(path, parameters)
    else:
        atomic_write(path, lambda part: save_pth(part, parameters.to_state_dict()))


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a .safetensors file. Raises BadWeights."""
    with open_weights_file(path) as file:
        try:
            names = list(file.keys())  # safe_open is no mapping, so it needs keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
        except safetensors.SafetensorError as error:
            raise errors.BadWeights(f"{path} is no readable weights file.") from error


def write_safetensors(path: Path, parameters: Parameters, metadata: Metadata) -> None:
    """Write a network atomically, with torchvision's names. Raises StorageFull, OSError.

    Adds architecture, SHA-256, mean and standard deviation of the input to the metadata.
    """
    derived = {
        "architecture": parameters.architecture,
        "sha256": parameters.sha256,
        "mean": json.dumps(parameters.input_format.mean),
        "std": json.dumps(parameters.input_format.std),
    }
    complete = {**metadata, **derived}
    atomic_write(path, lambda part: save_tensors(part, parameters.to_state_dict(), complete))


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Metadata) -> None:
    """Write a .safetensors file. Raises OSError."""
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    try:
        save_file(dict(tensors), path, dict(metadata))
        # save_file sets 0600. Restore the umask's mode so that a worker of another user can read.
        path.chmod(mode)
    except safetensors.SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        raise OSError(int(number[1]) if number else None, str(error), str(path)) from error


def save_pth(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file with torch.save. Raises OSError."""
    with path.open("wb") as file:
        recorder = _ErrorRecorder(file)
        torch.save(dict(content), recorder)  # type: ignore[arg-type]
        if recorder.error is not None:
            raise recorder.error


class _ErrorRecorder:
    """A file for torch.save that records the first OSError instead of raising it.

    torch.save would turn it into a RuntimeError without errno.
    """

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
        """Do nothing: torch.save calls this just before the file is closed."""


def open_weights_file(path: Path) -> Any:
    """Open a .safetensors file for reading. Raises BadWeights."""
    try:
        return safetensors.safe_open(path, framework="pt")
    except (safetensors.SafetensorError, OSError) as error:
        raise errors.BadWeights(f"{path} is no readable weights file.") from error


def parse_input_format(metadata: Metadata) -> Input:
    """The input that the metadata states (`mean`, `std`); torchvision's by default.

    Raises BadWeights.
    """
    try:
        mean = _parse_color(metadata["mean"]) if "mean" in metadata else TORCHVISION.mean
        std = _parse_color(metadata["std"]) if "std" in metadata else TORCHVISION.std
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise errors.BadWeights(
            "The file's metadata mean and std must be three numbers each."
        ) from error
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise errors.BadWeights("The file's metadata mean and std must be finite, std above 0.")
    return Input(mean, std)


def _parse_color(text: str) -> Color:
    red, green, blue = map(float, json.loads(text))
    return red, green, blue


def load_torch_file(path: Path) -> dict[str, Any]:
    """Load the dictionary of a torch.save file without running code in it. Raises BadWeights."""
    try:
        is_intact = _is_intact(path)
        # torch warns about oddities of a bad file; the error below covers them.
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True) if is_intact else None
    except Exception as error:  # the unpickler raises errors of many unrelated classes on garbage
        raise errors.BadWeights(f"{path} is no weights file that can be read safely.") from error
    if not is_intact:
        raise errors.BadWeights(f"{path} is damaged.")
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise errors.BadWeights(f"{path} is no dictionary of tensors.")
    return content


def _is_intact(path: Path) -> bool:
    """Check the archive's checksums, which torch.load ignores.

    torch.save never compresses. A compressed entry is refused, because it may expand a
    thousandfold. Files of before 2020 are no zip archives and have no checksums.
    """
    if not zipfile.is_zipfile(path):
        return True
    with zipfile.ZipFile(path) as archive:
        is_compressed = any(entry.compress_type for entry in archive.infolist())
        return not is_compressed and archive.testzip() is None


def read_pth(path: Path) -> dict[str, Tensor]:
    """The tensors of a torch.save file. Raises BadWeights."""
    tensors = load_torch_file(path)
    if not all(isinstance(tensor, Tensor) and _is_stored(tensor) for tensor in tensors.values()):
        raise errors.BadWeights(
            f"{path} is no dictionary of tensors with all their numbers; save only a network's "
            "state_dict()."
        )
    return tensors


def _is_stored(tensor: Tensor) -> bool:
    """Whether the file holds every number of the tensor.

    An expanded tensor of a few bytes can stand for terabytes, which must never be allocated.
    """
    if (
        tensor.is_nested
        or tensor.is_quantized
        or tensor.layout != torch.strided
        or tensor.device.type != "cpu"
    ):
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
