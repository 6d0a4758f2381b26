"""The second run with a painting does not measure it again, and gives the same picture."""

import gc
from typing import Any

import pytest
import torch
from PIL import Image

from core.neural.transfer import style_cache
from core.neural.transfer.inputs import StyleInputs
from core.neural.transfer.objective import measure_styles
from core.neural.transfer.style_cache import StyleCache
from core.neural.transfer.stylize import stylize
from core.neural.vgg import Network
from core.neural.weights.cache import random_parameters
from core.style import vgg_layers
from core.style.spec import StyleSpec

SPEC = StyleSpec(size=64, scales=1, iterations=1)


def _tiny_network(monkeypatch: pytest.MonkeyPatch) -> Network:
    """A VGG-19 with 4 channels per layer and random weights."""
    monkeypatch.setattr(vgg_layers, "WIDTHS", (4, 4, 4, 4, 4))
    parameters = random_parameters("vgg19")
    return Network("vgg19", parameters, name="a", sha256="a", dtype=torch.float32)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    return _tiny_network(monkeypatch)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape of each painting that is measured."""
    shapes: list[tuple[int, ...]] = []

    def spy(network: Network, picture: torch.Tensor, *args: Any) -> Any:
        shapes.append(tuple(picture.shape))
        return measure_styles(network, picture, *args)

    monkeypatch.setattr(style_cache, "measure_styles", spy)
    return shapes


def _run(
    network: Network, cache: StyleCache | None, spec: StyleSpec, *pictures: Image.Image
) -> bytes:
    photo, *paintings = pictures
    inputs = StyleInputs(photo, paintings, style_cache=cache)
    return stylize(inputs, spec, network).picture.tobytes()


def test_the_next_run_measures_only_what_is_new_and_gives_the_same_picture(
    network: Network,
    photo: Image.Image,
    painting: Image.Image,
    measured: list[tuple[int, ...]],
) -> None:
    cache, other = StyleCache(), photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    expected = _run(network, None, SPEC, photo, painting)
    assert measured == []

    pictures = [_run(network, cache, SPEC, photo, painting) for _ in range(3)]

    assert len(measured) == SPEC.scales
    assert pictures == [expected] * 3
    # Another photo, and other weights of the losses, with the same painting.
    weighted = SPEC.model_copy(update={"style_weight": 3.0, "content_weight": 2.0})
    for spec in (SPEC, weighted):
        assert _run(network, cache, spec, other, painting) == _run(
            network, None, spec, other, painting
        )
    assert len(measured) == SPEC.scales
    _run(network, cache, SPEC, photo, other)
    assert len(measured) == 2 * SPEC.scales


@pytest.mark.parametrize(
    "change",
    [
        {"pooling": "average"},
        {"style_layers": {"relu1_1": 1.0}},
        {"content_layers": {"relu3_1": 1.0}},
        {"objective": "gatys"},
        {"style_scale": 0.7},
        {"preserve_color": "match"},
        {"preserve_color": "luminance"},
    ],
    ids=str,
)
def test_what_changes_the_statistics_changes_the_key(
    network: Network,
    photo: Image.Image,
    painting: Image.Image,
    measured: list[tuple[int, ...]],
    change: dict[str, Any],
) -> None:
    cache = StyleCache()
    spec = StyleSpec.model_validate({"size": 64, "scales": 1, "iterations": 1, **change})
    plain = StyleSpec(size=64, scales=1, iterations=1)
    _run(network, cache, plain, photo, painting)

    assert _run(network, cache, spec, photo, painting) == _run(network, None, spec, photo, painting)
    assert len(measured) == 2


def _measure(cache: StyleCache, network: Network, seed: int, **options: Any) -> Any:
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    spec = SPEC.model_copy(update={"objective": options.get("objective", "relative")})
    return cache.measure(network, picture, spec, options.get("guides", [None]), **_tile(options))


def _tile(options: dict[str, Any]) -> dict[str, Any]:
    return {"tile_px": options["tile_px"]} if "tile_px" in options else {}


def test_guides_tiles_and_networks_have_entries_of_their_own(
    network: Network, measured: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also two networks of the same name and digest: their precision may differ."""
    cache, half, other = StyleCache(), torch.zeros(64, 64), _tiny_network(monkeypatch)
    half[:32] = 1
    for number, (used, options) in enumerate(
        [
            (network, {}),
            (other, {}),
            (network, {"guides": [half]}),
            (network, {"guides": [half.flip(0)]}),
            (network, {"guides": [half, None]}),
            (network, {"tile_px": 32}),
            (network, {"objective": "gatys"}),  # with the same layers and pooling
        ],
        start=1,
    ):
        for _ in range(2):
            _measure(cache, used, 1, **options)
        assert len(measured) == number


def test_the_oldest_paintings_make_room_for_new_ones(
    network: Network, measured: list[tuple[int, ...]]
) -> None:
    size = style_cache._count_bytes(_measure(StyleCache(), network, 0))
    cache = StyleCache(max_bytes=2 * size)
    measured.clear()
    for seed in (1, 2, 1, 3, 1, 2):
        _measure(cache, network, seed)

    assert len(measured) == 4  # 1, 2, 3, and 2 again
    tiny = StyleCache(max_bytes=size - 1)
    for _ in range(2):
        _measure(tiny, network, 1)
    assert len(measured) == 6


def test_a_network_that_is_released_takes_its_entries_with_it(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, other = StyleCache(), _tiny_network(monkeypatch)
    for used in (network, other):
        _measure(cache, used, 1)
    del used, other
    gc.collect()

    assert len(cache._of_network) == 1
