"""torchvision, loaded; and where it keeps VGG-19. The one place that imports torchvision.

torchvision's wheel on the package index is built for CUDA. Beside a CPU build of torch its compiled operators do not
load, and `import torchvision` fails at registering shape rules for two of them, `nms` and `qnms`. Declaring these two
names beforehand is enough: models' registries, weights and transforms need no compiled operator.
"""

import importlib
import re
from typing import Any

import torch


def _declare_missing_operators() -> None:
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(
                f"torchvision::{name}",
                "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            )


def module(name: str) -> Any:
    """A module of torchvision, such as `models.vgg`."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        _declare_missing_operators()
    return importlib.import_module(f"torchvision.{name}")


def vgg19_source() -> tuple[str, str]:
    """The URL of torchvision's VGG-19 weights, and the first digits of the file's SHA-256 (from its name)."""
    url = str(module("models").VGG19_Weights.IMAGENET1K_V1.url)
    match = re.search(r"-([0-9a-f]{8,})\.pth$", url)
    assert match is not None
    return url, match[1]
