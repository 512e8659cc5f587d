"""The order of the nodes: ONNX Runtime writes a graph in one of its own, and passes that take the first of several follow it."""

from __future__ import annotations

import heapq
from collections import defaultdict

from onnx import GraphProto

from rewright.model.carrier import bodies
from rewright.model.regions import reads


def restore_order(source: GraphProto, graph: GraphProto) -> None:
    """Puts the nodes of ``graph`` where those that made the same values have stood in ``source``, in place.

    A new node that makes none of the source's values comes right before the first one that reads it. Bodies of nodes that make
    the same values are put in order likewise. Linear, but for a logarithm.
    """
    places = _places(source, graph)
    order = _sorted(graph, places)
    if order != sorted(order):
        nodes = list(graph.node)
        kept = GraphProto()
        kept.node.extend(nodes[index] for index in order)
        del graph.node[:]
        graph.node.extend(kept.node)
    makers = {tuple(node.output): node for node in source.node if node.attribute}
    for node in graph.node:
        original = makers.get(tuple(node.output)) if node.attribute else None
        if original is not None:
            for before, after in zip(bodies(original), bodies(node), strict=False):
                restore_order(before, after)


def _places(source: GraphProto, graph: GraphProto) -> list[float]:
    """For each node of the graph where it belongs, as an index into the source's nodes."""
    known = {name: float(index) for index, node in enumerate(source.node) for name in node.output if name}
    first_use: dict[str, float] = defaultdict(lambda: float(len(source.node)))
    places = [0.0] * len(graph.node)
    for index, node in reversed(list(enumerate(graph.node))):  # readers come after what they read
        own = [known[name] for name in node.output if name in known]
        places[index] = min(own) if own else min((first_use[name] for name in node.output), default=0.0)
        for name in reads(node):
            first_use[name] = min(first_use[name], places[index])
    return places


def _sorted(graph: GraphProto, places: list[float]) -> list[int]:
    """The indices of the nodes in topological order; among the ready ones, the earliest place comes first."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needed = [{makers[name] for name in reads(node) if name in makers} for node in graph.node]
    readers: dict[int, list[int]] = defaultdict(list)
    for index, producers in enumerate(needed):
        for producer in producers:
            readers[producer].append(index)
    waiting = [len(producers) for producers in needed]
    ready = [(places[index], index) for index, count in enumerate(waiting) if not count]
    heapq.heapify(ready)
    order = []
    while ready:
        _, index = heapq.heappop(ready)
        order.append(index)
        for reader in readers[index]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, (places[reader], reader))
    return order if len(order) == len(graph.node) else list(range(len(graph.node)))
