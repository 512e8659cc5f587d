"""The ``dead-code`` pass."""

from __future__ import annotations

from typing import Any

import onnx_graphsurgeon as gs

from rewright.model.edit import remove_dead_nodes
from rewright.model.graph import state_of
from rewright.passes.deferral import Deferral
from rewright.passes.graph_pass import GraphPass
from rewright.passes.session import PassSession


class DeadCode(GraphPass):
    """Removes the nodes and initializers that nothing uses.

    1. A node goes when no output of it is read by a node that stays, and none is an output of the graph, body or function.
       Values that bodies capture are uses.
    2. An initializer goes when no node reads it and no graph returns it. Bodies' initializers count like the main graph's.
    3. Inputs stay, used or not, and so do the initializers that give an input its default: they are the model's signature.
    4. An output that nothing reads stays where another output of its node is used.
    """

    name = "dead-code"
    keeps_facts = True
    ort = Deferral(declines="ONNX Runtime keeps nodes that nothing uses")

    def run(self, session: PassSession) -> None:
        editor = session.editor  # made before the removal: it knows which graph a node was in
        graphs = list(session.view.graphs())
        removed: dict[int, list[Any]] = {id(graph): [] for graph in graphs}
        for node in remove_dead_nodes(graphs):
            removed[id(editor.graph_of(node))].append(node)
        for graph in graphs:
            unused = _remove_unused_initializers(graph)
            if unused:
                session.notes.append(f"removed {unused} unused initializers of the graph '{graph.name}'")
            if removed[id(graph)] or unused:
                session.record(graph, removed[id(graph)], [])


def _remove_unused_initializers(graph: Any) -> int:
    returned = {id(tensor) for tensor in graph.outputs}
    held: dict[str, gs.Constant] = state_of(graph).initializers
    unused = [
        name
        for name, constant in held.items()
        if name not in state_of(graph).input_defaults
        and id(constant) not in returned
        and not any(getattr(node, "alive", True) for node in constant.outputs)
    ]
    for name in unused:
        del held[name]
    return len(unused)
