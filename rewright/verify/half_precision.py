"""Outputs that half-precision numbers flow into, whatever type the outputs have themselves.

ONNX Runtime's CPU provider has no float16 kernel for most ops: it computes them in float32 between two casts, and leaves out
the casts between two such ops that stand next to each other. What an op rounds to therefore depends on its neighbours, and
removing an Identity, or computing a constant beforehand, moves an output by a rounding step of float16, without any fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import ml_dtypes
import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto

from rewright.model.carrier import Model, bodies

_HALVES: Final[dict[int, np.dtype]] = {
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
_COARSEST: Final = max(_HALVES)
"""bfloat16, whose number is the larger one, has fewer digits."""


def half_outputs(model: Model) -> dict[str, np.dtype]:
    """The coarsest half-precision type of what an output is computed from, for the outputs that have one. Linear."""
    proto = model.proto
    functions = {(function.domain, function.name): _kinds_in(function.node) for function in proto.functions}
    kinds = _given(proto.graph)
    for node in proto.graph.node:
        kind = max((kinds.get(name, 0) for name in node.input), default=0)
        kind = max(kind, _kind_of(node), functions.get((node.domain, node.op_type), 0))
        if kind < _COARSEST:
            kind = max(kind, *(_kind_of_body(body, kinds) for body in bodies(node)), 0)
        if kind:
            kinds.update(dict.fromkeys(filter(None, node.output), kind))
    return {value.name: _HALVES[kinds[value.name]] for value in proto.graph.output if kinds.get(value.name)}


def _given(graph: GraphProto) -> dict[str, int]:
    found = {tensor.name: tensor.data_type for tensor in graph.initializer if tensor.data_type in _HALVES}
    return found | {value.name: kind for value in graph.input if (kind := _declared(value)) in _HALVES}


def _declared(value: ValueInfoProto) -> int:
    return value.type.tensor_type.elem_type if value.type.HasField("tensor_type") else 0


def _kind_of(node: NodeProto) -> int:
    """The half-precision type that the node itself brings in: as a constant, or by its attribute ``to`` or ``dtype``."""
    kinds = [
        attribute.t.data_type if attribute.type == AttributeProto.TENSOR else attribute.i
        for attribute in node.attribute
        if attribute.type == AttributeProto.TENSOR or attribute.name in ("to", "dtype")
    ]
    return max((kind for kind in kinds if kind in _HALVES), default=0)


def _kinds_in(nodes: Iterable[NodeProto]) -> int:
    return max(
        (max(_kind_of(node), *(_kind_of_body(body, {}) for body in bodies(node)), 0) for node in nodes),
        default=0,
    )


def _kind_of_body(body: GraphProto, outer: Mapping[str, int]) -> int:
    """The coarsest type of anything in a body, or that it reads from outside."""
    read = max((outer.get(name, 0) for node in body.node for name in node.input), default=0)
    return max(read, max(_given(body).values(), default=0), _kinds_in(body.node))
