"""The scales of a run and their iterations, coarse to fine."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from core import errors
from core.style.schedule import COARSEST_PX, count_work, schedule
from core.style.spec import parse_spec

# Runs that do not get the photo's detail.
OTHER_RUNS: list[dict[str, Any]] = [
    {"optimizer": "adam"},
    {"objective": "gatys"},
    {"init": "style"},
    {"content_weight": 0},
]


def test_scales_double_from_128_px_and_the_finer_ones_take_half_the_iterations() -> None:
    scales = schedule(parse_spec({"size": 512}), 1024, 768)

    assert [scale.size for scale in scales] == [(128, 96), (256, 192), (512, 384)]
    assert [scale.iterations for scale in scales] == [32, 16, 16]
    assert [scale.is_finer for scale in scales] == [False, True, True]


@pytest.mark.parametrize(
    ("size", "sides"),
    [
        (181, [181]),
        (182, [128, 182]),
        (362, [128, 362]),
        (384, [128, 222, 384]),
        (2048, [128, 256, 512, 1024, 2048]),
    ],
)
def test_scales_between_two_doublings_have_equal_ratios(size: int, sides: list[int]) -> None:
    scales = schedule(parse_spec({"size": size}), 1, 1)

    assert [scale.long_side for scale in scales] == sides


@pytest.mark.parametrize("parameters", OTHER_RUNS, ids=str)
def test_the_scales_of_other_runs_grow_by_the_root_of_two(parameters: dict[str, Any]) -> None:
    scales = schedule(parse_spec({"size": 384, "scales": 0, **parameters}), 1024, 768)

    assert [scale.size for scale in scales] == [(136, 102), (192, 144), (272, 204), (384, 288)]
    assert [scale.iterations for scale in scales] == [45, 22, 22, 45]
    assert not any(scale.is_finer for scale in scales)


def test_quality_sets_the_iterations_and_iterations_overrides_it() -> None:
    counts = [
        [scale.iterations for scale in schedule(parse_spec({"size": 384, "quality": q}), 4, 3)]
        for q in ("draft", "standard", "fine")
    ]
    noise = schedule(
        parse_spec({"size": 384, "quality": "draft", "scales": 1, "init": "noise"}), 4, 3
    )
    given = schedule(parse_spec({"size": 384, "quality": "fine", "iterations": 11}), 4, 3)

    assert counts == [[20, 10, 10], [32, 16, 16], [96, 48, 48]]
    assert noise[0].iterations == 4 * 28
    assert [scale.iterations for scale in given] == [11, 5, 11]


def test_a_finer_scale_leaves_the_deep_layers_to_the_coarsest_one() -> None:
    spec = parse_spec({"size": 256, "style_layers": "relu2_1=1,relu4_1=3,relu5_2=1"})
    coarse, fine = schedule(spec, 4, 3)
    adapted = fine.adapt(spec)
    deep = parse_spec({"style_layers": "relu5_1=1,relu1_1=0"})

    assert coarse.adapt(spec) == spec
    assert adapted.style_layers == {"relu2_1": 1}
    assert adapted.content_layers == {"relu2_1": 1, "relu3_1": 1}
    assert adapted.beta == pytest.approx(2.5 * spec.beta)
    assert fine.adapt(deep) == deep, "no layer would be left"


@pytest.mark.parametrize(
    ("given", "adapted"),
    [
        ("relu4_2=2,relu5_1=1", {"relu3_1": 3}),
        ("relu3_1=1,relu4_2=2", {"relu3_1": 3}),
        ("relu1_2=2", {"relu1_2": 2}),
    ],
)
def test_a_finer_scale_compares_the_content_no_deeper_than_relu3_1(
    given: str, adapted: dict[str, float]
) -> None:
    spec = parse_spec({"size": 256, "content_layers": given})

    assert schedule(spec, 4, 3)[-1].adapt(spec).content_layers == adapted


def test_a_finer_scale_counts_as_less_work() -> None:
    """A pass that ends at relu3_1 takes about a third of the time."""
    coarse, fine = schedule(parse_spec({"size": 256}), 4, 3)
    full = replace(fine, is_finer=False)

    assert count_work([coarse, fine]) == pytest.approx(
        count_work([coarse]) + 0.37 * count_work([full]), abs=1
    )


@pytest.mark.parametrize("parameters", OTHER_RUNS, ids=str)
def test_the_last_scale_of_other_runs_takes_half_the_iterations_above_1024_px(
    parameters: dict[str, Any],
) -> None:
    def counts(size: int) -> list[int]:
        spec = parse_spec({"size": size, "scales": 0, **parameters})
        return [scale.iterations for scale in schedule(spec, 4, 3)]

    assert counts(2048) == [45, *[22] * 8]
    assert (counts(1024)[-1], counts(1025)[-1]) == (45, 22)


def test_from_noise_the_coarsest_scale_takes_four_times_the_iterations() -> None:
    assert [s.iterations for s in schedule(parse_spec({"size": 384, "init": "noise"}), 4, 3)] == [
        180,
        22,
        22,
        45,
    ]
    assert [s.iterations for s in schedule(parse_spec({"size": 100, "init": "noise"}), 4, 3)] == [
        180
    ]


def test_an_initial_picture_has_one_scale_and_given_iterations_are_kept_above_1024_px() -> None:
    assert len(schedule(parse_spec({"size": 512, "init": "picture"}), 4, 3)) == 1
    assert schedule(parse_spec({"size": 2048, "iterations": 300}), 4, 3)[-1].iterations == 300


@pytest.mark.parametrize(
    ("init_px", "scales"),
    [
        (None, [(1024, 45)]),
        (512, [(724, 22), (1024, 45)]),
        (511, [(512, 22), (724, 22), (1024, 45)]),
        (1024, [(1024, 45)]),
        (3000, [(1024, 45)]),
        (40, [(128, 22), (181, 22), (256, 22), (362, 22), (512, 22), (724, 22), (1024, 45)]),
    ],
)
def test_from_an_initial_picture_the_scales_start_above_its_own_size(
    init_px: int | None, scales: list[tuple[int, int]]
) -> None:
    """At its own scale the picture is finished, and a coarser one would lose its strokes."""
    actual = schedule(parse_spec({"size": 1024, "init": "picture"}), 4, 3, init_px)

    assert [(scale.long_side, scale.iterations) for scale in actual] == scales


def test_the_sides_of_a_seamless_result_are_multiples_of_16_px() -> None:
    sizes = [
        scale.size for scale in schedule(parse_spec({"size": 300, "seamless": True}), 1024, 700)
    ]

    assert all(width % 16 == height % 16 == 0 for width, height in sizes)
    assert sizes[-1] == (304, 208)


@pytest.mark.parametrize("size", [64, 100, 128, 181, 182, 256, 512, 1000, 2048, 8192])
@pytest.mark.parametrize("shape", [(1024, 768), (768, 1024), (500, 500)])
def test_the_scales_end_at_the_size_and_begin_at_about_128_px(
    size: int, shape: tuple[int, int]
) -> None:
    sides = [scale.long_side for scale in schedule(parse_spec({"size": size}), *shape)]

    assert sides[-1] == size
    assert all(coarse < fine for coarse, fine in pairwise(sides))
    assert len(sides) == 1 or sides[0] >= COARSEST_PX
    assert sides[0] < COARSEST_PX * 1.5


def test_one_scale_with_given_iterations_is_as_in_the_paper() -> None:
    assert [
        (scale.size, scale.iterations)
        for scale in schedule(parse_spec({"size": 512, "scales": 1, "iterations": 300}), 4, 3)
    ] == [((512, 384), 300)]


def test_a_given_number_of_scales_is_kept() -> None:
    assert len(schedule(parse_spec({"size": 256, "scales": 3}), 4, 3)) == 3
    assert len(schedule(parse_spec({"size": 2048, "scales": 3}), 4, 3)) == 3


def test_the_short_side_of_a_narrow_photo_has_at_least_32_px_at_every_scale() -> None:
    assert all(min(scale.size) >= 32 for scale in schedule(parse_spec({"size": 1024}), 2000, 200))
    with pytest.raises(errors.BadSpec, match="size must be at least 320"):
        schedule(parse_spec({"size": 256}), 2000, 200)
