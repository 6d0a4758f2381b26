"""Presets: each one is a valid spec, and explicit parameters take precedence."""

import pytest

from core import errors
from core.style.presets import PRESETS, expand_preset
from core.style.spec import StyleSpec, apply_changes, parse_spec


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_differs_from_the_defaults(name: str) -> None:
    preset = PRESETS[name]

    assert (preset.name, preset.description[-1]) == (name, ".")
    assert StyleSpec() != parse_spec({"preset": name}) == parse_spec(dict(preset.parameters))


def test_a_parameter_beside_a_preset_takes_precedence() -> None:
    assert expand_preset({"size": "64", "preset": "draft"}) == {"size": "64", "quality": "draft"}
    assert parse_spec({"size": "64", "preset": "draft"}).size == 64


@pytest.mark.parametrize("name", ["", "Draft", None, 1, ["draft"], {}])
def test_an_unknown_preset_is_refused(name: object) -> None:
    with pytest.raises(errors.BadSpec, match=r"preset must be one of draft, .*\.$"):
        parse_spec({"preset": name})


def test_changing_the_objective_drops_what_depends_on_it() -> None:
    relative, gatys = (
        parse_spec({"objective": objective}).model_dump() for objective in ("relative", "gatys")
    )

    assert parse_spec(apply_changes(relative, {"objective": "gatys"})).model_dump() == gatys
    assert parse_spec(apply_changes(gatys, {"objective": "relative"})).model_dump() == relative
    assert (
        parse_spec(apply_changes(relative, {"objective": "gatys", "style_weight": 7})).style_weight
        == 7.0
    )
    chosen = {"content_layers": {"relu3_1": 1.0}, "pooling": "average", "style_weight": 9.0}
    kept = parse_spec(apply_changes(relative | chosen, {"objective": "gatys"})).model_dump()
    assert kept == gatys | {name: chosen[name] for name in ("content_layers", "pooling")}
    assert (
        parse_spec(apply_changes({**relative, "style_weight": 9.0}, {"size": 64})).style_weight
        == 9.0
    )
