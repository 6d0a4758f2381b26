"""Reads and writes Caffe networks: .caffemodel (binary) and .prototxt (text, write only).

Both hold one protobuf message `NetParameter` of Caffe's caffe.proto. Only the fields that VGG needs
are declared here. The reader handles one layer at a time and skips whatever is larger than a
convolution of VGG, namely the fully connected layers. Knows no colors and no cache.
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

# Field numbers and types of caffe.proto, by message and field. "*" means repeated, "+" repeated and
# packed. `OldLayer` is V1LayerParameter, the layer format before 2015, which older files still use.
# Blobs are declared as bytes, so that they are decoded only when needed.
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
_POOLING_METHODS = {"MAX": 0, "AVE": 1}

_LAYER_FIELDS = {2: "OldLayer", 100: "Layer"}  # field numbers of NetParameter
# Layer types: numbers of an enum before 2015, names since.
_CONVOLUTION_TYPES = (4, b"Convolution")
_OLD_TYPE_NAMES = {15: "LRN", 39: "Deconvolution"}
# VGG has none of these layers, and ignoring one would change the network's function.
_UNSUPPORTED_TYPES = (b"BatchNorm", b"Scale", b"Bias", b"LRN", b"Deconvolution", 15, 39)

# Limits against hostile files. VGG-19 has 16 convolutions and fewer than 100 layers.
_MAX_FIELDS = 10_000
_MAX_CONVOLUTIONS = 16
# The largest convolution of VGG takes 9.4 MB in float32, twice that in double precision.
_MAX_LAYER_BYTES = 24_000_000


def _build_message_classes() -> dict[str, Any]:
    """A protobuf class for each message of `_MESSAGES`."""
    descriptor = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="impasto/caffe.proto", package="impasto.caffe", syntax="proto2"
    )
    methods = file.enum_type.add(name="Method")
    for name, number in _POOLING_METHODS.items():
        methods.value.add(name=name, number=number)
    for message, fields in _MESSAGES.items():
        message_type = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            label = descriptor.LABEL_REPEATED if kind[0] in "*+" else descriptor.LABEL_OPTIONAL
            field = message_type.field.add(name=name, number=number, label=label)
            field.options.packed = kind[0] == "+"
            base = kind.lstrip("*+")
            if base in _MESSAGES or base == "Method":
                field.type = descriptor.TYPE_ENUM if base == "Method" else descriptor.TYPE_MESSAGE
                field.type_name = f".impasto.caffe.{base}"
            else:
                field.type = descriptor.Type.Value(f"TYPE_{base.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"impasto.caffe.{name}"))
        for name in _MESSAGES
    }


_MESSAGE_CLASSES = _build_message_classes()


# ---------------------------------------------------------------------- reading


def read_caffemodel(path: Path) -> list[tuple[Tensor, Tensor]]:
    """Weight (out, in, height, width) and bias (out,) of each convolution, in the file's order.

    Keeps the file's precision (float32 or float64). Raises BadWeights.
    """
    with path.open("rb") as file:
        try:
            convolution_pairs = (
                _read_convolution(layer)
                for layer in _iterate_layers(file, path.stat().st_size)
                if layer.type in _CONVOLUTION_TYPES
            )
            # One too many, so that the caller sees that the network is too deep.
            pairs = [*islice(convolution_pairs, _MAX_CONVOLUTIONS + 1)]
        except DecodeError as error:
            raise errors.BadWeights(f"{path} is damaged: a layer cannot be decoded.") from error
    if not pairs:
        raise errors.BadWeights(f"{path} is no .caffemodel with convolutions.")
    return pairs


def _iterate_layers(file: BinaryIO, size: int) -> Iterator[Any]:
    """Decode the layers, old and new format, except those that are larger than any convolution."""
    for field, length in _iterate_fields(file, size):
        if field not in _LAYER_FIELDS or length > _MAX_LAYER_BYTES:
            continue
        layer = _MESSAGE_CLASSES[_LAYER_FIELDS[field]].FromString(file.read(length))
        if layer.type in _UNSUPPORTED_TYPES:
            kind = _OLD_TYPE_NAMES.get(layer.type) or layer.type.decode()
            raise errors.BadWeights(f"The file has a layer of the type {kind}; VGG has none.")
        yield layer


def _iterate_fields(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Number and length of each length-delimited field of the outermost message.

    At each yield the file's position is the start of the field's bytes. Decoding a whole file at
    once would need its size in memory: 575 MB for VGG-19.
    """
    position = 0
    for _ in range(_MAX_FIELDS):
        if position == size:
            return
        file.seek(position)
        # protobuf's wire types: 0 varint, 1 64 bits, 2 length-delimited, 5 32 bits.
        field, wire_type = divmod(_read_varint(file), 8)
        if wire_type == 2:
            length = _read_varint(file)
            position = file.tell() + length
            if position > size:
                raise errors.BadWeights("The file is cut short, or no .caffemodel.")
            yield field, length
        elif wire_type == 0:
            _read_varint(file)
            position = file.tell()
        elif wire_type in (1, 5):
            position = file.tell() + (8 if wire_type == 1 else 4)
        else:
            raise errors.BadWeights("The file is no .caffemodel.")
    raise errors.BadWeights("The file has more parts than any network.")


def _read_varint(file: BinaryIO) -> int:
    """A protobuf varint: seven bits for each byte, lowest first; the last byte is below 128."""
    value = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        if not byte:
            raise errors.BadWeights("The file is cut short, or no .caffemodel.")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise errors.BadWeights("The file is no .caffemodel.")


def _read_convolution(layer: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer; a missing bias is zeros. Raises BadWeights."""
    name = layer.name.decode(errors="replace")
    if layer.HasField("convolution_param") and not _is_vgg_convolution(layer.convolution_param):
        raise errors.BadWeights(
            f"The convolution {name!r} has another pad, stride, group or dilation than VGG."
        )
    if not 1 <= len(layer.blobs) <= 2:
        raise errors.BadWeights(
            f"The convolution {name!r} has no weights: {len(layer.blobs)} blobs."
        )
    weight, *bias = (_decode_blob(blob, name) for blob in layer.blobs)
    if weight.ndim != 4:
        raise errors.BadWeights(
            f"The convolution {name!r} has weights of {weight.ndim} dimensions."
        )
    return weight, bias[0].flatten() if bias else torch.zeros(len(weight))


def _is_vgg_convolution(param: Any) -> bool:
    """Whether pad is 1 and stride, dilation and group are 1.

    Caffe's defaults for unset fields: no pad; stride, dilation and group of 1.
    """
    pads, strides = [*param.pad], [*param.stride, *param.dilation]
    for side in ("h", "w"):
        if param.HasField(f"pad_{side}"):
            pads.append(getattr(param, f"pad_{side}"))
        if param.HasField(f"stride_{side}"):
            strides.append(getattr(param, f"stride_{side}"))
    has_one_group = not param.HasField("group") or param.group == 1
    return {*pads} == {1} and {*strides} <= {1} and has_one_group


def _decode_blob(data: bytes, name: str) -> Tensor:
    """A blob's tensor. Old blobs have four sides, new ones a shape; either float or double data.

    Raises BadWeights if shape and data do not fit.
    """
    blob = _MESSAGE_CLASSES["Blob"].FromString(data)
    shape = [blob.num, blob.channels, blob.height, blob.width]
    if blob.HasField("shape"):
        shape = [*blob.shape.dim]
    numbers = np.array(blob.data, np.float32)
    if not blob.data:
        numbers = np.array(blob.double_data, np.float64)
    if len(shape) <= 4 and min(shape, default=0) >= 1 and math.prod(shape) == len(numbers):
        return torch.from_numpy(numbers.reshape(shape))
    raise errors.BadWeights(
        f"The weights of {name!r} are cut short, or have another shape than stated."
    )


# ---------------------------------------------------------------------- writing


def write_caffemodel(path: Path, parameters: Parameters) -> None:
    """Write the network as a .caffemodel, with its .prototxt next to it.

    The caller has put the first convolution's inputs into BGR order.
    Raises BadInput rather than overwrite the .prototxt of another network, which the caller did
    not name; StorageFull, OSError.
    """
    layers, prototxt = list(_build_layers(parameters)), path.with_suffix(".prototxt")
    text = text_format.MessageToString(
        _MESSAGE_CLASSES["Net"](name=path.stem.encode(), layer=layers)
    ).encode()
    if prototxt.exists() and prototxt.read_bytes() != text:
        raise errors.BadInput(
            f"There is another {prototxt}, which would be overwritten; choose another name."
        )
    atomic_write(path, lambda part: _write_layers(part, path.stem, layers, parameters))
    atomic_write(prototxt, lambda part: part.write_bytes(text))


def _write_layers(path: Path, name: str, layers: list[Any], parameters: Parameters) -> None:
    """Write one layer at a time: concatenated protobuf messages merge into one message."""
    pairs = iter(parameters.pairs)
    with path.open("wb") as file:
        file.write(_MESSAGE_CLASSES["Net"](name=name.encode()).SerializeToString())
        for layer in layers:
            if layer.type == b"Convolution":
                layer.blobs.extend(_encode_blob(tensor) for tensor in next(pairs))
            file.write(_MESSAGE_CLASSES["Net"](layer=[layer]).SerializeToString())


def _build_layers(parameters: Parameters) -> Iterator[Any]:
    """The layer definitions without weights, for images of 224 px; users of Caffe reshape them."""
    layer_class = _MESSAGE_CLASSES["Layer"]
    yield layer_class(
        name=b"data",
        type=b"Input",
        top=[b"data"],
        input_param={"shape": [{"dim": [1, 3, 224, 224]}]},  # (N, C, H, W)
    )
    bottom = b"data"
    for row in convolutions(parameters.architecture):
        number = row.layer.removeprefix("relu").encode()  # such as 3_1
        if row.pooled:
            pool = b"pool%d" % (int(number[:1]) - 1)
            pooling = {"pool": "MAX", "kernel_size": 2, "stride": 2}
            yield layer_class(
                name=pool, type=b"Pooling", bottom=[bottom], top=[pool], pooling_param=pooling
            )
            bottom = pool
        name = b"conv" + number
        param = {"num_output": row.outputs, "pad": [1], "kernel_size": [3]}
        yield layer_class(
            name=name, type=b"Convolution", bottom=[bottom], top=[name], convolution_param=param
        )
        yield layer_class(name=b"relu" + number, type=b"ReLU", bottom=[name], top=[name])
        bottom = name


def _encode_blob(tensor: Tensor) -> bytes:
    blob = _MESSAGE_CLASSES["Blob"](shape={"dim": tensor.shape}, data=tensor.flatten().tolist())
    return bytes(blob.SerializeToString())
