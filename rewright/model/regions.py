"""What a pass changed, cut into regions that can be checked, kept or undone one by one.

A region is a set of nodes of the model before a pass and the nodes that stand for them after it. It is found by comparing the two
models, whatever kind of pass made the change; what the pass says about its sites only decides which changes belong together.
A value that has the same name in both models has the same meaning, so that regions can be undone independently: ``mixture`` takes
some values from their old producers and all others from their new ones.

Only nodes of the main graph are told apart. A change inside a body belongs to the node of the main graph that holds it, and a
change inside a function to the nodes that call it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from rewright.model.carrier import Model, bodies
from rewright.model.elements import normal_domain


@dataclass(frozen=True)
class ClaimedSite:
    """What a pass says belongs together: names of nodes, or of values that they make, before and after."""

    id: str
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Region:
    """Nodes of the main graph before a pass, and what stands for them after it.

    Attributes:
        sites: the ids of the pass's sites that it covers; empty where the pass named none.
        removed: nodes of the model before, in order, that are gone or changed.
        added: nodes of the model after, in order, that are new or changed.
        outputs: the values made in it that something outside uses, before and after, or that the graph gives.
    """

    sites: tuple[str, ...]
    removed: tuple[NodeProto, ...]
    added: tuple[NodeProto, ...]
    outputs: tuple[str, ...]

    @property
    def label(self) -> str:
        """How messages call it."""
        if self.sites:
            return self.sites[0] if len(self.sites) == 1 else f"{self.sites[0]} and {len(self.sites) - 1} more"
        nodes = self.removed or self.added
        return f"the change at {nodes[0].name or next(iter(nodes[0].output), nodes[0].op_type)}"


class GraphIndex:
    """Who makes and who reads the values of a model's main graph."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.nodes: Sequence[NodeProto] = model.proto.graph.node
        self.producer: dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            for name in node.output:
                if name:
                    self.producer[name] = index
        self.constants: dict[str, TensorProto] = {tensor.name: tensor for tensor in model.proto.graph.initializer}
        self.inputs = {value.name for value in model.proto.graph.input}
        self.outputs = [value.name for value in model.proto.graph.output]

    def node_of(self, name: str) -> NodeProto | None:
        """The node that makes a value, or None for inputs and constants."""
        index = self.producer.get(name)
        return None if index is None else self.nodes[index]

    def knows(self, name: str) -> bool:
        """Whether the main graph has a value of that name."""
        return name in self.producer or name in self.constants or name in self.inputs


def is_constant_node(node: NodeProto | None) -> bool:
    """Whether it is a Constant, which is as good as an initializer."""
    return node is not None and node.op_type == "Constant" and not normal_domain(node.domain)


def reads(node: NodeProto) -> list[str]:
    """The values of the surrounding graph that a node needs, those that its bodies capture included, each once."""
    names = dict.fromkeys(name for name in node.input if name)
    if node.attribute:
        for body in bodies(node):
            names.update(dict.fromkeys(_captures(body)))
    return list(names)


def _captures(body: GraphProto) -> Iterator[str]:
    own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
    own.update(tensor.values.name for tensor in body.sparse_initializer)
    for node in body.node:
        for name in reads(node):
            if name not in own:
                yield name
        own.update(node.output)
    yield from (value.name for value in body.output if value.name not in own)


def regions(before: GraphIndex, after: GraphIndex, sites: Iterable[ClaimedSite] = ()) -> list[Region]:
    """The regions of a change, in the order of the model before; linear in the nodes of both models."""
    return _Comparison(before, after).regions(sites)


def leaving_gaps(found: Iterable[Region], after: GraphIndex) -> dict[int, str]:
    """By region (its ``id``): the value that it took away, or reads, that is needed after the change and that nothing makes."""
    missing = {name for node in after.nodes for name in reads(node) if not after.knows(name)}
    missing.update(name for name in after.outputs if not after.knows(name))
    gaps: dict[int, str] = {}
    for region in found if missing else ():
        taken = [name for node in region.removed for name in node.output if name in missing]
        taken += [name for node in region.added for name in reads(node) if name in missing]
        if taken:
            gaps[id(region)] = taken[0]
    return gaps


class _Comparison:
    def __init__(self, before: GraphIndex, after: GraphIndex) -> None:
        self.before, self.after = before, after
        changed_calls = changed_functions(before.model.proto, after.model.proto)
        altered = changed_constants(before, after)

        def is_touched(node: NodeProto) -> bool:
            if changed_calls and (normal_domain(node.domain), node.op_type) in changed_calls:
                return True
            return bool(altered) and any(name in altered for name in reads(node))

        kept_before, kept_after = _unchanged(before, after, is_touched)
        self.removed = [index for index in range(len(before.nodes)) if index not in kept_before]
        self.added = [index for index in range(len(after.nodes)) if index not in kept_after]
        # Changed nodes are numbered: those of before first.
        self._parent = list(range(len(self.removed) + len(self.added)))
        self._claims: dict[int, list[str]] = {}

    def _node(self, number: int) -> NodeProto:
        if number < len(self.removed):
            return self.before.nodes[self.removed[number]]
        return self.after.nodes[self.added[number - len(self.removed)]]

    def _root(self, number: int) -> int:
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number

    def _join(self, one: int, other: int) -> None:
        first, second = sorted((self._root(one), self._root(other)))
        self._parent[second] = first

    def regions(self, sites: Iterable[ClaimedSite]) -> list[Region]:
        count = len(self._parent)
        makers: dict[str, list[int]] = {}
        for number in range(count):
            for name in self._node(number).output:
                if name:
                    makers.setdefault(name, []).append(number)
        for numbers in makers.values():
            for number in numbers[1:]:
                self._join(numbers[0], number)
        claimed = self._join_claimed(sites, makers)
        self._join_unclaimed(claimed, makers)
        return self._collect()

    def _join_claimed(self, sites: Iterable[ClaimedSite], makers: dict[str, list[int]]) -> set[int]:
        names: dict[str, list[int]] = dict(makers)
        for number in range(len(self._parent)):
            name = self._node(number).name
            if name and name not in makers:
                names.setdefault(name, []).append(number)
        inner = self._names_inside()
        claimed: set[int] = set()
        for site in sites:
            numbers = [number for name in site.names for number in names.get(name, inner.get(name, []))]
            for number in numbers:
                self._join(numbers[0], number)
            if numbers:
                self._claims.setdefault(numbers[0], []).append(site.id)
            claimed.update(numbers)
        roots = {self._root(number) for number in claimed}
        return {number for number in range(len(self._parent)) if self._root(number) in roots}

    def _names_inside(self) -> dict[str, list[int]]:
        """Nodes in the bodies of changed nodes, by name and by what they make."""
        found: dict[str, list[int]] = {}
        for number in range(len(self._parent)):
            pending = list(bodies(self._node(number))) if self._node(number).attribute else []
            while pending:
                for node in pending.pop().node:
                    for name in (node.name, *node.output):
                        if name:
                            found.setdefault(name, []).append(number)
                    pending.extend(bodies(node))
        return found

    def _join_unclaimed(self, claimed: set[int], makers: dict[str, list[int]]) -> None:
        """What no site mentions goes with the change that it is connected to by a value that only one of the models has."""
        for number in range(len(self._parent)):
            is_old = number < len(self.removed)
            other = self.after if is_old else self.before
            for name in reads(self._node(number)):
                for maker in makers.get(name, ()):
                    same_side = (maker < len(self.removed)) == is_old
                    if same_side and name not in other.producer and not (number in claimed and maker in claimed):
                        self._join(number, maker)

    def _collect(self) -> list[Region]:
        members: dict[int, list[int]] = {}
        for number in range(len(self._parent)):
            members.setdefault(self._root(number), []).append(number)
        claims: dict[int, list[str]] = {}
        for number, ids in self._claims.items():
            claims.setdefault(self._root(number), []).extend(ids)
        used = _Users(self.before, self.after)
        made = []
        for root, numbers in members.items():
            old = [self._node(number) for number in numbers if number < len(self.removed)]
            new = [self._node(number) for number in numbers if number >= len(self.removed)]
            outputs = tuple(name for name in used.outside(old, new) if self.after.knows(name))
            made.append(Region(tuple(claims.get(root, ())), tuple(old), tuple(new), outputs))
        return made


class _Users:
    """Which values something outside a region uses; indexed once for all regions."""

    def __init__(self, before: GraphIndex, after: GraphIndex) -> None:
        self._graph_outputs = {*before.outputs, *after.outputs}
        self._all = _reader_counts(before.nodes), _reader_counts(after.nodes)

    def outside(self, old: Sequence[NodeProto], new: Sequence[NodeProto]) -> list[str]:
        """The values that the old nodes make and that the graph gives, or other nodes than these read."""
        own = _reader_counts(old), _reader_counts(new)
        return [
            name
            for node in old
            for name in node.output
            if name
            and (
                name in self._graph_outputs
                or any(everywhere[name] > inside[name] for everywhere, inside in zip(self._all, own, strict=True))
            )
        ]


def _reader_counts(nodes: Iterable[NodeProto]) -> Counter[str]:
    return Counter(name for node in nodes for name in reads(node))


def _unchanged(before: GraphIndex, after: GraphIndex, is_touched: Callable[[NodeProto], bool]) -> tuple[set[int], set[int]]:
    """The nodes that both models have: the same op, attributes, inputs and outputs; names and metadata do not count."""
    kept_before, kept_after = set(), set()
    for index, node in enumerate(after.nodes):
        if not any(node.output):
            continue
        position = before.producer.get(next(filter(None, node.output)))
        if position is None:
            continue
        old = before.nodes[position]
        if old.op_type != node.op_type or old.input != node.input or old.output != node.output:
            continue
        if normal_domain(old.domain) != normal_domain(node.domain) or is_touched(node):
            continue
        if len(old.attribute) != len(node.attribute) or (node.attribute and _attributes(old) != _attributes(node)):
            continue
        kept_before.add(position)
        kept_after.add(index)
    return kept_before, kept_after


def _attributes(node: NodeProto) -> list[bytes]:
    return sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)


def changed_constants(before: GraphIndex, after: GraphIndex) -> set[str]:
    """Initializers of one name and two values; those that are the same slice of a file are not read."""
    return {
        name
        for name, tensor in after.constants.items()
        if name in before.constants and not _is_same_tensor(before, before.constants[name], after, tensor)
    }


def _is_same_tensor(before: GraphIndex, old: TensorProto, after: GraphIndex, new: TensorProto) -> bool:
    if old.data_type != new.data_type or old.dims != new.dims:
        return False
    if old.SerializeToString(deterministic=True) == new.SerializeToString(deterministic=True):
        return True
    first, second = before.model.tensor(old), after.model.tensor(new)
    return first.tobytes() == second.tobytes() if first.dtype != object else bool(np.array_equal(first, second))


def changed_functions(before: ModelProto, after: ModelProto) -> set[tuple[str, str]]:
    """The functions that only one of the models has, that differ, or that call such a function."""
    old, new = functions_of(before), functions_of(after)
    changed = {
        key
        for key in old.keys() | new.keys()
        if key not in old
        or key not in new
        or old[key].SerializeToString(deterministic=True) != new[key].SerializeToString(deterministic=True)
    }
    grown = bool(changed)
    while grown:
        callers = {
            key
            for functions in (old, new)
            for key, function in functions.items()
            if key not in changed and any((normal_domain(node.domain), node.op_type) in changed for node in function.node)
        }
        changed |= callers
        grown = bool(callers)
    return changed


def functions_of(proto: ModelProto) -> dict[tuple[str, str], FunctionProto]:
    return {(normal_domain(function.domain), function.name): function for function in proto.functions}
