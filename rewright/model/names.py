"""Names for new values and nodes: derived from what they replace, unique over the whole view."""

from __future__ import annotations

from typing import Any

from rewright.model.carrier import Model
from rewright.model.graph import state_of
from rewright.model.view import View


class Names:
    """Hands out names that no value and no node of the view has, bodies and functions included.

    Neither does the model that the pass began with have them: who compares the two relies on a value's name having one meaning.
    """

    def __init__(self, view: View, before: Model) -> None:
        self._view = view
        self._before = before
        self._taken: set[str] | None = None

    def _all(self) -> set[str]:
        taken: set[str] = set()
        for graph in self._view.graphs():
            taken.update(state_of(graph).initializers)
            taken.update(tensor.name for tensor in graph.inputs)
            for node in graph.nodes:
                taken.add(node.name)
                taken.update(tensor.name for tensor in node.inputs)
                taken.update(tensor.name for tensor in node.outputs)
        for owner, nodes in self._before.node_lists:
            taken.update(tensor.name for tensor in getattr(owner, "initializer", ()))
            for proto in nodes:
                taken.add(proto.name)
                taken.update(proto.output)
        return taken

    def fresh(self, base: str) -> str:
        """``base`` if it is free, else ``base_1``, ``base_2``, ..."""
        if self._taken is None:
            self._taken = self._all()
        name, number = base, 0
        while name in self._taken or not name:
            number += 1
            name = f"{base}_{number}"
        self._taken.add(name)
        return name


def scope_of(node: Any) -> str:
    """The part of a node's name before its op, as exporters write it: "/encoder/layer.0" of "/encoder/layer.0/Add_1"."""
    name: str = node.name
    return name.rsplit("/", 1)[0] if "/" in name else name
