"""Scans a serialized model and cuts the large tensors out, without parsing or copying them.

A protobuf message is a run of (tag, payload) fields. Only four message types are walked (ModelProto, GraphProto, NodeProto and
AttributeProto for bodies, TensorProto), and inside them only the fields that can hold an initializer. Everything else is copied
through verbatim. Source: protobuf encoding specification; field numbers from onnx.proto3.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, TypeAlias

Buffer: TypeAlias = bytes | mmap.mmap
_Handler: TypeAlias = "Callable[[int, int, int], list[bytes] | None]"

VARINT: Final = 0
FIXED64: Final = 1
LENGTH_DELIMITED: Final = 2
FIXED32: Final = 5

MODEL_GRAPH: Final = 7
GRAPH_NODE: Final = 1
GRAPH_INITIALIZER: Final = 5
NODE_ATTRIBUTE: Final = 5
MODEL_FUNCTIONS: Final = 25
FUNCTION_NODE: Final = 7
ATTRIBUTE_TENSOR: Final = 5
ATTRIBUTE_GRAPH: Final = 6
ATTRIBUTE_GRAPHS: Final = 11
TENSOR_RAW_DATA: Final = 9
TENSOR_EXTERNAL_DATA: Final = 13
TENSOR_DATA_LOCATION: Final = 14
ENTRY_KEY: Final = 1
ENTRY_VALUE: Final = 2

_DEEPEST_BODY = 64


class WireError(ValueError):
    """The bytes are not a well-formed protobuf message."""


class Field(NamedTuple):
    """One field: its number, wire type, and the offsets of the whole field and of its payload."""

    number: int
    wire_type: int
    start: int
    payload: int
    end: int


def _varint(data: Buffer, position: int, end: int) -> tuple[int, int]:
    result = shift = 0
    while position < end:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
        if shift > 63:
            raise WireError("a number is longer than 64 bits")
    raise WireError("the data ends inside a number")


def fields(data: Buffer, start: int, end: int) -> Iterator[Field]:
    """The fields of the message in ``data[start:end]``, in order; payloads are not read."""
    position = start
    while position < end:
        tag, payload = _varint(data, position, end)
        number, wire_type = tag >> 3, tag & 7
        if number == 0:
            raise WireError("a field has the number 0")
        if wire_type == LENGTH_DELIMITED:
            length, payload = _varint(data, payload, end)
            after = payload + length
        elif wire_type == VARINT:
            _, after = _varint(data, payload, end)
        elif wire_type == FIXED64:
            after = payload + 8
        elif wire_type == FIXED32:
            after = payload + 4
        else:
            raise WireError(f"a field has the unknown wire type {wire_type}")
        if after > end:
            raise WireError("the data ends inside a field")
        yield Field(number, wire_type, position, payload, after)
        position = after


def varint(value: int) -> bytes:
    """``value`` as a base-128 varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def header(number: int, length: int) -> bytes:
    """Tag and length of a length-delimited field."""
    return varint(number << 3 | LENGTH_DELIMITED) + varint(length)


def _text_field(number: int, text: str) -> bytes:
    payload = text.encode()
    return header(number, len(payload)) + payload


def external_data(location: str, offset: int, length: int) -> bytes:
    """The ``external_data`` and ``data_location`` fields of a TensorProto, serialized."""
    out = b""
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        entry = _text_field(ENTRY_KEY, key) + _text_field(ENTRY_VALUE, value)
        out += header(TENSOR_EXTERNAL_DATA, len(entry)) + entry
    return out + varint(TENSOR_DATA_LOCATION << 3 | VARINT) + varint(1)


class Skeleton:
    """Cuts raw data of at least ``threshold`` bytes out of a serialized model.

    ``data`` is the serialized ModelProto (usually a memory map); ``location`` is what the stubs name as their file.
    Offsets in the stubs count from the start of ``data``.
    """

    def __init__(self, data: Buffer, location: str, threshold: int) -> None:
        self._data = data
        self._location = location
        self._threshold = threshold

    def serialized(self) -> bytes:
        """The skeleton: the same message, its large initializers replaced by external-data stubs."""
        return b"".join(self._message(0, len(self._data), {MODEL_GRAPH: self._graph}, 0))

    def _message(self, start: int, end: int, handlers: dict[int, _Handler], depth: int) -> list[bytes]:
        """Copies the message through, handing the large fields in ``handlers`` to their handler."""
        if depth > _DEEPEST_BODY:
            raise WireError(f"bodies are nested more than {_DEEPEST_BODY} deep")
        data, threshold = self._data, self._threshold
        pieces: list[bytes] = []
        copied = start
        for field in fields(data, start, end):
            handler = handlers.get(field.number)
            if handler is None or field.wire_type != LENGTH_DELIMITED or field.end - field.payload < threshold:
                continue
            inner = handler(field.payload, field.end, depth)
            if inner is None:
                continue
            pieces.append(bytes(data[copied : field.start]))
            pieces.append(header(field.number, sum(map(len, inner))))
            pieces.extend(inner)
            copied = field.end
        pieces.append(bytes(data[copied:end]))
        return pieces

    def _graph(self, start: int, end: int, depth: int) -> list[bytes]:
        return self._message(start, end, {GRAPH_NODE: self._node, GRAPH_INITIALIZER: self._tensor}, depth + 1)

    def _node(self, start: int, end: int, depth: int) -> list[bytes]:
        return self._message(start, end, {NODE_ATTRIBUTE: self._attribute}, depth)

    def _attribute(self, start: int, end: int, depth: int) -> list[bytes]:
        return self._message(start, end, {ATTRIBUTE_GRAPH: self._graph, ATTRIBUTE_GRAPHS: self._graph}, depth)

    def _tensor(self, start: int, end: int, depth: int) -> list[bytes] | None:
        raw: Field | None = None
        for field in fields(self._data, start, end):
            if field.number == TENSOR_RAW_DATA and field.wire_type == LENGTH_DELIMITED:
                raw = field
        if raw is None or raw.end - raw.payload < self._threshold:
            return None
        before = bytes(self._data[start : raw.start])
        after = bytes(self._data[raw.end : end])
        return [before, after, external_data(self._location, raw.payload, raw.end - raw.payload)]
