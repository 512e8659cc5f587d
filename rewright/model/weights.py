"""Where the bytes of large weights live: slices of files, mapped on demand, never copied by a pass that does not change them.

A stub is an ordinary external-data TensorProto whose ``location`` is a path relative to the root of the file system, so that one
session folder (``SESSION_FOLDER``) serves weights inside the source .onnx file, in its data files and in the spill file alike.
"""

from __future__ import annotations

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

from rewright.model.errors import ModelError

SESSION_FOLDER: Final = os.path.abspath(os.sep)
"""The folder that ONNX Runtime must resolve the stubs' locations against."""

STUB_THRESHOLD: Final = 1024
"""Raw data of at least this many bytes is kept out of the skeleton."""

_SPILL_ALIGNMENT: Final = 64


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
    return tensor.data_location == TensorProto.EXTERNAL


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
    if source.doc_string:
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
                raise ModelError(f"cannot read the weight file {weight.path}: {error}.") from error
            self._maps[weight.path] = mapped
        if len(mapped) < weight.offset + weight.length:
            raise ModelError(f"the weight file {weight.path} has become shorter than its model says.")
        return memoryview(mapped)[weight.offset : weight.offset + weight.length]

    def array(self, tensor: TensorProto) -> np.ndarray[Any, Any]:
        """The tensor's values, read-only; a map of the file for a stub, never a copy of more than sub-byte types."""
        if not is_stub(tensor):
            array: np.ndarray[Any, Any] = onnx.numpy_helper.to_array(tensor)
            array.flags.writeable = False
            return array
        data = self.bytes_of(slice_of(tensor))
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        count = int(np.prod(tensor.dims, dtype=np.int64))
        if dtype.itemsize * count == len(data):
            return np.frombuffer(data, dtype=dtype, count=count).reshape(tuple(tensor.dims))
        packed = TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=bytes(data))
        return onnx.numpy_helper.to_array(packed)

    def spill(self, data: Any) -> Slice:
        """Appends ``data`` (bytes or a contiguous array) to the spill file and returns where it lies."""
        path = self.scratch / "weights.bin"
        with open(path, "ab") as file:
            start = file.tell()
            offset = -(-start // _SPILL_ALIGNMENT) * _SPILL_ALIGNMENT
            file.write(b"\0" * (offset - start))
            file.write(data)
            length = file.tell() - offset
        return Slice(path, offset, length)
