"""The walk over a model that evaluates its shape arithmetic: what constant folding and shape simplification share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import onnx_graphsurgeon as gs

from rewright.model.edit import domain_of
from rewright.model.facts import shape_of
from rewright.model.order import node_has_bodies
from rewright.passes.cleanup.bypass import become_constants
from rewright.passes.cleanup.reinference import Reinference, is_vague
from rewright.passes.cleanup.shape_values import ShapeValues
from rewright.passes.cleanup.symbolic_shapes import symbolic_dims
from rewright.passes.session import PassSession

_BROADCASTS_LIKE_NUMPY: Final = 7
_SLICE_HAS_INPUTS: Final = 10


class ShapeSweep:
    """One walk in topological order. What it learns about a value's shape reaches the nodes behind it at once.

    ``learned`` are values that have become constants since the model was inferred.
    """

    def __init__(self, session: PassSession, learned: Iterable[Any] = ()) -> None:
        self.session = session
        self.opset = session.view.opset_of(session.view.graph)
        self.values = ShapeValues(self.opset)
        self.facts = Reinference(self.opset)
        for tensor in learned:
            self.facts.note(tensor)
        self._numbers: dict[int, tuple[Any, np.ndarray[Any, Any]]] = {}

    def graph(self, graph: Any) -> None:
        """Walks a graph and its bodies."""
        for tensor in graph.inputs:
            if None in (shape_of(tensor) or ()):
                self.values.dims_of(tensor)
                self.facts.note(tensor)
        for node in list(graph.nodes):
            if not getattr(node, "alive", True):
                continue
            if node_has_bodies(node):
                for body in node.subgraphs():
                    self.graph(body)
            elif not domain_of(node) and node.outputs:
                self._node(graph, node)

    def rewrite(self, graph: Any, node: Any) -> Any | None:
        """Called for each node when all before it are known; returns the node that stands there afterwards, if any."""
        return node

    def fold_numbers(self) -> list[Any]:
        """Makes initializers of the small integer and boolean values that are wholly known and that something else reads.

        Returns:
            the values; a next walk can start from them.
        """
        editor, folded = self.session.editor, []
        for node, array in self._numbers.values():
            alive = getattr(node, "alive", True)
            if alive and any(id(user) not in self._numbers for user in editor.consumers(node.outputs[0])):
                become_constants(self.session, node, {id(node.outputs[0]): array})
                folded.append(node.outputs[0])
        return folded

    def _node(self, graph: Any, node: Any) -> None:
        self.facts.visit(node)
        self._improve(node)
        left = self.rewrite(graph, node)
        if left is None:
            return
        found = self.values.visit(left)
        array = found.array() if found is not None else None
        if array is not None and not self.session.editor.is_graph_output(left.outputs[0]):
            self._numbers[id(left)] = (left, array)

    def _improve(self, node: Any) -> None:
        """Notes the dimensions of the node's output where they were not known, or known by a made-up name only."""
        tensor = node.outputs[0]
        before = shape_of(tensor)
        if not isinstance(tensor, gs.Variable) or (before is not None and not any(map(is_vague, before))):
            return
        if (node.op == "Slice" and self.opset < _SLICE_HAS_INPUTS) or self.opset < _BROADCASTS_LIKE_NUMPY:
            return
        sizes = symbolic_dims(node, self.values)
        if sizes is None or (before is not None and len(before) != len(sizes)):
            return
        old = before if before is not None else (None,) * len(sizes)
        facts = [self.values.fact(size) for size in sizes]
        after = [new if new is not None and is_vague(dim) else dim for dim, new in zip(old, facts, strict=True)]
        if before is None or tuple(after) != before:
            tensor.shape = after
            self.facts.note(tensor)
