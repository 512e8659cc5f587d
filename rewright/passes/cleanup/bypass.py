"""Letting the uses of a node's outputs read another value or a constant: what the cleanup passes share."""

from __future__ import annotations

from typing import Any

import onnx_graphsurgeon as gs

from rewright.model.facts import producer, shape_of
from rewright.model.graph import state_of
from rewright.passes.session import PassSession
from rewright.shapes.dimensions import is_vague
from rewright.shapes.walk import shapes_of


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
        share_facts(session, output, source)
        editor.redirect(output, source, node)
    elif maker is not None and editor.graph_of(maker) is graph and not editor.is_graph_output(source):
        share_facts(session, source, output)
        feeders = take_out(session, node)
        index = next(index for index, tensor in enumerate(maker.outputs) if tensor is source)
        editor.take_output(output, maker, index)
        session.record(graph, [node, *remove_unused(session, feeders)], [])
        return None
    elif node.op == "Identity":
        return "it gives an output of the graph its name, and its input is an input, a constant, a captured value or an output"
    else:
        added = editor.redirect(output, source, node)
    feeders = take_out(session, node)
    session.record(graph, [node, *remove_unused(session, feeders)], added)
    return None


def become_constants(session: PassSession, node: Any, values: dict[int, Any]) -> None:
    """Takes ``node`` out; its outputs, by identity in ``values``, become initializers of its graph. Records the site."""
    graph = session.editor.graph_of(node)
    feeders = take_out(session, node)
    for tensor in node.outputs:
        if id(tensor) in values:
            make_initializer(graph, tensor, values[id(tensor)])
            shapes_of(session.view).note(tensor)
    session.record(graph, [node, *remove_unused(session, feeders)], [])


def make_initializer(graph: Any, tensor: Any, values: Any) -> None:
    """Turns a value that has lost its producer into an initializer of ``graph``; its name and uses stay."""
    tensor.to_constant(values)
    state_of(graph).initializers[tensor.name] = tensor


def take_out(session: PassSession, node: Any) -> list[Any]:
    """Removes the node and returns what fed it, for ``remove_unused``."""
    feeders = [feeder for tensor in node.inputs if (feeder := producer(tensor)) is not None]
    session.editor.remove(node)
    return feeders


def remove_unused(session: PassSession, nodes: list[Any]) -> list[Any]:
    """Removes those of ``nodes`` that nothing uses any more, with what only they used; returns what was removed."""
    editor = session.editor
    return editor.remove_with_dead_producers(
        node
        for node in nodes
        if getattr(node, "alive", True) and not any(editor.is_used(tensor) for tensor in node.outputs if tensor.name)
    )


def share_facts(session: PassSession, known: Any, other: Any) -> None:
    """Both values are equal: what is known about one holds for the other. Inputs stay as they are declared."""
    if not isinstance(other, gs.Variable) or not other.inputs:
        return
    if other.dtype is None:
        other.dtype = known.dtype
    mine, theirs = shape_of(other), shape_of(known)
    if mine is None:
        other.shape = known.shape
    elif theirs is not None and len(mine) == len(theirs):
        other.shape = [new if is_vague(old) and new is not None else old for old, new in zip(mine, theirs, strict=True)]
    if shape_of(other) != mine:
        shapes_of(session.view).note(other)
