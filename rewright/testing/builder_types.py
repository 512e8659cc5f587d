"""Types and shapes of what a GraphBuilder makes, by onnx's own inference; fused ops through their contracts' bodies."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np
import onnx
from onnx import ModelProto, TensorProto, TypeProto, helper

from rewright.model.errors import UsageError
from rewright.model.load import load
from rewright.model.weights import STUB_THRESHOLD, is_stub
from rewright.ops.lowering import lower
from rewright.testing.sources import complete

if TYPE_CHECKING:
    from rewright.testing.handles import Node


def type_of(dtype: Any, shape: Any) -> TypeProto:
    """A tensor type; ``dtype`` is a numpy dtype or its name, "bfloat16", "string", or a TensorProto element type.

    Raises:
        UsageError: there is no such dtype.
    """
    return helper.make_tensor_type_proto(elem_type(dtype), None if shape is None else list(shape))


def elem_type(dtype: Any) -> int:
    """The TensorProto element type of a dtype.

    Raises:
        UsageError: there is no such dtype.
    """
    if isinstance(dtype, int):
        return dtype
    try:
        if dtype in ("string", str):
            return int(TensorProto.STRING)
        named = getattr(ml_dtypes, dtype, dtype) if isinstance(dtype, str) else dtype
        return int(helper.np_dtype_to_tensor_dtype(np.dtype(named)))
    except (TypeError, ValueError, KeyError):
        raise UsageError(f"there is no dtype '{dtype}'.", "Give numpy's name of one, such as float32, int64 or bool.") from None


def number_dtype(index: int, inputs: Sequence[Any], schema: onnx.defs.OpSchema | None) -> Any:
    """The dtype of a Python number as an op's input: that of the operands of its kind, or the only one that the op takes there.

    None where the number's own kind decides.
    """
    values = {position: value for position, value in enumerate(inputs) if hasattr(value, "dtype") and hasattr(value, "builder")}
    first = next(iter(values.values()), None)
    if schema is None:
        return first.dtype if first is not None else None
    kind = _formal(schema, index)
    alike = next((value for position, value in values.items() if _formal(schema, position) == kind), None)
    if alike is not None:
        return alike.dtype
    allowed = next((entry.allowed_type_strs for entry in schema.type_constraints if entry.type_param_str == kind), [kind])
    if len(allowed) > 1 and first is not None:
        return first.dtype if f"tensor({_spelled(first.dtype)})" in allowed else None
    return _DTYPES.get(allowed[0]) if len(allowed) == 1 else None


_MADE_UP: Final = "unk__"
"""How onnx's inference names the dimensions that it cannot compute."""

_DTYPES: Final = {"tensor(int64)": "int64", "tensor(bool)": "bool", "tensor(int32)": "int32", "tensor(float)": "float32"}


def _formal(schema: onnx.defs.OpSchema, index: int) -> str:
    """What the schema calls the type of an input; the last parameter may be repeated."""
    return schema.inputs[min(index, len(schema.inputs) - 1)].type_str


def _spelled(dtype: np.dtype[Any]) -> str:
    return {"float32": "float", "float64": "double"}.get(dtype.name, dtype.name)


def infer_node(node: Node, opset: int, constants: Mapping[str, TensorProto]) -> None:
    """Gives the node's outputs the types that follow from its inputs; leaves them open where inference fails."""
    seen = {value.name: value for value in node.reads()}
    graph = helper.make_graph(
        [node.proto()], "node", [value.info() for value in seen.values() if value.name not in constants], []
    )
    graph.initializer.extend(constants[name] for name in seen if name in constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    complete(model)
    types = inferred_types(model)
    for value in node.outputs:
        found = types.get(value.name)
        if found is not None:
            value.type = found


def inferred_types(proto: ModelProto) -> dict[str, TypeProto]:
    """The types of inputs, initializers and inner values of the main graph, and of outputs, as far as they are known.

    Outputs are inferred like inner values; what the graph states about them is not believed. Large initializers are known by
    their type alone, so that nothing is copied or read.
    """
    bare = ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.output[:]  # what is no output is listed among the inner values
    small = [tensor for tensor in bare.graph.initializer if is_small(tensor)]
    large = [tensor for tensor in bare.graph.initializer if not is_small(tensor)]
    inputs = {info.name for info in bare.graph.input}
    bare.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in large if tensor.name not in inputs
    )
    held = [helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in small]
    small = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in small]
    del bare.graph.initializer[:]
    bare.graph.initializer.extend(small)
    found = {info.name: info.type for info in (*held, *bare.graph.input)}
    for every in (False, True):
        source = lower(load(bare), every=True).proto if every else bare
        try:
            made = onnx.shape_inference.infer_shapes(source, data_prop=True)
        except (onnx.shape_inference.InferenceError, ValueError):
            break
        found |= {info.name: info.type for info in made.graph.value_info if info.type.WhichOneof("value")}
        if all(name in found for node in bare.graph.node for name in node.output if name):
            break
    return found


def is_small(tensor: TensorProto) -> bool:
    """Whether inference may need the tensor's values: a shape, axes, a number of repetitions."""
    return not is_stub(tensor) and tensor.ByteSize() < STUB_THRESHOLD


def infer_outputs(proto: ModelProto, stated: Collection[str]) -> None:
    """Writes the inferred types into the graph's outputs, in place.

    Raises:
        UsageError: an output's type or rank, which onnx's checker asks for, is not inferred, and nobody has stated it.
    """
    types = inferred_types(proto)
    for info in proto.graph.output:
        if info.name not in stated and info.name in types:
            info.type.CopyFrom(types[info.name])
            for dim in info.type.tensor_type.shape.dim:
                if dim.dim_param.startswith(_MADE_UP):
                    dim.ClearField("dim_param")
        kind = info.type.WhichOneof("value")
        if kind is None or (kind == "tensor_type" and not info.type.tensor_type.HasField("shape")):
            what = "type" if kind is None else "rank"
            raise UsageError(
                f"the {what} of the output '{info.name}' is not inferred.",
                "State it: output(value, dtype='float32', shape=[...]).",
            )
