"""How to train a network: every setting once, with its default, range and sentence. Knows no tensors and no files.

The defaults are those of Simonyan and Zisserman (2014), but for the weights a network begins with.
"""

from collections.abc import Mapping
from math import cos, pi
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core import errors

Number = Annotated[float, Field(allow_inf_nan=False)]


class TrainingConfig(BaseModel):
    """One training. The same recipe, data set and number of threads on a CPU give the same network, to the bit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Literal["vgg11", "vgg13", "vgg16", "vgg19"] = Field(
        "vgg16", description="How deep."
    )
    batch_norm: bool = Field(False, description="Batch normalization after each convolution.")
    width: Annotated[float, Field(ge=1 / 16, le=1)] = Field(
        1.0, description="Share of VGG's filters: 0.25 trains on a CPU."
    )
    hidden: Annotated[int, Field(ge=8, le=16384)] = Field(
        4096,
        description="Units of each of the two layers between the convolutions and the classes.",
    )
    crop_px: Annotated[int, Field(ge=32, le=1024)] = Field(
        225, description="Side of the part of a picture that the network sees, px."
    )
    augment: Literal["none", "crop", "scale"] = Field(
        "crop",
        description="none: the middle; crop: any part, mirrored or not; scale: parts of any size, in other light, too.",
    )
    epochs: Annotated[int, Field(ge=1, le=10_000)] = Field(
        74, description="Rounds over the pictures."
    )
    batch: Annotated[int, Field(ge=1, le=65_536)] = Field(
        256, description="Pictures for a step, on all devices together."
    )
    learning_rate: Annotated[Number, Field(gt=0, le=100)] = Field(
        0.01, description="At its highest."
    )
    schedule: Literal["step", "cosine"] = Field(
        "step", description="step: a tenth every step_epochs; cosine: down to 0 at the end."
    )
    step_epochs: Annotated[int, Field(ge=1, le=10_000)] = Field(
        25, description="Epochs until the learning rate falls."
    )
    warmup_epochs: Annotated[Number, Field(ge=0, le=1000)] = Field(
        0.0, description="Epochs in which it rises from almost 0."
    )
    momentum: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.9, description="Of stochastic gradient descent."
    )
    weight_decay: Annotated[Number, Field(ge=0, le=1)] = Field(
        5e-4, description="Of every weight and bias."
    )
    clip: Annotated[Number, Field(ge=0, le=1e9)] = Field(
        0.0, description="Longest gradient that is followed; 0: any."
    )
    dropout: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.5, description="Share of hidden units left out in a step."
    )
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of certainty given to all classes."
    )
    init: Literal["he", "gaussian"] = Field(
        "he",
        description="First weights. he: He et al. 2015; gaussian: deviation 0.01.",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Of the convolutions; weights are float32. auto: the fastest of the device.",
    )
    patience: Annotated[int, Field(ge=0, le=10_000)] = Field(
        0, description="Epochs without a better validation after which to stop; 0: never."
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        0, description="Of weights, order, crops and dropout."
    )

    def rate(self, step: int, epoch_steps: int) -> float:
        """The learning rate of a step, counted from 0."""
        epoch = step / epoch_steps
        if epoch < self.warmup_epochs:
            return self.learning_rate * (step + 1) / (self.warmup_epochs * epoch_steps + 1)
        if self.schedule == "step":
            return float(self.learning_rate * 0.1 ** (int(epoch) // self.step_epochs))
        done = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-9)
        return self.learning_rate * (1 + cos(pi * done)) / 2


def parse_training_config(given: Mapping[str, object]) -> TrainingConfig:
    """From texts or numbers. Raises BadSpec with one sentence that names the setting and its range."""
    try:
        return TrainingConfig.model_validate(given)
    except ValidationError as error:
        name = str(error.errors(include_url=False, include_input=False)[0]["loc"][0])
    if name not in TrainingConfig.model_fields:
        raise errors.BadSpec(
            f"There is no such setting; there are {', '.join(TrainingConfig.model_fields)}."
        )
    raise errors.BadSpec(f"{name} must be {describe_range(name)}.")


def describe_range(name: str) -> str:
    """What a setting may be, in words."""
    schema = TrainingConfig.model_json_schema()["properties"][name]
    if schema["type"] == "boolean":
        return "true or false"
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    kind = "a whole number" if schema["type"] == "integer" else "a number"
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    over = " over" if "exclusiveMinimum" in schema else ""
    under = " to under" if "exclusiveMaximum" in schema else " to"
    return f"{kind} from{over} {low:.10g}{under} {high:.10g}"
