"""Presets: named sets of parameters. API, command line, page and docs/api.md show them.

Knows the names of the parameters only; core/style/spec.py defines their values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core import errors

FIELD = "preset"  # the field of a submission that names a preset, beside its parameters


@dataclass(frozen=True)
class Preset:
    """A name, one sentence of description, and parameters.

    The parameters that it does not set keep their defaults.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("draft", "A quick look, small and unfinished.", {"size": 256, "quality": "draft"}),
        Preset("faithful", "The photo first, with a breath of the painting.", {"strength": 0.25}),
        Preset(
            "brushwork",
            "Large strokes; the photo shines through.",
            {"strength": 0.75, "style_scale": 1.6},
        ),
        Preset(
            "keep-colors",
            "The painting's strokes in the photo's own colors.",
            {"preserve_color": "luminance"},
        ),
        Preset(
            # The shallow layers see colors and no strokes. One scale, a blurred painting and total
            # variation leave little of the speckle that they would allow.
            "colors",
            "The painting's colors only: the photo without strokes.",
            {
                "strength": 0.6,
                "tv_weight": 5,
                "content_layers": {"relu1_1": 1, "relu2_1": 1},
                "style_layers": {"relu1_1": 1},
                "style_scale": 2,
                "scales": 1,
            },
        ),
        Preset(
            "pastel",
            "Soft areas without fine strokes, in lighter colors.",
            {
                "strength": 0.6,
                "tv_weight": 40,
                "style_layers": {"relu3_1": 1, "relu4_1": 1, "relu5_1": 1},
            },
        ),
        Preset(
            "gatys-2016",
            "As the paper has it: its sums, from white noise, at full size only; slow.",
            {
                "objective": "gatys",
                "init": "noise",
                "scales": 1,
                "pooling": "average",
                "iterations": 500,
            },
        ),
    )
}


def expand_preset(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the field `preset` by the preset's parameters.

    Parameters that are given take precedence. Raises BadSpec for an unknown preset.
    """
    rest = {name: value for name, value in parameters.items() if name != FIELD}
    if FIELD not in parameters:
        return rest
    preset = PRESETS.get(parameters[FIELD]) if isinstance(parameters[FIELD], str) else None
    if preset is None:
        raise errors.BadSpec(f"{FIELD} must be one of {', '.join(PRESETS)}.", parameter=FIELD)
    return {**preset.parameters, **rest}
