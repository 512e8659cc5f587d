"""Models of bfloat16 where ONNX Runtime has no kernels for it: each op in float32 between two casts, so that its result rounds.

ONNX Runtime's CPU provider puts such casts around ops of float16 by itself, and not around those of bfloat16.
"""

from __future__ import annotations

from typing import Any, Final

import ml_dtypes
import numpy as np
from onnx import ModelProto, TensorProto

from rewright.model.carrier import Model, all_graphs
from rewright.model.elements import drop, make_node, make_variable, normal_domain
from rewright.model.facts import dtype_of, is_constant
from rewright.model.names import Names
from rewright.model.order import node_has_bodies
from rewright.model.view import View
from rewright.shapes.walk import shapes_of

_NARROW: Final = np.dtype(ml_dtypes.bfloat16)
_WIDE: Final = np.dtype(np.float32)
_RUN: Final = {"Cast", "Identity", "Shape", "Size", "Constant", "CastLike"}
"""Ops that ONNX Runtime's CPU provider runs on bfloat16 as it is."""


def widened(model: Model) -> Model:
    """The model with casts around every standard op that reads or gives bfloat16; ``model`` itself if there is no bfloat16."""
    if not _has_bfloat16(model.proto):
        return model
    view = View(model)
    shapes = shapes_of(view)
    shapes.refresh()
    names = Names(view)
    for graph in [view.graph, *(inner for inner in view.graphs() if inner is not view.graph and inner not in view.functions)]:
        nodes: list[Any] = []
        for node in graph.nodes:
            if normal_domain(node.domain) or node.op in _RUN or node_has_bodies(node):
                nodes.append(node)
            else:
                before = [cast for index in range(len(node.inputs)) for cast in _reading(node, index, names)]
                after = [cast for index in range(len(node.outputs)) for cast in _giving(node, index, names)]
                nodes += [*before, node, *after]
        graph.nodes = nodes
    return view.to_model()


def _has_bfloat16(proto: ModelProto) -> bool:
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
    return TensorProto.BFLOAT16 in kinds


def _reading(node: Any, index: int, names: Names) -> list[Any]:
    tensor = node.inputs[index]
    if not tensor.name or (not is_constant(tensor) and dtype_of(tensor) is None) or dtype_of(tensor) != _NARROW:
        return []
    wide = make_variable(names.fresh(f"{tensor.name}/wide"))
    wide.dtype, wide.shape = _WIDE, tensor.shape
    cast = make_node("Cast", names.fresh(f"{tensor.name}/widen"), "", [tensor], [wide])
    cast.attrs = {"to": int(TensorProto.FLOAT)}
    list.__setitem__(node.inputs, index, wide)
    drop(tensor.outputs, node)
    list.append(wide.outputs, node)
    return [cast]


def _giving(node: Any, index: int, names: Names) -> list[Any]:
    tensor = node.outputs[index]
    if not tensor.name or dtype_of(tensor) != _NARROW:
        return []
    wide = make_variable(names.fresh(f"{tensor.name}/wide"))
    wide.dtype, wide.shape = _WIDE, tensor.shape
    list.__setitem__(node.outputs, index, wide)
    drop(tensor.inputs, node)
    list.append(wide.inputs, node)
    cast = make_node("Cast", names.fresh(f"{tensor.name}/narrow"), "", [wide], [tensor])
    cast.attrs = {"to": int(TensorProto.BFLOAT16)}
    return [cast]
