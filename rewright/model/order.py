"""Topological order: linear, iterative, and stable, so that an order that is already right is left alone."""

from __future__ import annotations

import heapq
from typing import Any, Final

from rewright.model.errors import ModelError

_PLAIN: Final = frozenset((int, float, str))


def captured(node: Any) -> list[Any]:
    """The tensors that the node's bodies read, own ones of the bodies included; empty for most nodes."""
    tensors: list[Any] = []
    pending = list(node.subgraphs()) if node_has_bodies(node) else []
    while pending:
        graph = pending.pop()
        tensors.extend(graph.outputs)
        for inner in graph.nodes:
            tensors.extend(inner.inputs)
            if node_has_bodies(inner):
                pending.extend(inner.subgraphs())
    return tensors


def node_has_bodies(node: Any) -> bool:
    """Whether the node holds graphs; does not decode attributes of nodes that were not asked for them."""
    state = node.__dict__
    if "_attrs" not in state and "proto" in state:
        return "has_bodies" in state
    for value in node.attrs.values():
        if type(value) in _PLAIN:
            continue
        if hasattr(value[0] if isinstance(value, list) and value else value, "nodes"):
            return True
    return False


def is_sorted(nodes: list[Any]) -> bool:
    """Whether every node comes after the producers of what it reads."""
    unseen = {id(node) for node in nodes}
    for node in nodes:
        for tensor in (*node.inputs, *captured(node)) if node_has_bodies(node) else node.inputs:
            for producer in tensor.inputs:
                if id(producer) in unseen:
                    return False
        unseen.discard(id(node))
    return True


def stable_order(nodes: list[Any]) -> list[Any]:
    """``nodes`` in topological order; among the ready ones, the earliest in the list comes first.

    Raises:
        ModelError: the nodes form a cycle; the message names nodes of it.
    """
    if is_sorted(nodes):
        return nodes
    position = {id(node): index for index, node in enumerate(nodes)}
    waiting = [0] * len(nodes)
    dependents: list[list[int]] = [[] for _ in nodes]
    for index, node in enumerate(nodes):
        needed = {
            position[id(producer)]
            for tensor in (*node.inputs, *captured(node))
            for producer in tensor.inputs
            if id(producer) in position
        }
        waiting[index] = len(needed)
        for producer_index in needed:
            dependents[producer_index].append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    heapq.heapify(ready)
    ordered: list[Any] = []
    while ready:
        index = heapq.heappop(ready)
        ordered.append(nodes[index])
        for dependent in dependents[index]:
            waiting[dependent] -= 1
            if waiting[dependent] == 0:
                heapq.heappush(ready, dependent)
    if len(ordered) < len(nodes):
        stuck = [nodes[index].name or nodes[index].op for index, count in enumerate(waiting) if count > 0]
        raise ModelError(f"the graph has a cycle through the nodes {', '.join(stuck[:5])}.", "Check how it was made.")
    return ordered
