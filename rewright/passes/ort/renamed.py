"""Names that ONNX Runtime changes: some fused nodes give a new name to the value that the nodes in whose place they stand made.

With it every node that reads the value is changed, and one rewrite looks like many.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import GraphProto, NodeProto

from rewright.model.elements import normal_domain
from rewright.passes.ort.shadows import rename_in


def restore_names(source: GraphProto, graph: GraphProto) -> None:
    """Gives values the names back that they had for every node that reads them and is otherwise as it was, in place.

    A name stays changed if something else has the old one, if two names would become one, or if the types are known to differ.
    """
    known = {*_named(source)}
    taken = {*_named(graph)}
    old_names: dict[str, str] = {}
    refused: set[str] = set()
    for was, now in _changed_inputs(source, graph):
        if now in known or was in taken or old_names.setdefault(now, was) != was:
            refused.add(now)
    once = list(old_names.values())
    described = {value.name: value.type.tensor_type.elem_type for value in (*source.value_info, *graph.value_info)}
    renamed = {
        now: was
        for now, was in old_names.items()
        if now not in refused and once.count(was) == 1 and len({described.get(now, 0), described.get(was, 0)} - {0}) < 2
    }
    if renamed:
        kept = [value for value in graph.value_info if value.name not in renamed]
        del graph.value_info[:]
        graph.value_info.extend(kept)
        rename_in(graph, renamed)


def _changed_inputs(source: GraphProto, graph: GraphProto) -> Iterator[tuple[str, str]]:
    """What nodes that make what they made read instead of what they read: (the old name, the new one)."""
    originals = {tuple(node.output): node for node in source.node}
    for node in graph.node:
        original = originals.get(tuple(node.output))
        if original is None or not _is_one_op(original, node) or len(original.input) != len(node.input):
            continue
        for was, now in zip(original.input, node.input, strict=True):
            if was and now and was != now:
                yield was, now


def _is_one_op(left: NodeProto, right: NodeProto) -> bool:
    return left.op_type == right.op_type and normal_domain(left.domain) == normal_domain(right.domain)


def _named(graph: GraphProto) -> Iterator[str]:
    yield from (value.name for value in graph.input)
    yield from (tensor.name for tensor in graph.initializer)
    yield from (name for node in graph.node for name in node.output if name)
