"""Loading: a path or a ModelProto becomes a skeleton and slices of files. Reads are confined to the model's folder."""

from __future__ import annotations

import mmap
import os
import stat
from os import PathLike
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto

from rewright.model.carrier import Model, all_graphs, copy_field, node_lists, stubs
from rewright.model.cycles import refuse_cycle
from rewright.model.errors import ModelError, UsageError
from rewright.model.weights import (
    STUB_THRESHOLD,
    WeightFiles,
    byte_size,
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
    path = Path(os.path.abspath(path))
    try:
        path.as_posix().encode()
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise ModelError(f"{path} is a directory.", "Name the .onnx file in it.")
        if not stat.S_ISREG(kind):
            raise ModelError(f"{path} is not a regular file.", "Name an .onnx file.")
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelError(f"{path} is empty.", "Export the model again.")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist.", "Check the path.") from None
    except UnicodeEncodeError:
        raise ModelError(f"the path {os.fsencode(path)!r} is not UTF-8, as ONNX requires.", "Rename the file.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ModelError(f"cannot read {path}: {reason}.", "Check the path and the file's permissions.") from error
    with data:
        proto = _parse(data, path)
    in_file = location_of(path)
    lists = node_lists(proto)
    refuse_cycle(lists)
    has_external_data = False
    for tensor in stubs(lists):
        if external_entries(tensor).get("location") != in_file:
            _confine(tensor, path.parent, Path(os.path.realpath(path)).parent if path.is_symlink() else None)
            has_external_data = True
    return Model(proto, WeightFiles(), path, has_external_data, lists)


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


def _confine(tensor: TensorProto, folder: Path, linked_to: Path | None = None) -> None:
    """Checks that a stub stays inside ``folder`` and inside its file, and makes its location a session location.

    The data file may be a link only if the model is one itself, and both lead to one folder, ``linked_to``, as in the cache of
    the Hugging Face Hub. ONNX Runtime allows that too.
    """
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
    if linked_to is not None and path.is_symlink() and Path(os.path.realpath(path)).parent == linked_to:
        path = Path(os.path.realpath(path))
    elif path.is_symlink() or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise ModelError(
            f"{where} is at '{location}', which is a symbolic link or leads outside the model's folder {folder}.",
            "Put the data file itself beside the model.",
        )
    if not path.is_file():
        raise ModelError(f"{where} is missing: {path} does not exist.", "Put the data file beside the model.")
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries["length"]) if "length" in entries else byte_size(tensor)
    except ValueError as error:
        raise ModelError(f"{where} has an offset or length that is not a number.", "Save the model again.") from error
    size = path.stat().st_size
    if offset < 0 or length < 0 or offset + length > size:
        raise ModelError(
            f"{where} needs bytes {offset} to {offset + length} of {path}, which has only {size}.",
            "The data file is truncated or belongs to another model.",
        )
    if length != byte_size(tensor):
        raise ModelError(f"{where} has {length} bytes, but its shape needs {byte_size(tensor)}.", "Save the model again.")
    point_to(tensor, location_of(path), offset, length)


def _load_proto(source: ModelProto, folder: Path | None) -> Model:
    """A skeleton of ``source``: everything but the large weights is copied, the weights go to a spill file."""
    if not source.HasField("graph") or not source.ir_version or not source.opset_import:
        raise ModelError("the ModelProto has no graph, IR version or opset import.", "Pass a complete model.")
    files = WeightFiles()
    proto = ModelProto()
    for descriptor, _ in source.ListFields():
        if descriptor.name != "graph":
            copy_field(source, proto, descriptor.name)
    for descriptor, _ in source.graph.ListFields():
        if descriptor.name != "initializer":
            copy_field(source.graph, proto.graph, descriptor.name)
    for tensor in source.graph.initializer:
        proto.graph.initializer.append(_spilled(tensor, files))
    for graph in all_graphs(proto):
        if graph is not proto.graph:
            _spill_body(graph, files)
    has_external_data = False
    lists = node_lists(proto)
    for tensor in stubs(lists):
        if external_entries(tensor).get("location") != location_of(files.scratch / "weights.bin"):
            if folder is None:
                raise ModelError(
                    f"tensor '{tensor.name}' has external data, and a ModelProto does not say where.",
                    "Pass the model's path, or load(proto, folder=...).",
                )
            _confine(tensor, Path(os.path.abspath(folder)))
            has_external_data = True
    refuse_cycle(lists)
    return Model(proto, files, None, has_external_data, lists)


def _spilled(tensor: TensorProto, files: WeightFiles) -> TensorProto:
    data = b"" if is_stub(tensor) else tensor.raw_data
    return make_stub(tensor, files.spill(data)) if len(data) >= STUB_THRESHOLD else tensor


def _spill_body(graph: onnx.GraphProto, files: WeightFiles) -> None:
    if any(len(tensor.raw_data) >= STUB_THRESHOLD for tensor in graph.initializer):
        kept = [_spilled(tensor, files) for tensor in graph.initializer]
        replaced = onnx.GraphProto()
        replaced.initializer.extend(kept)
        graph.ClearField("initializer")
        graph.initializer.extend(replaced.initializer)
