"""Constants of the editing view as tensors: the very message that was read, or a stub where they are large."""

from __future__ import annotations

from typing import Any, Final, cast

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

from rewright.model.elements import WeightRef
from rewright.model.weights import STUB_THRESHOLD, Slice, WeightFiles, element_bits, is_stub, make_stub

_SPILLED_AT_ONCE: Final = 1 << 20
"""Bytes of an array that does not wait in memory for the next export."""


def tensor_proto(constant: Any, files: WeightFiles) -> TensorProto:
    """The constant as a tensor of that name: the very message that was read if nothing changed, a stub where it is large.

    Made once for each array: large arrays go to the spill file of ``files``.
    """
    held = constant._values
    if isinstance(held, gs.ir.tensor.LazyValues):
        if held.tensor.name == constant.name:
            return cast(TensorProto, held.tensor)
        renamed = TensorProto()
        renamed.CopyFrom(held.tensor)
        renamed.name = constant.name
        return renamed
    cached: tuple[Any, TensorProto] | None = getattr(constant, "_exported", None)
    if cached is None or cached[0] is not held or cached[1].name != constant.name:
        cached = (held, _encoded(constant.name, _as_exported(constant), files))
        constant._exported = cached
    return cached[1]


def _encoded(name: str, values: np.ndarray[Any, Any], files: WeightFiles) -> TensorProto:
    data = np.ascontiguousarray(values).reshape(values.shape)
    stub = TensorProto(name=name, data_type=onnx.helper.np_dtype_to_tensor_dtype(data.dtype), dims=data.shape)
    if data.nbytes >= STUB_THRESHOLD and data.dtype.kind not in "OSU" and element_bits(stub) == 8 * data.itemsize:
        return make_stub(stub, files.spill(data.reshape(-1).view(np.uint8).data))  # straight to the file: no copy in a message
    tensor: TensorProto = onnx.numpy_helper.from_array(data, name)
    return make_stub(tensor, files.spill(tensor.raw_data)) if len(tensor.raw_data) >= STUB_THRESHOLD else tensor


def spill(constant: Any, files: WeightFiles) -> None:
    """Moves the values of a constant that a pass has made to the spill file, if they are large."""
    held = constant._values
    if isinstance(held, np.ndarray) and held.nbytes >= _SPILLED_AT_ONCE and constant._export_dtype is None:
        tensor = tensor_proto(constant, files)
        if is_stub(tensor):
            constant._values = WeightRef(tensor, files)
            constant._exported = None  # it holds the array


def _as_exported(constant: Any) -> np.ndarray[Any, Any]:
    """The values in the type that graphsurgeon's ``export_dtype`` asks for, else their own."""
    values: np.ndarray[Any, Any] = constant._values
    wanted = getattr(constant, "_export_dtype", None)
    if wanted is None:
        return values
    dtype = onnx.helper.tensor_dtype_to_np_dtype(wanted) if isinstance(wanted, int) else np.dtype(wanted)
    return values.astype(dtype, copy=False)


def weight_slice(constant: Any) -> Slice | None:
    """Where an untouched constant's bytes lie, or None if they are inline or were replaced."""
    held = constant._values
    return held.place if isinstance(held, WeightRef) else None
