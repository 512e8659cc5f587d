"""Letting the uses of a node's output read another value: what identity elimination and shape simplification share."""

from __future__ import annotations

from typing import Any

import onnx_graphsurgeon as gs

from rewright.model.facts import producer
from rewright.passes.session import PassSession


def bypass(session: PassSession, node: Any, source: Any) -> str | None:
    """Takes ``node`` out; whatever used its first output reads ``source``. Records the site.

    An output of a graph keeps its name: the producer of ``source`` takes the name over, or an Identity stays.

    Returns:
        None, or the reason why nothing can be gained here: the node is an Identity that an output needs.
    """
    editor, output = session.editor, node.outputs[0]
    graph = editor.graph_of(node)
    maker = producer(source)
    added: list[Any] = []
    if not editor.is_graph_output(output):
        share_facts(output, source)
        editor.redirect(output, source, node)
    elif maker is not None and editor.graph_of(maker) is graph and not editor.is_graph_output(source):
        _take_out(session, node)
        index = next(index for index, tensor in enumerate(maker.outputs) if tensor is source)
        share_facts(source, output)
        editor.take_output(output, maker, index)
        session.record(graph, [node, *_removed_feeders(session, node)], [])
        return None
    elif node.op == "Identity":
        return "it gives an output of the graph its name, and its input is an input, a constant, a captured value or an output"
    else:
        added = editor.redirect(output, source, node)
    _take_out(session, node)
    session.record(graph, [node, *_removed_feeders(session, node)], added)
    return None


def _take_out(session: PassSession, node: Any) -> None:
    node.__dict__["_feeders"] = [producer(tensor) for tensor in node.inputs]
    session.editor.remove(node)


def _removed_feeders(session: PassSession, node: Any) -> list[Any]:
    """Removes what only the removed ``node`` used, such as the arithmetic of a Reshape's target."""
    feeders = node.__dict__.pop("_feeders")
    return session.editor.remove_with_dead_producers(
        feeder
        for feeder in feeders
        if feeder is not None and feeder.alive and not any(session.editor.is_used(tensor) for tensor in feeder.outputs)
    )


def share_facts(known: Any, other: Any) -> None:
    """Both values are equal: what is known about one holds for the other."""
    if isinstance(other, gs.Variable):
        if other.dtype is None:
            other.dtype = known.dtype
        if other.shape is None:
            other.shape = known.shape
