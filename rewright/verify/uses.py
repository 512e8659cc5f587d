"""Who reads a value: an index over the graph, its bodies and its functions, for tracing graph inputs forwards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from rewright.model.carrier import Model, bodies

Value = tuple[str, str]
"""A value: the function that it belongs to ("" for the main graph and its bodies), and its name."""

_SMALL: Final = 4096
"""Elements up to which a constant's values are read; offsets and shape operands are far smaller."""


@dataclass(frozen=True, slots=True)
class Use:
    """One node that reads a value, and at which position."""

    scope: str
    node: NodeProto
    index: int


class Uses:
    """The readers, producers and known dimensions of every value of a model; built once, in one pass over the nodes.

    A value captured by an If, Loop or Scan body is found there by its name, since bodies share their parent's names.
    What enters or leaves a body or a function under another name is linked by `Uses.aliases`.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._readers: dict[Value, list[Use]] = {}
        self._producers: dict[Value, NodeProto] = {}
        self._aliases: dict[Value, list[Value]] = {}
        self._tensors: dict[Value, TensorProto] = {}
        self._dims: dict[Value, tuple[int | None, ...]] = {}
        self._functions = {(function.domain, function.name): function for function in model.proto.functions}
        self._index_graph(model.proto.graph)
        for function in model.proto.functions:
            for value in function.value_info:
                self._note_dims(_scope(function), value)
            for node in function.node:
                self._index_node(_scope(function), node)

    def readers(self, value: Value) -> list[Use]:
        """The nodes that read a value, bodies included."""
        return self._readers.get(value, [])

    def aliases(self, value: Value) -> list[Value]:
        """The names under which a value is known inside, or outside, of a body or a function."""
        return self._aliases.get(value, [])

    def dims(self, value: Value) -> tuple[int | None, ...] | None:
        """The dimensions of a value as far as they are known; weights are seen through casts and dequantization."""
        for _ in range(8):  # longer chains of casts over a weight do not occur
            if value in self._tensors:
                return tuple(self._tensors[value].dims)
            node = self._producers.get(value)
            if node is None or node.op_type not in _KEEPS_SHAPE:
                break
            value = (value[0], node.input[0])
        return self._dims.get(value)

    def constant(self, value: Value) -> np.ndarray | None:
        """The values of a small constant; None when it is not constant, or large."""
        tensor = self._tensors.get(value)
        if tensor is None or np.prod(tensor.dims, dtype=np.int64) > _SMALL:
            return None
        if tensor.data_location == TensorProto.EXTERNAL:
            return self.model.tensor(tensor)
        return numpy_helper.to_array(tensor)

    def weights(self) -> Iterator[tuple[Value, tuple[int, ...]]]:
        """Every constant, with its dimensions."""
        return ((value, tuple(tensor.dims)) for value, tensor in self._tensors.items())

    def is_constant(self, value: Value) -> bool:
        """Whether it is a constant of any size."""
        return value in self._tensors

    def _index_graph(self, main: GraphProto) -> None:
        pending = [main]
        while pending:
            graph = pending.pop()
            for tensor in graph.initializer:
                self._tensors["", tensor.name] = tensor
            for value in (*graph.input, *graph.value_info, *graph.output):
                self._note_dims("", value)
            for node in graph.node:
                self._index_node("", node)
                pending.extend(bodies(node))

    def _index_node(self, scope: str, node: NodeProto) -> None:
        for index, name in enumerate(node.input):
            if name:
                self._readers.setdefault((scope, name), []).append(Use(scope, node, index))
        for name in node.output:
            if name:
                self._producers[scope, name] = node
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    self._tensors[scope, node.output[0]] = attribute.t
                elif attribute.name in _CONSTANT_FORMS:
                    self._tensors[scope, node.output[0]] = _constant_tensor(attribute)
        for inner, outer in self._links(scope, node):
            source, target = (outer, inner) if outer[1] in node.input else (inner, outer)
            self._aliases.setdefault(source, []).append(target)

    def _links(self, scope: str, node: NodeProto) -> Iterator[tuple[Value, Value]]:
        """Pairs of (value inside, value outside) for the node's bodies and for the function that it calls."""
        function = self._functions.get((node.domain, node.op_type))
        if function is not None:
            inside = _scope(function)
            yield from (((inside, i), (scope, o)) for i, o in zip(function.input, node.input, strict=False))
            yield from (((inside, i), (scope, o)) for i, o in zip(function.output, node.output, strict=False))
        for body in bodies(node):
            # A Loop's body has one output more, its condition, and as many inputs as the Loop has.
            outputs = body.output[1:] if node.op_type == "Loop" else body.output
            skipped = 2 if node.op_type == "Loop" else 0
            for inner, name in list(zip(body.input, node.input, strict=False))[skipped:]:
                yield (scope, inner.name), (scope, name)
            for inner, name in zip(outputs, node.output, strict=False):
                yield (scope, inner.name), (scope, name)

    def _note_dims(self, scope: str, value: ValueInfoProto) -> None:
        if value.type.tensor_type.HasField("shape"):
            self._dims[scope, value.name] = tuple(
                dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
            )


_KEEPS_SHAPE: Final = {"Identity", "Cast", "CastLike", "DequantizeLinear", "QuantizeLinear"}
_CONSTANT_FORMS: Final = {"value_int": np.int64, "value_float": np.float32, "value_ints": np.int64}


def attribute_of(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute, or its default."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def _scope(function: FunctionProto) -> str:
    return f"{function.domain}::{function.name}"


def _constant_tensor(attribute: AttributeProto) -> TensorProto:
    value = {"value_int": attribute.i, "value_float": attribute.f, "value_ints": list(attribute.ints)}[attribute.name]
    return numpy_helper.from_array(np.asarray(value, dtype=_CONSTANT_FORMS[attribute.name]))
