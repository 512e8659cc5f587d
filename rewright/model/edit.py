"""Editing primitives on a view: linear over a whole pass, by identity, aware of bodies and graph outputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx_graphsurgeon as gs

from rewright.model.elements import drop, make_node, make_variable, normal_domain
from rewright.model.facts import producer
from rewright.model.graph import state_of
from rewright.model.order import node_has_bodies
from rewright.model.view import View

_SWEEP_AT_ONCE = 32


class Editor:
    """Edits one view during one pass. ``finish`` must be called before the view is exported.

    Removals from lists of tensors with many consumers are collected and done in one sweep, so that killing every consumer
    of a shared constant costs O(consumers), not its square.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self._outputs: dict[int, int] = {}
        self._owner: dict[int, Any] = {}
        self._placed: dict[int, list[Any]] = {}
        self._touched: dict[int, Any] = {}
        self._dirty: dict[int, Any] = {}
        for graph in view.graphs():
            for tensor in graph.outputs:
                self._outputs[id(tensor)] = self._outputs.get(id(tensor), 0) + 1
            for node in graph.nodes:
                self._owner[id(node)] = graph

    def graph_of(self, node: Any) -> Any:
        """The graph, body or function whose node list holds the node."""
        return self._owner[id(node)]

    def is_graph_output(self, tensor: Any) -> bool:
        """Whether the model, a body or a function returns the value."""
        return id(tensor) in self._outputs

    def consumers(self, tensor: Any) -> list[Any]:
        """The nodes that read the value, those in bodies included."""
        return [node for node in tensor.outputs if getattr(node, "alive", True)]

    def is_used(self, tensor: Any) -> bool:
        """Whether anything reads or returns the value."""
        if id(tensor) in self._outputs:
            return True
        for place, node in enumerate(tensor.outputs):
            if getattr(node, "alive", True):
                if place > _SWEEP_AT_ONCE:  # or the dead ones in front would be passed again for each one that dies
                    list.__setitem__(tensor.outputs, slice(None, place), ())
                return True
        if len(tensor.outputs) > _SWEEP_AT_ONCE:
            list.clear(tensor.outputs)
        return False

    def insert(self, nodes: Iterable[Any], at: Any) -> None:
        """Puts new nodes where the node ``at`` stands (just before it, if it stays)."""
        graph = self._owner[id(at)]
        placed = self._placed.setdefault(id(at), [])
        for node in nodes:
            placed.append(node)
            self._owner[id(node)] = graph
        self._touched[id(graph)] = graph

    def remove(self, node: Any) -> None:
        """Takes the node out; its outputs lose their producer."""
        node.__dict__["alive"] = False  # past graphsurgeon's setter
        graph = self._owner[id(node)]
        self._touched[id(graph)] = graph
        for tensor in node.inputs:
            if len(tensor.outputs) <= _SWEEP_AT_ONCE:
                drop(tensor.outputs, node)
            else:
                self._dirty[id(tensor)] = tensor
            if isinstance(tensor, gs.Constant):
                self._dirty[id(tensor)] = tensor
        for tensor in node.outputs:
            drop(tensor.inputs, node)
        if node_has_bodies(node):
            for graph in node.subgraphs():
                for inner in graph.nodes:
                    if id(inner) in self._owner and getattr(inner, "alive", True):
                        self.remove(inner)
                self._returns_no_more(graph)

    def dissolve(self, body: Any, at: Any) -> list[Any]:
        """Puts the nodes of ``body``, a body of the node ``at``, where ``at`` stands; returns them. Remove ``at`` afterwards."""
        nodes, body.nodes = list(body.nodes), []
        self.insert(nodes, at)
        return nodes

    def _returns_no_more(self, body: Any) -> None:
        for tensor in body.outputs:
            left = self._outputs.pop(id(tensor), 1) - 1
            if left > 0:
                self._outputs[id(tensor)] = left
            elif isinstance(tensor, gs.Constant):
                self._dirty[id(tensor)] = tensor
        body.outputs = []

    def discard(self, nodes: Iterable[Any]) -> None:
        """Forgets new nodes that were never inserted."""
        for node in reversed(list(nodes)):
            node.alive = False
            for tensor in node.inputs:
                drop(tensor.outputs, node)
            for tensor in node.outputs:
                drop(tensor.inputs, node)

    def remove_with_dead_producers(self, nodes: Iterable[Any]) -> list[Any]:
        """Removes ``nodes`` and every node whose outputs nothing uses any more because of it; returns all of them."""
        pending, removed = list(nodes), []
        while pending:
            node = pending.pop()
            if not getattr(node, "alive", True):
                continue
            feeders = [producer(tensor) for tensor in node.inputs]
            self.remove(node)
            removed.append(node)
            for feeder in feeders:
                if feeder is not None and not any(self.is_used(tensor) for tensor in feeder.outputs):
                    pending.append(feeder)
        return removed

    def take_output(self, old: Any, new: Any, index: int = 0) -> None:
        """Makes the value ``old``, whose producer is gone, output ``index`` of the node ``new``: name, facts and uses stay."""
        temporary = new.outputs[index]
        list.__setitem__(new.outputs, index, old)
        list.append(old.inputs, new)
        drop(temporary.inputs, new)
        for consumer in list(temporary.outputs):
            _replace_input(consumer, temporary, old)

    def redirect(self, old: Any, new: Any, at: Any) -> list[Any]:
        """Lets every use of ``old`` read ``new``. A graph output keeps its name through an Identity at ``at``.

        Returns:
            the Identity nodes that were made, at most one.
        """
        for consumer in self.consumers(old):
            _replace_input(consumer, old, new)
        list.clear(old.outputs)
        if not self.is_graph_output(old):
            return []
        for tensor_producer in list(old.inputs):
            # A node that stays for its other outputs keeps their positions.
            unused = make_variable(f"{old.name}/replaced")
            list.__setitem__(tensor_producer.outputs, index_of(tensor_producer.outputs, old), unused)
            list.append(unused.inputs, tensor_producer)
            drop(old.inputs, tensor_producer)
        identity = make_node("Identity", old.name + "/Identity", "", [new], [old])
        self.insert([identity], at)
        return [identity]

    def finish(self) -> None:
        """Brings node lists and use lists up to date, and drops initializers that lost their last use."""
        for graph in self._touched.values():
            nodes: list[Any] = []
            for node in graph.nodes:
                self._expand(node, nodes)
            graph.nodes = nodes
        orphans: set[int] = set()
        for tensor in self._dirty.values():
            alive = [node for node in tensor.outputs if getattr(node, "alive", True)]
            list.__setitem__(tensor.outputs, slice(None), alive)
            if not alive and isinstance(tensor, gs.Constant) and not self.is_graph_output(tensor):
                orphans.add(id(tensor))
        if orphans:
            for graph in self.view.graphs():
                held = state_of(graph).initializers
                for name in [name for name, constant in held.items() if id(constant) in orphans]:
                    del held[name]
        self._placed.clear()
        self._touched.clear()
        self._dirty.clear()

    def _expand(self, node: Any, nodes: list[Any]) -> None:
        """Appends the node, if it is alive, and before it what was placed there; placed nodes may carry others in turn."""
        pending = [(node, False)]
        while pending:
            current, placed_done = pending.pop()
            before = () if placed_done else self._placed.get(id(current), ())
            if before:
                pending.append((current, True))
                pending.extend((item, False) for item in reversed(before))
            elif getattr(current, "alive", True):
                nodes.append(current)


def index_of(items: Any, wanted: Any) -> int:
    """The position of ``wanted`` in a list, by identity."""
    return next(index for index, item in enumerate(items) if item is wanted)


def _replace_input(node: Any, old: Any, new: Any) -> None:
    for index, tensor in enumerate(node.inputs):
        if tensor is old:
            list.__setitem__(node.inputs, index, new)
            list.append(new.outputs, node)


def remove_dead_nodes(graphs: list[Any]) -> list[Any]:
    """Removes every node of ``graphs`` whose outputs nothing uses; linear. Returns the removed nodes.

    Graph inputs stay, whether used or not.
    """
    needed: set[int] = set()
    top_bodies = {id(inner) for graph in graphs for node in graph.nodes if node_has_bodies(node) for inner in node.subgraphs()}
    pending = [tensor for graph in graphs if id(graph) not in top_bodies for tensor in graph.outputs]
    while pending:
        tensor = pending.pop()
        for node in tensor.inputs:
            if id(node) in needed:
                continue
            needed.add(id(node))
            pending.extend(node.inputs)
            if node_has_bodies(node):
                for body in node.subgraphs():
                    pending.extend(body.outputs)
    removed: list[Any] = []
    stale: dict[int, Any] = {}
    for graph in graphs:
        dead = [node for node in graph.nodes if id(node) not in needed]
        if not dead:
            continue
        removed.extend(dead)
        graph.nodes = [node for node in graph.nodes if id(node) in needed]
        for node in dead:
            node.alive = False
            stale.update((id(tensor), tensor) for tensor in node.inputs)
            for tensor in node.outputs:
                drop(tensor.inputs, node)
    for tensor in stale.values():
        list.__setitem__(tensor.outputs, slice(None), [n for n in tensor.outputs if getattr(n, "alive", True)])
    return removed


def domain_of(node: Any) -> str:
    """The node's domain, "" for the standard one."""
    return normal_domain(node.domain)
