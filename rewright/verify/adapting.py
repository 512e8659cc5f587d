"""A model whose inputs and outputs have become narrower, with the types that they had: so it takes the original's inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from rewright.model.carrier import Model
from rewright.model.edit import Editor
from rewright.model.elements import drop, make_node, make_variable
from rewright.model.facts import producer
from rewright.model.names import Names
from rewright.model.view import View


def typed_like(model: Model, reference: Model) -> Model:
    """``model`` with a cast at each input and output of another floating-point type; itself if there is none."""
    wanted = _types(reference)
    if not any(_differs(wanted.get(name, 0), kind) for name, kind in _types(model).items()):
        return model
    view = View(model)
    names, editor, graph = Names(view), Editor(view), view.graph
    for tensor in graph.inputs:
        kind = wanted.get(tensor.name, 0)
        if tensor.dtype is not None and _differs(kind, _kind(tensor.dtype)):
            inner = _alike(tensor, names)
            editor.redirect(tensor, inner, graph.nodes[0])
            _cast(graph, names, tensor, inner, _kind(inner.dtype), at=0)
            tensor.dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    for tensor in graph.outputs:
        kind, maker = wanted.get(tensor.name, 0), producer(tensor)
        if maker is None or tensor.dtype is None or not _differs(kind, _kind(tensor.dtype)):
            continue
        inner = _alike(tensor, names)
        for user in list(tensor.outputs):
            _replace(user.inputs, tensor, inner)
            list.append(inner.outputs, user)
        list.clear(tensor.outputs)
        _replace(maker.outputs, tensor, inner)
        drop(tensor.inputs, maker)
        list.append(inner.inputs, maker)
        _cast(graph, names, inner, tensor, kind, at=len(graph.nodes))
        tensor.dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    editor.finish()
    return view.to_model()


def _types(model: Model) -> dict[str, int]:
    graph = model.proto.graph
    return {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}


def _differs(one: int, other: int) -> bool:
    """Whether both are floating-point types, and not the same."""
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
    return one != other and one in floats and other in floats


def _kind(dtype: Any) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _alike(tensor: Any, names: Names) -> Any:
    made = make_variable(names.fresh(f"{tensor.name}/own"))
    made.dtype, made.shape = tensor.dtype, tensor.shape
    return made


def _cast(graph: Any, names: Names, source: Any, result: Any, kind: int, *, at: int) -> None:
    node = make_node("Cast", names.fresh(f"{source.name}/as_declared"), "", [source], [result])
    node.attrs = {"to": kind}
    graph.nodes.insert(at, node)


def _replace(items: Any, old: Any, new: Any) -> None:
    for index, item in enumerate(items):
        if item is old:
            list.__setitem__(items, index, new)
