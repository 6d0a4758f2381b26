"""Tiles cover the picture, see enough, and put back what they find."""

from itertools import product

import pytest
import torch

from core.neural.transfer.tiling import tiles
from core.style.spec import GRID_PX

SIZES = [(64, 64), (150, 203), (33, 500), (1000, 333), (161, 160)]


@pytest.mark.parametrize(("size", "side"), list(product(SIZES, [None, 16, 64, 100, 512])))
def test_every_pixel_is_owned_once(size: tuple[int, int], side: int | None) -> None:
    owned = torch.zeros(1, 1, *size)
    for tile in tiles(*size, side, 64):
        tile.place(owned, 1).add_(1)

    assert torch.equal(torch.ones_like(owned), owned)


@pytest.mark.parametrize("size", SIZES)
def test_every_position_of_a_deep_layer_is_owned_once(size: tuple[int, int]) -> None:
    """Poolings drop an odd row or column at the end: so do the tiles there."""
    deep = torch.zeros(1, 1, size[0] // 16, size[1] // 16)
    for tile in tiles(*size, 64, 64):
        part = tile.place(deep, 16)
        seen = (
            tile.down.seen_end - tile.down.seen_begin,
            tile.across.seen_end - tile.across.seen_begin,
        )
        assert tile.own(torch.zeros(1, 1, seen[0] // 16, seen[1] // 16), 16).shape == part.shape
        part.add_(1)

    assert torch.equal(torch.ones_like(deep), deep)


def test_tiles_begin_on_the_grid_of_the_poolings_and_see_their_halo() -> None:
    for tile in tiles(1000, 333, 200, 58):
        for span in (tile.down, tile.across):
            assert 0 == span.begin % GRID_PX == span.seen_begin % GRID_PX
            assert span.seen_begin == 0 or span.begin - span.seen_begin >= 58
            assert span.seen_end == span.whole or span.seen_end - span.end >= 58


def test_one_tile_sees_the_picture_itself() -> None:
    image = torch.rand(1, 3, 50, 70)
    (tile,) = tiles(50, 70, None, 64)

    assert image is tile.cut(image)


def test_what_is_cut_is_added_back_where_it_came_from() -> None:
    """Each pixel as often as tiles see it."""
    image, whole, times = (
        torch.rand(1, 3, 150, 203),
        torch.zeros(1, 3, 150, 203),
        torch.zeros(1, 3, 150, 203),
    )
    for tile in tiles(150, 203, 64, 32):
        part = tile.cut(image)
        tile.add(whole, part)
        tile.add(times, torch.ones_like(part))

    assert float(times.max()) > 1
    assert torch.allclose(image * times, whole, atol=1e-5)


def test_a_seamless_picture_is_seen_around_its_edges() -> None:
    image = torch.arange(64.0).expand(1, 1, 64, 64)
    (tile,) = tiles(64, 64, None, 16, seamless=True)
    seen = tile.cut(image)

    assert tuple(seen.shape) == (1, 1, 96, 96)
    assert [float(seen[0, 0, 0, at]) for at in (0, 16, 79, 80)] == [48.0, 0.0, 63.0, 0.0]


def test_a_seamless_picture_smaller_than_the_halo_repeats_as_often_as_it_must() -> None:
    (tile,) = tiles(32, 32, None, 80, seamless=True)

    assert torch.equal(
        torch.rand(1, 1, 32, 32).new_ones(1, 1, 192, 192), tile.cut(torch.ones(1, 1, 32, 32))
    )
