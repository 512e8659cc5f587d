"""Names that ONNX Runtime gives twice.

To a value of the graph, and to one of a body in it: it reads such a model, since it looks a name up in the body first, but ONNX
assigns every name once. And to what a node made and to a constant in its place, which need not be the same: a Reshape that gets
(0, -1) for a target that was computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from onnx import GraphProto, ModelProto

from rewright.model.carrier import all_graphs, bodies
from rewright.model.regions import is_constant_node


def rename_shadows(proto: ModelProto) -> None:
    """Gives every value of a body that has the name of a value around it a name of its own, in place."""
    taken = {name for graph in all_graphs(proto) for name in _made(graph)}
    pending: list[tuple[GraphProto, frozenset[str]]] = [(proto.graph, frozenset())]
    while pending:
        graph, around = pending.pop()
        inner = [body for node in graph.node for body in bodies(node)]
        visible = around.union(_made(graph)) if inner else around
        for body in inner:
            renamed = {name: _fresh(name, taken) for name in dict.fromkeys(_made(body)) if name in visible}
            if renamed:
                rename_in(body, renamed)
            pending.append((body, visible))


def rename_constants(source: GraphProto, graph: GraphProto) -> None:
    """Gives every constant that has the name of what a node of ``source`` computes a name of its own, in place."""
    computed = {name for node in source.node if not is_constant_node(node) for name in node.output if name}
    computed -= {value.name for value in source.output}
    reused = [tensor.name for tensor in graph.initializer if tensor.name in computed]
    if reused:
        taken = {*_made(source), *(name for inner in _with_bodies(graph) for name in _made(inner))}
        rename_in(graph, {name: _fresh(name, taken) for name in reused})


def _with_bodies(graph: GraphProto) -> Iterator[GraphProto]:
    pending = [graph]
    while pending:
        inner = pending.pop()
        yield inner
        pending.extend(body for node in inner.node for body in bodies(node))


def _made(graph: GraphProto) -> Iterator[str]:
    yield from (value.name for value in graph.input)
    yield from (tensor.name for tensor in graph.initializer)
    yield from (name for node in graph.node for name in node.output if name)


def _fresh(name: str, taken: set[str]) -> str:
    found = next(made for number in itertools.count(1) if (made := f"{name}_{number}") not in taken)
    taken.add(found)
    return found


def rename_in(graph: GraphProto, renamed: Mapping[str, str]) -> None:
    """Renames values in a graph and in the bodies below it, which read the name too unless they have it themselves; in place."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = renamed.get(value.name, value.name)
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
        for body in bodies(node):
            own = set(_made(body))
            rename_in(body, {old: new for old, new in renamed.items() if old not in own})
