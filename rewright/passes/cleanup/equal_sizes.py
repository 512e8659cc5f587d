"""Sizes that several chains of shape arithmetic compute are computed once: the last step of shape simplification."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeAlias

import numpy as np

from rewright.model.edit import domain_of
from rewright.model.facts import dtype_of, producer
from rewright.model.order import node_has_bodies
from rewright.model.view import MADE_UP_SYMBOL, DerivedDim, View
from rewright.passes.session import PassSession
from rewright.shapes.dimensions import Size, size_of
from rewright.shapes.nametable import names_in
from rewright.shapes.terms import Term
from rewright.shapes.walk import shapes_of

_MOST_ROUNDS: Final = 8
_INT64: Final = np.dtype(np.int64)

Key: TypeAlias = tuple[bool, tuple[Size, ...]]


@dataclass
class _Held:
    """A node that computes sizes, for others to read.

    Attributes:
        cost: how many nodes compute it, each counted as often as it is read.
        stays: whether something that is no shape arithmetic reads it. None: not looked yet.
    """

    node: Any
    cost: int
    stays: bool | None = None


@dataclass
class _Scope:
    graph: Any
    table: dict[Key, _Held]


def merge_equal_sizes(session: PassSession) -> None:
    """Lets readers of sizes that were computed before read those.

    Sizes are compared if they are made of names that the model's inputs give, or that inference made up. A name that the model
    only declares for a computed value proves nothing: two values may have it by mistake.
    """
    for _ in range(_MOST_ROUNDS):  # what goes may have been the reason why another one had to stay
        merger = _Merger(session)
        merger.graph(session.view.graph, [])
        if not merger.merge():
            break


class _Merger:
    def __init__(self, session: PassSession) -> None:
        self._session = session
        self._editor = session.editor
        self._shapes = shapes_of(session.view)
        self._trusted: dict[Size, bool] = {}
        self._costs: dict[int, int] = {}  # by node; of what stands for it where it is merged
        self._merged: dict[int, tuple[Any, Any]] = {}

    def graph(self, graph: Any, outer: list[_Scope]) -> None:
        """Looks for what can be merged in ``graph`` and the branches in it; ``outer`` are the scopes around it, nearest first."""
        scopes = [_Scope(graph, {}), *outer]
        for node in graph.nodes:
            if node_has_bodies(node) and getattr(node, "alive", True):
                if node.op == "If":  # what a loop carries has dimensions that only its body's declarations tell
                    for body in node.subgraphs():
                        self.graph(body, scopes)
                continue
            key = self._key(node)
            if key is not None and self._editor.is_used(node.outputs[0]):
                self._visit(node, key, scopes)

    @cached_property
    def _given(self) -> set[str]:
        """The names that the model's inputs give, if nothing else is merely declared to have them."""
        view = self._session.view
        return {name for tensor in view.graph.inputs for name in _declared(tensor)} - _doubtful(view)

    def merge(self) -> bool:
        """Redirects what reads a merged node and is not merged itself; then the merged nodes have no readers.

        Returns:
            whether there are any.
        """
        editor = self._editor
        for node, kept in self._merged.values():
            if not self._is_arithmetic_only(node):
                editor.redirect(node.outputs[0], kept.outputs[0], node)
        for node, _ in reversed(self._merged.values()):
            if getattr(node, "alive", True) and not editor.is_used(node.outputs[0]):
                graph = editor.graph_of(node)
                self._session.record(graph, editor.remove_with_dead_producers([node]), [])
        return bool(self._merged)

    def _is_arithmetic_only(self, node: Any) -> bool:
        """Whether only merged nodes read it, which go."""
        return all(id(reader) in self._merged for reader in self._editor.consumers(node.outputs[0]))

    def _visit(self, node: Any, key: Key, scopes: list[_Scope]) -> None:
        cost = 1 + sum(self._costs.get(id(producer(tensor)), 0) for tensor in node.inputs)
        held = next((found for scope in scopes if (found := self._held(scope, key, scopes[0].graph)) is not None), None)
        if held is None or (cost < held.cost and not self._stays(held)):
            scopes[0].table[key] = _Held(node, cost)
        elif not self._editor.is_graph_output(node.outputs[0]):
            self._merged[id(node)] = node, held.node
            held.stays = held.stays or self._is_read_elsewhere(node)
            cost = held.cost
        self._costs[id(node)] = cost

    def _held(self, scope: _Scope, key: Key, graph: Any) -> _Held | None:
        found = scope.table.get(key)
        if found is None or scope.graph is graph or all(self._shapes.names.is_meant_in(scope.graph, size) for size in key[1]):
            return found
        return None

    def _stays(self, held: _Held) -> bool:
        """Whether it is certain that the node is needed, whatever is merged."""
        if held.stays is None:
            held.stays = self._is_read_elsewhere(held.node)
        return held.stays

    def _is_read_elsewhere(self, node: Any) -> bool:
        editor = self._editor
        if editor.is_graph_output(node.outputs[0]):
            return True
        readers = editor.consumers(node.outputs[0])
        return any(self._key(reader) is None or editor.is_graph_output(reader.outputs[0]) for reader in readers)

    def _key(self, node: Any) -> Key | None:
        """The sizes that the node computes: all known, not all numbers, in 64 bits, which hold every size."""
        if not getattr(node, "alive", True) or len(node.outputs) != 1 or domain_of(node):
            return None
        held = self._shapes.items(node.outputs[0])
        if held is None or held.dtype != _INT64 or dtype_of(node.outputs[0]) != _INT64 or held.is_certain:
            return None
        known = tuple(item for item in held.items if item is not None and self._is_trusted(item))
        return (held.is_vector, known) if len(known) == len(held.items) else None

    def _is_trusted(self, size: Size) -> bool:
        found = self._trusted.get(size)
        if found is None:
            names = list(names_in(size))
            found = self._trusted[size] = all(name.startswith(MADE_UP_SYMBOL) or name in self._given for name in names)
        return found


def _declared(tensor: Any) -> Iterator[str]:
    """The names among the dimensions of a value that no rule has derived."""
    for dim in tensor.shape or ():
        if isinstance(dim, str) and not isinstance(dim, DerivedDim):
            yield from names_in(size_of(dim))


def _doubtful(view: View) -> set[str]:
    """Names that computed values, or what a loop carries, have by declaration only, and what was made of such names."""
    found: set[str] = set()
    for graph in view.graphs():
        if graph is not view.graph:
            for tensor in graph.inputs:
                found.update(_declared(tensor))
        for node in graph.nodes:
            for tensor in node.outputs:
                found.update(_declared(tensor))
    for name, size in shapes_of(view).names.known.items():
        if not name.startswith(MADE_UP_SYMBOL) and not isinstance(name, Term):
            found.update((name, *names_in(size)))
    return found
