"""Passes that edit a graph freely: a class with ``run``, or a decorated function over a ``gs.Graph``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
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

    The function gets the main graph, each body and each function in turn. Nodes that it adds and removes become the
    pass's site. Its docstring documents the pass. Register the result through an entry point of the group ``rewright``.
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
        """Runs the function on each graph and records what differs afterwards as one site a graph."""
        session.ensure_facts()
        for graph in list(session.view.graphs()):
            nodes, values = _signatures(graph), _values(graph)
            before = {id(node): node for node in graph.nodes}
            type(self).function(graph)
            after = {id(node): node for node in graph.nodes}
            removed = [node for key, node in before.items() if key not in after]
            added = [node for key, node in after.items() if key not in before]
            now = _signatures(graph)
            changed = [node for key, node in after.items() if key in before and now[key] != nodes[key]]
            for node in removed:
                node.alive = False
            if removed or added or changed or _values(graph) != values:
                site = session.record(graph, [*removed, *changed], added)
                session.sites[-1] = replace(site, added=(*site.added, *map(label, changed)))
        forget(session.view)


def _signatures(graph: gs.Graph) -> dict[int, tuple[Any, ...]]:
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
