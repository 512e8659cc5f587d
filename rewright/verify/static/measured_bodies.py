"""The smallest and the largest element of values in bodies, as further outputs of the nodes that hold the bodies.

A branch that is not taken gives plus and minus infinity for what it would have computed; a round of Loop or Scan gives one number
for each value, which are reduced behind the node.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Final

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from rewright.model.elements import normal_domain

_REDUCED: Final = (TensorProto.FLOAT, TensorProto.DOUBLE)
_PREFIX: Final = "rewright.inner"


@dataclass(frozen=True)
class Extremes:
    """A value of a body, and the names of the scalars, of float32, that hold its ends where the list of them stands."""

    value: str
    low: str
    high: str


def exposing_bodies(proto: ModelProto, types: Mapping[str, int]) -> tuple[ModelProto, list[Extremes]]:
    """The model with the ends of the named values of its bodies as its only outputs; nothing is exposed that no body makes.

    Args:
        proto: any model.
        types: element types by name, of floating-point tensors.
    """
    made = ModelProto()
    made.CopyFrom(proto)
    found = _Exposure(types).nested(made.graph)
    del made.graph.output[:]
    for one in found:
        made.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in (one.low, one.high))
    return made, found


class _Exposure:
    def __init__(self, types: Mapping[str, int]) -> None:
        self._types = types
        self._numbers = count()

    def nested(self, graph: GraphProto) -> list[Extremes]:
        """Exposes what the bodies of the graph's nodes make, as scalars in the graph itself."""
        found: list[Extremes] = []
        nodes: list[NodeProto] = []
        for node in graph.node:
            nodes.append(node)
            bodies = [attribute.g for attribute in node.attribute if attribute.type == AttributeProto.GRAPH]
            if not bodies or normal_domain(node.domain):
                continue
            if node.op_type == "If":
                found += self._of_branches(node, bodies)
            elif node.op_type in ("Loop", "Scan"):
                made, behind = self._of_rounds(node, bodies[0])
                found += made
                nodes += behind
        kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)
        return found

    def _within(self, body: GraphProto) -> list[Extremes]:
        """All that is known of a body, as scalars in it."""
        found = self.nested(body)
        names = [*(value.name for value in body.input), *(name for node in body.node for name in node.output)]
        for name in dict.fromkeys(names):
            kind = self._types.get(name)
            if kind is not None:
                found.append(self._reduced(body, name, kind))
        return found

    def _reduced(self, body: GraphProto, name: str, kind: int) -> Extremes:
        made, source = self._fresh(name), name
        if kind not in _REDUCED:
            source = f"{made.low}.wide"
            body.node.append(helper.make_node("Cast", [name], [source], to=TensorProto.FLOAT))
        for op, output in (("ReduceMin", made.low), ("ReduceMax", made.high)):
            inner = output if kind != TensorProto.DOUBLE else f"{output}.double"
            body.node.append(helper.make_node(op, [source], [inner], keepdims=0))
            if inner != output:
                body.node.append(helper.make_node("Cast", [inner], [output], to=TensorProto.FLOAT))
        return made

    def _fresh(self, value: str) -> Extremes:
        number = next(self._numbers)
        return Extremes(value, f"{_PREFIX}.{number}.low", f"{_PREFIX}.{number}.high")

    def _of_branches(self, node: NodeProto, branches: list[GraphProto]) -> list[Extremes]:
        inside = [self._within(branch) for branch in branches]
        found = []
        for taken, extremes in enumerate(inside):
            for one in extremes:
                outer = self._fresh(one.value)
                for place, branch in enumerate(branches):
                    given = (one.low, one.high)
                    if place != taken:
                        other = self._fresh(one.value)
                        given = (other.low, other.high)
                        branch.node.extend(_constant(name, end) for name, end in zip(given, (math.inf, -math.inf), strict=True))
                    branch.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in given)
                node.output.extend((outer.low, outer.high))
                found.append(outer)
        return found

    def _of_rounds(self, node: NodeProto, body: GraphProto) -> tuple[list[Extremes], list[NodeProto]]:
        found, behind = [], list[NodeProto]()
        for one in self._within(body):
            outer = self._fresh(one.value)
            for inner, name, op, end in (
                (one.low, outer.low, "ReduceMin", math.inf),
                (one.high, outer.high, "ReduceMax", -math.inf),
            ):
                body.output.append(helper.make_tensor_value_info(inner, TensorProto.FLOAT, []))
                node.output.append(f"{name}.rounds")
                behind += [
                    _constant(f"{name}.none", end, [1]),  # or there would be nothing to reduce where no round is run
                    helper.make_node("Concat", [f"{name}.none", f"{name}.rounds"], [f"{name}.all"], axis=0),
                    helper.make_node(op, [f"{name}.all"], [name], keepdims=0),
                ]
            found.append(outer)
        if node.op_type == "Scan":
            _lengthen(node, 2 * len(found))
        return found, behind


def _lengthen(node: NodeProto, by: int) -> None:
    """Scan may say something for each of its outputs."""
    for attribute in node.attribute:
        if attribute.name in ("scan_output_axes", "scan_output_directions"):
            attribute.ints.extend([0] * by)


def _constant(name: str, value: float, dims: list[int] | None = None) -> NodeProto:
    tensor = helper.make_tensor(f"{name}.value", TensorProto.FLOAT, dims or [], [value])
    return helper.make_node("Constant", [], [name], value=tensor)
