import pytest
import torch
from torch import Tensor

from bench import panel


@pytest.fixture
def strokes() -> Tensor:
    """Bands of several pixels, without any period: (1, 3, 128, 128)."""
    edges = torch.tensor([0, 9, 23, 30, 48, 61, 79, 86, 104, 113, 128])
    row = torch.bucketize(torch.arange(128), edges, right=True) % 2
    return (0.3 + 0.4 * row.float()).expand(1, 3, 128, 128).contiguous()


def test_isolated_pixels_are_dots_and_bands_are_not(strokes: Tensor) -> None:
    dotted = strokes.clone()
    dotted[:, :, 2::5, 2::5] = 1.0
    assert panel.dots(strokes) == 0
    assert panel.dots(dotted) > 4


@pytest.mark.parametrize("period", [4, 8, 16])
def test_lines_at_a_period_of_the_poolings_are_a_grid(strokes: Tensor, period: int) -> None:
    lined = strokes.clone()
    lined[:, :, ::period] += 0.1
    assert panel.grid_energy(lined) > 10 * panel.grid_energy(strokes)


def test_a_checkerboard_of_single_pixels_is_one(strokes: Tensor) -> None:
    down, across = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    board = strokes + 0.1 * ((down + across) % 2)
    assert panel.checkerboard(strokes) < 0.01
    assert panel.checkerboard(board) > 0.5


def test_threads_that_cross_at_right_angles_are_a_weave_and_noise_is_none() -> None:
    noise = 0.5 + 0.1 * torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    thread = 0.05 * torch.sin(2 * torch.pi * torch.arange(128) / 3)
    assert panel.weave(noise) < 2
    assert panel.weave(noise + thread) > 10
    assert panel.weave(noise + thread[:, None]) > 10


@pytest.mark.parametrize("side", ["faint", "strong"])
def test_a_border_differs_from_what_is_beside_it_in_both_directions(side: str) -> None:
    image = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    before = panel.border_ratio(image)
    image = 0.5 + (image - 0.5) * 0.4
    image[..., -2:] = 0.5 + (image[..., -2:] - 0.5) * (0.25 if side == "faint" else 2.5)
    assert before < 1.2
    assert panel.border_ratio(image) > 1.5


def test_foreign_colors_are_those_of_neither_source() -> None:
    red, blue, green = (torch.zeros(1, 3, 4, 4) for _ in range(3))
    red[:, 0], blue[:, 2], green[:, 1] = 1, 1, 1
    image = torch.cat([red, blue, green, red], dim=3)  # a quarter is green
    assert panel.foreign_colors(image, (red, blue)) == pytest.approx(0.25)


def test_distances_are_zero_for_the_same_and_grow_with_the_difference() -> None:
    generator = torch.Generator().manual_seed(0)
    target = [torch.rand(1, 8, 16, 16, generator=generator) for _ in range(5)]
    noise = [torch.rand(1, 8, 16, 16, generator=generator) for _ in range(5)]
    for distance in (panel.moments_distance, panel.sliced_distance, panel.content_distance):
        found = [
            distance([torch.lerp(x, y, t) for x, y in zip(target, noise, strict=True)], target)
            for t in (0.0, 0.3, 0.6)
        ]
        assert found[0] == pytest.approx(0, abs=1e-6)
        assert found[0] < found[1] < found[2]


def test_style_does_not_depend_on_where_things_are_and_content_does() -> None:
    target = [torch.rand(1, 8, 16, 16, generator=torch.Generator().manual_seed(0))] * 5
    moved = [responses.flip(3) for responses in target]
    assert panel.moments_distance(moved, target) == pytest.approx(0, abs=1e-6)
    assert panel.sliced_distance(moved, target) == pytest.approx(0, abs=1e-6)
    assert panel.content_distance(moved, target) > 0.05
