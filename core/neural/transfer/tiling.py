"""Tiles: parts of a picture whose features, Gram sums and gradients are exactly those of the whole.

A tile owns a rectangle of pixels and sees a halo around it, as wide as the network's field of view reaches. What it
finds at the positions that it owns is what the whole picture would give there. Their gradient reaches into the halo,
and is added to the whole there: so a halo of one field of view is enough (Galerne et al. 2024, "Scaling Painting Style
Transfer", keep the inner gradient alone and need twice as much). Knows no network and no loss.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from core.style.spec import GRID_PX  # tiles begin where the grids of all four poolings do


@dataclass(frozen=True)
class Span:
    """Along one axis: the pixels owned, and those seen: from below 0 where the picture repeats."""

    begin: int
    end: int
    seen_begin: int
    seen_end: int
    whole: int

    def own(self, stride: int, count: int) -> slice:
        """The positions owned among the `count` that a layer of this stride has of what is seen."""
        first = (self.begin - self.seen_begin) // stride
        return slice(first, min((self.end - self.seen_begin) // stride, count))

    def place(self, stride: int) -> slice:
        """The same positions in the layer of the whole picture."""
        return slice(self.begin // stride, self.end // stride)

    @property
    def is_whole(self) -> bool:
        """Whether it sees the whole axis, once and in order."""
        return (self.seen_begin, self.seen_end) == (0, self.whole)

    def pixels(self, device: torch.device) -> Tensor:
        """Where in the picture each pixel seen lies."""
        return torch.arange(self.seen_begin, self.seen_end, device=device).remainder(self.whole)


@dataclass(frozen=True)
class Tile:
    """A rectangle owned, with its halo."""

    down: Span
    across: Span

    def cut(self, image: Tensor) -> Tensor:
        """What the tile sees of an image (1, C, H, W)."""
        if self.down.is_whole and self.across.is_whole:
            return image
        rows = image.index_select(2, self.down.pixels(image.device))
        return rows.index_select(3, self.across.pixels(image.device))

    def add(self, whole: Tensor, part: Tensor) -> None:
        """Add what was found for the pixels seen to the whole, in place."""
        if self.down.is_whole and self.across.is_whole:
            whole.add_(part)
            return
        rows = part.new_zeros(*part.shape[:3], self.across.whole)
        rows.index_add_(3, self.across.pixels(part.device), part)
        whole.index_add_(2, self.down.pixels(part.device), rows)

    def own(self, responses: Tensor, stride: int) -> Tensor:
        """A view of the responses (1, N, h, w) at the positions owned."""
        height, width = responses.shape[2:]
        return responses[:, :, self.down.own(stride, height), self.across.own(stride, width)]

    def place(self, layer: Tensor, stride: int) -> Tensor:
        """A view of the same positions in a layer of the whole picture, (..., h, w)."""
        return layer[..., self.down.place(stride), self.across.place(stride)]


def tiles(
    height: int, width: int, side: int | None, halo: int, *, seamless: bool = False
) -> list[Tile]:
    """Tiles of at most `side` px owned, row by row; one that sees the whole picture for None.

    seamless: the picture repeats in both directions, so that every tile has its halo on all sides; both of its sides
    must then be multiples of `GRID_PX`.
    """
    rows, columns = (
        list(_spans(whole, side, halo, seamless=seamless)) for whole in (height, width)
    )
    return [Tile(down, across) for down in rows for across in columns]


def _spans(whole: int, side: int | None, halo: int, *, seamless: bool) -> Iterator[Span]:
    count = 1 if side is None else math.ceil(whole / (side // GRID_PX * GRID_PX))
    step = math.ceil(whole / count / GRID_PX) * GRID_PX
    halo = math.ceil(halo / GRID_PX) * GRID_PX
    for begin in range(0, whole, step):
        end = min(begin + step, whole)
        seen = (begin - halo, end + halo)
        if not seamless:
            seen = (max(seen[0], 0), min(seen[1], whole))
        yield Span(begin, end, *seen, whole)
