"""What a graph computes in float64: the reference that tells which of two float32 graphs is nearer to the truth."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from rewright.model.carrier import Model, all_graphs, stubs
from rewright.ops.lowering import lower

_NARROW: Final = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
_SAMPLES: Final = 2
_BFLOAT16_UNIT: Final = 2.0**-7
_LARGEST_WEIGHTS: Final = 2**26
"""Bytes of weights that are widened at most, for one graph."""


class DoubleEvaluator:
    """Runs a small model in float64, with onnx's reference implementation of the ops.

    Ops outside the standard are replaced by the bodies of their contracts. ``problem`` says why it cannot be done, if so.
    """

    def __init__(self, model: Model) -> None:
        self.problem = ""
        self._evaluator: ReferenceEvaluator | None = None
        weights = sum(int(np.prod(tensor.dims)) * 8 for tensor in stubs(model.proto))
        if weights > _LARGEST_WEIGHTS:
            self.problem = "its weights are too large"
            return
        try:
            self._evaluator = ReferenceEvaluator(_widened(lower(model, every=True)))
        except Exception as error:  # whatever onnx's evaluator raises for an op that it lacks
            self.problem = str(error).partition("\n")[0] or type(error).__name__

    def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray] | None:
        """The outputs in float64, in order; None where the evaluator fails on these values."""
        if self._evaluator is None:
            return None
        wide = {name: _wide(array) for name, array in feeds.items()}
        try:
            with np.errstate(all="ignore"):
                found = self._evaluator.run(None, wide)
        except Exception as error:  # as above
            self.problem = str(error).partition("\n")[0] or type(error).__name__
            return None
        return [np.asarray(array) for array in found]

    def shaken(self, feeds: dict[str, np.ndarray]) -> list[list[np.ndarray]]:
        """The outputs where every floating-point input is off by up to its last place: some samples."""
        samples = []
        for sample in range(_SAMPLES):
            moved = {}
            for position, (name, array) in enumerate(feeds.items()):
                moved[name] = _wide(array)
                if _wide(array) is not array or array.dtype == np.float64:
                    unit = _BFLOAT16_UNIT if array.dtype.name == "bfloat16" else float(np.finfo(array.dtype).eps)
                    signs = np.random.default_rng([sample, position]).choice([-1.0, 1.0], array.shape)
                    moved[name] = moved[name] * (1.0 + unit * signs)
            outputs = self.run(moved)
            if outputs is not None:
                samples.append(outputs)
        return samples


def _wide(array: np.ndarray) -> np.ndarray:
    is_narrow = array.dtype in (np.float32, np.float16) or array.dtype.name == "bfloat16"
    return array.astype(np.float64) if is_narrow else array


def _widened(model: Model) -> ModelProto:
    """The model with float64 in place of every narrower float, weights included."""
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    for graph in all_graphs(proto):
        _widen_graph(graph, model)
    for function in proto.functions:
        for node in function.node:
            _widen_node(node, model)
        for value in function.value_info:
            _widen_type(value)
    return proto


def _widen_graph(graph: GraphProto, model: Model) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor, model)
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        _widen_type(value)
    for node in graph.node:
        _widen_node(node, model)


def _widen_node(node: NodeProto, model: Model) -> None:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR:
            _widen_tensor(attribute.t, model)
        elif attribute.name in ("to", "dtype") and attribute.i in _NARROW:
            attribute.i = TensorProto.DOUBLE
    if node.op_type == "Constant" and not node.domain:
        for attribute in node.attribute:
            if attribute.name in ("value_float", "value_floats"):
                floats = attribute.f if attribute.name == "value_float" else list(attribute.floats)
                tensor = onnx.numpy_helper.from_array(np.asarray(floats, np.float32).astype(np.float64))
                attribute.CopyFrom(helper.make_attribute("value", tensor))


def _widen_tensor(tensor: TensorProto, model: Model) -> None:
    if tensor.data_type in _NARROW:
        array: Any = model.tensor(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(array).astype(np.float64), tensor.name))
    elif tensor.data_location == TensorProto.EXTERNAL:
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(model.tensor(tensor)), tensor.name))


def _widen_type(value: onnx.ValueInfoProto) -> None:
    if value.type.tensor_type.elem_type in _NARROW:
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
