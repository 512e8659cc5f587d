"""The number of heads and the hidden size that fusion classes ask for, found from the shapes around the softmaxes of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from onnx import ModelProto, NodeProto

from rewright.passes.ort.fusion_model import KnownShapes

_BETWEEN: Final = frozenset({"Add", "Cast", "Div", "Mul", "Where", "Softcap"})
_MOST_BETWEEN: Final = 6


def head_sizes(proto: ModelProto) -> tuple[int, int]:
    """Heads and hidden size, where all softmaxes over ``(batch, heads, queries, keys)`` agree on both; (0, 0) otherwise."""
    shapes = KnownShapes(proto)
    makers = {name: node for node in proto.graph.node for name in node.output if name}
    found = set(_of_softmaxes(proto, shapes, makers))
    return found.pop() if len(found) == 1 else (0, 0)


def _of_softmaxes(proto: ModelProto, shapes: KnownShapes, makers: Mapping[str, NodeProto]) -> Iterator[tuple[int, int]]:
    for node in proto.graph.node:
        if node.op_type != "Softmax":
            continue
        shape = shapes.get_edge_shape(node.output[0]) or shapes.get_edge_shape(node.input[0]) or []
        product = _product(makers.get(node.input[0]), makers)
        query = shapes.get_edge_shape(product.input[0]) if product is not None else None
        if len(shape) == 4 and query and isinstance(shape[1], int) and isinstance(query[-1], int):
            yield shape[1], shape[1] * query[-1]


def _product(node: NodeProto | None, makers: Mapping[str, NodeProto]) -> NodeProto | None:
    """The product of queries and keys from which the scores at ``node`` come."""
    frontier = [node]
    for _ in range(_MOST_BETWEEN):
        found = next((item for item in frontier if item is not None and item.op_type == "MatMul"), None)
        if found is not None:
            return found
        frontier = [makers.get(name) for item in frontier if item is not None and item.op_type in _BETWEEN for name in item.input]
    return None
