"""Models of half precision where ONNX Runtime has no kernels for it: each op in float32 between casts, so that its result rounds.

ONNX Runtime's CPU provider puts such casts around ops of float16 by itself, and not around those of bfloat16. Between two ops of
float16 it leaves them out again, so that nothing is rounded which a GPU would round; casts that the model itself has stay.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any, Final

import ml_dtypes
import numpy as np
from onnx import ModelProto, TensorProto, helper

from rewright.model.carrier import Model, all_graphs
from rewright.model.elements import drop, make_node, make_variable, normal_domain
from rewright.model.facts import dtype_of
from rewright.model.names import Names
from rewright.model.order import node_has_bodies
from rewright.model.view import View
from rewright.ops.contract import CONTRACTS
from rewright.ops.targets import unsupported
from rewright.shapes.walk import shapes_of

_BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16)
_FLOAT16: Final = np.dtype(np.float16)
_WIDE: Final = np.dtype(np.float32)
_RUN: Final = {"Cast", "Identity", "Shape", "Size", "Constant", "CastLike"}
"""Ops that ONNX Runtime's CPU provider runs on bfloat16 as it is."""


def widened(model: Model) -> Model:
    """The model with casts around every standard op that reads or gives bfloat16; ``model`` itself if there is no bfloat16."""
    return _widened(model, {_BFLOAT16})


def rounded(model: Model) -> Model:
    """The model as it is computed where each op rounds its result: casts around every op that reads or gives half precision.

    Ops with a contract are among them if the CPU has a kernel for float32. ``model`` itself if it has no half precision.
    """
    return _widened(model, {_BFLOAT16, _FLOAT16})


def _widened(model: Model, narrow: Set[np.dtype[Any]]) -> Model:
    if not _has(model.proto, {int(helper.np_dtype_to_tensor_dtype(dtype)) for dtype in narrow}):
        return model
    view = View(model)
    shapes = shapes_of(view)
    shapes.refresh()
    names = Names(view)
    for graph in [view.graph, *(inner for inner in view.graphs() if inner is not view.graph and inner not in view.functions)]:
        nodes: list[Any] = []
        for node in graph.nodes:
            if not _is_computed(node, narrow):
                nodes.append(node)
            else:
                before = [cast for index in range(len(node.inputs)) for cast in _reading(node, index, names, narrow)]
                after = [cast for index in range(len(node.outputs)) for cast in _giving(node, index, names, narrow)]
                nodes += [*before, node, *after]
        graph.nodes = nodes
    return view.to_model()


def _is_computed(node: Any, narrow: Set[np.dtype[Any]]) -> bool:
    domain = normal_domain(node.domain)
    if node_has_bodies(node):
        return False
    if not domain:
        return node.op not in _RUN
    is_known = f"{domain}::{node.op}" in CONTRACTS and unsupported(domain, node.op, _WIDE, "cpu") is None
    return is_known and _FLOAT16 in narrow  # those of bfloat16 are replaced by their meaning


def _has(proto: ModelProto, wanted: Set[int]) -> bool:
    kinds = {tensor.data_type for graph in all_graphs(proto) for tensor in graph.initializer}
    kinds |= {value.type.tensor_type.elem_type for graph in all_graphs(proto) for value in (*graph.input, *graph.value_info)}
    kinds |= {
        attribute.i
        for graph in all_graphs(proto)
        for node in graph.node
        if node.op_type == "Cast"
        for attribute in node.attribute
        if attribute.name == "to"
    }
    return not wanted.isdisjoint(kinds)


def _reading(node: Any, index: int, names: Names, narrow: Set[np.dtype[Any]]) -> list[Any]:
    tensor = node.inputs[index]
    if not tensor.name or dtype_of(tensor) not in narrow:
        return []
    wide = make_variable(names.fresh(f"{tensor.name}/wide"))
    wide.dtype, wide.shape = _WIDE, tensor.shape
    cast = make_node("Cast", names.fresh(f"{tensor.name}/widen"), "", [tensor], [wide])
    cast.attrs = {"to": int(TensorProto.FLOAT)}
    list.__setitem__(node.inputs, index, wide)
    drop(tensor.outputs, node)
    list.append(wide.outputs, node)
    return [cast]


def _giving(node: Any, index: int, names: Names, narrow: Set[np.dtype[Any]]) -> list[Any]:
    tensor = node.outputs[index]
    dtype = dtype_of(tensor)
    if not tensor.name or dtype is None or dtype not in narrow:
        return []
    wide = make_variable(names.fresh(f"{tensor.name}/wide"))
    wide.dtype, wide.shape = _WIDE, tensor.shape
    list.__setitem__(node.outputs, index, wide)
    drop(tensor.inputs, node)
    list.append(wide.inputs, node)
    cast = make_node("Cast", names.fresh(f"{tensor.name}/narrow"), "", [wide], [tensor])
    cast.attrs = {"to": int(helper.np_dtype_to_tensor_dtype(dtype))}
    return [cast]
