"""Tiles cover the picture, read enough of it, and add their results to the right place."""

from itertools import product

import pytest
import torch

from core.neural.transfer.margin import Margin
from core.neural.transfer.tiling import make_tiles
from core.style.spec import GRID_PX

SIZES = [(64, 64), (150, 203), (33, 500), (1000, 333), (161, 160)]


@pytest.mark.parametrize(("size", "side"), list(product(SIZES, [None, 16, 64, 100, 512])))
def test_every_pixel_is_owned_once(size: tuple[int, int], side: int | None) -> None:
    owned = torch.zeros(1, 1, *size)
    for tile in make_tiles(Margin(*size), side, 64):
        tile.part_of(owned, 1).add_(1)

    assert torch.equal(owned, torch.ones_like(owned))


@pytest.mark.parametrize("size", SIZES)
def test_every_position_of_a_deep_layer_is_owned_once(size: tuple[int, int]) -> None:
    """Poolings drop an odd row or column at the end, and so do the tiles there."""
    deep = torch.zeros(1, 1, size[0] // 16, size[1] // 16)
    for tile in make_tiles(Margin(*size), 64, 64):
        part = tile.part_of(deep, 16)
        read = (
            tile.down.read_end - tile.down.read_begin,
            tile.across.read_end - tile.across.read_begin,
        )
        assert (
            tile.owned_part(torch.zeros(1, 1, read[0] // 16, read[1] // 16), 16).shape == part.shape
        )
        part.add_(1)

    assert torch.equal(deep, torch.ones_like(deep))


def test_tiles_begin_on_the_grid_of_the_poolings_and_read_their_halo() -> None:
    for tile in make_tiles(Margin(1000, 333), 200, 58):
        for span in (tile.down, tile.across):
            assert span.begin % GRID_PX == span.read_begin % GRID_PX == 0
            assert span.read_begin == 0 or span.begin - span.read_begin >= 58
            assert span.read_end == span.whole or span.read_end - span.end >= 58


def test_a_single_tile_reads_the_picture_without_a_copy() -> None:
    image = torch.rand(1, 3, 50, 70)
    (tile,) = make_tiles(Margin(50, 70), None, 64)

    assert tile.crop(image) is image


def test_a_cropped_part_is_added_to_the_place_it_came_from() -> None:
    """Each pixel counts as often as tiles read it."""
    image, whole, times = (
        torch.rand(1, 3, 150, 203),
        torch.zeros(1, 3, 150, 203),
        torch.zeros(1, 3, 150, 203),
    )
    for tile in make_tiles(Margin(150, 203), 64, 32):
        part = tile.crop(image)
        tile.scatter_add(whole, part)
        tile.scatter_add(times, torch.ones_like(part))

    assert float(times.max()) > 1
    assert torch.allclose(whole, image * times, atol=1e-5)


def test_a_seamless_picture_is_read_across_its_edges() -> None:
    image = torch.arange(64.0).expand(1, 1, 64, 64)
    (tile,) = make_tiles(Margin(64, 64), None, 16, seamless=True)
    read = tile.crop(image)

    assert tuple(read.shape) == (1, 1, 96, 96)
    assert [float(read[0, 0, 0, at]) for at in (0, 16, 79, 80)] == [48.0, 0.0, 63.0, 0.0]


def test_a_seamless_picture_smaller_than_the_halo_repeats_several_times() -> None:
    (tile,) = make_tiles(Margin(32, 32), None, 80, seamless=True)

    assert torch.equal(tile.crop(torch.ones(1, 1, 32, 32)), torch.ones(1, 1, 192, 192))
