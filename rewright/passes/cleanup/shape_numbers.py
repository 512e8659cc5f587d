"""Small integers that are known before run time become initializers: what constant folding and shape simplification share."""

from __future__ import annotations

from typing import Any

from rewright.model.edit import domain_of
from rewright.model.facts import dtype_of
from rewright.model.graph import walk_bodies
from rewright.passes.cleanup.bypass import become_constants
from rewright.passes.session import PassSession
from rewright.shapes.items import Items
from rewright.shapes.walk import shapes_of


def fold_numbers(session: PassSession) -> None:
    """Makes initializers of the small integer and boolean values that are wholly known and that something else reads."""
    shapes, editor = shapes_of(session.view), session.editor
    known: dict[int, tuple[Any, Items]] = {}
    for graph in (session.view.graph, *walk_bodies(session.view.graph)):
        for node in graph.nodes:
            if not getattr(node, "alive", True) or domain_of(node) or len(node.outputs) != 1 or node.op == "Constant":
                continue
            held = shapes.items(node.outputs[0])
            if held is None or held.dtype != dtype_of(node.outputs[0]) or editor.is_graph_output(node.outputs[0]):
                continue
            if held.is_certain:
                known[id(node)] = node, held
    for node, held in known.values():
        readers = editor.consumers(node.outputs[0]) if getattr(node, "alive", True) else ()
        if any(id(user) not in known for user in readers):
            become_constants(session, node, {id(node.outputs[0]): held.array()})
