"""Saving: weights are streamed from where they lie, into a temporary name that is renamed when it is complete."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

from google.protobuf.message import EncodeError
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from rewright.model import wire
from rewright.model.carrier import Model, bodies, copy_field, stubs
from rewright.model.errors import ModelError, UsageError
from rewright.model.weights import Slice, is_stub, point_to, shortened, slice_of

Segment: TypeAlias = bytes | Slice

INLINE_LIMIT: Final = 2**31 - 2**20
"""Protobuf messages end at 2 GiB; larger models get a data file."""

DATA_SUFFIX: Final = ".data"

_ALIGNMENT: Final = 4096
_CHUNK: Final = 1 << 24


def save(model: Model, path: str | PathLike[str], external_data: bool | None = None, *, data_suffix: str = DATA_SUFFIX) -> None:
    """Writes ``model`` to ``path``; never through a half-written file, never over the model's own source.

    Args:
        model: the model to write.
        path: the .onnx file to make; an existing one is replaced.
        external_data: True puts the weights into a data file, False into the .onnx file; by default as the source had it, and
            a data file where the .onnx file would exceed 2 GiB.
        data_suffix: the data file is named ``path`` and this.

    Raises:
        UsageError: ``path`` is a file that the model's weights are read from, or a directory.
        ModelError: the output cannot be written (permissions, full disk); nothing is left behind.
    """
    target = Path(os.path.abspath(path))
    _refuse_place(target)
    data_target = target.with_name(target.name + data_suffix)
    inline = sum(weight.length for weight in map(slice_of, stubs(model.proto))) + model.proto.ByteSize()
    if external_data is None:
        external_data = model.has_external_data
    external_data = external_data or inline >= INLINE_LIMIT
    _refuse_sources(model, [target, data_target] if external_data else [target])
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    data_temporary = target.with_name(f".{data_target.name}.{os.getpid()}.partial")
    try:
        if external_data:
            with open(data_temporary, "xb") as file:
                proto = _write_data(model, file, data_target.name)
            with open(temporary, "xb") as file:
                file.write(proto.SerializeToString())
            os.replace(data_temporary, data_target)
        else:
            with open(temporary, "xb") as file:
                _write_segments(_model_segments(model.proto), file)
        os.replace(temporary, target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ModelError(f"cannot write {target}: {reason}.", "Check the folder, its permissions and the free space.") from error
    except EncodeError as error:
        raise ModelError(
            f"cannot write {target}: without its weights the model is still larger than 2 GiB, which protobuf cannot hold.",
            "Store its large tensors as raw data.",
        ) from error
    finally:
        for leftover in (temporary, data_temporary):
            with suppress(OSError):
                leftover.unlink()


def _refuse_place(target: Path) -> None:
    try:
        kind = target.stat().st_mode
    except OSError:  # usually it is not there yet; anything else shows when it is written
        return
    if stat.S_ISDIR(kind):
        raise UsageError(f"{target} is a directory.", "Name the .onnx file to write.")
    if not stat.S_ISREG(kind):
        raise UsageError(f"{target} is a device or a pipe, which is never replaced.", "Name the .onnx file to write.")


def _refuse_sources(model: Model, targets: Iterable[Path]) -> None:
    sources = {weight.path for weight in map(slice_of, stubs(model.proto))}
    if model.path is not None:
        sources.add(model.path)
    resolved = {os.path.realpath(source) for source in sources}
    for target in targets:
        if os.path.realpath(target) in resolved:
            raise UsageError(f"{target} holds the input model, which is never modified.", "Choose another output path.")


def _write_data(model: Model, file: BinaryIO, name: str) -> ModelProto:
    """Streams every weight into ``file``, each distinct slice once, and returns the proto that points into it."""
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    places: dict[Slice, int] = {}
    for tensor in stubs(proto):
        weight = slice_of(tensor)
        offset = places.get(weight)
        if offset is None:
            offset = -(-file.tell() // _ALIGNMENT) * _ALIGNMENT
            file.write(b"\0" * (offset - file.tell()))
            _copy(weight, file)
            places[weight] = offset
        point_to(tensor, name, offset, weight.length)
    return proto


def _write_segments(segments: Iterable[Segment], file: BinaryIO) -> None:
    for segment in segments:
        if isinstance(segment, Slice):
            _copy(segment, file)
        else:
            file.write(segment)


def _copy(weight: Slice, file: BinaryIO) -> None:
    """Copies a slice into ``file`` inside the kernel where the file systems allow it."""
    file.flush()
    with open(weight.path, "rb") as source:
        offset, end = weight.offset, weight.offset + weight.length
        with suppress(OSError, AttributeError):
            while offset < end:
                copied = os.copy_file_range(source.fileno(), file.fileno(), end - offset, offset)
                if copied == 0:
                    break
                offset += copied
        # copy_file_range moves the descriptor; the buffered file must agree before it writes on.
        file.seek(0, os.SEEK_END)
        source.seek(offset)
        while offset < end:
            chunk = source.read(min(_CHUNK, end - offset))
            if not chunk:
                raise shortened(weight)
            file.write(chunk)
            offset += len(chunk)


def _length(segments: Iterable[Segment]) -> int:
    return sum(segment.length if isinstance(segment, Slice) else len(segment) for segment in segments)


def _wrapped(number: int, segments: list[Segment]) -> list[Segment]:
    return [wire.header(number, _length(segments)), *segments]


def _around(message: Any, number: int, without: tuple[str, ...]) -> tuple[bytes, bytes]:
    """The serialized message before and after where its field ``number`` belongs, leaving out the fields ``without``.

    Protobuf writes fields by number; keeping to that order makes an untouched model's file equal to its source.
    """
    before, after = type(message)(), type(message)()
    after.CopyFrom(message)  # unknown fields included
    for name in without:
        after.ClearField(name)
    for descriptor, _ in after.ListFields():
        if descriptor.number <= number:
            copy_field(after, before, descriptor.name)
    for descriptor, _ in before.ListFields():
        after.ClearField(descriptor.name)
    return before.SerializeToString(), after.SerializeToString()


def _model_segments(proto: ModelProto) -> list[Segment]:
    walked = any(_holds_stubs(node) for function in proto.functions for node in function.node)
    before, after = _around(proto, wire.MODEL_GRAPH, ("graph", "functions") if walked else ("graph",))
    segments: list[Segment] = [before, *_wrapped(wire.MODEL_GRAPH, _graph_segments(proto.graph)), after]
    if walked:
        for function in proto.functions:
            segments += _wrapped(wire.MODEL_FUNCTIONS, _function_segments(function))
    return segments


def _function_segments(function: FunctionProto) -> list[Segment]:
    before, after = _around(function, wire.FUNCTION_NODE, ("node",))
    nodes = [segment for node in function.node for segment in _wrapped(wire.FUNCTION_NODE, _node_segments(node))]
    return [before, *nodes, after]


def _graph_segments(graph: GraphProto) -> list[Segment]:
    """The graph with its stubs turned back into raw data."""
    walked = any(_holds_stubs(node) for node in graph.node)
    before, after = _around(graph, wire.GRAPH_INITIALIZER, ("initializer", "node") if walked else ("initializer",))
    segments: list[Segment] = []
    if walked:
        for node in graph.node:
            segments += _wrapped(wire.GRAPH_NODE, _node_segments(node))
    segments.append(before)
    for tensor in graph.initializer:
        segments += _wrapped(wire.GRAPH_INITIALIZER, _tensor_segments(tensor))
    return [*segments, after]


def _holds_stubs(node: NodeProto) -> bool:
    pending = [node]
    while pending:
        current = pending.pop()
        if not current.attribute:
            continue
        if current.op_type == "Constant" and any(
            attribute.type == AttributeProto.TENSOR and is_stub(attribute.t) for attribute in current.attribute
        ):
            return True
        for graph in bodies(current):
            if any(is_stub(tensor) for tensor in graph.initializer):
                return True
            pending.extend(graph.node)
    return False


def _node_segments(node: NodeProto) -> list[Segment]:
    if not _holds_stubs(node):
        return [node.SerializeToString()]
    before, after = _around(node, wire.NODE_ATTRIBUTE, ("attribute",))
    segments: list[Segment] = [before]
    for attribute in node.attribute:
        segments += _wrapped(wire.NODE_ATTRIBUTE, _attribute_segments(attribute))
    return [*segments, after]


def _attribute_segments(attribute: AttributeProto) -> list[Segment]:
    if attribute.type == AttributeProto.TENSOR:
        number, name = wire.ATTRIBUTE_TENSOR, "t"
        inner = _wrapped(number, _tensor_segments(attribute.t))
    elif attribute.type == AttributeProto.GRAPH:
        number, name = wire.ATTRIBUTE_GRAPH, "g"
        inner = _wrapped(number, _graph_segments(attribute.g))
    elif attribute.type == AttributeProto.GRAPHS:
        number, name = wire.ATTRIBUTE_GRAPHS, "graphs"
        inner = [segment for graph in attribute.graphs for segment in _wrapped(number, _graph_segments(graph))]
    else:
        return [attribute.SerializeToString()]
    before, after = _around(attribute, number, (name,))
    return [before, *inner, after]


def _tensor_segments(tensor: TensorProto) -> list[Segment]:
    if not is_stub(tensor):
        return [tensor.SerializeToString()]
    weight = slice_of(tensor)
    before, after = _around(tensor, wire.TENSOR_RAW_DATA, ("external_data", "data_location"))
    return [before, wire.header(wire.TENSOR_RAW_DATA, weight.length), weight, after]
