"""The margin of a picture: its widths, its mirror image, and the layers inside it."""

import pytest
import torch

from core.neural.transfer.margin import Margin
from core.style.spec import StyleSpec, parse_spec


@pytest.mark.parametrize("height", [33, 64, 79, 80])
def test_a_picture_has_8_to_23_px_on_each_side_up_to_multiples_of_16(height: int) -> None:
    margin = Margin.of_image(height, 100, StyleSpec())

    assert margin.before == 8
    assert 8 <= margin.below <= 23
    assert margin.padded == (-(-height // 16) * 16 + 16, 128)
    assert Margin.of_painting(height, 100, StyleSpec()) == margin


def test_a_picture_that_repeats_and_the_papers_objective_have_none() -> None:
    seamless, paper = (parse_spec(one) for one in ({"seamless": True}, {"objective": "gatys"}))

    assert Margin.of_image(64, 96, seamless) == Margin.of_image(64, 96, paper) == Margin(64, 96)
    assert Margin.of_painting(64, 96, paper) == Margin(64, 96)
    assert Margin.of_painting(64, 96, seamless).before == 8  # a painting does not repeat


def test_a_margin_begins_as_a_mirror_image_and_is_cut_off() -> None:
    picture = torch.rand(1, 3, 40, 50)
    margin = Margin.of_image(40, 50, StyleSpec())
    image = margin.mirror(picture)

    assert tuple(image.shape[2:]) == margin.padded == (64, 80)
    assert torch.equal(image[:, :, 7, 8:58], picture[:, :, 1])
    assert torch.equal(image[:, :, 8:48, 79], picture[..., 27])
    assert torch.equal(margin.cut(image), picture)


def test_a_position_that_covers_part_of_the_picture_counts() -> None:
    margin = Margin.of_image(64, 65, StyleSpec())

    assert [margin.layer_size(stride) for stride in (1, 8, 16)] == [(64, 65), (8, 9), (5, 5)]
    assert Margin(70, 65).layer_size(16) == (4, 4)
