"""What is known about values: dtype, rank, symbolic shape, constant value, producer. Unknown stays unknown, per value."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import GraphProto, ModelProto, NodeProto, TypeProto

from rewright.model.carrier import Model, bodies
from rewright.model.elements import Opaque, WeightRef, normal_domain
from rewright.model.order import node_has_bodies
from rewright.model.view import DerivedDim, View, set_facts

Array = np.ndarray[Any, Any]
Dim = int | str | None


def ensure(view: View, prepare: Callable[[Model], Model] | None = None) -> None:
    """Runs onnx's shape inference over the skeleton once, if the graph has changed shape-wise since the last time.

    ``prepare`` may rewrite the copy that is inferred, node by node: it puts ops that onnx knows in place of those it does not.
    """
    if not view.facts_stale:
        return
    view.facts_stale = False
    view.inference_runs += 1
    model = view.to_model()
    try:
        _refuse_what_aborts(view)
        inferred = onnx.shape_inference.infer_shapes((prepare(model) if prepare else model).proto, data_prop=True)
    except Exception as error:  # onnx raises several unrelated types; facts are optional
        view.facts_problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        inferred = model.proto  # the exporter's own value infos are better than nothing
    _assign(view, inferred)


def _refuse_what_aborts(view: View) -> None:
    """onnx's inference ends the whole process on a Split whose ``num_outputs`` is not the number of its outputs."""
    for graph in view.graphs():
        for node in graph.nodes:
            if node.op == "Split" and attribute(node, "num_outputs", len(node.outputs)) != len(node.outputs):
                raise ValueError(f"Split '{node.name}' has {len(node.outputs)} outputs, but num_outputs says otherwise")


def _derived_names(view: View) -> dict[str, str]:
    """The derived dimensions of the view by their text, which is all that inference passes on; none that a declaration uses."""
    derived: dict[str, str] = {}
    declared: set[str] = set()
    for graph in view.graphs():
        for tensor in (*graph.inputs, *(tensor for node in graph.nodes for tensor in node.outputs)):
            for dim in tensor.shape or ():
                if isinstance(dim, DerivedDim):
                    derived[dim] = dim
                elif isinstance(dim, str):
                    declared.add(dim)
    return {text: dim for text, dim in derived.items() if text not in declared}


def _assign(view: View, inferred: ModelProto) -> None:
    names = _derived_names(view)
    pending: list[tuple[Any, GraphProto]] = [(view.graph, inferred.graph)]
    while pending:
        graph, proto = pending.pop()
        types = {value.name: value.type for value in (*proto.value_info, *proto.output)}
        added = len(proto.node) - len(graph.nodes)  # Constant nodes that the export puts first
        for node, node_proto in zip(graph.nodes, proto.node[added:], strict=True):
            for tensor in node.outputs:
                found = types.get(tensor.name)
                if found is not None and found.HasField("tensor_type") and isinstance(tensor, gs.Variable):
                    set_facts(tensor, found.tensor_type, view.inference_runs, names)
            if node_has_bodies(node):
                pending.extend(zip(node.subgraphs(), bodies(node_proto), strict=True))


def producer(tensor: Any) -> Any | None:
    """The node that computes the value, or None for inputs, initializers and omitted values."""
    return tensor.inputs[0] if tensor.inputs else None


def dtype_of(tensor: Any) -> np.dtype[Any] | None:
    """The element type, or None if unknown."""
    found = tensor.dtype
    if found is None or isinstance(found, np.dtype):
        return found
    return np.dtype(found) if not isinstance(found, int) else onnx.helper.tensor_dtype_to_np_dtype(found)


def shape_of(tensor: Any) -> tuple[Dim, ...] | None:
    """The shape (int, symbol, or None for an unknown dimension), or None if the rank is unknown."""
    found = tensor.shape
    if found is None:
        return None
    return tuple(int(dim) if isinstance(dim, (int, np.integer)) else dim for dim in found)


def constant_of(tensor: Any) -> Array | None:
    """The value if it is known before run time: an initializer that no caller can override, or a Constant node's output."""
    if isinstance(tensor, gs.Constant):
        return tensor.values  # type: ignore[no-any-return]
    node = producer(tensor)
    if node is None or node.op != "Constant" or normal_domain(node.domain):
        return None
    return constant_node_value(node)


def is_constant(tensor: Any) -> bool:
    """Whether ``constant_of`` would give a value; does not read it."""
    if isinstance(tensor, gs.Constant):
        return True
    node = producer(tensor)
    return node is not None and node.op == "Constant" and not normal_domain(node.domain)


def constant_node_value(node: Any) -> Array | None:
    """The value of a Constant node in any of its spellings; None for sparse ones and attribute references."""
    for name, value in node.attrs.items():
        if isinstance(value, gs.Node.AttributeRef):
            return None
        if name == "value":
            return value.values if isinstance(value, gs.Constant) else np.asarray(value)
        if name in ("value_float", "value_floats"):
            return np.asarray(value, np.float32)
        if name in ("value_int", "value_ints"):
            return np.asarray(value, np.int64)
        if name in ("value_string", "value_strings"):
            return np.asarray(value, object)
    return None


def is_small_constant(tensor: Any, limit: int) -> bool:
    """Whether the value is constant and has at most ``limit`` elements; large weights are not read for the question."""
    if isinstance(tensor, gs.Constant):
        held = tensor._values
        shape = held.shape if isinstance(held, (WeightRef, np.ndarray)) else tensor.shape
        return math.prod(shape) <= limit
    value = constant_of(tensor)
    return value is not None and value.size <= limit


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """An attribute of the node, or ``default``, which must be the specification's. A reference stays a reference."""
    if getattr(node, "proto", None) is not None and not node.proto.attribute and "_attrs" not in node.__dict__:
        return default
    return node.attrs.get(name, default)


def infer_outputs(node: Any, opset: int) -> None:
    """Fills the facts of the outputs of one new standard node from those of its inputs, where onnx can tell."""
    proto = NodeProto(op_type=node.op, name=node.name)
    proto.input.extend(tensor.name for tensor in node.inputs)
    proto.output.extend(tensor.name for tensor in node.outputs)
    types: dict[str, TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for tensor in node.inputs:
        if not tensor.name:
            continue
        dtype = dtype_of(tensor)
        if dtype is None:
            return  # onnx infers nothing unless each input has a type
        types[tensor.name] = onnx.helper.make_tensor_type_proto(onnx.helper.np_dtype_to_tensor_dtype(dtype), shape_of(tensor))
        if is_small_constant(tensor, 64) and (value := constant_of(tensor)) is not None:
            data[tensor.name] = onnx.numpy_helper.from_array(np.ascontiguousarray(value), tensor.name)
    for name, held in node.attrs.items():
        if isinstance(held, (gs.Graph, gs.Node.AttributeRef, Opaque)):
            return  # without the attribute's value, inference would take the default's
        if isinstance(held, gs.Constant) and isinstance(held._values, WeightRef):
            held = held._values.tensor  # noqa: PLW2901
        elif isinstance(held, (gs.Constant, np.ndarray)):
            held = onnx.numpy_helper.from_array(getattr(held, "values", held))  # noqa: PLW2901
        proto.attribute.append(onnx.helper.make_attribute(name, held))
    try:
        schema = onnx.defs.get_schema(node.op, opset, "")
        found = onnx.shape_inference.infer_node_outputs(schema, proto, types, data)
    except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return  # an op without schema, or inputs that are unknown: the outputs stay unknown
    names = {dim: dim for tensor in node.inputs for dim in shape_of(tensor) or () if isinstance(dim, str)}
    for tensor in node.outputs:
        if tensor.name in found and found[tensor.name].HasField("tensor_type"):
            set_facts(tensor, found[tensor.name].tensor_type, names=names)
