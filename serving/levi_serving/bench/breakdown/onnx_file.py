"""The little of an ONNX file that measuring needs: read its nodes and weights, write one matrix product.

Protocol buffers' wire format (protobuf.dev/programming-guides/encoding) is a row of fields, each a number, a
kind and a value; the field numbers are those of onnx.proto3. This package has no onnx: serving installs none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from levi_serving.errors import BundleError

__all__ = ["Graph", "Node", "Weight", "matrix_product", "read_graph"]

_ITEM_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2, 21: 0.5, 22: 0.5}
_FLOAT = 1  # TensorProto.DataType
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


@dataclass(frozen=True)
class Weight:
    """A constant of the graph: its shape and the bytes it takes."""

    shape: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Node:
    """One operation; inputs that are left out have the name ''."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass
class Graph:
    """What a graph is made of.

    Attributes:
        nodes: by name, in the order in which they run.
        weights: by name.
        nameless: the names made here for nodes that have none, in order.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    weights: dict[str, Weight] = field(default_factory=dict)
    nameless: list[str] = field(default_factory=list)


def read_graph(path: Path) -> Graph:
    """Read what a graph is made of; nodes inside of a branch or a loop are left out.

    Raises:
        BundleError: the file is no ONNX model.
    """
    graph = Graph()
    try:
        for number, content in _fields(path.read_bytes()):
            if number == 7 and isinstance(content, bytes):  # ModelProto.graph
                _read_into(graph, content)
    except (IndexError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is no ONNX model ({error}). Export the run again.") from error
    return graph


def _read_into(graph: Graph, content: bytes) -> None:
    for number, part in _fields(content):
        if number == 1 and isinstance(part, bytes):  # GraphProto.node
            inputs: list[str] = []
            outputs: list[str] = []
            words = {3: "", 4: ""}  # NodeProto: 1 input, 2 output, 3 name, 4 op_type
            for kind, value in _fields(part):
                if kind in (1, 2, 3, 4) and isinstance(value, bytes):
                    text = value.decode()
                    if kind in words:
                        words[kind] = text
                    else:
                        (inputs if kind == 1 else outputs).append(text)
            name = words[3]
            if not name:
                name = f"{words[4]} at {len(graph.nodes)}"
                graph.nameless.append(name)
            graph.nodes[name] = Node(name, words[4], tuple(inputs), tuple(outputs))
        if number == 5 and isinstance(part, bytes):  # GraphProto.initializer
            shape: list[int] = []
            constant, kind_of_item = "", _FLOAT
            for kind, value in _fields(part):  # TensorProto: 1 dims, 2 data_type, 8 name
                if kind == 1:
                    shape += [value] if isinstance(value, int) else list(_varints(value))
                elif kind == 2 and isinstance(value, int):
                    kind_of_item = value
                elif kind == 8 and isinstance(value, bytes):
                    constant = value.decode()
            size = math.ceil(math.prod(shape) * _ITEM_BYTES.get(kind_of_item, 4))
            graph.weights[constant] = Weight(tuple(shape), size)


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message in order: their number, and a whole number or the bytes of the value."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(content, at)
            yield number, value
            continue
        if kind == _BYTES:
            length, at = _varint(content, at)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise IndexError(f"byte {at} starts a field of the unknown kind {kind}")
        if at + length > len(content):
            raise IndexError(f"it ends inside of a field that starts at byte {at}")
        yield number, content[at : at + length]
        at += length


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _varints(content: bytes) -> Iterator[int]:
    at = 0
    while at < len(content):
        value, at = _varint(content, at)
        yield value


def matrix_product(rows: int, inner: int, columns: int, weight: bytes) -> bytes:
    """A whole ONNX model: ``y`` (rows, columns) = ``x`` (rows, inner) times a constant, all float32.

    Args:
        rows: of x.
        inner: columns of x, rows of the constant.
        columns: of the constant.
        weight: its inner · columns float32 values, little endian, row by row.
    """
    constant = b"".join(
        [_message(1, inner), _message(1, columns), _message(2, _FLOAT), _message(8, b"w"), _message(9, weight)]
    )
    node = b"".join([_message(1, b"x"), _message(1, b"w"), _message(2, b"y"), _message(4, b"MatMul")])
    graph = b"".join(
        [
            _message(1, node),
            _message(2, b"product"),
            _message(5, constant),
            _message(11, _declared(b"x", rows, inner)),
            _message(12, _declared(b"y", rows, columns)),
        ]
    )
    return _message(1, 8) + _message(7, graph) + _message(8, _message(2, 17))  # IR version 8, opset 17


def _declared(name: bytes, *shape: int) -> bytes:
    """A ValueInfoProto: a float32 tensor of that name and shape."""
    dims = b"".join(_message(1, _message(1, size)) for size in shape)
    return _message(1, name) + _message(2, _message(1, _message(1, _FLOAT) + _message(2, dims)))


def _message(number: int, value: int | bytes) -> bytes:
    """One field: a whole number, or bytes with their length before them."""
    if isinstance(value, int):
        return _encoded(number << 3 | _VARINT) + _encoded(value)
    return _encoded(number << 3 | _BYTES) + _encoded(len(value)) + value


def _encoded(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
