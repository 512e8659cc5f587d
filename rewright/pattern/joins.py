"""Where a further root of a pattern can be: among the consumers of the values that it shares with what is already matched."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final, Protocol

from rewright.model import facts
from rewright.model.edit import Editor
from rewright.pattern.language import Any_, Bound, NodePattern, Optional_, Pattern, Product, Through, parts, pattern_ops, root_ops

_MOST_NODES: Final = 256
_DEEPEST: Final = 16


class Bindings(Protocol):
    """What is matched so far."""

    values: dict[str, Any]
    nodes: list[tuple[Any, NodePattern | None]]


def candidates(root: Pattern, matched: Bindings, editor: Editor, graph: Any) -> Iterator[Any]:
    """Values that may fit ``root``, nearest first.

    Every match of the root reads each value that all its alternatives share with the rest. The one with the fewest
    consumers is followed downwards, over ops of the pattern only and no deeper than the pattern; so the search costs the
    consumers of that value, not the nodes of the graph.
    """
    yield from _siblings(root, matched)
    anchors = [anchor for anchor in _anchors(root, matched) if anchor is not None]
    if not anchors:
        return
    anchor = min(anchors, key=lambda tensor: (facts.is_constant(tensor), len(tensor.outputs)))
    ends, between, depth = _reach(root)
    frontier, seen, visited = [anchor], {id(anchor)}, 0
    for _ in range(min(depth, _DEEPEST)):
        following: list[Any] = []
        for tensor in frontier:
            for node in editor.consumers(tensor):
                if id(node) in seen or node.op not in between or editor.graph_of(node) is not graph:
                    continue
                seen.add(id(node))
                visited += 1
                if visited > _MOST_NODES:
                    return
                named = [output for output in node.outputs if output.name]
                following.extend(named)
                if node.op in ends:
                    yield from named
        frontier = following


def _siblings(root: Pattern, matched: Bindings) -> Iterator[Any]:
    """The further output of a node that is already matched, where the root is one of several outputs of an op."""
    if isinstance(root, NodePattern) and root.source is not None:
        for node, pattern in list(matched.nodes):
            if pattern is not None and pattern.source is root.source and root.output < len(node.outputs):
                yield node.outputs[root.output]


def _anchors(root: Pattern, matched: Bindings) -> list[Any]:
    """The matched values that every alternative of ``root`` reads."""
    held = {id(pattern): node for node, pattern in matched.nodes if pattern is not None}
    found: list[Any] = []
    for key, pattern in _shared(root).items():
        if isinstance(pattern, Bound):
            found.append(matched.values.get(pattern.name))
        elif isinstance(pattern, NodePattern) and key in held and pattern is not root:
            found.append(held[key].outputs[pattern.output])
    return found


@lru_cache(maxsize=512)
def _reach(root: Pattern) -> tuple[frozenset[str], frozenset[str], int]:
    """The ops that can compute the root's value, all ops that the pattern mentions, and its depth."""
    return root_ops(root), pattern_ops([root]), _depth(root)


@lru_cache(maxsize=4096)
def _shared(pattern: Pattern) -> dict[int, Pattern]:
    """The patterns that every way through ``pattern`` contains, by identity."""
    if isinstance(pattern, Optional_):
        return {}
    below = [_shared(part) for part in parts(pattern)]
    found: dict[int, Pattern] = {id(pattern): pattern}
    if isinstance(pattern, Any_):
        common = set.intersection(*(set(part) for part in below))
        return found | {key: part for key, part in below[0].items() if key in common}
    for part in below:
        found |= part
    return found


@lru_cache(maxsize=4096)
def _depth(pattern: Pattern) -> int:
    """The most nodes on a way through the pattern."""
    below = max((_depth(part) for part in parts(pattern)), default=0)
    if isinstance(pattern, NodePattern):
        return below + 1
    return below + _DEEPEST if isinstance(pattern, (Product, Through)) else below
