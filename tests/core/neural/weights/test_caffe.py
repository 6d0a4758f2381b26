"""Caffe's files: both forms of layers and blobs, the colors that its networks take, hostile files, and the way back."""

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
from core.neural.vgg import Input, Network
from core.neural.weights import caffe, files
from core.neural.weights.cache import WeightsCache, random_parameters
from core.neural.weights.parameters import CAFFE, Parameters
from core.style.spec import parse_spec
from core.style.vgg_layers import Architecture

MEAN_BGR = (103.939, 116.779, 123.68)


# ---------------------------------------------------------------------- the format, written by hand


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
    """Old: four sides and floats. New: a shape. Doubles, and floats that are not packed, are rare but allowed."""
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


def _layer(name: str, pair: tuple[Tensor, ...], form: str, told: bytes = b"") -> bytes:
    blobs = [_blob(tensor, form) for tensor in pair]
    if form == "old":
        body = _field(2, b"below") + _field(4, name.encode()) + _field(5, 4)
        return _field(2, body + b"".join(_field(6, blob) for blob in blobs) + told)
    body = (
        _field(1, name.encode())
        + _field(2, b"Convolution")
        + b"".join(_field(7, blob) for blob in blobs)
    )
    return _field(100, body + told)


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
def test_every_form_gives_the_numbers_to_the_bit(tmp_path: Path, form: str) -> None:
    path = tmp_path / "x.caffemodel"
    path.write_bytes(_model(_small(), form))

    for expected, found in zip(_small(), caffe.read_caffemodel(path), strict=True):
        assert all(
            torch.equal(ours, theirs.float()) for ours, theirs in zip(expected, found, strict=True)
        )


@pytest.mark.parametrize("form", ["old", "new"])
@pytest.mark.parametrize(
    "pad", [_field(3, 1), _field(9, 1) + _field(10, 1), _field(3, 1) + _field(5, 1) + _field(6, 1)]
)
def test_a_pad_of_1_is_vggs_in_whatever_form_it_is_told(
    tmp_path: Path, form: str, pad: bytes
) -> None:
    path = tmp_path / "x.caffemodel"
    path.write_bytes(_layer("conv", _small()[0], form, _field(10 if form == "old" else 106, pad)))

    assert len(caffe.read_caffemodel(path)) == 1


def test_a_convolution_without_a_bias_has_none(tmp_path: Path) -> None:
    path = tmp_path / "x.caffemodel"
    path.write_bytes(_layer("conv", _small()[0][:1], "new"))

    assert caffe.read_caffemodel(path)[0][1].tolist() == [0.0, 0.0]


# ---------------------------------------------------------------------- the function


def _direct(image: Tensor, pairs: Any) -> Tensor:
    """What Caffe computes for the first two layers: BGR in 0 to 255 less the mean, then zeros around it."""
    x = image.flip(1) * 255 - torch.tensor(MEAN_BGR, dtype=image.dtype).view(1, 3, 1, 1)
    for weight, bias in pairs[:2]:
        x = functional.conv2d(x, weight.to(image.dtype), bias.to(image.dtype), padding=1).relu()
    return x


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A VGG-13 as Caffe would have it, and its file."""
    pairs = [(weight, torch.full_like(bias, 0.1)) for weight, bias in random_parameters("vgg13")]
    path = tmp_path_factory.mktemp("caffe") / "original.caffemodel"
    path.write_bytes(_model(pairs, "old"))
    return path, pairs


@pytest.mark.parametrize("suffix", ["caffemodel", "pth"])
def test_an_imported_network_computes_what_caffe_does_up_to_the_border(
    tmp_path: Path, original: tuple[Path, Any], suffix: str
) -> None:
    """Beyond the border Caffe sees its mean color: zeros after the mean is taken off, not before."""
    path, pairs = original
    if suffix == "pth":
        path = tmp_path / "original.pth"
        torch.save(Parameters.of(pairs).named(), path)
    cache = WeightsCache(tmp_path / "weights")
    cache.import_file("original", path, "caffe" if suffix == "pth" else None)
    parameters, _ = cache.parameters("original")
    network = Network(
        "vgg13", parameters.pairs, name="", sha256="", dtype=torch.float64, takes=parameters.takes
    )
    image = torch.rand(
        1, 3, 24, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    expected, found = (
        _direct(image, pairs),
        network.features(image, ["relu1_2"], edges="zeros")["relu1_2"],
    )

    assert float((found - expected).abs().max()) < 1e-9 * float(expected.max())


def test_the_conversions_for_torch_are_known_by_their_hash(
    tmp_path: Path, original: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vgg16-00b39a1b.pth is; a file of torchvision's naming with another hash is taken for torchvision's."""
    path = tmp_path / "x.pth"
    torch.save(Parameters.of(original[1]).named(), path)
    unknown, card = files.read_network(path)
    monkeypatch.setattr(files, "_CAFFE_IN_TORCH", (card["from_sha256"][:8],))
    known, _ = files.read_network(path)

    assert (unknown.takes, known.takes) == (Input(), CAFFE)
    assert torch.equal(unknown.pairs[0][0].flip(1), known.pairs[0][0])


def test_other_means_and_deviations_are_the_same_function_but_for_the_frame() -> None:
    """With repeated edges to rounding everywhere; with zeros beyond them the mean color is another one."""
    usual = Parameters.of(random_parameters("vgg11"))
    image = torch.rand(1, 3, 24, 20, generator=torch.Generator().manual_seed(1))
    looks = {}
    for takes in (usual.takes, CAFFE):
        pairs = usual.taking(takes).pairs
        network = Network("vgg11", pairs, name="", sha256="", dtype=torch.float32, takes=takes)
        looks[takes] = [
            network.features(image, ["relu1_1"], edges=edges)["relu1_1"]
            for edges in ("repeat", "zeros")
        ]
    (repeated, framed), (repeated_too, framed_too) = looks.values()

    assert torch.allclose(repeated, repeated_too, atol=1e-4)
    assert torch.allclose(framed[..., 1:-1, 1:-1], framed_too[..., 1:-1, 1:-1], atol=1e-4)
    assert 1e-3 < float((framed - framed_too).abs().max()) < 0.1


# ---------------------------------------------------------------------- the way back


@pytest.mark.parametrize("architecture", ["vgg11", "vgg19"])
def test_a_network_of_caffes_comes_back_to_the_bit(
    tmp_path: Path, architecture: Architecture
) -> None:
    there = Parameters(architecture, Parameters.of(random_parameters(architecture)).pairs, CAFFE)
    for name in ("x.caffemodel", "x.safetensors"):
        files.write_network(tmp_path / name, there, {"data": "textures"})
    files.write_network(tmp_path / "x.pth", there, {}, "caffe")
    (back, _), (kept, card) = (
        files.read_network(tmp_path / name) for name in ("x.caffemodel", "x.safetensors")
    )
    as_jcjohnsons, _ = files.read_network(tmp_path / "x.pth", "caffe")

    assert there.sha256 == back.sha256 == kept.sha256 == as_jcjohnsons.sha256
    assert card["data"] == "textures"


def test_a_network_of_torchvisions_comes_back_to_rounding(
    tmp_path: Path, weights: WeightsCache
) -> None:
    there, _ = weights.parameters("vgg16")
    for name in ("x.caffemodel", "x.pth"):
        files.write_network(tmp_path / name, there, {})
    back = files.read_network(tmp_path / "x.caffemodel")[0].taking(there.takes)

    assert files.read_network(tmp_path / "x.pth")[0].sha256 == there.sha256
    for (weight, bias), (weight_too, bias_too) in zip(there.pairs, back.pairs, strict=True):
        assert torch.allclose(weight, weight_too, rtol=1e-6, atol=1e-7)
        assert torch.allclose(bias, bias_too, rtol=1e-6, atol=1e-6)


def test_what_went_to_caffe_and_came_back_begins_to_paint_the_same_picture(
    tmp_path: Path, weights: WeightsCache, photo: Image.Image, painting: Image.Image
) -> None:
    """After many iterations two runs part, as two runs of one network do whose weights differ in the last bit."""
    there, _ = weights.parameters("vgg16")
    files.write_network(tmp_path / "x.caffemodel", there, {})
    back, _ = files.read_network(tmp_path / "x.caffemodel")
    spec = parse_spec({"size": 64, "iterations": 3})
    networks = [
        Network("vgg16", p.pairs, name="", sha256="", dtype=torch.float32, takes=p.takes)
        for p in (there, back)
    ]
    usual, other = (
        stylize(StyleInputs(photo, [painting]), spec, network).picture for network in networks
    )

    assert max(high for _, high in ImageChops.difference(usual, other).getextrema()) <= 1


def test_the_prototxt_tells_the_layers_and_nothing_of_their_numbers(tmp_path: Path) -> None:
    files.write_network(tmp_path / "mine.caffemodel", Parameters.of(random_parameters("vgg13")), {})
    net = text_format.Parse((tmp_path / "mine.prototxt").read_text(), caffe._KINDS["Net"]())
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


def test_the_prototxt_of_another_network_is_not_lost(tmp_path: Path) -> None:
    """Nobody named it."""
    (tmp_path / "x.prototxt").write_text("mine")
    there = Parameters.of(random_parameters("vgg11"))
    with pytest.raises(errors.BadInput, match=r"another .*x\.prototxt"):
        files.write_network(tmp_path / "x.caffemodel", there, {})
    assert [path.name for path in tmp_path.iterdir()] == ["x.prototxt"]

    for _ in range(2):  # its own is no other
        files.write_network(tmp_path / "y.caffemodel", there, {})


@pytest.mark.parametrize("suffix", ["caffemodel", "pth", "safetensors", "PTH"])
def test_where_there_is_no_room_the_file_of_before_stays(tmp_path: Path, suffix: str) -> None:
    """The limit on the size of a file stands in for the disk: the kernel refuses the write just the same."""
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
def test_what_is_written_can_be_read_by_whom_the_users_mask_lets(
    tmp_path: Path, suffix: str
) -> None:
    """A worker of another user, say."""
    files.write_network(tmp_path / f"x.{suffix}", Parameters.of(random_parameters("vgg11")), {})
    (tmp_path / "usual").touch()

    assert (tmp_path / f"x.{suffix}").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("suffix", ["caffemodel", "pth", "safetensors"])
def test_a_folder_that_is_not_there_is_no_full_disk(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(FileNotFoundError):
        files.write_network(
            tmp_path / "nowhere" / f"x.{suffix}", Parameters.of(random_parameters("vgg11")), {}
        )


def test_a_safetensors_can_be_made_to_take_caffes_colors(tmp_path: Path) -> None:
    there = Parameters.of(random_parameters("vgg11"))
    files.write_network(tmp_path / "x.safetensors", there, {}, "caffe")
    back, _ = files.read_network(tmp_path / "x.safetensors")

    assert back.takes == CAFFE
    assert back.sha256 == there.taking(CAFFE).sha256


# ---------------------------------------------------------------------- hostile files


def _wrong(pair: tuple[Tensor, Tensor], **sides: int) -> bytes:
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
    "sides that do not fit": (_wrong(_small()[0], num=7), "another shape"),
    "sides below zero": (_wrong(_small()[0], num=2**64 - 2), "another shape"),
    "sides beyond all bounds": (
        _wrong(_small()[0], num=2**31 - 1, channels=2**31 - 1),
        "another shape",
    ),
    "no pad": (_layer("conv", _small()[0], "new", _field(106, _field(1, 2))), "pad"),
    "no pad on one side": (
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
def test_a_bad_file_is_refused_in_words(tmp_path: Path, name: str) -> None:
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
def test_a_file_that_is_cut_anywhere_is_refused_or_shorter(tmp_path: Path, form: str) -> None:
    """Between two layers a cut leaves a whole file with fewer of them; anywhere else it is found out."""
    path, data = tmp_path / "x.caffemodel", _model(_small(), form)
    found = []
    for length in range(len(data)):
        path.write_bytes(data[:length])
        try:
            found.append(len(caffe.read_caffemodel(path)))
        except errors.BadWeights:
            continue

    assert found == sorted(found)
    assert len(found) <= 4


def test_thousands_of_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    """Whatever is done to the bytes, there is no other error than ours, and no number that is not in the file."""
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
        # Heads are where the sense is: half of the changes go there.
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


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel tells no peak")
def test_fully_connected_layers_of_half_a_gigabyte_take_no_memory(
    tmp_path: Path, original: tuple[Path, Any]
) -> None:
    """As in VGG_ILSVRC_19_layers.caffemodel: 411 MB in one layer. Here of zeros, in a file with a hole."""
    path = tmp_path / "x.caffemodel"
    bytes_of_fc6 = 25088 * 4096 * 4
    head = _field(4, b"fc6") + _field(5, 14) + _varint(6 << 3 | 2) + _varint(bytes_of_fc6)
    with path.open("wb") as file:
        file.write(_varint(2 << 3 | 2) + _varint(len(head) + bytes_of_fc6) + head)
        file.seek(bytes_of_fc6, 1)
        file.write(original[0].read_bytes())
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _memory("VmRSS")
    pairs = caffe.read_caffemodel(path)

    assert len(pairs) == 10
    assert _memory("VmHWM") - before < 300e6


def _memory(name: str) -> float:
    """Bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return float(lines[name].split()[0]) * 1024


def test_no_number_is_made_up(tmp_path: Path) -> None:
    """Bytes that no network has come through as they are, and are refused one step later."""
    weight, bias = _small()[0]
    path = tmp_path / "x.caffemodel"
    path.write_bytes(_layer("conv", (weight * torch.nan, bias), "new"))

    assert np.isnan(caffe.read_caffemodel(path)[0][0].numpy()).all()
