"""StyleSpec: every parameter of a stylisation, once. API, command line, docs and page are made from these fields.

Each field has its default, its range, its unit and one sentence. Knows no tensors, no jobs, no HTTP.
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

# `auto`, or the name of a network on the workers: which there are, the API does not know.
MODEL_NAME = r"^[a-z0-9][a-z0-9_-]{0,63}$"
MODEL_NAME_RULE = "small letters, digits, - and _, at most 64"
ModelName = Annotated[str, Field(pattern=MODEL_NAME)]
Layer = Literal[
    "relu1_1", "relu1_2",
    "relu2_1", "relu2_2",
    "relu3_1", "relu3_2", "relu3_3", "relu3_4",
    "relu4_1", "relu4_2", "relu4_3", "relu4_4",
    "relu5_1", "relu5_2", "relu5_3", "relu5_4",
]  # fmt: skip
MAX_STYLES = 8

STYLE_WEIGHT = 8.0
STYLE_WEIGHT_GATYS = (
    1e6  # the same look where the terms are the paper's raw sums; docs/algorithm.md
)
STRENGTH_DECADES = 2.5  # what `strength` spans, in powers of ten of the style weight

MIN_SIZE_PX, MAX_SIZE_PX = 64, 8192
GRID_PX = (
    16  # one position after four poolings; the sides of a picture that repeats are multiples of it
)


def _layer_weights(value: Any) -> Any:
    """`relu4_2`, `relu1_1=1,relu2_1=0.5`, a JSON object, a list of names: all become {layer: weight}."""
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
    """`0.7,0.3` or a JSON list."""
    if isinstance(value, str):
        text = value.strip()
        value = _loads(text) if text.startswith("[") else [part.strip() for part in text.split(",")]
    return value


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None  # the field's own validation says what is expected


Weight = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
LayerWeights = Annotated[
    dict[Layer, Weight],
    BeforeValidator(_layer_weights),
    Field(min_length=1, max_length=len(get_args(Layer))),
]
MixingWeights = Annotated[list[Weight], BeforeValidator(_numbers), Field(max_length=MAX_STYLES)]


# Of a parameter that may be changed while the job waits or runs: it weighs what is there, and needs nothing else.
_UPDATABLE: dict[str, JsonValue] = {"steerable": True}


class StyleSpec(BaseModel):
    """What is asked for. Frozen; unknown names, NaN, infinity and values out of range are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )

    size: int = Field(
        512, ge=MIN_SIZE_PX, le=MAX_SIZE_PX, description="Long side of the result, in px."
    )
    strength: float = Field(
        0.5,
        ge=0,
        le=1,
        description="How much of the painting: 0 is a hint of it, 1 leaves only its brushwork.",
        json_schema_extra=_UPDATABLE,
    )
    quality: Literal["draft", "standard", "fine"] = Field(
        "standard",
        description="How long to work on it: draft takes about a third of standard, fine three times.",
    )
    content_weight: Weight = Field(
        1.0,
        description="Alpha: how much the photo's content counts; 0 makes pure texture.",
        json_schema_extra=_UPDATABLE,
    )
    style_weight: Weight = Field(
        STYLE_WEIGHT,
        description="Beta: how much the painting's style counts at strength 0.5; 0 reconstructs the photo. "
        f"With objective=gatys the default is {STYLE_WEIGHT_GATYS:g}.",
        json_schema_extra=_UPDATABLE,
    )
    tv_weight: Weight = Field(
        0.0,
        description="How much total variation (noise) is held down; 1 to 10 is visible.",
        json_schema_extra=_UPDATABLE,
    )
    content_layers: LayerWeights = Field(
        {"relu4_2": 1.0},
        description="Layers whose features carry the content, with weights: relu4_2=1.",
    )
    style_layers: LayerWeights = Field(
        {"relu1_1": 1.0, "relu2_1": 1.0, "relu3_1": 1.0, "relu4_1": 1.0, "relu5_1": 1.0},
        description="Layers whose Gram matrices carry the style, with weights; shares of their sum.",
    )
    style_weights: MixingWeights = Field(
        [],
        description="Shares of several paintings, in their order: 0.7,0.3. Empty: equal shares.",
        json_schema_extra=_UPDATABLE,
    )
    style_scale: float = Field(
        1.0,
        ge=0.25,
        le=4,
        description="Size of the brush strokes: the painting's size relative to the result's.",
    )
    init: Literal["content", "noise", "style", "picture"] = Field(
        "content",
        description="The first image: the photo, white noise, the painting, or a picture sent as init_image.",
    )
    seed: int = Field(
        0, ge=0, le=2**32 - 1, description="Seed of the white noise; same seed, same picture."
    )
    objective: Literal["relative", "gatys"] = Field(
        "relative",
        description="relative: each term divided by the size of its target; gatys: as in the paper.",
    )
    optimizer: Literal["lbfgs", "adam"] = Field(
        "lbfgs", description="L-BFGS inside [0, 1], or Adam."
    )
    iterations: int = Field(
        0,
        ge=0,
        le=5000,
        description="Iterations at the coarsest and the last scale, half as many between; 0 leaves it to quality.",
    )
    scales: int = Field(
        0,
        ge=0,
        le=8,
        description="Sizes to go through from coarse to fine; 0 chooses, 1 is full size only (the paper).",
    )
    pooling: Literal["max", "average", "l2"] = Field(
        "max", description="Pooling of the network: max is crisp, average smooth, l2 between them."
    )
    seamless: bool = Field(
        False,
        description=f"Make a result that repeats without a seam; its sides are multiples of {GRID_PX} px.",
    )
    preserve_color: Literal["none", "luminance", "match", "histogram"] = Field(
        "none",
        description="Keep the photo's colors. luminance: take only light and dark from the painting; match: shift the "
        "painting's colors to the photo's first; histogram: the same, for every shade.",
    )
    model: ModelName = Field(
        "auto",
        description="The network: vgg19, vgg16, or the name of one of your own; auto is vgg19 where its weights are, "
        "else vgg16.",
    )

    @model_validator(mode="before")
    @classmethod
    def _style_weight_of_the_objective(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("objective") == "gatys":
            return {"style_weight": STYLE_WEIGHT_GATYS, **data}
        return data

    @model_validator(mode="after")
    def _weights_make_sense(self) -> Self:
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
        """Where the model's name tells how deep it is; of other networks the worker knows."""
        wanted = {*self.content_layers, *self.style_layers}
        if self.model in ("auto", "vgg16") and missing_layer("vgg16", wanted, self.model):
            raise ValueError(
                f"{min(wanted - {*layers('vgg16')})} is a layer of VGG-19 alone: set model=vgg19."
            )
        for architecture in BLOCKS:
            if self.model == architecture and (
                refusal := missing_layer(architecture, wanted, self.model)
            ):
                raise ValueError(refusal)

    @property
    def beta(self) -> float:
        """`style_weight` with `strength` in it: even steps of strength are even factors."""
        return float(self.style_weight * 10 ** (STRENGTH_DECADES * (self.strength - 0.5)))

    @property
    def weights(self) -> dict[str, Any]:
        """The parameters that may be spec_updates, as they are."""
        return {name: getattr(self, name) for name in UPDATABLE}

    def with_updates(self, parameters: Mapping[str, Any]) -> "StyleSpec":
        """The spec with other weights, for the same pictures, in a job that is on its way.

        Raises BadSpec for any other parameter, and where a weight would become 0, or come from there: a run would then
        look at other layers.
        """
        for name in parameters:
            if name not in UPDATABLE and (name in PARAMETERS or name == "preset"):
                raise errors.BadSpec(
                    f"{name} cannot be changed any more; {', '.join(UPDATABLE)} can."
                )
        spec = parse_spec({**self.model_dump(), **parameters})
        for name in ("content_weight", "style_weight"):
            if bool(getattr(spec, name)) != bool(getattr(self, name)):
                raise errors.BadSpec(
                    f"{name} cannot become 0, or be raised from 0, any more; a tiny weight will do."
                )
        return spec._with_shares(len(self.style_weights)) if "style_weights" in parameters else spec

    def for_pictures(
        self, styles: int = 1, masks: int = 0, *, init_image: bool = False
    ) -> "StyleSpec":
        """The same spec with one mixing share a painting, summing to 1. Raises BadSpec if the pictures do not fit."""
        if masks not in (0, styles):
            raise errors.BadSpec(f"mask: send one for {_each_of(styles)}, or none.")
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


def _each_of(paintings: int) -> str:
    return "the one painting" if paintings == 1 else f"each of the {paintings} paintings"


# Four poolings lie before relu5_1: 16 px are one position there.
MIN_RESULT_SIDE_PX = 32


def result_size(width: int, height: int, size: int, *, seamless: bool = False) -> tuple[int, int]:
    """Width and height of the result in px: the photo's shape, its long side `size`.

    seamless: both to the nearest multiple of `GRID_PX`. Raises BadSpec where the short side would leave the network
    nothing to see.
    """
    long, short = max(width, height), min(width, height)
    if size * short < MIN_RESULT_SIDE_PX * long:
        least = -(-MIN_RESULT_SIDE_PX * long // short)
        raise errors.BadSpec(f"size must be at least {least} for a picture of this shape.")
    grid = GRID_PX if seamless else 1
    across, down = (max(1, round(side * size / long / grid)) * grid for side in (width, height))
    return across, down


PARAMETERS: tuple[str, ...] = tuple(StyleSpec.model_fields)
UPDATABLE: tuple[str, ...] = tuple(
    name for name, field in StyleSpec.model_fields.items() if field.json_schema_extra == _UPDATABLE
)


def parse_spec(parameters: dict[str, Any]) -> StyleSpec:
    """Parameters as they came (text from a form or a command line, or JSON values), perhaps with a preset, to a spec.

    Raises BadSpec with one sentence that names the parameter and its range; the value itself is never repeated.
    """
    parameters = presets.expand_preset(parameters)
    for name, value in parameters.items():
        if (
            isinstance(value, bool) and name in PARAMETERS and name != "seamless"
        ):  # pydantic would take true for 1
            raise errors.BadSpec(f"{name} must be {describe_range(name)}.")
    try:
        return StyleSpec.model_validate(parameters)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    if not first["loc"]:
        raise errors.BadSpec(
            str(first["ctx"]["error"])
            if "ctx" in first
            else "The spec must be an object of parameters."
        )
    name = str(first["loc"][0])
    if name not in StyleSpec.model_fields:
        raise errors.BadSpec(
            f"There is no such parameter; the parameters are {', '.join(PARAMETERS)}."
        )
    raise errors.BadSpec(f"{name} must be {describe_range(name)}.")


def apply_changes(spec: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of an earlier run with what is to be different. Raises BadSpec for a preset that there is not.

    Another objective weighs by other units, so it does not keep the earlier style_weight.
    """
    change = presets.expand_preset(change)
    kept = dict(spec)
    if change.get("objective", spec.get("objective")) != spec.get("objective"):
        kept.pop("style_weight", None)
    return kept | change


def describe_range(name: str) -> str:
    """What a parameter may be, in words: `a whole number from 64 to 8192`. For refusals, help texts and docs."""
    if name in ("content_layers", "style_layers"):
        return f"layers with weights from 0 to 1e+09, like relu4_2=1; the layers are {', '.join(get_args(Layer))}"
    if name == "style_weights":
        return f"at most {MAX_STYLES} numbers from 0 to 1e+09, one for each painting"
    if name == "model":
        return f"auto or a network's name: {MODEL_NAME_RULE}"
    schema = StyleSpec.model_json_schema()["properties"][name]
    if schema["type"] == "boolean":
        return "true or false"
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    kind = "a whole number" if schema["type"] == "integer" else "a number"
    return f"{kind} from {schema['minimum']:.10g} to {schema['maximum']:.10g}"
