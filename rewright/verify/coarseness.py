"""Outputs that are computed from numbers of fewer digits than they have themselves.

A float64 output that float32 numbers flow into is as exact as those. And ONNX Runtime's CPU provider has no float16 kernel for
most ops: it computes them in float32 between two casts, and leaves out the casts between two such ops that stand next to each
other. What an op rounds to therefore depends on its neighbours, and removing an Identity, or computing a constant beforehand,
moves an output by a rounding step of float16, without any fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import ml_dtypes
import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto

from rewright.model.carrier import Model, bodies

_TYPES: Final[dict[int, np.dtype]] = {
    TensorProto.DOUBLE: np.dtype(np.float64),
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
"""From fine to coarse."""

_RANKS: Final = {kind: rank for rank, kind in enumerate(_TYPES)}
_HALF: Final = _RANKS[TensorProto.FLOAT16]


def coarsest_types(model: Model) -> dict[str, np.dtype]:
    """The coarsest floating-point type of what an output is computed from, where that is coarser than its own. Linear."""
    proto = model.proto
    functions = {(function.domain, function.name): _rank_of_nodes(function.node) for function in proto.functions}
    ranks = _given(proto.graph)
    for node in proto.graph.node:
        rank = max((ranks.get(name, 0) for name in node.input), default=0)
        rank = max(rank, _rank_of(node), functions.get((node.domain, node.op_type), 0))
        rank = max(rank, *(_rank_of_body(body, ranks) for body in bodies(node)), 0)
        if rank:
            ranks.update(dict.fromkeys(filter(None, node.output), rank))
    types = list(_TYPES.values())
    own = {value.name: _RANKS.get(_declared(value), len(types)) for value in proto.graph.output}
    return {name: types[ranks.get(name, 0)] for name, rank in own.items() if ranks.get(name, 0) > rank or _is_half(ranks, name)}


def _is_half(ranks: Mapping[str, int], name: str) -> bool:
    """Half precision counts even where the output has it too: see the module's docstring."""
    return ranks.get(name, 0) >= _HALF


def _given(graph: GraphProto) -> dict[str, int]:
    found = {tensor.name: _RANKS.get(tensor.data_type, 0) for tensor in graph.initializer}
    return found | {value.name: _RANKS.get(_declared(value), 0) for value in graph.input}


def _declared(value: ValueInfoProto) -> int:
    return value.type.tensor_type.elem_type if value.type.HasField("tensor_type") else 0


def _rank_of(node: NodeProto) -> int:
    """Of the type that the node itself brings in: as a constant, or by its attribute ``to`` or ``dtype``."""
    kinds = [
        attribute.t.data_type if attribute.type == AttributeProto.TENSOR else attribute.i
        for attribute in node.attribute
        if attribute.type == AttributeProto.TENSOR or attribute.name in ("to", "dtype")
    ]
    return max((_RANKS.get(kind, 0) for kind in kinds), default=0)


def _rank_of_nodes(nodes: Iterable[NodeProto]) -> int:
    return max((max(_rank_of(node), *(_rank_of_body(body, {}) for body in bodies(node)), 0) for node in nodes), default=0)


def _rank_of_body(body: GraphProto, outer: Mapping[str, int]) -> int:
    """Of the coarsest type of anything in a body, or that it reads from outside."""
    read = max((outer.get(name, 0) for node in body.node for name in node.input), default=0)
    return max(read, max(_given(body).values(), default=0), _rank_of_nodes(body.node))
