"""Names for new values and nodes: derived from what they replace, unique over the whole view."""

from __future__ import annotations

from typing import Any

from rewright.model.graph import state_of
from rewright.model.view import View


class Names:
    """Hands out names that no value and no node of the view has, bodies and functions included.

    Neither has anything had them since the view was opened: who compares the model before a pass with the model after it relies
    on a value's name having one meaning.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._taken: set[str] | None = None

    def _all(self) -> set[str]:
        taken = self._view.names
        if not taken:
            for owner, nodes in self._view.model.node_lists:
                taken.update(tensor.name for tensor in getattr(owner, "initializer", ()))
                for proto in nodes:
                    taken.add(proto.name)
                    taken.update(proto.output)
        for graph in self._view.graphs():
            taken.update(state_of(graph).initializers)
            taken.update(tensor.name for tensor in graph.inputs)
            for node in graph.nodes:
                taken.add(node.name)
                taken.update(tensor.name for tensor in node.inputs)
                taken.update(tensor.name for tensor in node.outputs)
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
