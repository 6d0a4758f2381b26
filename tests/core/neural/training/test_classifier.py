"""The network to be trained: torchvision's VGG by name and number, first weights, folding, widening."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from core import errors
from core.neural.training.classifier import Classifier, full_outputs, places, widened
from core.neural.weights.torchvision_registry import module
from core.training.config import TrainingConfig

SMALL = TrainingConfig(width=0.125, hidden=16, crop_px=40)


def pictures(count: int = 2, side: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", ["vgg11", "vgg13_bn", "vgg16", "vgg19_bn"])
def test_names_and_shapes_are_those_of_torchvision(name: str) -> None:
    architecture, _, batch_norm = name.partition("_")
    with torch.device("meta"):
        theirs = getattr(module("models"), name)(num_classes=10)
        ours = Classifier(
            TrainingConfig(architecture=architecture, batch_norm=bool(batch_norm)), 10
        )

    shapes = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == shapes


def test_it_computes_what_torchvisions_network_computes_with_the_same_weights() -> None:
    """At full size, but for hidden units, on the paper's 225 px."""
    recipe = TrainingConfig(architecture="vgg11", hidden=8)
    ours, theirs = (
        Classifier(recipe, 5).eval(),
        module("models").vgg11(num_classes=5, init_weights=False).eval(),
    )
    theirs.classifier = ours.classifier
    theirs.features.load_state_dict(ours.features.state_dict())
    image = pictures(1, 225)
    normal = module("transforms.v2.functional").normalize(
        image.float() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )

    torch.testing.assert_close(theirs(normal), ours(image))


@torch.no_grad()
def responses(recipe: TrainingConfig, init: str) -> list[float]:
    """The deviation of the features' responses after each ReLU, with first weights."""
    torch.manual_seed(0)
    model = Classifier(recipe, 10).eval()
    model.begin(init)
    x = (pictures().float() / 255 - model.mean) / model.std
    sizes = []
    for layer in model.features:
        x = layer(x)
        if isinstance(layer, torch.nn.ReLU):
            sizes.append(float(x.std()))
    return sizes


def test_he_keeps_the_size_of_the_responses_through_nineteen_layers_and_gaussian_loses_it() -> None:
    deep = TrainingConfig(architecture="vgg19", width=0.25, hidden=16, crop_px=40)

    he, gaussian = responses(deep, "he"), responses(deep, "gaussian")
    assert 0.2 < he[-1] / he[0] < 5
    assert gaussian[-1] / gaussian[0] < 1e-6


def test_folded_convolutions_answer_as_those_with_batch_normalization_after_them() -> None:
    torch.manual_seed(0)
    model = Classifier(SMALL.model_copy(update={"batch_norm": True}), 10)
    model.begin("he")
    for _ in range(3):  # running means and variances that are not those they begin with
        model(pictures(8))
    for layer in model.features:
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.5, 2)
            torch.nn.init.uniform_(layer.bias, -1, 1)
    model.eval()
    wide = widened(model.folded(), full_outputs("vgg16"))

    x = (pictures().float() / 255 - model.mean) / model.std
    wanted, found = x, x
    pairs = iter(wide)
    for layer in model.features:
        wanted = layer(wanted)
        if isinstance(layer, torch.nn.Conv2d):
            found = functional.conv2d(found, *next(pairs), padding=1)
        elif not isinstance(layer, torch.nn.BatchNorm2d):
            found = layer(found)

    assert found.shape[1] == 512
    torch.testing.assert_close(wanted, found[:, :64], rtol=1e-3, atol=1e-4)
    assert not found[:, 64:].any()


def test_places_name_the_layers_as_painting_does() -> None:
    assert (
        "features.22" != places("vgg16")[4, 2] == "features.19"
    )  # relu4_2 of VGG-16 is features.20
    assert places("vgg19")[4, 2] == "features.21"
    assert places("vgg16", batch_norm=True)[4, 2] == "features.27"


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_deeper_network_takes_over_the_first_and_last_layers_of_vgg_11_and_nothing_else(
    batch_norm: bool,
) -> None:
    torch.manual_seed(0)
    recipe = SMALL.model_copy(update={"batch_norm": batch_norm})
    shallow = Classifier(recipe.model_copy(update={"architecture": "vgg11"}), 10)
    shallow(pictures(8))  # what batch normalization counts is not what it begins with
    deep = Classifier(recipe.model_copy(update={"architecture": "vgg19"}), 10)
    before = {name: tensor.clone() for name, tensor in deep.state_dict().items()}
    deep.begin_with(shallow.state_dict())

    theirs, ours = (places(name, batch_norm=batch_norm) for name in ("vgg11", "vgg19"))
    taken = {ours[place]: theirs[place] for place in ((1, 1), (2, 1), (3, 1), (3, 2))}
    if batch_norm:
        numbers = [
            (int(mine.split(".")[1]), int(other.split(".")[1])) for mine, other in taken.items()
        ]
        taken |= {f"features.{mine + 1}": f"features.{other + 1}" for mine, other in numbers}
    taken |= {f"classifier.{index}": f"classifier.{index}" for index in (0, 3, 6)}
    for name, tensor in deep.state_dict().items():
        layer, _, kind = name.rpartition(".")
        wanted = shallow.state_dict()[f"{taken[layer]}.{kind}"] if layer in taken else before[name]
        assert torch.equal(wanted, tensor), name


@pytest.mark.parametrize("batch_norm", [False, True])
def test_raw_convolutions_of_a_normalized_network_are_no_beginning(batch_norm: bool) -> None:
    shallow = Classifier(
        SMALL.model_copy(update={"architecture": "vgg11", "batch_norm": not batch_norm}), 10
    )

    with pytest.raises(
        errors.BadWeights, match="one has batch normalization and the other has not"
    ):
        Classifier(SMALL.model_copy(update={"batch_norm": batch_norm}), 10).begin_with(
            shallow.state_dict()
        )


def test_an_apple_card_is_asked_for_no_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has none: what is folded comes to the CPU first."""
    here, cpu, double = set[int](), Tensor.cpu, Tensor.double
    kept = list[Tensor]()

    def to_cpu(tensor: Tensor) -> Tensor:
        kept.append(cpu(tensor).clone())
        here.add(id(kept[-1]))
        return kept[-1]

    def to_double(tensor: Tensor) -> Tensor:
        assert id(tensor) in here
        return double(tensor)

    model = Classifier(SMALL.model_copy(update={"batch_norm": True}), 10)
    monkeypatch.setattr(Tensor, "cpu", to_cpu)
    monkeypatch.setattr(Tensor, "double", to_double)

    assert len(model.folded()) == 13


@pytest.mark.parametrize("change", [{"width": 0.25}, {"hidden": 17}, {"crop_px": 64}])
def test_a_network_of_another_shape_is_no_beginning(change: dict[str, object]) -> None:
    shallow = Classifier(SMALL.model_copy(update={"architecture": "vgg11", **change}), 10)

    with pytest.raises(errors.BadWeights, match="whole VGG-11 of the same width"):
        Classifier(SMALL, 10).begin_with(shallow.state_dict())
    with pytest.raises(errors.BadWeights, match="missing or of another shape"):
        Classifier(SMALL, 10).begin_with({})
