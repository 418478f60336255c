"""Which operators an ONNX file holds, read from its bytes: the engines run them without saying, and onnx is not here.

A protobuf message is a list of fields: a key (number x 8 + kind), then a value whose length the kind tells.
"""

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Numbers of fields in onnx.proto.
_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _FUNCTION_NODE = 1, 7
_NODE_OPERATOR, _NODE_ATTRIBUTE = 4, 5
_ATTRIBUTE_GRAPHS = (6, 11)
_MAX_DEPTH = 20

ENDLESS_OPERATORS = frozenset({"Loop", "Scan", "TensorIterator"})
"""Repeat a graph, as often as a number in the file says. No net of dermkit has one."""


def onnx_operators(content: bytes) -> frozenset[str]:
    """Return the names of all operators of an ONNX file, of its functions and inner graphs too.

    Raises `ValueError` for bytes that are no such file.
    """
    if content[4:8] == b"ORTM":
        raise ValueError("is of ONNX Runtime's format, not an ONNX file")
    names: set[str] = set()
    for number, value in _fields(memoryview(content)):
        if number == _MODEL_GRAPH:
            names |= _of_nodes(value, _GRAPH_NODE, 0)
        elif number == _MODEL_FUNCTIONS:
            names |= _of_nodes(value, _FUNCTION_NODE, 0)
    if not names:
        raise ValueError("holds no operators")
    return frozenset(names)


def _of_nodes(graph: memoryview, node_field: int, depth: int) -> set[str]:
    """Return the operators of a graph, or of a function, whose nodes are in this field."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"graphs are nested more than {_MAX_DEPTH} deep")
    names: set[str] = set()
    for number, node in _fields(graph):
        if number != node_field:
            continue
        for inner_number, value in _fields(node):
            if inner_number == _NODE_OPERATOR:
                names.add(bytes(value).decode("utf-8", "replace"))
            elif inner_number == _NODE_ATTRIBUTE:
                for attribute_number, inner_graph in _fields(value):
                    if attribute_number in _ATTRIBUTE_GRAPHS:
                        names |= _of_nodes(inner_graph, _GRAPH_NODE, depth + 1)
    return names


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and value of each field that holds bytes; the others are passed over."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        if key >> 32:  # readers in C drop the upper bits, and take it for another field
            raise ValueError("a key of more than 32 bits")
        kind = key & 7
        if kind == _VARINT:
            _, place = _varint(message, place)
        elif kind == _BYTES:
            length, place = _varint(message, place)
            if length > len(message) - place:
                raise ValueError("a field is longer than what holds it")
            yield key >> 3, message[place : place + length]
            place += length
        elif kind in (_FIXED64, _FIXED32):
            place += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of kind {kind}")


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            raise ValueError("ends within a number")
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("a number of more than ten bytes")
