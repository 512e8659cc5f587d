"""Passes that edit a graph freely: a class with ``run``, or a decorated function over a ``gs.Graph``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import new_class
from typing import Any, ClassVar, cast

import onnx_graphsurgeon as gs

from rewright.model.carrier import Model
from rewright.passes.contract import Exactness, Pass
from rewright.passes.session import PassSession, label
from rewright.shapes.walk import forget, shapes_of


class GraphPass(Pass):
    """Edits the view. Record what you do with ``session.record`` (sites) and ``session.reject`` (rejections).

    Class facts:
        keeps_facts: all that the pass does is put new nodes in the place of old ones that gave the same values. Where that is not
            said, every node is visited again when facts are asked for.
    """

    edits_view = True
    keeps_facts: ClassVar[bool] = False

    @abstractmethod
    def run(self, session: PassSession) -> None:
        """Edits ``session.view``: its graph, bodies and functions. ``session.editor`` has linear editing primitives."""

    def apply(self, session: PassSession) -> None:
        before = len(session.sites)
        self.run(session)
        session.editor.finish()
        if len(session.sites) > before and not self.keeps_facts:
            shapes_of(session.view).revisit()


class ModelPass(Pass):
    """Turns a model into another, for tools that work on protos or files."""

    @abstractmethod
    def transform(self, session: PassSession) -> Model:
        """The rewritten model, made with ``session.model.with_proto``; ``session.model`` itself if nothing changed."""

    def apply(self, session: PassSession) -> None:
        session.result = self.transform(session)
        session.opened = None


def graph_pass(
    name: str, *, exactness: Exactness = "exact", after: tuple[str, ...] = (), before: tuple[str, ...] = ()
) -> Callable[[Callable[[gs.Graph], None]], type[Pass]]:
    """Makes a pass of a function that edits a ``gs.Graph``.

    The function gets the main graph, each body and each function in turn. Each change that is connected by values becomes a
    site. Its docstring documents the pass. Register the result through an entry point of the group ``rewright``.
    """

    def make(function: Callable[[gs.Graph], None]) -> type[Pass]:
        namespace: dict[str, Any] = {
            "__doc__": function.__doc__,
            "__module__": function.__module__,
            "__qualname__": function.__name__,
            "__annotations__": {},
            "name": name,
            "exactness": exactness,
            "after": after,
            "before": before,
            "function": staticmethod(function),
        }
        return cast(type[Pass], new_class(function.__name__, (FunctionPass,), {}, lambda made: made.update(namespace)))

    return make


class FunctionPass(Pass):
    """A pass made by ``graph_pass``."""

    edits_view = True
    function: ClassVar[Any]

    def apply(self, session: PassSession) -> None:
        """Runs the function on each graph and records what differs afterwards, as one site for each connected change."""
        session.ensure_facts()
        for graph in list(session.view.graphs()):
            old, values = _signatures(graph), _values(graph)
            before = {id(node): node for node in graph.nodes}
            held = [(*node.inputs, *node.outputs) for node in graph.nodes]  # or a new value might get the id of one that is gone
            type(self).function(graph)
            after = {id(node): node for node in graph.nodes}
            now, arrays = _signatures(graph), _values(graph)
            altered = {key for key, array in arrays.items() if values.get(key, array) != array}
            for key, node in before.items():
                if key not in after:
                    node.alive = False
            touched = [
                node
                for key, node in (before | after).items()
                if old.get(key) != now.get(key) or (altered and any(id(tensor) in altered for tensor in node.inputs))
            ]
            for change in _connected(touched, old, now):
                removed, added = ([node for node in change if id(node) in side] for side in (before, after))
                site = session.record(graph, removed, [node for node in added if id(node) not in before])
                kept = [node for node in added if id(node) in before]
                session.sites[-1] = replace(site, added=(*site.added, *map(label, kept)))
            del held
        forget(session.view)


Signature = tuple[Any, ...]


def _connected(touched: Sequence[Any], old: Mapping[int, Signature], now: Mapping[int, Signature]) -> list[list[Any]]:
    """The nodes in groups, in order. A value connects them that the graph has only before or after, or from another node."""
    parent = {id(node): id(node) for node in touched}

    def root(key: int) -> int:
        while parent[key] != key:
            parent[key] = key = parent[parent[key]]
        return key

    sides = []
    for signatures in (old, now):
        readers: dict[int, list[int]] = {}
        for key in filter(signatures.__contains__, parent):
            for value in signatures[key][_READ]:
                readers.setdefault(value, []).append(key)
        makers = {value: key for key in filter(signatures.__contains__, parent) for value in signatures[key][_MADE]}
        sides.append((makers, readers))
    (made_before, read_before), (made_after, read_after) = sides
    for value in made_before.keys() | made_after.keys():
        first, second = made_before.get(value), made_after.get(value)
        if first == second:
            continue
        together = [key for key in (first, second) if key is not None]
        together += (read_before if second is None else read_after if first is None else {}).get(value, [])
        for key in together[1:]:
            parent[root(key)] = root(together[0])
    groups: dict[int, list[Any]] = {}
    for node in touched:
        groups.setdefault(root(id(node)), []).append(node)
    return list(groups.values())


_READ, _MADE = 3, 4
"""Where a signature has what the node reads and what it makes."""


def _signatures(graph: gs.Graph) -> dict[int, Signature]:
    """What a node list says, so that rewired nodes and changed attributes are noticed."""
    return {
        id(node): (
            node.op,
            node.name,
            node.domain,
            tuple(map(id, node.inputs)),
            tuple(map(id, node.outputs)),
            getattr(node, "attributes_changed", bool)() and tuple(sorted((k, repr(v)) for k, v in node.attrs.items())),
        )
        for node in graph.nodes
    }


def _values(graph: gs.Graph) -> dict[int, int]:
    """Which array each constant of the graph holds."""
    constants = [tensor for node in graph.nodes for tensor in node.inputs if isinstance(tensor, gs.Constant)]
    return {id(tensor): id(tensor._values) for tensor in constants}
