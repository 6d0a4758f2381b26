"""The classifier: torchvision's names and numbers, initial weights, folding, widening."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from core import errors
from core.neural.training.classifier import Classifier, convolution_names, full_width_filters, widen
from core.neural.weights.torchvision_registry import import_torchvision
from core.training.config import TrainingConfig

SMALL = TrainingConfig(width=0.125, hidden=16, crop_px=40)


def images(count: int = 2, side: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", ["vgg11", "vgg13_bn", "vgg16", "vgg19_bn"])
def test_names_and_shapes_are_those_of_torchvision(name: str) -> None:
    architecture, _, batch_norm = name.partition("_")
    models = import_torchvision("models")  # 2.7.1 cannot be imported inside the context
    with torch.device("meta"):
        theirs = getattr(models, name)(num_classes=10)
        ours = Classifier(
            TrainingConfig(architecture=architecture, batch_norm=bool(batch_norm)), 10
        )

    shapes = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == shapes


def test_it_computes_the_same_as_torchvisions_network_with_the_same_weights() -> None:
    """At full width on the paper's 225 px; only the hidden layers are small."""
    config = TrainingConfig(architecture="vgg11", hidden=8)
    ours, theirs = (
        Classifier(config, 5).eval(),
        import_torchvision("models").vgg11(num_classes=5, init_weights=False).eval(),
    )
    theirs.classifier = ours.classifier
    theirs.features.load_state_dict(ours.features.state_dict())
    image = images(1, 225)
    normal = import_torchvision("transforms.v2.functional").normalize(
        image.float() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )

    torch.testing.assert_close(theirs(normal), ours(image))


@torch.no_grad()
def response_deviations(config: TrainingConfig, init: str) -> list[float]:
    """Standard deviation of the activations after each ReLU, with initial weights."""
    torch.manual_seed(0)
    model = Classifier(config, 10).eval()
    model.initialize(init)
    x = (images().float() / 255 - model.mean) / model.std
    deviations = []
    for layer in model.features:
        x = layer(x)
        if isinstance(layer, torch.nn.ReLU):
            deviations.append(float(x.std()))
    return deviations


def test_he_keeps_the_scale_of_the_activations_through_vgg_19_and_gaussian_does_not() -> None:
    deep = TrainingConfig(architecture="vgg19", width=0.25, hidden=16, crop_px=40)

    he, gaussian = response_deviations(deep, "he"), response_deviations(deep, "gaussian")
    assert 0.2 < he[-1] / he[0] < 5
    assert gaussian[-1] / gaussian[0] < 1e-6


def test_folded_convolutions_compute_the_same_as_convolution_and_batch_normalization() -> None:
    torch.manual_seed(0)
    model = Classifier(SMALL.model_copy(update={"batch_norm": True}), 10)
    model.initialize("he")
    for _ in range(3):  # change the running means and variances
        model(images(8))
    for layer in model.features:
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.5, 2)
            torch.nn.init.uniform_(layer.bias, -1, 1)
    model.eval()
    wide = widen(model.fold_convolutions(), full_width_filters("vgg16"))

    x = (images().float() / 255 - model.mean) / model.std
    expected, actual = x, x
    pairs = iter(wide)
    for layer in model.features:
        expected = layer(expected)
        if isinstance(layer, torch.nn.Conv2d):
            actual = functional.conv2d(actual, *next(pairs), padding=1)
        elif not isinstance(layer, torch.nn.BatchNorm2d):
            actual = layer(actual)

    assert actual.shape[1] == 512
    torch.testing.assert_close(actual[:, :64], expected, rtol=1e-3, atol=1e-4)
    assert not actual[:, 64:].any()


def test_convolutions_are_named_by_the_blocks_that_style_transfer_uses() -> None:
    assert (
        "features.22" != convolution_names("vgg16")[4, 2] == "features.19"
    )  # relu4_2 of VGG-16 is features.20
    assert convolution_names("vgg19")[4, 2] == "features.21"
    assert convolution_names("vgg16", batch_norm=True)[4, 2] == "features.27"


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_deeper_network_copies_the_first_and_last_layers_of_vgg_11_and_nothing_else(
    batch_norm: bool,
) -> None:
    torch.manual_seed(0)
    config = SMALL.model_copy(update={"batch_norm": batch_norm})
    shallow = Classifier(config.model_copy(update={"architecture": "vgg11"}), 10)
    shallow(images(8))  # change the running statistics
    deep = Classifier(config.model_copy(update={"architecture": "vgg19"}), 10)
    before = {name: tensor.clone() for name, tensor in deep.state_dict().items()}
    deep.initialize_from(shallow.state_dict())

    source_names, target_names = (
        convolution_names(name, batch_norm=batch_norm) for name in ("vgg11", "vgg19")
    )
    copied = {
        target_names[place]: source_names[place] for place in ((1, 1), (2, 1), (3, 1), (3, 2))
    }
    if batch_norm:
        numbers = [
            (int(mine.split(".")[1]), int(other.split(".")[1])) for mine, other in copied.items()
        ]
        copied |= {f"features.{mine + 1}": f"features.{other + 1}" for mine, other in numbers}
    copied |= {f"classifier.{index}": f"classifier.{index}" for index in (0, 3, 6)}
    for name, tensor in deep.state_dict().items():
        layer, _, kind = name.rpartition(".")
        expected = before[name]
        if layer in copied:
            expected = shallow.state_dict()[f"{copied[layer]}.{kind}"]
        assert torch.equal(tensor, expected), name


@pytest.mark.parametrize("batch_norm", [False, True])
def test_start_weights_with_and_without_batch_normalization_do_not_mix(batch_norm: bool) -> None:
    shallow = Classifier(
        SMALL.model_copy(update={"architecture": "vgg11", "batch_norm": not batch_norm}), 10
    )

    with pytest.raises(
        errors.BadWeights, match="one has batch normalization and the other has not"
    ):
        Classifier(SMALL.model_copy(update={"batch_norm": batch_norm}), 10).initialize_from(
            shallow.state_dict()
        )


def test_folding_uses_double_precision_only_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """MPS has no double precision, so the tensors are copied to the CPU first."""
    on_cpu, cpu, double = set[int](), Tensor.cpu, Tensor.double
    copies = list[Tensor]()

    def to_cpu(tensor: Tensor) -> Tensor:
        copies.append(cpu(tensor).clone())
        on_cpu.add(id(copies[-1]))
        return copies[-1]

    def to_double(tensor: Tensor) -> Tensor:
        assert id(tensor) in on_cpu
        return double(tensor)

    model = Classifier(SMALL.model_copy(update={"batch_norm": True}), 10)
    monkeypatch.setattr(Tensor, "cpu", to_cpu)
    monkeypatch.setattr(Tensor, "double", to_double)

    assert len(model.fold_convolutions()) == 13


@pytest.mark.parametrize("change", [{"width": 0.25}, {"hidden": 17}, {"crop_px": 64}])
def test_start_weights_of_another_shape_are_refused(change: dict[str, object]) -> None:
    shallow = Classifier(SMALL.model_copy(update={"architecture": "vgg11", **change}), 10)

    with pytest.raises(errors.BadWeights, match="whole VGG-11 of the same width"):
        Classifier(SMALL, 10).initialize_from(shallow.state_dict())
    with pytest.raises(errors.BadWeights, match="missing or of another shape"):
        Classifier(SMALL, 10).initialize_from({})
