"""Builds the body of an op contract: a function of standard ONNX ops, for one node and one opset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import FunctionProto, NodeProto, TensorProto, helper

_AXES_INPUT_SINCE = 18
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


class BodyBuilder:
    """Collects the nodes of a body. Calling it makes a node and returns the name of its output.

    A body's inputs and outputs are those that the node gives: an optional one that the node omits is not among them, so that
    a call site passes its non-empty names and nothing else.

    Args:
        node: the node that the body stands for.
        inputs, outputs: the contract's names in order, optional ones end in "?".
        opset: version of the standard domain.
        elem_type: ``TensorProto.DataType`` of the first input.
    """

    def __init__(self, node: NodeProto, inputs: Iterable[str], outputs: Iterable[str], opset: int, elem_type: int) -> None:
        self._node = node
        self.inputs = _given(inputs, node.input)
        self.outputs = _given(outputs, node.output)
        self.opset = opset
        self.elem_type = elem_type
        self._nodes: list[NodeProto] = []

    @property
    def work_type(self) -> int:
        """The type that ONNX Runtime's kernels compute in: float for the half types, else the element type itself."""
        return TensorProto.FLOAT if self.elem_type in _HALVES else self.elem_type

    def __call__(self, op: str, *inputs: str, **attributes: Any) -> str:
        output = f"{op.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def attribute(self, name: str, default: Any) -> Any:
        """The node's attribute, or ``default``, which must be the schema's."""
        found = next((item for item in self._node.attribute if item.name == name), None)
        return default if found is None else helper.get_attribute_value(found)

    def constant(self, value: float, elem_type: int | None = None) -> str:
        """A scalar, by default of the type that the body computes in."""
        kind = self.work_type if elem_type is None else elem_type
        array = np.asarray(value, helper.tensor_dtype_to_np_dtype(kind))
        return self("Constant", value=onnx.numpy_helper.from_array(array))

    def cast(self, name: str, elem_type: int) -> str:
        """``name`` as ``elem_type``; only for values whose type is ``elem_type`` or the other of element and working type."""
        return name if self.elem_type == self.work_type else self("Cast", name, to=elem_type)

    def widened(self, name: str) -> str:
        """An input in the type that the body computes in."""
        return self.cast(name, self.work_type)

    def narrowed(self, name: str) -> str:
        """A result in the element type."""
        return self.cast(name, self.elem_type)

    def quantized(self, name: str) -> tuple[str, str, str]:
        """A float value as uint8 with the scale and the zero point that DynamicQuantizeLinear, since opset 11, gives it."""
        outputs = tuple(f"quantized_{len(self._nodes)}_{part}" for part in range(3))
        self._nodes.append(helper.make_node("DynamicQuantizeLinear", [name], list(outputs)))
        return outputs[0], outputs[1], outputs[2]

    def mean_over_last_axis(self, name: str) -> str:
        """ReduceMean with keepdims; its axes are an input from opset 18 on."""
        if self.opset >= _AXES_INPUT_SINCE:
            axes = self("Constant", value=onnx.numpy_helper.from_array(np.asarray([-1], np.int64)))
            return self("ReduceMean", name, axes, keepdims=1)
        return self("ReduceMean", name, axes=[-1], keepdims=1)

    def function(self, results: Mapping[str, str]) -> FunctionProto:
        """The body. ``results`` gives a value for each output by its contract name; those that the node omits are ignored."""
        for output in self.outputs:
            self._nodes.append(helper.make_node("Identity", [results[output]], [output]))
        needed = _needed(self._nodes, self.outputs)
        return helper.make_function(
            self._node.domain, self._node.op_type, self.inputs, self.outputs, needed, [helper.make_opsetid("", self.opset)]
        )


def _given(formal: Iterable[str], actual: Iterable[str]) -> list[str]:
    return [name.rstrip("?") for name, value in zip(formal, actual, strict=False) if value]


def _needed(nodes: list[NodeProto], outputs: Iterable[str]) -> list[NodeProto]:
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]
