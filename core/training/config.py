"""The configuration of a training run: every setting with its default, range and description.

The defaults are those of Simonyan and Zisserman (2014), section 3.1, except for the initial weights
(He et al. 2015). Knows no tensors and no files.
"""

from collections.abc import Mapping
from math import cos, pi
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core import errors

Number = Annotated[float, Field(allow_inf_nan=False)]


class TrainingConfig(BaseModel):
    """The settings of one training run.

    On a CPU, the same configuration, data set and number of threads give a bit-identical network.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Literal["vgg11", "vgg13", "vgg16", "vgg19"] = Field(
        "vgg16", description="Depth of the network."
    )
    batch_norm: bool = Field(False, description="Batch normalization after each convolution.")
    width: Annotated[float, Field(ge=1 / 16, le=1)] = Field(
        1.0, description="Share of VGG's filters; 0.25 is small enough for a CPU."
    )
    hidden: Annotated[int, Field(ge=8, le=16384)] = Field(
        4096,
        description="Units of each of the two hidden fully connected layers.",
    )
    crop_px: Annotated[int, Field(ge=32, le=1024)] = Field(
        225, description="Side of the crop that the network sees, in px."
    )
    augment: Literal["none", "crop", "scale"] = Field(
        "crop",
        description="none: center crop; crop: random crop and mirroring; scale: also random scale, "
        "brightness, contrast and saturation.",
    )
    epochs: Annotated[int, Field(ge=1, le=10_000)] = Field(
        74, description="Passes over the pictures."
    )
    batch: Annotated[int, Field(ge=1, le=65_536)] = Field(
        256, description="Pictures for each step, over all devices."
    )
    learning_rate: Annotated[Number, Field(gt=0, le=100)] = Field(
        0.01, description="Highest learning rate of the run."
    )
    schedule: Literal["step", "cosine"] = Field(
        "step",
        description="step: divide by 10 every step_epochs; cosine: fall to 0 along a cosine.",
    )
    step_epochs: Annotated[int, Field(ge=1, le=10_000)] = Field(
        25, description="Epochs between two steps of the step schedule."
    )
    warmup_epochs: Annotated[Number, Field(ge=0, le=1000)] = Field(
        0.0, description="Epochs in which the learning rate rises from almost 0."
    )
    momentum: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.9, description="Momentum of stochastic gradient descent."
    )
    weight_decay: Annotated[Number, Field(ge=0, le=1)] = Field(
        5e-4, description="L2 penalty on every weight and bias."
    )
    clip: Annotated[Number, Field(ge=0, le=1e9)] = Field(
        0.0, description="Clip the gradient to this norm; 0: no clipping."
    )
    dropout: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.5, description="Probability of dropping a hidden unit."
    )
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of the target spread evenly over all classes."
    )
    init: Literal["he", "gaussian"] = Field(
        "he",
        description="Initial weights. he: He et al. 2015; gaussian: standard deviation 0.01.",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Precision of the convolutions; weights stay float32. auto: the device's "
        "fastest.",
    )
    patience: Annotated[int, Field(ge=0, le=10_000)] = Field(
        0, description="Stop after this many epochs without a better validation; 0: never."
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        0, description="Seed of initial weights, order, crops and dropout."
    )

    def learning_rate_at(self, step: int, epoch_steps: int) -> float:
        """The learning rate of a step, counted from 0. epoch_steps: steps of an epoch."""
        epoch = step / epoch_steps
        if epoch < self.warmup_epochs:
            return self.learning_rate * (step + 1) / (self.warmup_epochs * epoch_steps + 1)
        if self.schedule == "step":
            return float(self.learning_rate * 0.1 ** (int(epoch) // self.step_epochs))
        progress = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-9)
        return self.learning_rate * (1 + cos(pi * progress)) / 2


def parse_training_config(settings: Mapping[str, object]) -> TrainingConfig:
    """Build a configuration from strings or numbers.

    Raises BadSpec with one sentence that names the first bad setting and its range.
    """
    try:
        return TrainingConfig.model_validate(settings)
    except ValidationError as error:
        name = str(error.errors(include_url=False, include_input=False)[0]["loc"][0])
    if name not in TrainingConfig.model_fields:
        raise errors.BadSpec(
            f"There is no such setting; there are {', '.join(TrainingConfig.model_fields)}."
        )
    raise errors.BadSpec(f"{name} must be {describe_range(name)}.")


def describe_range(name: str) -> str:
    """The allowed values of a setting in words, such as "a number from 0 to under 1"."""
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
