"""ai.onnx Attention nodes between Transposes: the op splits and merges heads itself, if it is told their numbers."""

from __future__ import annotations

from typing import Any, Final

from rewright.model.edit import Editor, domain_of
from rewright.model.facts import attribute, shape_of
from rewright.model.names import scope_of
from rewright.passes.attention.axes import Axes, Axis, Layout, Unproven, number
from rewright.passes.attention.fusing import put_in_place
from rewright.passes.attention.operands import places
from rewright.passes.attention.steps import downwards
from rewright.passes.session import PassSession
from rewright.pattern.builder import Builder
from rewright.pattern.values import Value

_MASK: Final = 3
_LONGEST: Final = 6


def merge_heads(session: PassSession) -> None:
    """Gives Attention its operands as (batch, sequence, heads x size), where they come from there by layout alone."""
    for graph in list(session.view.graphs()):
        for node in [node for node in graph.nodes if node.op == "Attention" and not domain_of(node)]:
            try:
                _merge(session, graph, node)
            except Unproven as unproven:
                session.reject(node, unproven.reason)


def _merge(session: PassSession, graph: Any, node: Any) -> None:
    plain = not any(tensor.name for tensor in (*node.inputs[_MASK + 1 :], *node.outputs[1:]))
    shapes = [shape_of(tensor) for tensor in node.inputs[:_MASK]]
    if not plain or any(shape is None or len(shape) != 4 for shape in shapes):
        return
    axes = Axes()
    query, key, value = (axes.seed(tensor) for tensor in node.inputs[:_MASK])
    sources = [_merged(axes, tensor, layout) for tensor, layout in zip(node.inputs[:_MASK], (query, key, value), strict=True)]
    batch, heads, rows, _ = (axes.atoms(axis) for axis in query)
    found = _below(axes, session.editor, node.outputs[0], (batch, heads, rows, axes.atoms(value[3])))
    counts = number(heads), number(axes.atoms(key[1]))
    if found is None or None in counts or any(source is None for source in sources):
        return
    op = Builder(session.names, scope_of(node), session.view.opset_of(graph))
    mask = [Value(tensor) for tensor in node.inputs[_MASK:] if tensor.name]
    attributes = {name: attribute(node, name) for name in node.attrs}
    made = op.Attention(*map(Value, sources), *mask, **{**attributes, "q_num_heads": counts[0], "kv_num_heads": counts[1]})
    put_in_place(session, graph, found, made, op)


def _merged(axes: Axes, tensor: Any, layout: Layout) -> Any | None:
    """The value with three axes from which this one, (batch, heads, sequence, size), comes."""
    for place in places(axes, tensor, layout):
        batch, heads, positions, size = axes.resolve(layout)
        if axes.resolve(place.layout) == (batch, positions, heads + size) and not place.steps and place.scale == 1:
            return place.tensor
    return None


def _below(axes: Axes, editor: Editor, tensor: Any, layout: Layout) -> Any | None:
    """The value (batch, sequence, heads x size) that is made of (batch, heads, sequence, size), if nothing else is."""
    batch, heads, rows, size = layout
    here: tuple[Axis, ...] = layout
    for _ in range(_LONGEST):
        users = editor.consumers(tensor)
        if len(users) != 1 or editor.is_graph_output(tensor):
            return None
        moved = downwards(axes, users[0], here)
        if moved is None:
            return None
        tensor, here = users[0].outputs[0], axes.resolve(moved)
        if here == (batch, rows, heads + size):
            return tensor
    return None
