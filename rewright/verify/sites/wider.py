"""A second look at a region that fails: together with what its values are made of, and with what they are read for.

A rewrite may rely on more than the region shows. Where ``v = ReduceMean(x)`` stands before it, the region can read both x and
v, and values that are chosen for each by itself contradict each other. And a pass may give a shape another spelling, [-1, 8] for
[batch, 8], whose reader makes the same of it. Such a region is right if it agrees once the maker, or the reader, is part of it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Final

from onnx import NodeProto

from rewright.model.regions import GraphIndex, Region, reads

_MOST_READERS: Final = 8


def followed(region: Region, names: Collection[str], before: GraphIndex, after: GraphIndex) -> Region | None:
    """The region with the readers of some of its outputs; None if one is the model's, or the readers make other values."""
    if any(name in before.outputs or name in after.outputs for name in names):
        return None
    old, new = _readers(names, region.removed, before), _readers(names, region.added, after)
    if old is None or new is None:
        return None
    made, made_after = ([name for node in nodes for name in node.output if name] for nodes in (old, new))
    if set(made) != set(made_after):
        return None
    outputs = dict.fromkeys((*(name for name in region.outputs if name not in names), *made))
    return replace(region, removed=(*region.removed, *old), added=(*region.added, *new), outputs=tuple(outputs))


def _readers(names: Collection[str], own: Collection[NodeProto], index: GraphIndex) -> list[NodeProto] | None:
    inside = {name for node in own for name in node.output}
    found = [node for node in index.nodes if not inside.intersection(node.output) and not set(names).isdisjoint(reads(node))]
    return found if len(found) <= _MOST_READERS else None
