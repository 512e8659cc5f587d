"""Weights of a skeleton that code which knows nothing of skeletons reads: filled in when they are asked for, and put back.

The fusion classes of ``onnxruntime.transformers`` expect every tensor to hold its data. Most of them read few: biases, norms, the
three projections of an attention. So a weight is read from its file when it is looked up, and becomes a stub again afterwards;
memory holds what one class looks at.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from rewright.model.carrier import node_lists, stubs
from rewright.model.weights import STUB_THRESHOLD, external_entries, is_stub, point_to

MODEL_NAME: Final = "optimized.onnx"
DATA_NAME: Final = MODEL_NAME + ".data"
MOST_BYTES: Final = 2**31

_ALIGNMENT: Final = 64
_CHUNK: Final = 1 << 24


class TooManyWeights(Exception):  # noqa: N818  (becomes a note)
    """What is read at one time exceeds the limit."""


class ProtoWeights:
    """The weights of the skeletons of one exchange.

    Args:
        root: the folder that the locations of the stubs are relative to.
        folder: where new weights and the result are written.
        most_bytes: how much may be filled in at one time.
    """

    def __init__(self, root: str, folder: str, most_bytes: int = MOST_BYTES) -> None:
        self._root = root
        self._folder = Path(folder)
        self._data = self._folder / DATA_NAME
        self._most_bytes = most_bytes
        self._filled = 0
        self._stubs: dict[tuple[str, int, tuple[int, ...]], list[TensorProto]] = {}

    def parse(self, skeleton: bytes) -> ModelProto:
        """The skeleton as a proto; weights are filled in from here on, except for those of Constant nodes, which are at once."""
        self._filled = 0
        self._stubs.clear()
        proto = ModelProto.FromString(skeleton)
        for _, nodes in node_lists(proto):
            for tensor in _constants(nodes):
                self.fill(tensor)
        return proto

    def fill(self, tensor: TensorProto) -> None:
        """Reads the data of a stub into it.

        Raises:
            TooManyWeights: more than the limit would be in memory.
        """
        if not is_stub(tensor):
            return
        entries = external_entries(tensor)
        offset, length = int(entries.get("offset", "0")), int(entries["length"])
        self._filled += length
        if self._filled > self._most_bytes:
            raise TooManyWeights(f"it reads more than {self._most_bytes} bytes of weights")
        stub = TensorProto()
        stub.CopyFrom(tensor)
        self._stubs.setdefault(_key(tensor), []).append(stub)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = self._read(self._path(entries["location"]), offset, length)

    def fill_all(self, proto: ModelProto) -> None:
        """Reads the data of every stub of a model."""
        for tensor in stubs(proto):
            self.fill(tensor)

    def skeleton(self, proto: ModelProto) -> bytes:
        """The model with stubs for what was filled in, and for large weights that are new; the proto is used up."""
        for tensor in _tensors(proto):
            if not is_stub(tensor):
                self._hide(tensor)
        return proto.SerializeToString(deterministic=True)

    def write(self, skeleton: bytes) -> Path:
        """Writes a model that stands on its own: the data of all its stubs goes to one file beside it."""
        proto = ModelProto.FromString(skeleton)
        own = os.path.relpath(self._data, self._root)
        placed: dict[tuple[str, str], int] = {}
        for tensor in stubs(proto):
            entries = external_entries(tensor)
            offset, length = entries.get("offset", "0"), int(entries["length"])
            if entries["location"] != own:
                source = entries["location"], offset
                if source not in placed:
                    placed[source] = self._append(self._chunks(self._path(source[0]), int(offset), length))
                offset = str(placed[source])
            point_to(tensor, DATA_NAME, int(offset), length)
        path = self._folder / MODEL_NAME
        path.write_bytes(proto.SerializeToString(deterministic=True))
        return path

    def _hide(self, tensor: TensorProto) -> None:
        if not tensor.HasField("raw_data"):  # data in typed fields, four bytes or more for each element
            fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
            if 4 * max(len(values) for values in fields) < STUB_THRESHOLD:
                return
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
        data = tensor.raw_data
        for stub in self._stubs.get(_key(tensor), ()):
            entries = external_entries(stub)
            place = self._path(entries["location"]), int(entries.get("offset", "0")), int(entries["length"])
            if place[2] == len(data) and self._read(*place) == data:
                tensor.CopyFrom(stub)
                return
        if len(data) >= STUB_THRESHOLD:
            offset = self._append(iter((data,)))
            tensor.ClearField("raw_data")
            point_to(tensor, os.path.relpath(self._data, self._root), offset, len(data))

    def _path(self, location: str) -> Path:
        return Path(self._root, location)

    def _read(self, path: Path, offset: int, length: int) -> bytes:
        return b"".join(self._chunks(path, offset, length))

    def _chunks(self, path: Path, offset: int, length: int) -> Iterator[bytes]:
        with open(path, "rb") as file:
            file.seek(offset)
            while length:
                chunk = file.read(min(length, _CHUNK))
                if not chunk:
                    raise EOFError(f"the weight file {path} has become shorter than its model says")
                length -= len(chunk)
                yield chunk

    def _append(self, chunks: Iterator[bytes]) -> int:
        with open(self._data, "ab") as file:
            offset = -(-file.tell() // _ALIGNMENT) * _ALIGNMENT
            file.write(b"\0" * (offset - file.tell()))
            for chunk in chunks:
                file.write(chunk)
        return offset


def _key(tensor: TensorProto) -> tuple[str, int, tuple[int, ...]]:
    return tensor.name, tensor.data_type, tuple(tensor.dims)


def _tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Initializers, and the values of Constant nodes."""
    for owner, nodes in node_lists(proto):
        if isinstance(owner, GraphProto):
            yield from owner.initializer
        yield from _constants(nodes)


def _constants(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        if node.op_type == "Constant":
            yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))
