"""The settings of a training run, each with default, range and description. Knows no tensors.

The defaults are those of Simonyan and Zisserman (2014), except for the initial weights.
"""

from collections.abc import Mapping
from math import cos, pi
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core import errors

Number = Annotated[float, Field(allow_inf_nan=False)]


class TrainingConfig(BaseModel):
    """The settings of one training run.

    On a CPU, the same settings, data set and number of threads give the same network, bit for bit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Literal["vgg11", "vgg13", "vgg16", "vgg19"] = Field(
        "vgg16", description="Depth of the VGG."
    )
    batch_norm: bool = Field(False, description="Batch normalization after each convolution.")
    width: Annotated[float, Field(ge=1 / 16, le=1)] = Field(
        1.0, description="Share of VGG's filters; 0.25 can be trained on a CPU."
    )
    hidden: Annotated[int, Field(ge=8, le=16384)] = Field(
        4096,
        description="Units of each of the two hidden fully connected layers.",
    )
    crop_px: Annotated[int, Field(ge=32, le=1024)] = Field(
        225, description="Side of the crop that the network sees, px."
    )
    augment: Literal["none", "crop", "scale"] = Field(
        "crop",
        description=(
            "none: the center; crop: a random crop, mirrored or not; "
            "scale: random crops of random size, with color jitter."
        ),
    )
    epochs: Annotated[int, Field(ge=1, le=10_000)] = Field(
        74, description="Passes over the training pictures."
    )
    batch: Annotated[int, Field(ge=1, le=65_536)] = Field(
        256, description="Pictures per step, over all devices."
    )
    learning_rate: Annotated[Number, Field(gt=0, le=100)] = Field(
        0.01, description="Peak learning rate."
    )
    schedule: Literal["step", "cosine"] = Field(
        "step", description="step: divide by 10 every step_epochs; cosine: fall to 0 at the end."
    )
    step_epochs: Annotated[int, Field(ge=1, le=10_000)] = Field(
        25, description="Epochs until the learning rate is divided by 10."
    )
    warmup_epochs: Annotated[Number, Field(ge=0, le=1000)] = Field(
        0.0, description="Epochs over which the learning rate rises from near 0."
    )
    momentum: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.9, description="Momentum of stochastic gradient descent."
    )
    weight_decay: Annotated[Number, Field(ge=0, le=1)] = Field(
        5e-4, description="Weight decay of every weight and bias."
    )
    clip: Annotated[Number, Field(ge=0, le=1e9)] = Field(
        0.0, description="Maximum norm of the gradient; 0: no limit."
    )
    dropout: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.5, description="Share of hidden units dropped in a step."
    )
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of the target that is spread over all classes."
    )
    init: Literal["he", "gaussian"] = Field(
        "he",
        description="Initial weights. he: He et al. 2015; gaussian: standard deviation 0.01.",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Of the convolutions; weights stay float32. auto: the fastest on the device.",
    )
    patience: Annotated[int, Field(ge=0, le=10_000)] = Field(
        0, description="Stop after so many epochs without a better validation result; 0: never."
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        0, description="Seed of weights, order, crops and dropout."
    )

    def rate(self, step: int, epoch_steps: int) -> float:
        """Return the learning rate of a step, counted from 0. epoch_steps: steps per epoch."""
        epoch = step / epoch_steps
        if epoch < self.warmup_epochs:
            return self.learning_rate * (step + 1) / (self.warmup_epochs * epoch_steps + 1)
        if self.schedule == "step":
            return float(self.learning_rate * 0.1 ** (int(epoch) // self.step_epochs))
        # The share of the run after the warm-up that is done; the divisor must not be 0.
        share = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-9)
        return self.learning_rate * (1 + cos(pi * share)) / 2


def parse_training_config(values: Mapping[str, object]) -> TrainingConfig:
    """Parse settings given as texts or numbers.

    Raises BadSpec, which names the setting and its range.
    """
    try:
        return TrainingConfig.model_validate(values)
    except ValidationError as error:
        name = str(error.errors(include_url=False, include_input=False)[0]["loc"][0])
    if name not in TrainingConfig.model_fields:
        raise errors.BadSpec(
            f"There is no such setting; there are {', '.join(TrainingConfig.model_fields)}."
        )
    raise errors.BadSpec(f"{name} must be {describe_range(name)}.")


def describe_range(name: str) -> str:
    """Return the values that a setting may have, in words."""
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
