"""Where the bytes of large weights live: slices of files, mapped on demand, never copied by a pass that does not change them.

A stub is an ordinary external-data TensorProto whose ``location`` is a path relative to the root of the file system, so that one
session folder (``SESSION_FOLDER``) serves weights inside the source .onnx file, in its data files and in the spill file alike.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto

from rewright.model.errors import ModelError, ScratchError

SESSION_FOLDER: Final = os.path.abspath(os.sep)
"""The folder that ONNX Runtime must resolve the stubs' locations against."""

STUB_THRESHOLD: Final = 1024
"""Raw data of at least this many bytes is kept out of the skeleton."""

_SPILL_ALIGNMENT: Final = 64
_EXTERNAL: Final = TensorProto.EXTERNAL


@dataclass(frozen=True)
class Slice:
    """``length`` bytes of the file ``path``, from ``offset`` on."""

    path: Path
    offset: int
    length: int


def location_of(path: Path) -> str:
    """The location that stubs use for ``path``: absolute, but relative to ``SESSION_FOLDER``."""
    return os.path.relpath(os.path.abspath(path), SESSION_FOLDER)


def is_stub(tensor: TensorProto) -> bool:
    """Whether the tensor's bytes are outside the proto."""
    return tensor.data_location == _EXTERNAL


def external_entries(tensor: TensorProto) -> dict[str, str]:
    """The external-data entries of the tensor as a dictionary."""
    return {entry.key: entry.value for entry in tensor.external_data}


def slice_of(tensor: TensorProto) -> Slice:
    """The slice that a stub of a loaded model refers to."""
    entries = external_entries(tensor)
    path = Path(SESSION_FOLDER, entries["location"])
    return Slice(path, int(entries.get("offset", "0")), int(entries["length"]))


def make_stub(source: TensorProto, weight: Slice) -> TensorProto:
    """``source`` without its data, pointing to ``weight``; name, dims, dtype, doc string and metadata stay."""
    stub = TensorProto(name=source.name, data_type=source.data_type, dims=source.dims)
    if source.HasField("doc_string"):
        stub.doc_string = source.doc_string
    stub.metadata_props.extend(source.metadata_props)
    point_to(stub, location_of(weight.path), weight.offset, weight.length)
    return stub


def point_to(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Makes ``tensor`` an external-data tensor with these three entries."""
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    tensor.data_location = TensorProto.EXTERNAL


def byte_size(tensor: TensorProto) -> int:
    """The bytes that the tensor's shape and type need.

    Raises:
        ModelError: onnx does not know the type, or it has no fixed size.
    """
    return -(-math.prod(tensor.dims) * element_bits(tensor) // 8)


def element_bits(tensor: TensorProto) -> int:
    """Bits of one element as it is stored; 4 and 2 for the packed types."""
    known = TensorProto.DataType.values()
    name = TensorProto.DataType.Name(tensor.data_type) if tensor.data_type in known else ""
    if name in ("", "UNDEFINED", "STRING"):
        raise ModelError(
            f"tensor '{tensor.name}' has the data type {name or tensor.data_type}, which has no size in onnx {onnx.__version__}.",
            "Install a newer onnx, or export the model again.",
        )
    if name.endswith("INT4") or name.startswith("FLOAT4"):
        return 4
    if name.endswith("INT2"):
        return 2
    return int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize) * 8


_FILES_CHANGED: Final = "The model's files must stay as they are while it is in use: load it again."


def shortened(weight: Slice) -> ModelError:
    """The error for a file that was cut short after its model was loaded."""
    return ModelError(f"the weight file {weight.path} has become shorter than its model says.", _FILES_CHANGED)


def _inline_array(tensor: TensorProto) -> np.ndarray[Any, Any]:
    dtype = _RAW_LAYOUTS.get(tensor.data_type)
    if dtype is not None and tensor.HasField("raw_data") and not tensor.HasField("segment"):
        return np.frombuffer(tensor.raw_data, dtype).reshape(tuple(tensor.dims))  # numpy_helper takes ten times as long
    return onnx.numpy_helper.to_array(tensor)


_RAW_LAYOUTS: Final = {
    int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(name))): np.dtype(name).newbyteorder("<")
    for name in ("float32", "float64", "int32", "int64", "bool")
}


class WeightFiles:
    """Memory maps of weight files, and a spill file for weights that passes make.

    Shared by all snapshots of a model. The scratch folder is removed when the last of them is gone.
    """

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}
        self._scratch: Path | None = None

    @property
    def scratch(self) -> Path:
        """A folder for temporary files, removed with this object."""
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="rewright-"))
            weakref.finalize(self, rmtree, str(self._scratch), True)
        return self._scratch

    def bytes_of(self, weight: Slice) -> memoryview:
        """The bytes of a slice, mapped, read-only."""
        if weight.length == 0:
            return memoryview(b"")
        mapped = self._maps.get(weight.path)
        if mapped is None or len(mapped) < weight.offset + weight.length:
            try:
                with open(weight.path, "rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise ModelError(f"cannot read the weight file {weight.path}: {error}.", _FILES_CHANGED) from error
            self._maps[weight.path] = mapped
        if len(mapped) < weight.offset + weight.length:
            raise shortened(weight)
        return memoryview(mapped)[weight.offset : weight.offset + weight.length]

    def array(self, tensor: TensorProto) -> np.ndarray[Any, Any]:
        """The tensor's values, read-only; a map of the file for a stub, never a copy of more than sub-byte types."""
        try:
            array = self._stub_array(tensor) if is_stub(tensor) else _inline_array(tensor)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"the data of tensor '{tensor.name}' does not fit its type {tensor.data_type} and shape {list(tensor.dims)}.",
                "The model is damaged: export it again.",
            ) from error
        array.flags.writeable = False
        return array

    def _stub_array(self, tensor: TensorProto) -> np.ndarray[Any, Any]:
        data = self.bytes_of(slice_of(tensor))
        if element_bits(tensor) < 8:
            packed = TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=bytes(data))
            return onnx.numpy_helper.to_array(packed)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return np.frombuffer(data, dtype=dtype).reshape(tuple(tensor.dims))

    def spill(self, data: Any) -> Slice:
        """Appends ``data`` (bytes or a contiguous array) to the spill file and returns where it lies.

        Raises:
            ScratchError: the folder for temporary files is full or cannot be written.
        """
        try:
            path = self.scratch / "weights.bin"
            with open(path, "ab") as file:
                start = file.tell()
                offset = -(-start // _SPILL_ALIGNMENT) * _SPILL_ALIGNMENT
                file.write(b"\0" * (offset - start))
                file.write(data)
                length = file.tell() - offset
        except OSError as error:
            raise ScratchError(
                f"cannot write weights to the folder for temporary files {tempfile.gettempdir()}: {error.strerror or error}.",
                "Free space there, or name another folder in the environment variable TMPDIR.",
            ) from error
        return Slice(path, offset, length)
