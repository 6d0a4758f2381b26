"""Loads a network in the format that is fastest on its device, by a measurement that is stored.

Which format that is depends on the card: float16 is slow on consumer cards before Turing, and
channels last is not the fastest layout everywhere. Knows no weights and no pictures.
"""

from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path

import torch

from core.neural import device as devices
from core.neural.transfer.planner import (
    Throughput,
    load_throughput,
    read_throughputs,
    throughput_key,
)
from core.neural.vgg import Format, Network
from core.style.vgg_layers import Architecture

# A format is preferred to an earlier one only if it is faster by this factor. Measurements vary by
# a few percent, and the same seed shall give the same picture. Formats are sorted by precision.
_CLEARLY_FASTER = 1.1
_TYPICAL_PIXELS = 1024 * 1024


def load_fastest(
    make: Callable[[Format], Network],
    device: torch.device,
    architecture: Architecture,
    formats: Sequence[Format],
    file: Path,
) -> Network:
    """Make the network in the fastest of the formats.

    The throughputs are read from the file, or measured, which takes seconds for each format, and
    stored there. Raises what `make` raises.
    """
    if len(formats) == 1:
        return make(formats[0])
    chosen = stored_format(device, architecture, formats, file)
    if chosen is None:
        chosen = fastest_format({one: _measure(make, one, file) for one in formats})
    return make(chosen)


def stored_format(
    device: torch.device, architecture: Architecture, formats: Sequence[Format], file: Path
) -> Format | None:
    """The fastest format by the measurements in the file; None if one of them is missing."""
    stored = read_throughputs(file)
    keys = {one: throughput_key(device, architecture, one) for one in formats}
    if not all(key in stored for key in keys.values()):
        return None
    return fastest_format({one: stored[key] for one, key in keys.items()})


def _measure(make: Callable[[Format], Network], number_format: Format, file: Path) -> Throughput:
    """The throughput of one format. Afterwards its network is gone."""
    network = make(number_format)
    throughput = load_throughput(network, file)
    target = network.device
    del network
    devices.release_memory(target)
    return throughput


def fastest_format(throughputs: Mapping[Format, Throughput]) -> Format:
    """The first of the formats, unless a later one is clearly faster."""
    chosen, least = None, inf
    for number_format, throughput in throughputs.items():
        seconds = throughput.fixed_seconds + _TYPICAL_PIXELS * throughput.pixel_seconds
        if seconds * _CLEARLY_FASTER < least:
            chosen, least = number_format, seconds
    assert chosen is not None, "there are formats"
    return chosen
