"""A change that ONNX Runtime made at several places, cut into one part for each."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto

from rewright.model.regions import Region, reads

Part = tuple[list[NodeProto], list[NodeProto]]


def parts_of(region: Region) -> list[Part]:
    """The nodes of a region, those removed and those added, in one part for each node that gives what is used outside.

    A node goes to the first such node that needs it, so that what several of them share, such as a mask, does not make one
    change of them all. Linear in the nodes of the region.
    """
    ends = _ends(region)
    if len(ends) < 2:
        return [(list(region.removed), list(region.added))]
    kept = {name for names in ends for name in names}
    old, new = _shares(region.removed, ends, kept), _shares(region.added, ends, kept)
    return list(zip(old, new, strict=True))


def _ends(region: Region) -> list[set[str]]:
    """What the region gives, those values together that one node makes, before or after."""
    group: dict[str, set[str]] = {}
    makers = [{name: node for node in nodes for name in node.output if name} for nodes in (region.removed, region.added)]
    for name in region.outputs:
        together = {name}
        for side in makers:
            if name in side:
                together.update(filter(None, side[name].output))
        joined = together.union(*(group[other] for other in together if other in group))
        group.update(dict.fromkeys(joined, joined))
    return list({id(names): names for names in group.values()}.values())


def _shares(nodes: Sequence[NodeProto], ends: Sequence[set[str]], kept: set[str]) -> list[list[NodeProto]]:
    """What of ``nodes`` each end needs, up to the values of the other ends; what none needs goes to the first."""
    makers = {name: number for number, node in enumerate(nodes) for name in node.output if name}
    owner: dict[int, int] = {}
    for place, names in enumerate(ends):
        pending = [makers[name] for name in names if name in makers]
        while pending:
            number = pending.pop()
            if number in owner:
                continue
            owner[number] = place
            pending.extend(makers[name] for name in reads(nodes[number]) if name in makers and name not in kept)
    shares: list[list[NodeProto]] = [[] for _ in ends]
    for number, node in enumerate(nodes):
        shares[owner.get(number, 0)].append(node)
    return shares
