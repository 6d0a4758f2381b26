"""A small data set that a network can learn, and a network that is quick."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.neural.vgg import Network
from core.training.dataset_builder import BuildOptions, build


def _stripes(rng: np.random.Generator, *, upright: bool) -> Image.Image:
    """Vertical or horizontal stripes in random colors and positions: two classes."""
    ground = rng.integers(0, 256, 3)
    ink = (ground + rng.integers(80, 170, 3)) % 256
    wave = np.sin((np.arange(40) + rng.integers(0, 40)) * rng.uniform(0.8, 1.2))[:, None] > 0
    rows = np.where(wave, ground, ink).astype(np.uint8)  # (40, 3)
    return Image.fromarray(
        np.repeat(rows[None] if upright else rows[:, None], 40, axis=0 if upright else 1)
    )


@pytest.fixture(scope="session")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 60 pictures for training and 20 for validation, 40 px, in two classes."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("lying", "upright"):
        (folder / "source" / name).mkdir(parents=True)
        for number in range(40):
            _stripes(rng, upright=name == "upright").save(
                folder / "source" / name / f"{number}.png"
            )
    build(folder / "source", folder / "out", BuildOptions(40, store="raw", validation=0.25), jobs=1)
    return folder / "out"


@pytest.fixture(scope="session")
def tiny_vgg16(make_tiny_network: Callable[..., Network]) -> Network:
    """A tiny VGG-16 in float32, for everything that does not need real weights."""
    return make_tiny_network("vgg16")
