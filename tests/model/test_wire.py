"""The wire scanner: what it cuts out, what it copies through, and what it refuses."""

from contextlib import suppress

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, numpy_helper

from rewright.model import wire
from rewright.model.wire import Skeleton, WireError

THRESHOLD = 64


def cut(proto: ModelProto) -> ModelProto:
    return ModelProto.FromString(Skeleton(proto.SerializeToString(), "m.onnx", THRESHOLD).serialized())


def model(count: int) -> ModelProto:
    proto = ModelProto(ir_version=10)
    proto.graph.name = "g"
    proto.graph.initializer.append(numpy_helper.from_array(np.arange(count, dtype=np.uint8), "w"))
    proto.graph.doc_string = "behind the initializers"
    proto.opset_import.add(version=18)
    return proto


@given(st.integers(0, 2**64 - 1))
def test_numbers_survive(value: int) -> None:
    data = wire.varint(value)
    assert wire._varint(data, 0, len(data)) == (value, len(data))


@pytest.mark.parametrize("count", [0, THRESHOLD - 1, THRESHOLD, THRESHOLD + 1, 20_000])
def test_raw_data_from_the_threshold_on_is_cut_out(count: int) -> None:
    proto = model(count)
    data, made = proto.SerializeToString(), cut(proto)
    tensor = made.graph.initializer[0]
    assert (tensor.data_location == TensorProto.EXTERNAL) == (count >= THRESHOLD)
    if count >= THRESHOLD:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        offset, length = int(entries["offset"]), int(entries["length"])
        assert entries["location"] == "m.onnx"
        assert data[offset : offset + length] == proto.graph.initializer[0].raw_data
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = proto.graph.initializer[0].raw_data
    assert made == proto


def test_fields_behind_the_raw_data_and_unknown_fields_are_copied_through() -> None:
    proto = model(100)
    proto.graph.initializer[0].doc_string = "behind the data"
    proto.graph.initializer[0].MergeFromString(b"\xfa\x3e\x03new")
    proto.MergeFromString(b"\xfa\x3e\x03new")
    made = cut(proto)
    assert made.graph.initializer[0].doc_string == "behind the data"
    assert made.SerializeToString().count(b"\x03new") == 2


def test_a_small_model_is_copied_byte_for_byte() -> None:
    data = model(3).SerializeToString()
    assert Skeleton(data, "m.onnx", THRESHOLD).serialized() == data


MALFORMED = {
    "number without end": b"\xff" * 3,
    "number of more than 64 bits": b"\xff" * 11,
    "field 0": b"\x02\x00",
    "group": b"\x0b",
    "length beyond the end": b"\x3a\x10abc",
    "length beyond the end of the field around it": b"\x3a\x50\x2a\x7f" + b"a" * 0x4E,
    "fixed 64 cut short": b"\x09abc",
    "fixed 32 cut short": b"\x0dabc",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_malformed_messages_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        Skeleton(data, "m.onnx", THRESHOLD).serialized()


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with suppress(WireError):
        Skeleton(data, "m.onnx", THRESHOLD).serialized()


def test_every_constant_is_the_field_of_that_name() -> None:
    owners = {
        "MODEL": ModelProto,
        "GRAPH": onnx.GraphProto,
        "NODE": onnx.NodeProto,
        "ATTRIBUTE": onnx.AttributeProto,
        "TENSOR": TensorProto,
        "FUNCTION": onnx.FunctionProto,
        "ENTRY": onnx.StringStringEntryProto,
    }
    short = {"GRAPH": "g", "TENSOR": "t"}
    for name, number in vars(wire).items():
        owner, _, field = name.partition("_")
        if owner in owners and isinstance(number, int):
            fields = {item.name.upper(): item.number for item in owners[owner].DESCRIPTOR.fields}
            fields |= {long: fields[letter.upper()] for long, letter in short.items() if owner == "ATTRIBUTE"}
            assert fields[field] == number, name
