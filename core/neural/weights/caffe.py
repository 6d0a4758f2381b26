"""Networks in Caffe's files: .caffemodel, read and written, and .prototxt, written.

Both hold one protobuf message, of whose fields a few are named here, by their numbers. A model is read record by
record, and what is too large for a convolution of VGG, its fully connected layers, is stepped over. Knows no colors and
no cache.
"""

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError
from torch import Tensor

from core import errors
from core.neural.weights.parameters import Parameters
from core.storage.files import atomic_write
from core.style.vgg_layers import convolutions

# By message and field: number and type; "*" is repeated, "+" repeated and packed. `OldLayer` is what layers were before
# 2015, and still are in the files of that time. A blob stays bytes until it is known to be wanted.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "Net": {"name": (1, "bytes"), "layer": (100, "*Layer")},
    "Layer": {
        "name": (1, "bytes"),
        "type": (2, "bytes"),
        "bottom": (3, "*bytes"),
        "top": (4, "*bytes"),
        "blobs": (7, "*bytes"),
        "convolution_param": (106, "Convolution"),
        "pooling_param": (121, "Pooling"),
        "input_param": (143, "Input"),
    },
    "OldLayer": {
        "name": (4, "bytes"),
        "type": (5, "int32"),
        "blobs": (6, "*bytes"),
        "convolution_param": (10, "Convolution"),
    },
    "Blob": {
        "num": (1, "int32"),
        "channels": (2, "int32"),
        "height": (3, "int32"),
        "width": (4, "int32"),
        "data": (5, "+float"),
        "shape": (7, "Shape"),
        "double_data": (8, "+double"),
    },
    "Shape": {"dim": (1, "+int64")},
    "Convolution": {
        "num_output": (1, "uint32"),
        "pad": (3, "*uint32"),
        "kernel_size": (4, "*uint32"),
        "group": (5, "uint32"),
        "stride": (6, "*uint32"),
        "pad_h": (9, "uint32"),
        "pad_w": (10, "uint32"),
        "stride_h": (13, "uint32"),
        "stride_w": (14, "uint32"),
        "dilation": (18, "*uint32"),
    },
    "Pooling": {"pool": (1, "Method"), "kernel_size": (2, "uint32"), "stride": (3, "uint32")},
    "Input": {"shape": (1, "*Shape")},
}
_METHODS = {"MAX": 0, "AVE": 1}

_LAYERS = {2: "OldLayer", 100: "Layer"}  # fields of a net
_CONVOLUTION = (4, b"Convolution")  # types, old and new
# No VGG has them, and leaving them out is wrong; before 2015 types were numbers.
_FOREIGN = (b"BatchNorm", b"Scale", b"Bias", b"LRN", b"Deconvolution", 15, 39)

_MOST_RECORDS = 10_000
_MOST_CONVOLUTIONS = 16
# The largest convolution of VGG takes 9.4 MB, twice that in doubles.
_MOST_RECORD_BYTES = 24_000_000


def _kinds() -> dict[str, Any]:
    """A class for each message."""
    told = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="impasto/caffe.proto", package="impasto.caffe", syntax="proto2"
    )
    methods = file.enum_type.add(name="Method")
    for name, number in _METHODS.items():
        methods.value.add(name=name, number=number)
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            field = described.field.add(name=name, number=number, label=told.LABEL_OPTIONAL)
            if kind[0] in "*+":
                field.label = told.LABEL_REPEATED
            field.options.packed = kind[0] == "+"
            one = kind.lstrip("*+")
            if one in _MESSAGES or one == "Method":
                field.type = told.TYPE_ENUM if one == "Method" else told.TYPE_MESSAGE
                field.type_name = f".impasto.caffe.{one}"
            else:
                field.type = told.Type.Value(f"TYPE_{one.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"impasto.caffe.{name}"))
        for name in _MESSAGES
    }


_KINDS = _kinds()


# ---------------------------------------------------------------------- reading


def read_caffemodel(path: Path) -> list[tuple[Tensor, Tensor]]:
    """Weight (out, in, height, width) and bias (out,) of each convolution of a .caffemodel, in their order.

    In the precision of the file's. Raises BadWeights.
    """
    with path.open("rb") as file:
        try:
            found = (
                _pair(layer)
                for layer in _layers(file, path.stat().st_size)
                if layer.type in _CONVOLUTION
            )
            pairs = [*islice(found, _MOST_CONVOLUTIONS + 1)]
        except DecodeError as error:
            raise errors.BadWeights(f"{path} is damaged: a layer in it cannot be read.") from error
    if not pairs:
        raise errors.BadWeights(f"{path} is no .caffemodel with convolutions.")
    return pairs


def _layers(file: BinaryIO, size: int) -> Iterator[Any]:
    """The layers, old or new, but for those that are too large to be wanted."""
    for field, length in _records(file, size):
        if field not in _LAYERS or length > _MOST_RECORD_BYTES:
            continue
        layer = _KINDS[_LAYERS[field]].FromString(file.read(length))
        if layer.type in _FOREIGN:
            kind = {15: "LRN", 39: "Deconvolution"}.get(layer.type) or layer.type.decode()
            raise errors.BadWeights(f"The file has a layer of the type {kind}; VGG has none.")
        yield layer


def _records(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """The number and length of each field of the outermost message that has a length; the file stands at its bytes."""
    at = 0
    for _ in range(_MOST_RECORDS):
        if at == size:
            return
        file.seek(at)
        field, wire = divmod(_varint(file), 8)
        if wire == 2:
            length = _varint(file)
            at = file.tell() + length
            if at > size:
                raise errors.BadWeights("The file is cut short, or no .caffemodel.")
            yield field, length
        elif wire == 0:
            _varint(file)
            at = file.tell()
        elif wire in (1, 5):
            at = file.tell() + (8 if wire == 1 else 4)
        else:
            raise errors.BadWeights("The file is no .caffemodel.")
    raise errors.BadWeights("The file has more parts than any network.")


def _varint(file: BinaryIO) -> int:
    """Seven bits a byte, the lowest first; the last byte is below 128."""
    value = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        if not byte:
            raise errors.BadWeights("The file is cut short, or no .caffemodel.")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise errors.BadWeights("The file is no .caffemodel.")


def _pair(layer: Any) -> tuple[Tensor, Tensor]:
    name = layer.name.decode(errors="replace")
    if layer.HasField("convolution_param") and not _is_vggs(layer.convolution_param):
        raise errors.BadWeights(
            f"The convolution {name!r} has a pad, stride, group or dilation that VGG's have not."
        )
    if not 1 <= len(layer.blobs) <= 2:
        raise errors.BadWeights(
            f"The convolution {name!r} has no weights: {len(layer.blobs)} blobs."
        )
    weight, *bias = (_tensor(blob, name) for blob in layer.blobs)
    if weight.ndim != 4:
        raise errors.BadWeights(
            f"The convolution {name!r} has weights of {weight.ndim} dimensions."
        )
    return weight, bias[0].flatten() if bias else torch.zeros(len(weight))


def _is_vggs(told: Any) -> bool:
    """What is not told has Caffe's default: no pad, a stride, dilation and group of 1."""
    pads, strides = [*told.pad], [*told.stride, *told.dilation]
    for side in ("h", "w"):
        pads += [getattr(told, f"pad_{side}")] if told.HasField(f"pad_{side}") else []
        strides += [getattr(told, f"stride_{side}")] if told.HasField(f"stride_{side}") else []
    return {*pads} == {1} and {*strides} <= {1} and (not told.HasField("group") or told.group == 1)


def _tensor(data: bytes, name: str) -> Tensor:
    """A blob of either form: four numbers for the sides, or a shape; floats, or doubles."""
    blob = _KINDS["Blob"].FromString(data)
    sides = (
        blob.shape.dim
        if blob.HasField("shape")
        else [blob.num, blob.channels, blob.height, blob.width]
    )
    numbers = (
        np.array(blob.data, np.float32) if blob.data else np.array(blob.double_data, np.float64)
    )
    if len(sides) <= 4 and min(sides, default=0) >= 1 and math.prod(sides) == len(numbers):
        return torch.from_numpy(numbers.reshape(sides))
    raise errors.BadWeights(
        f"The weights of {name!r} are cut short, or have another shape than is told."
    )


# ---------------------------------------------------------------------- writing


def write_caffemodel(path: Path, parameters: Parameters) -> None:
    """The network as a .caffemodel, and its .prototxt beside it; the first convolution's inputs as they are given.

    Raises BadInput where there is a .prototxt of another network, which nobody named; StorageFull, OSError.
    """
    layers, told = list(_described(parameters)), path.with_suffix(".prototxt")
    text = text_format.MessageToString(
        _KINDS["Net"](name=path.stem.encode(), layer=layers)
    ).encode()
    if told.exists() and told.read_bytes() != text:
        raise errors.BadInput(f"There is another {told}, which would be lost; take another name.")
    atomic_write(path, lambda part: _write_layers(part, path.stem, layers, parameters))
    atomic_write(told, lambda part: part.write_bytes(text))


def _write_layers(path: Path, name: str, layers: list[Any], parameters: Parameters) -> None:
    blobs = iter(parameters.pairs)
    with path.open("wb") as file:
        file.write(_KINDS["Net"](name=name.encode()).SerializeToString())
        for layer in layers:  # messages in a row are one message
            if layer.type == b"Convolution":
                layer.blobs.extend(_blob(tensor) for tensor in next(blobs))
            file.write(_KINDS["Net"](layer=[layer]).SerializeToString())


def _described(parameters: Parameters) -> Iterator[Any]:
    """The layers without their weights: for pictures of 224 px, which whoever uses them reshapes."""
    kind = _KINDS["Layer"]
    yield kind(
        name=b"data",
        type=b"Input",
        top=[b"data"],
        input_param={"shape": [{"dim": [1, 3, 224, 224]}]},
    )
    before = b"data"
    for row in convolutions(parameters.architecture):
        number = row.layer.removeprefix("relu").encode()
        if row.pooled:
            pool = b"pool%d" % (int(number[:1]) - 1)
            pooling = {"pool": "MAX", "kernel_size": 2, "stride": 2}
            yield kind(
                name=pool, type=b"Pooling", bottom=[before], top=[pool], pooling_param=pooling
            )
            before = pool
        name = b"conv" + number
        described = {"num_output": row.outputs, "pad": [1], "kernel_size": [3]}
        yield kind(
            name=name, type=b"Convolution", bottom=[before], top=[name], convolution_param=described
        )
        yield kind(name=b"relu" + number, type=b"ReLU", bottom=[name], top=[name])
        before = name


def _blob(tensor: Tensor) -> bytes:
    return bytes(
        _KINDS["Blob"](
            shape={"dim": tensor.shape}, data=tensor.flatten().tolist()
        ).SerializeToString()
    )
