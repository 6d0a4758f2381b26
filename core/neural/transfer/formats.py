"""Loads a network in the format that is fastest on its device, by a measurement that is stored.

Which format that is depends on the card: float16 is slow on consumer cards before Turing, and
channels last is not the fastest layout everywhere. Knows no weights and no pictures.
"""

from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path

from core.neural import device
from core.neural.transfer.planner import Throughput, load_throughput
from core.neural.vgg import Format, Network

# A format is preferred to an earlier one only if it is faster by this factor. Measurements vary by
# a few percent, and the same seed shall give the same picture. Formats are sorted by precision.
_CLEARLY_FASTER = 1.1
_TYPICAL_PIXELS = 1024 * 1024


def load_fastest(
    make: Callable[[Format], Network], formats: Sequence[Format], file: Path
) -> Network:
    """Make the network in the fastest of the formats.

    The throughputs are read from the file, or measured, which takes seconds for each format, and
    stored there. Raises what `make` raises.
    """
    if len(formats) == 1:
        return make(formats[0])
    throughputs = {number_format: _measure(make, number_format, file) for number_format in formats}
    return make(fastest_format(throughputs))


def _measure(make: Callable[[Format], Network], number_format: Format, file: Path) -> Throughput:
    """The throughput of one format. Afterwards its network is gone."""
    network = make(number_format)
    throughput = load_throughput(network, file)
    target = network.device
    del network
    device.release_memory(target)
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
