"""Keeps the statistics of paintings, so that the next run with the same painting starts at once.

An entry is found by what its measurement reads: the network, the painting's pixels at the scale
(after masks and color matching), the regions, and the parameters that the measurement uses. So a
hit has the bits that a new measurement would have.
"""

import hashlib
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from cachetools import LRUCache
from torch import Tensor

from core.neural.transfer.margin import edge_mode
from core.neural.transfer.objective import Style, measure_styles, statistics_layers
from core.neural.vgg import Network
from core.style.spec import StyleSpec

# On the network's device. One painting takes 2.4 MB at each scale with the default layers.
MAX_BYTES = 48_000_000

_Styles = list[Style]


class StyleCache:
    """The statistics of the paintings of recent runs. For one thread.

    A network that is released takes its entries with it.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        """max_bytes: for each network."""
        self._max_bytes = max_bytes
        self._of_network: WeakKeyDictionary[Network, LRUCache[tuple[object, ...], _Styles]] = (
            WeakKeyDictionary()
        )

    def measure(
        self,
        network: Network,
        picture: Tensor,
        spec: StyleSpec,
        guides: Sequence[Tensor | None],
        tile_px: int | None = None,
    ) -> _Styles:
        """Return what `measure_styles` returns. The caller must not change it."""
        known = self._of_network.setdefault(network, LRUCache(self._max_bytes, _count_bytes))
        layers = frozenset(statistics_layers(spec))
        digests = tuple(None if part is None else _digest(part) for part in (picture, *guides))
        key = (digests, layers, spec.pooling, edge_mode(spec), tile_px)
        styles = known.get(key)
        if styles is None:
            styles = measure_styles(network, picture, spec, guides, tile_px)
            if _count_bytes(styles) <= self._max_bytes:
                known[key] = styles
        return styles


def _digest(tensor: Tensor) -> tuple[object, ...]:
    data = tensor.detach().cpu().contiguous()
    return (data.shape, str(data.dtype), hashlib.sha256(data.numpy().data).digest())


def _count_bytes(styles: _Styles) -> int:
    return sum(
        tensor.numel() * tensor.element_size()
        for style in styles
        for statistics in style.values()
        for tensor in (statistics.gram, statistics.mean)
    )
