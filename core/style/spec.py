"""StyleSpec: the parameters of a stylization.

API, command line, docs and page are generated from its fields.

Each field has a default, a range, a unit and a description. Knows no tensors, no jobs and no HTTP.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from core import errors
from core.style import presets
from core.style.vgg_layers import BLOCKS, layers, missing_layer

# `auto`, or the name of a network. The API does not know which networks the workers have.
MODEL_NAME = r"^[a-z0-9][a-z0-9_-]{0,63}$"
MODEL_NAME_RULE = "small letters, digits, - and _, at most 64"
ModelName = Annotated[str, Field(pattern=MODEL_NAME)]
Background = Annotated[str, Field(pattern=r"^(auto|white|black|#[0-9A-Fa-f]{6})$")]
Layer = Literal[
    "relu1_1", "relu1_2",
    "relu2_1", "relu2_2",
    "relu3_1", "relu3_2", "relu3_3", "relu3_4",
    "relu4_1", "relu4_2", "relu4_3", "relu4_4",
    "relu5_1", "relu5_2", "relu5_3", "relu5_4",
]  # fmt: skip
MAX_STYLES = 8

STYLE_WEIGHT = 26.0
STYLE_WEIGHT_GATYS = 1e6  # for the paper's raw sums; a compromise over sizes
# What the paper has where the default of `objective=relative` departs from it.
GATYS_DEFAULTS: Mapping[str, Any] = {
    "style_weight": STYLE_WEIGHT_GATYS,
    "content_layers": {"relu4_2": 1.0},
    "pooling": "max",
}
STRENGTH_DECADES = 2.5  # the range of `strength`, in powers of ten of the style weight
# Below this strength the style weight falls faster, by so many more powers of ten at 0. Otherwise 0
# would still add the painting's texture, which shows as rings in plain skies.
_FAINT_STRENGTH, _FAINT_DECADES = 0.25, 2.0

MIN_SIZE_PX, MAX_SIZE_PX = 64, 8192
MAX_ITERATIONS = 5000  # of one scale
# One position after four poolings. The sides of a seamless result are multiples of it.
GRID_PX = 16


def _layer_weights(value: Any) -> Any:
    """Parse layer weights into {layer: weight}.

    Accepts `relu4_2`, `relu1_1=1,relu2_1=0.5`, a JSON object, or a list of names.
    """
    if isinstance(value, str):
        text = value.strip()
        if text.startswith(("{", "[")):
            value = _loads(text)
        else:
            pairs = [part.partition("=") for part in text.split(",") if part.strip()]
            value = {name.strip(): weight.strip() or 1.0 for name, _, weight in pairs}
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        value = dict.fromkeys(value, 1.0)
    return value


def _numbers(value: Any) -> Any:
    """Parse `0.7,0.3` or a JSON list into a list."""
    if isinstance(value, str):
        text = value.strip()
        value = _loads(text) if text.startswith("[") else [part.strip() for part in text.split(",")]
    return value


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None  # the validation of the field then reports the expected format


Weight = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
LayerWeights = Annotated[
    dict[Layer, Weight],
    BeforeValidator(_layer_weights),
    Field(min_length=1, max_length=len(get_args(Layer))),
]
MixingWeights = Annotated[list[Weight], BeforeValidator(_numbers), Field(max_length=MAX_STYLES)]


# Marks a parameter that may change while the job waits or runs: it only weighs terms whose targets
# exist.
_UPDATABLE: dict[str, JsonValue] = {"updatable": True}


def _gatys_default(name: str) -> dict[str, JsonValue]:
    """For the schema: the default with `objective=gatys`."""
    return {"default_gatys": GATYS_DEFAULTS[name]}


class StyleSpec(BaseModel):
    """The parameters of one result. Frozen.

    Rejects unknown names, NaN, infinity and values out of range.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )

    size: int = Field(
        512,
        ge=MIN_SIZE_PX,
        le=MAX_SIZE_PX,
        title="Size",
        description="Long side of the result, in px.",
    )
    strength: float = Field(
        0.5,
        ge=0,
        le=1,
        title="Strength",
        description="How strongly the painting's style shows: 0 hardly at all, 1 so that little of "
        "the photo remains.",
        json_schema_extra=_UPDATABLE,
    )
    quality: Literal["draft", "standard", "fine"] = Field(
        "standard",
        title="Quality",
        description="Number of iterations: draft takes about half the time of standard, "
        "fine three times.",
    )
    content_weight: Weight = Field(
        1.0,
        title="Weight of the photo",
        description="Weight of the content loss (alpha). 0 makes a texture of the painting alone.",
        json_schema_extra=_UPDATABLE,
    )
    style_weight: Weight = Field(
        STYLE_WEIGHT,
        title="Weight of the style",
        description="Weight of the style loss (beta) at strength 0.5. 0 reconstructs the photo. "
        f"With objective=gatys the default is {STYLE_WEIGHT_GATYS:g}.",
        json_schema_extra=_UPDATABLE | _gatys_default("style_weight"),
    )
    tv_weight: Weight = Field(
        0.0,
        title="Smoothness",
        description="Weight of the total variation loss, which reduces noise. Values from 1 to 10 "
        "have a visible effect.",
        json_schema_extra=_UPDATABLE,
    )
    content_layers: LayerWeights = Field(
        {"relu2_1": 1.0, "relu4_2": 1.0},
        title="Layers of the photo",
        description="Layers of the content loss, with weights: relu2_1=1,relu4_2=1. Weights are "
        "scaled to sum to 1. With objective=gatys the default is relu4_2 alone.",
        json_schema_extra=_gatys_default("content_layers"),
    )
    style_layers: LayerWeights = Field(
        {"relu1_1": 1.0, "relu2_1": 1.0, "relu3_1": 1.0, "relu4_1": 1.0, "relu5_1": 1.0},
        title="Layers of the style",
        description="Layers of the style loss, with weights: of their Gram matrices, and with "
        "objective=relative also of means and deviations. Weights are scaled to sum to 1.",
    )
    style_weights: MixingWeights = Field(
        [],
        title="Shares of the styles",
        description="Mixing shares of several paintings, in their order: 0.7,0.3. "
        "Empty: equal shares.",
        json_schema_extra=_UPDATABLE,
    )
    style_scale: float = Field(
        1.0,
        ge=0.25,
        le=4,
        title="Brush size",
        description="Size of the brush strokes: the painting's long side relative to the result's, "
        "or to its own if that is smaller.",
    )
    style_frame: Literal["crop", "keep"] = Field(
        "crop",
        title="Frame of the style picture",
        description="A frame around a painting: even bands on all four sides, such as a wall or a "
        "mat. crop: leave it out; keep: it is part of the style.",
    )
    regions: Literal["none", "auto"] = Field(
        "none",
        title="Regions",
        description="auto: find parts of the photo and of the painting that look alike, and paint "
        "each part in the style of its counterpart, such as sky by sky.",
    )
    init: Literal["content", "noise", "style", "picture"] = Field(
        "content",
        title="Start from",
        description="The initial image: the photo (by the default method with the colors and the "
        "contrast of the paintings), white noise, the first painting, or the picture sent as "
        "init_image.",
    )
    seed: int = Field(
        0,
        ge=0,
        le=2**32 - 1,
        title="Variation",
        description="Seed of the white noise, and with init=content or style of a slight "
        "variation: each seed gives another picture, 0 the one without variation. The same seed "
        "gives the same picture.",
    )
    objective: Literal["relative", "gatys"] = Field(
        "relative",
        title="Method",
        description="The loss. relative: each term is divided by what it is for the photo (style) "
        "or by the photo's size (content), so that a weight means the same for every picture; "
        "gatys: the sums of the paper.",
    )
    optimizer: Literal["lbfgs", "adam"] = Field(
        "lbfgs",
        title="Optimizer",
        description="The optimizer: L-BFGS projected on [0, 1], or Adam.",
    )
    iterations: int = Field(
        0,
        ge=0,
        le=MAX_ITERATIONS,
        title="Iterations",
        description="Iterations at the coarsest and the last scale; the scales between take half "
        "as many. 0: as quality says.",
    )
    scales: int = Field(
        0,
        ge=0,
        le=8,
        title="Sizes to go through",
        description="Number of sizes from coarse to fine. 0: chosen by size; 1: full size only, "
        "as in the paper.",
    )
    pooling: Literal["max", "average", "l2"] = Field(
        "l2",
        title="Pooling",
        description="Pooling of the network. l2: the root of the mean square in overlapping "
        "windows, which leaves no dots or grids; max: as the network was trained, the default with "
        "objective=gatys; average: as the paper advises.",
        json_schema_extra=_gatys_default("pooling"),
    )
    seamless: bool = Field(
        False,
        title="Seamless tile",
        description="Make a result that tiles without a seam; its sides are multiples of "
        f"{GRID_PX} px.",
    )
    transparency: Literal["flatten", "keep"] = Field(
        "flatten",
        title="Transparent parts",
        description="Transparent parts of the photo. flatten: the result has none; keep: the "
        "result is as transparent as the photo.",
    )
    background: Background = Field(
        "auto",
        title="Background",
        description="What lies behind transparent parts of the pictures: white, black, or a color "
        "like #8090a0. auto: white, or what shows the picture better.",
    )
    preserve_color: Literal["none", "luminance", "match", "histogram"] = Field(
        "none",
        title="Colors",
        description="Keep the photo's colors. luminance: transfer only the luminance of the "
        "painting; match: first give the painting the mean and covariance of the photo's colors; "
        "histogram: also match the histogram of each channel.",
    )
    model: ModelName = Field(
        "auto",
        title="Network",
        description="The network: vgg19 (the paper's), vgg16, vgg19-torchvision, or the name of an "
        "imported one. auto: vgg19 if it is installed, else vgg16.",
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_gatys(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("objective") == "gatys":
            return {**GATYS_DEFAULTS, **data}
        return data

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.content_weight == 0 and self.style_weight == 0:
            raise ValueError("content_weight and style_weight: one of them must be above 0.")
        for name in ("content_layers", "style_layers"):
            if not any(getattr(self, name).values()):
                raise ValueError(f"{name}: one weight must be above 0.")
        if self.style_weights and not any(self.style_weights):
            raise ValueError("style_weights: one share must be above 0.")
        self._check_layers()
        return self

    def _check_layers(self) -> None:
        """Raise ValueError for layers that a model of known depth lacks.

        The worker checks other networks.
        """
        wanted = {*self.content_layers, *self.style_layers}
        if self.model == "vgg16" and missing_layer("vgg16", wanted, self.model):
            raise ValueError(
                f"{min(wanted - {*layers('vgg16')})} is a layer of VGG-19 alone: set model=vgg19."
            )
        if self.model in BLOCKS:
            message = missing_layer(self.model, wanted, self.model)
            if message is not None:
                raise ValueError(message)

    @property
    def beta(self) -> float:
        """The weight of the style loss: `style_weight` times 10^(2.5 (`strength` - 0.5)).

        Below a strength of 0.25 it falls faster, to a hundredth of this at 0.
        """
        faint = max(0.0, 1 - self.strength / _FAINT_STRENGTH)
        decades = STRENGTH_DECADES * (self.strength - 0.5) - _FAINT_DECADES * faint**2
        return float(self.style_weight * 10**decades)

    @property
    def weights(self) -> dict[str, Any]:
        """The updatable parameters with their values."""
        return {name: getattr(self, name) for name in UPDATABLE}

    def with_updates(self, parameters: Mapping[str, Any]) -> "StyleSpec":
        """The spec with other weights, for the same pictures of a queued or running job.

        Raises BadSpec for a parameter that is not updatable, and if a content or style weight would
        become 0 or change from 0: the run would then need other layers.
        """
        for name in parameters:
            if name not in UPDATABLE and (name in PARAMETERS or name == "preset"):
                raise errors.BadSpec(
                    f"{name} cannot be changed any more; {', '.join(UPDATABLE)} can.",
                    parameter=name,
                )
        spec = parse_spec({**self.model_dump(), **parameters})
        for name in ("content_weight", "style_weight"):
            if bool(getattr(spec, name)) != bool(getattr(self, name)):
                raise errors.BadSpec(
                    f"{name} cannot become 0, or be raised from 0, any more; "
                    "use a small weight instead.",
                    parameter=name,
                )
        return spec._with_shares(len(self.style_weights)) if "style_weights" in parameters else spec

    def for_pictures(
        self, styles: int = 1, masks: int = 0, style_masks: int = 0, *, init_image: bool = False
    ) -> "StyleSpec":
        """The spec with one mixing share for each painting; the shares sum to 1.

        styles, masks, style_masks: the numbers of pictures. Raises BadSpec if they do not fit the
        spec.
        """
        for name, count in (("mask", masks), ("style_mask", style_masks)):
            if count not in (0, styles):
                raise errors.BadSpec(f"{name}: send one for {_each_of(styles)}, or none.")
        if init_image != (self.init == "picture"):
            raise errors.BadSpec(
                "init=picture and a picture as init_image go together: send both, or neither."
            )
        return self._with_shares(styles)

    def _with_shares(self, count: int) -> "StyleSpec":
        if not 1 <= count <= MAX_STYLES:
            raise errors.BadSpec(f"style: send 1 to {MAX_STYLES} paintings.")
        shares = self.style_weights or [1.0] * count
        if len(shares) != count:
            raise errors.BadSpec(f"style_weights: give one share for {_each_of(count)}, or none.")
        return self.model_copy(update={"style_weights": [share / sum(shares) for share in shares]})


class SpecUpdate(BaseModel):
    """A change of weights that a run has applied, and the iteration after which it did."""

    model_config = ConfigDict(frozen=True)

    iteration: int
    before: dict[str, Any]
    after: dict[str, Any]


def _each_of(paintings: int) -> str:
    return "the one painting" if paintings == 1 else f"each of the {paintings} paintings"


# Four poolings precede relu5_1, so 32 px are two positions there.
MIN_RESULT_SIDE_PX = 32


def result_size(width: int, height: int, size: int, *, seamless: bool = False) -> tuple[int, int]:
    """Width and height of the result in px: the shape of the photo, with the long side `size`.

    seamless: both rounded to a multiple of `GRID_PX`. Raises BadSpec if the short side would be
    below `MIN_RESULT_SIDE_PX`, which is too little for the network.
    """
    long, short = max(width, height), min(width, height)
    if size * short < MIN_RESULT_SIDE_PX * long:
        minimum = -(-MIN_RESULT_SIDE_PX * long // short)  # rounded up
        raise errors.BadSpec(
            f"size must be at least {minimum} for a picture of this shape.",
            reason="result_too_small",
            parameter="size",
        )
    grid = GRID_PX if seamless else 1
    across, down = (round(side * size / long / grid) * grid for side in (width, height))
    return across, down


PARAMETERS: tuple[str, ...] = tuple(StyleSpec.model_fields)
UPDATABLE: tuple[str, ...] = tuple(
    name
    for name, field in StyleSpec.model_fields.items()
    if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("updatable")
)


def parse_spec(parameters: dict[str, Any]) -> StyleSpec:
    """Validate parameters: text from a form or a command line, or JSON values; may name a preset.

    Raises BadSpec with one sentence that names the parameter and its range, but not the value.
    """
    parameters = presets.expand_preset(parameters)
    for name, value in parameters.items():
        # pydantic would accept true as 1.
        if isinstance(value, bool) and name in PARAMETERS and name != "seamless":
            raise errors.BadSpec(f"{name} must be {describe_range(name)}.", parameter=name)
    try:
        return StyleSpec.model_validate(parameters)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    if not first["loc"]:
        if "ctx" in first:  # from a model validator
            raise errors.BadSpec(str(first["ctx"]["error"]))
        raise errors.BadSpec("The spec must be an object of parameters.")
    name = str(first["loc"][0])
    if name not in StyleSpec.model_fields:
        raise errors.BadSpec(
            f"There is no such parameter; the parameters are {', '.join(PARAMETERS)}."
        )
    raise errors.BadSpec(f"{name} must be {describe_range(name)}.", parameter=name)


def apply_changes(spec: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of an earlier run with changes. Raises BadSpec for an unknown preset.

    If the objective changes, `style_weight` is dropped, because it has another unit, and so are
    layers and pooling that are the default of the earlier objective.
    """
    change = presets.expand_preset(change)
    merged = dict(spec)
    if change.get("objective", spec.get("objective")) != spec.get("objective"):
        for name, of_gatys in GATYS_DEFAULTS.items():
            of_relative = StyleSpec.model_fields[name].default
            earlier = of_gatys if spec.get("objective") == "gatys" else of_relative
            if name == "style_weight" or merged.get(name) == earlier:
                merged.pop(name, None)
    return merged | change


def describe_range(name: str) -> str:
    """The range of a parameter in words: `a whole number from 64 to 8192`.

    For error messages, help and docs.
    """
    if name in ("content_layers", "style_layers"):
        names = ", ".join(get_args(Layer))
        return f"layers with weights from 0 to 1e+09, like relu4_2=1; the layers are {names}"
    if name == "style_weights":
        return f"at most {MAX_STYLES} numbers from 0 to 1e+09, one for each painting"
    if name == "model":
        return f"auto or a network's name: {MODEL_NAME_RULE}"
    if name == "background":
        return "auto, white, black, or a color like #8090a0"
    schema = StyleSpec.model_json_schema()["properties"][name]
    if schema["type"] == "boolean":
        return "true or false"
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    kind = "a whole number" if schema["type"] == "integer" else "a number"
    return f"{kind} from {schema['minimum']:.10g} to {schema['maximum']:.10g}"
