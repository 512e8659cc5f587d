"""Loading: a path or a ModelProto becomes a skeleton and slices of files. Reads are confined to the model's folder."""

from __future__ import annotations

import mmap
import os
from os import PathLike
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, NodeProto, TensorProto

from rewright.model.carrier import Model, all_graphs, bodies, stubs
from rewright.model.errors import ModelError, UsageError
from rewright.model.weights import (
    STUB_THRESHOLD,
    WeightFiles,
    external_entries,
    is_stub,
    location_of,
    make_stub,
    point_to,
)
from rewright.model.wire import Skeleton, WireError


def load(source: str | PathLike[str] | ModelProto | Model, folder: str | PathLike[str] | None = None) -> Model:
    """Loads a model without reading its weights.

    Args:
        source: the path of an .onnx file, a ModelProto (never modified), or a Model (returned as it is).
        folder: where the external data of a ModelProto lies; not used for a path, whose own folder counts.

    Raises:
        ModelError: the file is missing, not an ONNX model, truncated, or its external data is missing, too short or
            outside the model's folder.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, ModelProto):
        return _load_proto(source, Path(folder) if folder is not None else None)
    if isinstance(source, (str, PathLike)):
        return _load_path(Path(source))
    raise UsageError(f"cannot load a {type(source).__name__}.", "Give the path of an .onnx file, a ModelProto or a Model.")


def _load_path(path: Path) -> Model:
    if path.is_dir():
        raise ModelError(f"{path} is a directory.", "Name the .onnx file in it.")
    if not path.exists():
        raise ModelError(f"{path} does not exist.", "Check the path.")
    path = Path(os.path.abspath(path))
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelError(f"{path} is empty.", "Export the model again.")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}.", "Check the file's permissions.") from error
    with data:
        proto = _parse(data, path)
    in_file = location_of(path)
    has_external_data = False
    for tensor in stubs(proto):
        if external_entries(tensor).get("location") != in_file:
            _confine(tensor, path.parent)
            has_external_data = True
    return Model(proto, WeightFiles(), path, has_external_data)


def _parse(data: mmap.mmap, path: Path) -> ModelProto:
    hint = "Check that the file is complete and is an ONNX model, or export it again."
    try:
        proto = ModelProto.FromString(Skeleton(data, location_of(path), STUB_THRESHOLD).serialized())
    except (WireError, DecodeError, ValueError) as error:
        reason = str(error) if isinstance(error, WireError) else "the data does not decode"
        raise ModelError(f"{path} is not a readable ONNX file: {reason}.", hint) from error
    if not proto.HasField("graph") or not proto.ir_version or not proto.opset_import:
        raise ModelError(f"{path} is not an ONNX model: it has no graph, IR version or opset import.", hint)
    return proto


def _confine(tensor: TensorProto, folder: Path) -> None:
    """Checks that a stub stays inside ``folder`` and inside its file, and makes its location a session location."""
    entries = external_entries(tensor)
    location = entries.get("location", "")
    where = f"the external data of tensor '{tensor.name}'"
    parts = PurePosixPath(location).parts
    if not location or PurePosixPath(location).is_absolute() or PureWindowsPath(location).is_absolute() or ".." in parts:
        raise ModelError(
            f"{where} is at '{location}', which is outside the model's folder {folder}.",
            "Move the data file beside the model and save the model with a relative location.",
        )
    path = folder / location
    if path.is_symlink() or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise ModelError(
            f"{where} is at '{location}', which is a symbolic link or leads outside the model's folder {folder}.",
            "Put the data file itself beside the model.",
        )
    if not path.is_file():
        raise ModelError(f"{where} is missing: {path} does not exist.", "Put the data file beside the model.")
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries["length"]) if "length" in entries else _byte_size(tensor)
    except ValueError as error:
        raise ModelError(f"{where} has an offset or length that is not a number.", "Save the model again.") from error
    size = path.stat().st_size
    if offset < 0 or length < 0 or offset + length > size:
        raise ModelError(
            f"{where} needs bytes {offset} to {offset + length} of {path}, which has only {size}.",
            "The data file is truncated or belongs to another model.",
        )
    if length < _byte_size(tensor):
        raise ModelError(f"{where} has {length} bytes, but its shape needs {_byte_size(tensor)}.", "Save the model again.")
    point_to(tensor, location_of(path), offset, length)


def _byte_size(tensor: TensorProto) -> int:
    count = 1
    for dim in tensor.dims:
        count *= dim
    return -(-count * _bits(tensor.data_type) // 8)


def _bits(data_type: int) -> int:
    name = TensorProto.DataType.Name(data_type)
    if name.endswith("INT4") or name.startswith("FLOAT4"):
        return 4
    if name.endswith("INT2"):
        return 2
    return int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize) * 8


def _load_proto(source: ModelProto, folder: Path | None) -> Model:
    """A skeleton of ``source``: everything but the large weights is copied, the weights go to a spill file."""
    files = WeightFiles()
    proto = ModelProto()
    for descriptor, _ in source.ListFields():
        if descriptor.name != "graph":
            part = ModelProto()
            _copy_field(source, part, descriptor.name)
            proto.MergeFrom(part)
    for descriptor, _ in source.graph.ListFields():
        if descriptor.name != "initializer":
            _copy_field(source.graph, proto.graph, descriptor.name)
    for tensor in source.graph.initializer:
        proto.graph.initializer.append(_spilled(tensor, files))
    for graph in all_graphs(proto):
        if graph is not proto.graph:
            _spill_body(graph, files)
    has_external_data = False
    for tensor in stubs(proto):
        if external_entries(tensor)["location"] != location_of(files.scratch / "weights.bin"):
            if folder is None:
                raise ModelError(
                    f"tensor '{tensor.name}' has external data, and a ModelProto does not say where.",
                    "Pass the model's path, or load(proto, folder=...).",
                )
            _confine(tensor, Path(os.path.abspath(folder)))
            has_external_data = True
    return Model(proto, files, None, has_external_data)


def _copy_field(source: object, target: object, name: str) -> None:
    value = getattr(source, name)
    if hasattr(value, "extend"):
        getattr(target, name).extend(value)
    elif hasattr(value, "CopyFrom"):
        getattr(target, name).CopyFrom(value)
    else:
        setattr(target, name, value)


def _spilled(tensor: TensorProto, files: WeightFiles) -> TensorProto:
    if is_stub(tensor) or len(tensor.raw_data) < STUB_THRESHOLD:
        return tensor
    return make_stub(tensor, files.spill(tensor.raw_data))


def _spill_body(graph: onnx.GraphProto, files: WeightFiles) -> None:
    if any(len(tensor.raw_data) >= STUB_THRESHOLD for tensor in graph.initializer):
        kept = [_spilled(tensor, files) for tensor in graph.initializer]
        replaced = onnx.GraphProto()
        replaced.initializer.extend(kept)
        graph.ClearField("initializer")
        graph.initializer.extend(replaced.initializer)


def has_bodies(node: NodeProto) -> bool:
    """Whether the node holds graphs."""
    return bool(node.attribute) and next(bodies(node), None) is not None
