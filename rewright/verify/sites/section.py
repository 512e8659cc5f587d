"""A region as two small graphs over the same boundary values.

What both read can usually take any value: the rewrite claims that the outputs agree for all of them. What only one of the two
reads is another matter: a mask that was added to the scores, and the padding mask that it was made of, cannot be chosen
independently. So both graphs grow upstream until they read the same values; where they cannot, what is left is held at values
that occurred together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from onnx import NodeProto, TensorProto

from rewright.model.carrier import bodies
from rewright.model.elements import normal_domain
from rewright.model.regions import GraphIndex, Region, is_constant_node, reads
from rewright.verify.sites.ranges import MIXING, FreeValues, picks_weights

_MOST_NODES_ADDED: Final = 64
_MOST_NODES_SEARCHED: Final = 200
_MOST_NODES_CLOSED: Final = 16
_SIZE_OPS: Final = frozenset({"Shape", "Size"})
"""Their outputs follow from shapes, which boundary values keep: what they read need not be known."""

_HEAVY: Final = 2**20

_VALUE_BYTES: Final = 64
"""Constants up to this size count by value when sites are compared with each other; larger ones are weights."""


@dataclass
class Side:
    """One of the two graphs: nodes of the model before or after, in order.

    Attributes:
        index: the model that they are from.
        numbers: positions of the nodes in it.
        inputs: the values that they read and that are no constants.
        constants: the initializers that they read.
    """

    index: GraphIndex
    numbers: set[int]
    inputs: list[str] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)

    @property
    def nodes(self) -> list[NodeProto]:
        """The nodes, in the order of their model."""
        return [self.index.nodes[number] for number in sorted(self.numbers)]

    @property
    def makes(self) -> list[str]:
        """All values that the nodes make."""
        return [name for number in self.numbers for name in self.index.nodes[number].output]

    def add_maker(self, name: str) -> bool:
        """Takes in the node that makes a value; False if there is none."""
        number = self.index.producer.get(name)
        if number is None or number in self.numbers:
            return False
        self.numbers.add(number)
        return True

    def settle(self, outputs: Iterable[str]) -> None:
        """Finds out what the nodes read; Constant nodes count as part of the graph."""
        while True:
            made = {name for number in self.numbers for name in self.index.nodes[number].output}
            read = dict.fromkeys(name for number in sorted(self.numbers) for name in reads(self.index.nodes[number]))
            read.update(dict.fromkeys(outputs))
            outside = [name for name in read if name not in made]
            fixed = [name for name in outside if is_constant_node(self.index.node_of(name))]
            if not fixed:
                break
            self.numbers.update(self.index.producer[name] for name in fixed)
        self.constants = [name for name in outside if name in self.index.constants]
        self.inputs = [name for name in outside if name not in self.index.constants]


@dataclass
class Section:
    """A region, ready to be run.

    Attributes:
        region: what it was made of.
        old, new: the two graphs.
        outputs: the values that both make.
        free: inputs of both that can take any floating-point value.
        held: inputs that only one of the two reads and that could not be traced to what both read.
        key: equal for sections that differ in the values of their weights only.
    """

    region: Region
    old: Side
    new: Side
    outputs: tuple[str, ...]
    free: tuple[str, ...]
    held: tuple[str, ...]
    key: tuple[object, ...]

    @property
    def inputs(self) -> list[str]:
        """The boundary: what either graph reads."""
        return list(dict.fromkeys((*self.old.inputs, *self.new.inputs)))

    @property
    def is_heavy(self) -> bool:
        """Whether its weights are so many numbers that it runs on fewer sets."""
        return sum(math.prod(self.old.index.constants[name].dims) for name in self.old.constants) > _HEAVY


def make_section(
    region: Region, before: GraphIndex, after: GraphIndex, free_values: FreeValues, *, is_closed: bool = False
) -> Section:
    """Cuts a region out of both models; with ``is_closed``, what follows from other boundary values is made in the section."""
    old = Side(before, {before.producer[_first(node)] for node in region.removed if any(node.output)})
    new = Side(after, {after.producer[_first(node)] for node in region.added if any(node.output)})
    outputs = region.outputs
    old.settle(outputs)
    new.settle(outputs)
    own = set(old.inputs).intersection(new.inputs), set(old.numbers)
    own_size = len(old.numbers)
    held = _grow(old, new, outputs)
    while is_closed and len(old.numbers) < own_size + _MOST_NODES_CLOSED and _close(old, new, outputs):
        held = _grow(old, new, outputs)
    shared = [name for name in old.inputs if name in set(new.inputs)]
    bound = _upstream_of(held, (before, after))
    grown = {name for number in old.numbers - own[1] for name in before.nodes[number].output}
    grown.update(name for name in old.inputs if name not in own[0])
    free = tuple(
        name
        for name in shared
        if free_values.takes_any(name) and bound is not None and name not in bound and not _made_of(name, grown, before)
    )
    section = Section(region, old, new, outputs, free, tuple(held), ())
    section.key = _key(section)
    return section


def _first(node: NodeProto) -> str:
    return next(filter(None, node.output))


def _grow(old: Side, new: Side, outputs: tuple[str, ...]) -> list[str]:
    """Takes in makers of what only one side reads; returns what stays one-sided."""
    stuck: set[str] = set()
    for _ in range(_MOST_NODES_ADDED):
        first, second = set(old.inputs), set(new.inputs)
        ahead = [(old, name) for name in old.inputs if name not in second and name not in stuck]
        ahead += [(new, name) for name in new.inputs if name not in first and name not in stuck]
        if not ahead:
            break
        # The one made last: the others may be among what it is made of.
        side, name = max(ahead, key=lambda item: item[0].index.producer.get(item[1], -1) / max(len(item[0].index.nodes), 1))
        node = side.index.node_of(name)
        if node is None or (node.op_type in _SIZE_OPS and not node.domain) or not side.add_maker(name):
            stuck.add(name)
            continue
        side.settle(outputs)
    first, second = set(old.inputs), set(new.inputs)
    return [name for name in dict.fromkeys((*old.inputs, *new.inputs)) if (name in first) != (name in second)]


def _close(old: Side, new: Side, outputs: tuple[str, ...]) -> bool:
    """Takes in a node, the same in both models, that makes an input of nothing but what both parts read, make or hold."""
    boundary = {*old.inputs, *new.inputs}
    known = boundary.union(name for side in (old, new) for node in side.nodes for name in node.output)
    made = [name for name in boundary if _follows(name, known - {name}, old, new.index)]
    if not made:
        return False
    last = max(made, key=lambda name: old.index.producer[name])  # the others may be what it is made of
    old.add_maker(last)
    new.add_maker(last)
    old.settle(outputs)
    new.settle(outputs)
    return True


def _follows(name: str, others: set[str], old: Side, after: GraphIndex, steps: int = 4) -> bool:
    """Whether nodes that both models have make the value of the others.

    What a product gives is as good as independent of what it reads, unless the old part computes the same product.
    """
    node, same = old.index.node_of(name), after.node_of(name)
    if node is None or same is None or node.SerializeToString(deterministic=True) != same.SerializeToString(deterministic=True):
        return False
    if node.op_type in MIXING and not any(_alike(node, inner) for inner in old.nodes):
        return False
    index = old.index
    read = [value for value in reads(node) if value not in index.constants and not is_constant_node(index.node_of(value))]
    return bool(read) and all(value in others or (steps > 1 and _follows(value, others, old, after, steps - 1)) for value in read)


def _alike(first: NodeProto, second: NodeProto) -> bool:
    """Whether two nodes compute the same of the same values."""
    same = first.op_type == second.op_type and list(first.input) == list(second.input)
    return same and list(first.attribute) == list(second.attribute)


def _upstream_of(names: Iterable[str], models: tuple[GraphIndex, GraphIndex]) -> set[str] | None:
    """What some values are made of, sizes left out; None if that is more than is worth looking at."""
    found: set[str] = set()
    pending = list(names)
    searched = 0
    while pending:
        name = pending.pop()
        for index in models:
            node = index.node_of(name)
            if node is None or (node.op_type in _SIZE_OPS and not node.domain):
                continue
            searched += 1
            if searched > _MOST_NODES_SEARCHED:
                return None
            fresh = [read for read in reads(node) if read not in found]
            found.update(fresh)
            pending.extend(fresh)
    return found


def _made_of(name: str, values: set[str], index: GraphIndex) -> bool:
    """Whether a value follows from others, so that it cannot be chosen beside them.

    The search ends where weights, a normalisation or an attention mix values: a hidden state depends on the padding mask, but no
    rewrite can rely on how.
    """
    found = {name}
    pending = [name] if values else []
    for _ in range(_MOST_NODES_ADDED):
        if not pending:
            break
        node = index.node_of(pending.pop(0))
        if (
            node is None
            or node.op_type in MIXING
            or picks_weights(node, index)
            or (node.op_type in _SIZE_OPS and not node.domain)
        ):
            continue
        fresh = [read for read in reads(node) if read not in found and read not in index.constants]
        if any(read in values for read in fresh):
            return True
        found.update(fresh)
        pending.extend(fresh)
    return False


def _key(section: Section) -> tuple[object, ...]:
    numbers: dict[str, int] = {}

    def local(name: str, index: GraphIndex) -> object:
        tensor = index.constants.get(name)
        if tensor is not None:
            return _constant_key(tensor)
        return numbers.setdefault(name, len(numbers)) if name else None

    parts: list[object] = []
    for side in (section.old, section.new):
        for node in side.nodes:
            captured = [local(name, side.index) for name in reads(node)] if next(bodies(node), None) is not None else []
            parts.append(
                (
                    normal_domain(node.domain),
                    node.op_type,
                    tuple(sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)),
                    tuple(local(name, side.index) for name in node.input),
                    tuple(numbers.setdefault(name, len(numbers)) if name else None for name in node.output),
                    tuple(captured),
                )
            )
        parts.append(None)
    for names in (section.free, section.held, section.outputs, section.old.inputs, section.new.inputs):
        parts.append(tuple(local(name, section.old.index) for name in names))
    return tuple(parts)


def _constant_key(tensor: TensorProto) -> object:
    kind = (tensor.data_type, *tensor.dims)
    plain = TensorProto()
    plain.CopyFrom(tensor)
    plain.ClearField("name")
    if tensor.data_location != TensorProto.EXTERNAL and plain.ByteSize() <= _VALUE_BYTES:
        return kind, plain.SerializeToString(deterministic=True)
    return kind
