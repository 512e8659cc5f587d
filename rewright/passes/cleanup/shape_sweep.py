"""Sizes for one pass: a view of what ``rewright.shapes`` knows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rewright.passes.cleanup.shape_values import ShapeValues
from rewright.passes.session import PassSession
from rewright.shapes.walk import Shapes, shapes_of


class ShapeSweep:
    """Everything is known when it is made; walking it adds nothing."""

    def __init__(self, session: PassSession, learned: Iterable[Any] = ()) -> None:
        session.ensure_facts()
        self.session = session
        self.facts: Shapes = shapes_of(session.view)
        self.values = ShapeValues(self.facts)
        self.opset = session.view.opset_of(session.view.graph)
        for tensor in learned:
            self.facts.note(tensor)

    def graph(self, graph: Any) -> None:
        """Nothing is left to walk for."""

    def _node(self, graph: Any, node: Any) -> None:
        """The node was visited when the facts were made."""
