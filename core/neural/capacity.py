"""What a card can do: the format in which it runs, and the largest pictures for its memory."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from core import errors
from core.neural.transfer.formats import stored_format
from core.neural.transfer.planner import Plan, Planner
from core.neural.vgg import Network, formats
from core.neural.weights.cache import random_parameters
from core.style.limits import SIZE_CLASSES
from core.style.spec import StyleSpec

_PHOTO = (4, 3)
_PAINTING_PX = (2048, 1536)


@dataclass(frozen=True)
class Capacity:
    """dtype, layout: as measured, or None. whole_px, tiled_px: the largest long sides; 0: none."""

    dtype: str | None
    layout: str | None
    whole_px: int
    tiled_px: int


def card_capacity(index: int, free_bytes: int, throughput_file: Path) -> Capacity:
    """The capacity of a card with the default network. Takes no memory of the card.

    If the card is not measured yet, the sizes are those of float32.
    """
    device = torch.device("cuda", index)
    chosen = stored_format(device, "vgg19", formats(device), throughput_file)
    dtype = chosen.dtype if chosen else torch.float32
    parameters = random_parameters("vgg19")
    # On the meta device: a plan needs the shapes only.
    network = Network("vgg19", parameters, name="", sha256="", device="meta", dtype=dtype)
    planner = Planner(network, free_bytes=free_bytes)
    whole_px = tiled_px = 0
    for size in reversed(SIZE_CLASSES):
        with suppress(errors.OutOfMemory):
            last = _plan(planner, size).scales[-1]
            tiled_px = max(tiled_px, size)
            if last.route.tile_px is None:
                whole_px = size
                break
    if chosen is None:
        return Capacity(None, None, whole_px, tiled_px)
    layout = "channels last" if chosen.layout == torch.channels_last else "channels first"
    return Capacity(str(dtype).removeprefix("torch."), layout, whole_px, tiled_px)


def largest_size(planner: Planner) -> int:
    """The largest of SIZE_CLASSES that has a plan for a photo of 4:3 by the defaults; 0: none."""
    for size in reversed(SIZE_CLASSES):
        with suppress(errors.OutOfMemory):
            _plan(planner, size)
            return size
    return 0


def _plan(planner: Planner, size: int) -> Plan:
    return planner.plan(_PHOTO, [_PAINTING_PX], StyleSpec(size=size).for_pictures())
