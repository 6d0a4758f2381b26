"""Where torchvision keeps VGG-19: the address and the hash in its own registry. The one place that imports torchvision.

torchvision's wheel on the package index is built for CUDA. Beside a CPU build of torch its compiled operators do not
load, and `import torchvision` fails at registering shape rules for two of them, `nms` and `qnms`. Declaring these two
names beforehand is enough: models' registries, weights and transforms need no compiled operator.
"""

import importlib
import re

import torch


def _declare_missing_operators() -> None:
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def vgg19_source() -> tuple[str, str]:
    """The URL of torchvision's VGG-19 weights, and the first digits of the file's SHA-256 (from its name)."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        _declare_missing_operators()
    models = importlib.import_module("torchvision.models")
    url = str(models.VGG19_Weights.IMAGENET1K_V1.url)
    match = re.search(r"-([0-9a-f]{8,})\.pth$", url)
    assert match is not None
    return url, match[1]
