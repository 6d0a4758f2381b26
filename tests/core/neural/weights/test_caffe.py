"""Caffe files: old and new layers and blobs, input colors, round trips, hostile files."""

import random
import resource
import signal
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from PIL import Image, ImageChops
from torch import Tensor
from torch.nn import functional

from core import errors
from core.neural.transfer.inputs import StyleInputs
from core.neural.transfer.stylize import stylize
from core.neural.vgg import TORCHVISION, Input, Network
from core.neural.weights import caffe, files
from core.neural.weights.cache import WeightsCache, random_parameters
from core.neural.weights.parameters import CAFFE, Parameters
from core.style.spec import parse_spec
from core.style.vgg_layers import Architecture

MEAN_BGR = (103.939, 116.779, 123.68)


# ---------------------------------------------------------------------- the format, encoded by hand


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _blob(tensor: Tensor, form: str) -> bytes:
    """Old: four sides and floats. New: a shape. Doubles and unpacked floats are rare but valid."""
    numbers = tensor.flatten().tolist()
    if form == "old":
        sides = [1] * (4 - tensor.ndim) + [*tensor.shape]
        head = b"".join(_field(number, side) for number, side in enumerate(sides, start=1))
    else:
        head = _field(7, _field(1, b"".join(map(_varint, tensor.shape))))
    if form == "double":
        return head + _field(8, struct.pack(f"<{len(numbers)}d", *numbers))
    if form == "unpacked":
        return head + b"".join(
            _varint(5 << 3 | 5) + struct.pack("<f", number) for number in numbers
        )
    return head + _field(5, struct.pack(f"<{len(numbers)}f", *numbers))


def _layer(name: str, pair: tuple[Tensor, ...], form: str, param: bytes = b"") -> bytes:
    blobs = [_blob(tensor, form) for tensor in pair]
    if form == "old":
        body = _field(2, b"below") + _field(4, name.encode()) + _field(5, 4)
        return _field(2, body + b"".join(_field(6, blob) for blob in blobs) + param)
    body = (
        _field(1, name.encode())
        + _field(2, b"Convolution")
        + b"".join(_field(7, blob) for blob in blobs)
    )
    return _field(100, body + param)


def _other(name: str, form: str, payload: bytes = b"") -> bytes:
    """A fully connected layer."""
    if form == "old":
        return _field(
            2, _field(4, name.encode()) + _field(5, 14) + (_field(6, payload) if payload else b"")
        )
    return _field(
        100,
        _field(1, name.encode())
        + _field(2, b"InnerProduct")
        + (_field(7, payload) if payload else b""),
    )


def _model(pairs: Any, form: str) -> bytes:
    layers = [_layer(f"conv{number}", pair, form) for number, pair in enumerate(pairs)]
    return _field(1, b"a net") + _field(4, 3) + b"".join(layers) + _other("fc6", form)


def _small(seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(2, 3, 3, 3, generator=generator), torch.randn(2, generator=generator)),
        (torch.randn(4, 2, 3, 3, generator=generator), torch.randn(4, generator=generator)),
    ]


@pytest.mark.parametrize("form", ["old", "new", "double", "unpacked"])
def test_every_form_is_read_bit_by_bit(tmp_path: Path, form: str) -> None:
    path = tmp_path / "x.caffemodel"
    path.write_bytes(_model(_small(), form))

    for expected, actual in zip(_small(), caffe.read_caffemodel(path), strict=True):
        assert all(
            torch.equal(ours, theirs.float()) for ours, theirs in zip(expected, actual, strict=True)
        )


@pytest.mark.parametrize("form", ["old", "new"])
@pytest.mark.parametrize(
    "pad", [_field(3, 1), _field(9, 1) + _field(10, 1), _field(3, 1) + _field(5, 1) + _field(6, 1)]
)
def test_a_pad_of_1_is_accepted_in_every_form(tmp_path: Path, form: str, pad: bytes) -> None:
    path = tmp_path / "x.caffemodel"
    path.write_bytes(_layer("conv", _small()[0], form, _field(10 if form == "old" else 106, pad)))

    assert len(caffe.read_caffemodel(path)) == 1


def test_a_missing_bias_is_zero(tmp_path: Path) -> None:
    path = tmp_path / "x.caffemodel"
    path.write_bytes(_layer("conv", _small()[0][:1], "new"))

    assert caffe.read_caffemodel(path)[0][1].tolist() == [0.0, 0.0]


# ---------------------------------------------------------------------- the function


def _direct(image: Tensor, pairs: Any) -> Tensor:
    """Caffe's first two layers: BGR in 0 to 255 minus the mean, then zero padding."""
    x = image.flip(1) * 255 - torch.tensor(MEAN_BGR, dtype=image.dtype).view(1, 3, 1, 1)
    for weight, bias in pairs[:2]:
        x = functional.conv2d(x, weight.to(image.dtype), bias.to(image.dtype), padding=1).relu()
    return x


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A VGG-13 with BGR input, and its file."""
    pairs = [(weight, torch.full_like(bias, 0.1)) for weight, bias in random_parameters("vgg13")]
    path = tmp_path_factory.mktemp("caffe") / "original.caffemodel"
    path.write_bytes(_model(pairs, "old"))
    return path, pairs


@pytest.mark.parametrize("suffix", ["caffemodel", "pth"])
def test_an_imported_network_computes_the_same_as_caffe_up_to_the_border(
    tmp_path: Path, original: tuple[Path, Any], suffix: str
) -> None:
    """Caffe pads with zeros after it subtracts the mean, so the padding has the mean color."""
    path, pairs = original
    if suffix == "pth":
        path = tmp_path / "original.pth"
        torch.save(Parameters.of(pairs).to_state_dict(), path)
    cache = WeightsCache(tmp_path / "weights")
    cache.import_file("original", path, "caffe" if suffix == "pth" else None)
    parameters, _ = cache.load_parameters("original")
    network = Network(
        "vgg13",
        parameters.pairs,
        name="",
        sha256="",
        dtype=torch.float64,
        takes=parameters.input_format,
    )
    image = torch.rand(
        1, 3, 24, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    expected, actual = (
        _direct(image, pairs),
        network.features(image, ["relu1_2"], edges="zeros")["relu1_2"],
    )

    assert float((actual - expected).abs().max()) < 1e-9 * float(expected.max())


def test_torch_conversions_of_caffe_networks_are_recognized_by_their_hash(
    tmp_path: Path, original: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as vgg16-00b39a1b.pth; with any other hash a .pth has torchvision's input."""
    path = tmp_path / "x.pth"
    torch.save(Parameters.of(original[1]).to_state_dict(), path)
    unknown, metadata = files.read_network(path)
    monkeypatch.setattr(files, "_CAFFE_CONVERSION_HASHES", (metadata["from_sha256"][:8],))
    known, _ = files.read_network(path)

    assert (unknown.input_format, known.input_format) == (Input(), CAFFE)
    assert torch.equal(unknown.pairs[0][0].flip(1), known.pairs[0][0])


def test_converting_the_input_keeps_the_function_except_at_the_border() -> None:
    """With repeated edges everywhere; with zero padding not, because the mean color changes."""
    default = Parameters.of(random_parameters("vgg11"))
    image = torch.rand(1, 3, 24, 20, generator=torch.Generator().manual_seed(1))
    outputs = {}
    for input_format in (default.input_format, CAFFE):
        pairs = default.convert_input(input_format).pairs
        network = Network(
            "vgg11", pairs, name="", sha256="", dtype=torch.float32, takes=input_format
        )
        outputs[input_format] = [
            network.features(image, ["relu1_1"], edges=edges)["relu1_1"]
            for edges in ("repeat", "zeros")
        ]
    (repeated, padded), (repeated_too, padded_too) = outputs.values()

    assert torch.allclose(repeated, repeated_too, atol=1e-4)
    assert torch.allclose(padded[..., 1:-1, 1:-1], padded_too[..., 1:-1, 1:-1], atol=1e-4)
    assert 1e-3 < float((padded - padded_too).abs().max()) < 0.1


# ---------------------------------------------------------------------- round trips


@pytest.mark.parametrize("architecture", ["vgg11", "vgg19"])
def test_a_caffe_network_round_trips_bit_by_bit(tmp_path: Path, architecture: Architecture) -> None:
    there = Parameters(architecture, Parameters.of(random_parameters(architecture)).pairs, CAFFE)
    for name in ("x.caffemodel", "x.safetensors"):
        files.write_network(tmp_path / name, there, {"data": "textures"})
    files.write_network(tmp_path / "x.pth", there, {}, "caffe")
    (back, _), (native, metadata) = (
        files.read_network(tmp_path / name) for name in ("x.caffemodel", "x.safetensors")
    )
    as_conversion, _ = files.read_network(tmp_path / "x.pth", "caffe")

    assert there.sha256 == back.sha256 == native.sha256 == as_conversion.sha256
    assert metadata["data"] == "textures"


def test_the_papers_network_round_trips_to_the_bit(tmp_path: Path, weights: WeightsCache) -> None:
    there, _ = weights.load_parameters("vgg19")
    files.write_network(tmp_path / "x.caffemodel", there, {})
    imported = WeightsCache(tmp_path / "weights").import_file("mine", tmp_path / "x.caffemodel")

    assert imported.sha256 == there.sha256


def test_a_torchvision_network_round_trips_up_to_rounding(tmp_path: Path) -> None:
    there = Parameters.of(random_parameters("vgg16"))
    for name in ("x.caffemodel", "x.pth"):
        files.write_network(tmp_path / name, there, {})
    back = files.read_network(tmp_path / "x.caffemodel")[0].convert_input(there.input_format)

    assert files.read_network(tmp_path / "x.pth")[0].sha256 == there.sha256
    for (weight, bias), (weight_too, bias_too) in zip(there.pairs, back.pairs, strict=True):
        assert torch.allclose(weight, weight_too, rtol=1e-6, atol=1e-7)
        assert torch.allclose(bias, bias_too, rtol=1e-6, atol=1e-6)


def test_a_round_trip_through_caffe_keeps_the_first_iterations(
    tmp_path: Path, weights: WeightsCache, photo: Image.Image, painting: Image.Image
) -> None:
    """After many iterations two runs diverge if the weights differ in the last bit."""
    there = weights.load_parameters("vgg19")[0].convert_input(TORCHVISION)
    files.write_network(tmp_path / "x.caffemodel", there, {})
    back, _ = files.read_network(tmp_path / "x.caffemodel")
    spec = parse_spec({"size": 64, "iterations": 3})
    networks = [
        Network("vgg19", p.pairs, name="", sha256="", dtype=torch.float32, takes=p.input_format)
        for p in (there, back)
    ]
    original, other = (
        stylize(StyleInputs(photo, [painting]), spec, network).picture for network in networks
    )

    assert max(high for _, high in ImageChops.difference(original, other).getextrema()) <= 1


def test_the_prototxt_holds_the_layers_without_weights(tmp_path: Path) -> None:
    files.write_network(tmp_path / "mine.caffemodel", Parameters.of(random_parameters("vgg13")), {})
    net = text_format.Parse(
        (tmp_path / "mine.prototxt").read_text(), caffe._MESSAGE_CLASSES["Net"]()
    )
    kinds = [layer.type.decode() for layer in net.layer]

    assert tuple(kinds.count(kind) for kind in ("Convolution", "ReLU", "Pooling")) == (10, 10, 4)
    assert not any(layer.blobs for layer in net.layer)
    assert all(
        below.top[0] == above.bottom[0]
        for below, above in zip(net.layer, net.layer[1:], strict=False)
    )
    last = net.layer[-2]
    assert (
        last.name,
        last.convolution_param.num_output,
        list(last.convolution_param.pad),
        list(last.convolution_param.kernel_size),
    ) == (b"conv5_2", 512, [1], [3])
    assert list(net.layer[0].input_param.shape[0].dim) == [1, 3, 224, 224]


def test_the_prototxt_of_another_network_is_not_overwritten(tmp_path: Path) -> None:
    """The command names only the .caffemodel."""
    (tmp_path / "x.prototxt").write_text("mine")
    there = Parameters.of(random_parameters("vgg11"))
    with pytest.raises(errors.BadInput, match=r"another .*x\.prototxt"):
        files.write_network(tmp_path / "x.caffemodel", there, {})
    assert [path.name for path in tmp_path.iterdir()] == ["x.prototxt"]

    for _ in range(2):  # its own may be overwritten
        files.write_network(tmp_path / "y.caffemodel", there, {})


@pytest.mark.parametrize("suffix", ["caffemodel", "pth", "safetensors", "PTH"])
def test_a_full_disk_leaves_the_previous_file(tmp_path: Path, suffix: str) -> None:
    """A limit on file size stands in for a full disk: the kernel refuses the write as well."""
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(b"before")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(errors.StorageFull, match="There is no room for"):
            files.write_network(path, Parameters.of(random_parameters("vgg11")), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, previous)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {path.name: b"before"}


@pytest.mark.parametrize("suffix", ["caffemodel", "pth", "safetensors"])
def test_written_files_have_the_mode_of_the_umask(tmp_path: Path, suffix: str) -> None:
    """So that a worker of another user can read them."""
    files.write_network(tmp_path / f"x.{suffix}", Parameters.of(random_parameters("vgg11")), {})
    (tmp_path / "plain").touch()

    assert (tmp_path / f"x.{suffix}").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("suffix", ["caffemodel", "pth", "safetensors"])
def test_a_missing_folder_is_not_reported_as_a_full_disk(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(FileNotFoundError):
        files.write_network(
            tmp_path / "nowhere" / f"x.{suffix}", Parameters.of(random_parameters("vgg11")), {}
        )


def test_a_safetensors_can_be_exported_with_caffes_input(tmp_path: Path) -> None:
    there = Parameters.of(random_parameters("vgg11"))
    files.write_network(tmp_path / "x.safetensors", there, {}, "caffe")
    back, _ = files.read_network(tmp_path / "x.safetensors")

    assert back.input_format == CAFFE
    assert back.sha256 == there.convert_input(CAFFE).sha256


# ---------------------------------------------------------------------- hostile files


def _bad_blob(pair: tuple[Tensor, Tensor], **sides: int) -> bytes:
    weight, bias = pair
    blob = b"".join(
        _field(number, sides.get(name, 3))
        for number, name in enumerate(("num", "channels"), start=1)
    )
    return _field(
        2,
        _field(5, 4)
        + _field(6, blob + _field(5, weight.numpy().tobytes()))
        + _field(6, _blob(bias, "old")),
    )


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no .caffemodel with convolutions"),
    "text": (b"name: 'VGG'\nlayer {\n", "caffemodel"),
    "zeros": (bytes(1000), "caffemodel"),
    "no convolution": (_other("fc6", "new"), "with convolutions"),
    "ends in a length": (b"\x12\xff", "cut short"),
    "a length beyond the end": (_varint(100 << 3 | 2) + _varint(1 << 60) + b"x", "cut short"),
    "a number without end": (b"\x08" + b"\xff" * 20, "no .caffemodel"),
    "a group": (b"\x0b", "no .caffemodel"),
    "a damaged layer": (_field(100, b"\xff\xff\xff"), "damaged"),
    "no weights": (_layer("conv", (), "new"), "0 blobs"),
    "no four sides": (_layer("conv", (torch.ones(3), torch.ones(3)), "new"), "1 dimensions"),
    "sides that do not fit": (_bad_blob(_small()[0], num=7), "another shape"),
    "sides below zero": (_bad_blob(_small()[0], num=2**64 - 2), "another shape"),
    "sides beyond all bounds": (
        _bad_blob(_small()[0], num=2**31 - 1, channels=2**31 - 1),
        "another shape",
    ),
    "another pad": (_layer("conv", _small()[0], "new", _field(106, _field(1, 2))), "pad"),
    "another pad on one side": (
        _layer("conv", _small()[0], "new", _field(106, _field(9, 1) + _field(10, 0))),
        "pad",
    ),
    "a stride on one side": (
        _layer("conv", _small()[0], "old", _field(10, _field(3, 1) + _field(14, 2))),
        "stride",
    ),
    "groups": (
        _layer("conv", _small()[0], "new", _field(106, _field(3, 1) + _field(5, 2))),
        "group",
    ),
    "an old response normalization": (_field(2, _field(5, 15)), "type LRN; VGG has none"),
    "an old deconvolution": (_field(2, _field(5, 39)), "type Deconvolution; VGG has none"),
    "a stride": (_layer("conv", _small()[0], "new", _field(106, _field(6, 2))), "stride"),
    "batch normalization": (_field(100, _field(2, b"BatchNorm")), "VGG has none"),
    "too many parts": (_field(4, 1) * 20_000, "more parts"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_a_bad_file_is_refused_with_a_reason(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.caffemodel"
    path.write_bytes(BAD[name][0])

    with pytest.raises(errors.BadWeights, match=BAD[name][1]):
        caffe.read_caffemodel(path)


def test_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.caffemodel"
    for pairs, words in (
        (_small(), "holds 2 convolutions"),
        (_small() * 9, "holds 17 convolutions"),
    ):
        path.write_bytes(_model(pairs, "new"))
        with pytest.raises(errors.BadWeights, match=words):
            files.read_network(path)
    path.write_bytes(_model(_small() * 4, "new"))
    with pytest.raises(errors.BadWeights, match="2 x 3 x 3 x 3; VGG-11"):
        files.read_network(path)


@pytest.mark.parametrize("form", ["old", "new"])
def test_a_file_cut_at_any_byte_is_refused_or_has_fewer_layers(tmp_path: Path, form: str) -> None:
    """A cut between two layers leaves a valid file with fewer layers; any other is detected."""
    path, data = tmp_path / "x.caffemodel", _model(_small(), form)
    layer_counts = []
    for length in range(len(data)):
        path.write_bytes(data[:length])
        try:
            layer_counts.append(len(caffe.read_caffemodel(path)))
        except errors.BadWeights:
            continue

    assert layer_counts == sorted(layer_counts)
    assert len(layer_counts) <= 4


def test_thousands_of_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    """No damage raises another error than BadWeights, or yields numbers that the file lacks."""
    chance, path = random.Random(1), tmp_path / "x.caffemodel"
    whole = [_model(_small(), form) for form in ("old", "new", "double", "unpacked")]
    refused: list[str] = []
    for _ in range(4000):
        path.write_bytes(_damaged(chance.choice(whole), chance))
        try:
            pairs = caffe.read_caffemodel(path)
        except errors.BadWeights as error:
            refused.append(error.message)
        else:
            assert all(weight.ndim == 4 and weight.numel() < 10_000 for weight, _ in pairs)

    assert all(refused)
    assert 1000 < len(refused) < 4000


def _damaged(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        # Half of the changes hit the header, where each byte has a meaning.
        at = chance.randrange(60 if chance.random() < 0.5 else len(changed))
        way = chance.randrange(5)
        if way == 0:
            changed[at] = chance.randrange(256)
        elif way == 1:
            changed[at] ^= 1 << chance.randrange(8)
        elif way == 2:
            del changed[at : at + chance.randrange(1, 40)]
        elif way == 3:
            changed[at:at] = changed[
                (begin := chance.randrange(len(changed))) : begin + chance.randrange(1, 200)
            ]
        else:
            changed[at : at + 4] = bytes([255] * chance.randrange(1, 10))
        if len(changed) < 100:
            return bytes(changed)
    return bytes(changed)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel reports no peak")
def test_a_large_fully_connected_layer_is_skipped_without_memory(
    tmp_path: Path, original: tuple[Path, Any]
) -> None:
    """VGG_ILSVRC_19_layers.caffemodel has a layer of 411 MB; here it is a hole in the file."""
    path = tmp_path / "x.caffemodel"
    bytes_of_fc6 = 25088 * 4096 * 4
    head = _field(4, b"fc6") + _field(5, 14) + _varint(6 << 3 | 2) + _varint(bytes_of_fc6)
    with path.open("wb") as file:
        file.write(_varint(2 << 3 | 2) + _varint(len(head) + bytes_of_fc6) + head)
        file.seek(bytes_of_fc6, 1)
        file.write(original[0].read_bytes())
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = _memory("VmRSS")
    pairs = caffe.read_caffemodel(path)

    assert len(pairs) == 10
    assert _memory("VmHWM") - before < 300e6


def _memory(name: str) -> float:
    """A value of /proc/self/status in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return float(lines[name].split()[0]) * 1024


def test_nan_weights_are_read_unchanged(tmp_path: Path) -> None:
    """`Parameters.of` refuses them afterwards."""
    weight, bias = _small()[0]
    path = tmp_path / "x.caffemodel"
    path.write_bytes(_layer("conv", (weight * torch.nan, bias), "new"))

    assert np.isnan(caffe.read_caffemodel(path)[0][0].numpy()).all()
