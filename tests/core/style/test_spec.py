"""The parameters: accepted values, refused values and the error messages."""

import itertools
import math
from typing import Any

import pytest

from core import errors
from core.style.spec import (
    PARAMETERS,
    STYLE_WEIGHT_GATYS,
    UPDATABLE,
    StyleSpec,
    describe_range,
    parse_spec,
    result_size,
)
from core.style.vgg_layers import BLOCKS

WHOLE = ["size", "iterations", "seed", "scales"]
NUMBERS = ["strength", "content_weight", "style_weight", "tv_weight", "style_scale"]
CHOICES = ["quality", "init", "objective", "optimizer", "pooling", "preserve_color"]
LAYERS = ["content_layers", "style_layers"]


def test_text_from_a_form_and_values_from_json_mean_the_same() -> None:
    text = {
        "size": "384",
        "style_weight": "12.5",
        "style_layers": "relu1_1=1,relu3_1=0.5",
        "content_layers": "relu4_2",
        "style_weights": "0.7, 0.3",
        "init": "noise",
    }
    values = {
        "size": 384,
        "style_weight": 12.5,
        "style_layers": {"relu1_1": 1, "relu3_1": 0.5},
        "content_layers": ["relu4_2"],
        "style_weights": [0.7, 0.3],
        "init": "noise",
    }

    assert parse_spec(text) == parse_spec(values)
    assert parse_spec(text).style_layers == {"relu1_1": 1.0, "relu3_1": 0.5}
    assert parse_spec(
        {"style_layers": '{"relu1_1": 1, "relu3_1": 0.5}', **{k: text[k] for k in ("size", "init")}}
    )


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        *itertools.product(WHOLE, ("nan", "-1", "1.5", "1e9", "", "x", None)),
        *itertools.product(
            NUMBERS, ("nan", "inf", "-inf", math.nan, math.inf, -0.1, 1e10, "x", None, [])
        ),
        *itertools.product(CHOICES, ("", "x", 1, None)),
        *itertools.product(
            LAYERS, ("", "relu9_1", "relu4_2=nan", "relu4_2=-1", "{", {}, 3, "[" * 9999)
        ),
        *itertools.product(["style_weights"], ("x", "1,nan", [1, -1], "1," * 20, 3)),
        *itertools.product(
            ["model"], ("", "My", "-x", "x/y", "../x", "x.y", "x\n", "x" * 65, 1, None)
        ),
        ("size", 63),
        ("size", 8193),
        ("size", True),
        ("seed", True),
        ("seed", 2**32),
        ("iterations", -1),
    ],
)
def test_the_error_for_a_bad_value_names_the_parameter_and_its_range_but_not_the_value(
    parameter: str, value: Any
) -> None:
    with pytest.raises(errors.BadSpec) as refused:
        parse_spec({parameter: value})

    assert refused.value.message == f"{parameter} must be {describe_range(parameter)}."


def test_the_error_for_an_unknown_parameter_lists_the_known_ones() -> None:
    with pytest.raises(
        errors.BadSpec, match="There is no such parameter; the parameters are size, strength, "
    ):
        parse_spec({"<script>": "1"})


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"content_weight": 0, "style_weight": 0}, "one of them must be above 0"),
        ({"style_layers": {"relu1_1": 0}}, "style_layers: one weight must be above 0"),
        ({"style_weights": [0, 0]}, "style_weights: one share must be above 0"),
        (
            {"content_layers": "relu4_4", "model": "vgg16"},
            "relu4_4 is a layer of VGG-19 alone: set model=vgg19",
        ),
        (
            {"content_layers": "relu4_2", "style_layers": "relu1_2", "model": "vgg11"},
            "relu1_2 is no layer of vgg11, a VGG-11: it has relu1_1, relu2_1, relu3_1, relu3_2, "
            "relu4_1, relu4_2, relu5_1, relu5_2.",
        ),
    ],
)
def test_contradictory_parameters_are_refused(parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.BadSpec, match=words):
        parse_spec(parameters)


def test_a_layer_of_vgg19_is_accepted_with_vgg19() -> None:
    assert parse_spec({"content_layers": "relu4_4", "model": "vgg19"}).content_layers == {
        "relu4_4": 1.0
    }


def test_any_valid_name_is_accepted_as_a_model_with_any_layers() -> None:
    """The name of an imported network does not tell its depth; the worker checks its layers."""
    assert (
        parse_spec({"model": "my-textures_2", "style_layers": "relu5_4"}).model == "my-textures_2"
    )


def test_the_default_layers_exist_at_every_depth() -> None:
    for architecture in BLOCKS:
        for objective in ("relative", "gatys"):
            parse_spec({"model": architecture, "objective": objective})


def test_the_papers_objective_has_defaults_of_its_own() -> None:
    spec = parse_spec({"objective": "gatys"})
    assert spec.style_weight == STYLE_WEIGHT_GATYS
    assert spec.content_layers == {"relu4_2": 1.0} != StyleSpec().content_layers
    assert spec.pooling == "max" != StyleSpec().pooling
    assert parse_spec({"objective": "gatys", "style_weight": "7"}).style_weight == 7.0


def test_shares_of_several_paintings_sum_to_one() -> None:
    assert parse_spec({"style_weights": "3,1"}).for_pictures(2).style_weights == [0.75, 0.25]
    assert StyleSpec().for_pictures(2).style_weights == [0.5, 0.5]
    with pytest.raises(errors.BadSpec, match="one share for each of the 3 paintings"):
        parse_spec({"style_weights": "3,1"}).for_pictures(3)
    with pytest.raises(errors.BadSpec, match="one share for the one painting, or none"):
        parse_spec({"style_weights": "3,1"}).for_pictures(1)
    with pytest.raises(errors.BadSpec, match="mask: send one for each of the 2 paintings, or none"):
        StyleSpec().for_pictures(2, 1)
    with pytest.raises(errors.BadSpec, match="1 to 8 paintings"):
        StyleSpec().for_pictures(9)


def test_every_parameter_has_a_default_a_description_and_a_range() -> None:
    spec = StyleSpec()

    assert all(
        StyleSpec.model_fields[name].description and describe_range(name) for name in PARAMETERS
    )
    assert StyleSpec.model_validate_json(spec.model_dump_json()) == spec


def test_the_result_keeps_the_photos_shape() -> None:
    assert result_size(1024, 768, 384) == (384, 288)
    assert result_size(768, 1024, 384) == (288, 384)
    with pytest.raises(errors.BadSpec, match="size must be at least 640"):
        result_size(2000, 100, 639)
    assert result_size(2000, 100, 640) == (640, 32)


def test_only_weights_can_be_updated_and_the_error_names_them() -> None:
    spec = parse_spec({}).for_pictures(2)
    updated = spec.with_updates({"strength": 0.9, "style_weights": "3,1", "tv_weight": "2"})

    assert (updated.strength, updated.style_weights, updated.tv_weight) == (
        0.9,
        [0.75, 0.25],
        2.0,
    )
    assert set(UPDATABLE) == {
        "strength",
        "content_weight",
        "style_weight",
        "tv_weight",
        "style_weights",
    }
    assert {*UPDATABLE} == {
        name
        for name, parameter in StyleSpec.model_json_schema()["properties"].items()
        if parameter.get("updatable")
    }
    for parameters, words in (
        ({"size": 64}, "size cannot be changed any more; strength, "),
        ({"strength": 2}, "strength must be a number from 0 to 1"),
        ({"content_weight": 0}, "content_weight cannot become 0"),
        ({"style_weights": "1"}, "each of the 2 paintings"),
        ({"nothing": 1}, "no such parameter"),
    ):
        with pytest.raises(errors.BadSpec, match=words):
            spec.with_updates(parameters)
    with pytest.raises(errors.BadSpec, match="raised from 0"):
        parse_spec({"style_weight": 0}).for_pictures().with_updates({"style_weight": 1})


def test_updating_one_parameter_keeps_the_others_to_the_bit() -> None:
    """Shares that are normalized a second time may differ in the last bit."""
    spec = parse_spec({"style_weights": "0.1,0.2,0.45"}).for_pictures(3)

    assert spec.with_updates({"strength": spec.strength}) == spec
