"""Whether a model's nodes can be put into an order at all; read from the protos, before anything is built on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from onnx import NodeProto

from rewright.model.carrier import NodeLists, bodies
from rewright.model.errors import ModelError

_SHOWN = 8


def refuse_cycle(lists: NodeLists) -> None:
    """Checks every list of nodes, those of bodies and functions included. Linear, and one scan where the order is right.

    Raises:
        ModelError: nodes depend on each other in a circle; the message shows it.
    """
    are_flat = len(lists) == 1  # then no node holds a body that reads something
    for _, nodes in lists:
        if are_flat and _is_in_order(nodes):
            continue
        producers: dict[str, int] = {}
        for index, node in enumerate(nodes):
            for name in node.output:
                if name:
                    producers.setdefault(name, index)
        if any(producers.get(name, -1) >= index for index, node in enumerate(nodes) for name in _reads(node)):
            _refuse(nodes, producers)


def _is_in_order(nodes: Sequence[NodeProto]) -> bool:
    """Whether no node makes what itself or one before it reads; nodes without bodies."""
    read: set[str] = set()
    for node in nodes:
        read.update(node.input)
        if not read.isdisjoint(node.output):
            return False
    return True


def _reads(node: NodeProto) -> Iterator[str]:
    """What the node reads, with what its bodies read from outside themselves."""
    yield from node.input
    if not node.attribute:
        return
    pending, own, read = list(bodies(node)), set[str](), list[str]()
    while pending:
        body = pending.pop()
        own.update(value.name for value in body.input)
        own.update(tensor.name for tensor in body.initializer)
        read.extend(value.name for value in body.output)
        for inner in body.node:
            own.update(inner.output)
            read.extend(inner.input)
            pending.extend(bodies(inner))
    yield from (name for name in read if name not in own)


def _refuse(nodes: Sequence[NodeProto], producers: Mapping[str, int]) -> None:
    """Raises if the nodes, which are out of order, cannot be sorted."""
    needs = [{producers[name] for name in _reads(node) if name in producers} for node in nodes]
    readers: dict[int, list[int]] = defaultdict(list)
    for index, needed in enumerate(needs):
        for producer in needed:
            readers[producer].append(index)
    waiting = [len(needed) for needed in needs]
    ready = [index for index, count in enumerate(waiting) if not count]
    for index in ready:  # grows while it is walked
        for reader in readers[index]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    stuck = set(range(len(nodes))) - set(ready)
    if not stuck:
        return
    # each stuck node needs a stuck one, so walking towards the inputs must come round
    walk, seen = [min(stuck)], set[int]()
    while walk[-1] not in seen:
        seen.add(walk[-1])
        walk.append(min(needs[walk[-1]] & stuck))
    circle = [_label(nodes[index]) for index in walk[walk.index(walk[-1]) :][::-1]]
    if len(circle) > _SHOWN:
        circle = [*circle[: _SHOWN - 1], "...", circle[-1]]
    raise ModelError(f"the graph has a cycle: {' -> '.join(circle)}.", "No order can compute it; export the model again.")


def _label(node: NodeProto) -> str:
    return f"{node.op_type} '{node.name or next(iter(node.output), '')}'"
