"""Tiles: parts of a picture whose features, Gram sums and gradients equal the whole picture's.

A tile owns a rectangle of pixels and reads a halo around it, as wide as the network's receptive
field reaches. At the positions that it owns, its responses equal those of the whole picture. The
gradient of these positions reaches into the halo and is added to the whole there, so a halo of one
receptive field is enough. (Galerne et al. 2024, "Scaling Painting Style Transfer", keep only the
inner gradient and need twice the halo.) Knows no network and no loss.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from core.neural.transfer.margin import Margin
from core.style.spec import GRID_PX  # tiles start on the grid of all four poolings


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in px: the pixels it owns, and the pixels it reads.

    `read_begin` is below 0 and `read_end` above `whole` where the picture repeats. `origin` is
    where the first tile begins: behind the margin.
    """

    begin: int
    end: int
    read_begin: int
    read_end: int
    whole: int
    origin: int = 0

    def owned_slice(self, stride: int, count: int) -> slice:
        """The owned positions in a layer of this stride; the outermost may lie half outside.

        count: the number of positions that the layer has for the pixels read.
        """
        first = self.begin // stride - self.read_begin // stride
        return slice(first, min(math.ceil((self.end - self.read_begin) / stride), count))

    def in_whole(self, stride: int) -> slice:
        """The same positions in the layer of the whole picture without its margin."""
        first = self.origin // stride
        return slice(self.begin // stride - first, math.ceil(self.end / stride) - first)

    @property
    def is_whole(self) -> bool:
        """Whether it reads the whole axis, once and in order."""
        return (self.read_begin, self.read_end) == (0, self.whole)

    def pixels(self, device: torch.device) -> Tensor:
        """The index in the picture of each pixel read, (read_end - read_begin,)."""
        return torch.arange(self.read_begin, self.read_end, device=device).remainder(self.whole)


@dataclass(frozen=True)
class Tile:
    """An owned rectangle with its halo."""

    down: Span
    across: Span

    @property
    def read_px(self) -> int:
        """The number of pixels read."""
        rows = self.down.read_end - self.down.read_begin
        return rows * (self.across.read_end - self.across.read_begin)

    def crop(self, image: Tensor) -> Tensor:
        """The pixels read of an image (1, C, H, W)."""
        if self.down.is_whole and self.across.is_whole:
            return image
        rows = image.index_select(2, self.down.pixels(image.device))
        return rows.index_select(3, self.across.pixels(image.device))

    def scatter_add(self, whole: Tensor, part: Tensor) -> None:
        """Add values for the pixels read, (1, C, h, w), to the whole (1, C, H, W) in place."""
        if self.down.is_whole and self.across.is_whole:
            whole.add_(part)
            return
        rows = part.new_zeros(*part.shape[:3], self.across.whole)
        rows.index_add_(3, self.across.pixels(part.device), part)
        whole.index_add_(2, self.down.pixels(part.device), rows)

    def owned_slices(self, responses: Tensor, stride: int) -> tuple[slice, slice]:
        """The rows and the columns of the owned positions in the tile's responses (1, N, h, w)."""
        height, width = responses.shape[2:]
        return self.down.owned_slice(stride, height), self.across.owned_slice(stride, width)

    def owned_part(self, responses: Tensor, stride: int) -> Tensor:
        """A view of the tile's responses (1, N, h, w) at the owned positions."""
        rows, columns = self.owned_slices(responses, stride)
        return responses[:, :, rows, columns]

    def part_of(self, layer: Tensor, stride: int) -> Tensor:
        """A view of the owned positions in a layer of the whole picture, (..., h, w)."""
        return layer[..., self.down.in_whole(stride), self.across.in_whole(stride)]


def make_tiles(
    margin: Margin, side: int | None, halo: int, *, seamless: bool = False
) -> list[Tile]:
    """Tiles that own `side` px in each direction at most, row by row; a single whole tile for None.

    With a margin they may own `GRID_PX` more, so that it takes no tile of its own.

    margin: the size of the picture, and what is only read around it. seamless: the picture repeats
    in both directions, so every tile has its halo on all sides. Both sides of the picture must then
    be multiples of `GRID_PX`, without a margin.
    """
    sides = (margin.height, margin.width)
    rows, columns = (
        list(_spans(whole, margin.before, margin.before + own, side, halo, seamless=seamless))
        for whole, own in zip(margin.padded, sides, strict=True)
    )
    return [Tile(down, across) for down in rows for across in columns]


def _spans(
    whole: int, origin: int, last: int, side: int | None, halo: int, *, seamless: bool
) -> Iterator[Span]:
    count = 1 if side is None else math.ceil((last - origin) / (side // GRID_PX * GRID_PX))
    step = math.ceil(last / count / GRID_PX) * GRID_PX
    halo = math.ceil(halo / GRID_PX) * GRID_PX
    for begin in range(0, last, step):
        end = min(begin + step, whole)
        read = (begin - halo, end + halo)
        if not seamless:
            read = (max(read[0], 0), min(read[1], whole))
        yield Span(max(begin, origin), min(end, last), *read, whole, origin)
