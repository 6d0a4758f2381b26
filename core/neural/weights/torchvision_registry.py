"""Imports torchvision, and finds the URL of VGG-19. The only module that imports torchvision.

torchvision's wheel on the package index is built for CUDA. Next to a CPU build of torch, its
compiled operators do not load. `import torchvision` then fails when it registers shape rules for
two of them, `nms` and `qnms`. It is enough to declare these two names beforehand: the model
registry, the weights and the transforms need no compiled operator.
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


def import_torchvision(submodule: str) -> Any:
    """Import a module of torchvision, such as `models.vgg`."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        _declare_missing_operators()
    return importlib.import_module(f"torchvision.{submodule}")


def vgg19_source() -> tuple[str, str]:
    """The URL of torchvision's VGG-19 weights, and the prefix of the file's SHA-256.

    torchvision puts the prefix into the file name.
    """
    url = str(import_torchvision("models").VGG19_Weights.IMAGENET1K_V1.url)
    match = re.search(r"-([0-9a-f]{8,})\.pth$", url)
    assert match is not None
    return url, match[1]
