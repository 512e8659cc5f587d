"""ai.onnx Attention nodes whose mask is to be repeated along queries or keys: legal, but ONNX Runtime's kernel refuses it."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from rewright.model.edit import domain_of
from rewright.model.facts import shape_of
from rewright.model.names import scope_of
from rewright.passes.session import PassSession
from rewright.pattern.builder import Builder
from rewright.pattern.values import Value

_MASK: Final = 3


def repair(session: PassSession) -> None:
    """Repeats the mask outside the op, where its shape says that it is to be repeated."""
    for graph in list(session.view.graphs()):
        made: dict[Any, Value] = {}
        for node in [node for node in graph.nodes if node.op == "Attention" and not domain_of(node)]:
            if _is_narrow(node):
                _repair(session, graph, node, made)


def _is_narrow(node: Any) -> bool:
    """Whether the mask has fewer than two axes, or one query or key where the operands have, or may have, more."""
    given = [tensor for tensor in node.inputs[_MASK:] if tensor.name]
    if len(node.inputs) <= _MASK or given != [node.inputs[_MASK]]:  # a past has keys of its own
        return False
    mask, lengths = shape_of(node.inputs[_MASK]), _lengths(node)
    if mask is None or lengths is None:
        return False
    wide = (1, 1, *mask)[-2:]
    return len(mask) < 2 or any(held == 1 and length != 1 for held, length in zip(wide, lengths, strict=True))


def _lengths(node: Any) -> tuple[Any, Any] | None:
    """The numbers of queries and keys."""
    shapes = [shape_of(tensor) for tensor in node.inputs[:2]]
    return None if any(shape is None or len(shape) < 3 for shape in shapes) else (shapes[0][-2], shapes[1][-2])  # type: ignore[index]


def _repair(session: PassSession, graph: Any, node: Any, made: dict[Any, Value]) -> None:
    op = Builder(session.names, scope_of(node), session.view.opset_of(graph))
    mask, lengths = node.inputs[_MASK], _lengths(node)
    key = (id(mask), lengths)
    if key not in made or lengths is None or None in lengths:
        made[key] = op.Expand(Value(mask), _target(op, node, len(shape_of(mask) or ())))
    inputs = [*(Value(tensor) if tensor.name else None for tensor in node.inputs[:_MASK]), made[key]]
    kept = tuple(bool(tensor.name) for tensor in node.outputs)
    found = op.Attention(*inputs, outputs=kept, **node.attrs)
    outputs = list(node.outputs)
    editor = session.editor
    editor.insert(op.nodes, at=node)
    editor.remove(node)
    last = op.nodes[-1]
    for index, (tensor, _) in enumerate(zip(outputs, (found,) if isinstance(found, Value) else found, strict=True)):
        if tensor.name:
            editor.take_output(tensor, last, index)
    session.record(graph, [node], op.nodes)


def _target(op: Builder, node: Any, rank: int) -> Value:
    parts = [op.constant(np.ones(rank - 2, np.int64), "ones")] if rank > 2 else []
    for tensor in node.inputs[:2]:
        axis = op.constant(np.array([-2], np.int64), "axis")
        parts.append(op.Gather(op.Shape(Value(tensor)), axis))
    made: Value = op.Concat(*parts, axis=0)
    return made
