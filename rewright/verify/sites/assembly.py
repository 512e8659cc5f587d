"""Small models made of parts of a large one, whose weights they share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from rewright.model.carrier import Model, bodies
from rewright.model.elements import normal_domain
from rewright.model.regions import GraphIndex, changed_constants, changed_functions, reads
from rewright.verify.sites.section import Side

_FIRST_IR_WITH_PLAIN_INITIALIZERS = 4


@dataclass(frozen=True)
class ValueType:
    """Element type (``TensorProto.DataType``) and sizes of a boundary value; None where sizes or rank differ."""

    element: int
    sizes: tuple[int | None, ...] | None

    @classmethod
    def of(cls, arrays: Sequence[np.ndarray]) -> Self:
        """What several values of one name have in common."""
        dtype = arrays[0].dtype
        element = TensorProto.STRING if dtype.kind in "OUST" else int(helper.np_dtype_to_tensor_dtype(dtype))
        if len({array.ndim for array in arrays}) > 1:
            return cls(element, None)
        shapes = zip(*(array.shape for array in arrays), strict=True)
        return cls(element, tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in shapes))

    def declare(self, name: str) -> ValueInfoProto:
        """A graph input of that type."""
        return helper.make_tensor_value_info(name, self.element, self.sizes)


@dataclass(frozen=True)
class Part:
    """One side of a section inside an assembled model.

    Attributes:
        side: its nodes.
        outputs: the values that it makes for others.
        boundary: prefix of its inputs there, which the two sides of a section share.
        inner: prefix of all other values.
    """

    side: Side
    outputs: tuple[str, ...]
    boundary: str = ""
    inner: str = ""


@dataclass(frozen=True)
class Assembly:
    """Parts beside each other in one model; ``outputs`` has, for each part, its outputs' names there, in order."""

    model: Model
    parts: tuple[Part, ...]
    outputs: tuple[tuple[str, ...], ...]


def fit_together(before: GraphIndex, after: GraphIndex) -> bool:
    """Whether parts of both models can stand in one: the same opsets and functions, and no constant that has two values."""
    first, second = before.model.proto, after.model.proto
    versions = [sorted((normal_domain(entry.domain), entry.version) for entry in proto.opset_import) for proto in (first, second)]
    known = dict(versions[0])
    agree = all(known.get(domain, version) == version for domain, version in versions[1])
    return agree and not changed_functions(first, second) and not changed_constants(before, after)


def assemble(parts: Sequence[Part], types: Mapping[str, ValueType]) -> Assembly:
    """One model that holds all parts.

    Args:
        parts: sides of one model, or of two that ``fit_together``.
        types: what each boundary value is, by its name in the assembled model.
    """
    graph = GraphProto(name="sites")
    constants: dict[str, TensorProto] = {}
    inputs: dict[str, None] = {}
    outputs = []
    for part in parts:
        constants.update((name, part.side.index.constants[name]) for name in part.side.constants)
        names = {name: part.boundary + name for name in part.side.inputs} | {name: name for name in part.side.constants}
        inputs.update(dict.fromkeys(part.boundary + name for name in part.side.inputs))
        nodes = part.side.nodes
        graph.node.extend(renamed(node, part.inner, names) for node in nodes)
        made = {name for node in nodes for name in node.output}
        found = tuple(part.inner + name if name in made else f"{part.inner}{name}//given" for name in part.outputs)
        for name, target in zip(part.outputs, found, strict=True):
            if name not in made:  # folded into a constant, or the same as an input
                graph.node.append(helper.make_node("Identity", [names[name]], [target], name=target))
        outputs.append(found)
    graph.input.extend(types[name].declare(name) for name in inputs)
    graph.output.extend(ValueInfoProto(name=name) for names in outputs for name in names)
    graph.initializer.extend(constants.values())
    first, last = parts[0].side.index, parts[-1].side.index
    return Assembly(_model(last, graph, first), tuple(parts), tuple(outputs))


def renamed(node: NodeProto, prefix: str, names: Mapping[str, str]) -> NodeProto:
    """A copy of the node whose values have the given names, and the others the prefix; bodies that capture them follow."""
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name = prefix + node.name if node.name else ""
    for values in (copy.input, copy.output):
        for position, name in enumerate(values):
            if name:
                values[position] = names.get(name, prefix + name)
    if node.attribute and next(bodies(node), None) is not None:
        captured = {name: names.get(name, prefix + name) for name in reads(node)}
        for body in bodies(copy):
            _rename_captured(body, captured)
    return copy


def _rename_captured(body: GraphProto, names: Mapping[str, str]) -> None:
    own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
    own.update(name for node in body.node for name in node.output)
    names = {name: new for name, new in names.items() if name not in own}
    for node in body.node:
        for position, name in enumerate(node.input):
            if name in names:
                node.input[position] = names[name]
        for inner in bodies(node):
            _rename_captured(inner, names)
    for value in body.output:
        if value.name in names:
            # a body gives values of its own only
            body.node.append(helper.make_node("Identity", [names[value.name]], [value.name]))


def slice_to(index: GraphIndex, wanted: Iterable[str], given: Mapping[str, ValueType]) -> tuple[Model, list[str]]:
    """The part of a model that makes some values of others; returns it with the graph inputs that it still needs.

    Args:
        index: the model.
        wanted: values to make.
        given: values that are known, with their types; nothing above them is taken.
    """
    numbers: set[int] = set()
    needed, inputs = list(wanted), dict[str, None]()
    targets = list(needed)
    seen = set(needed)
    while needed:
        name = needed.pop()
        number = index.producer.get(name)
        if name in given:
            inputs[name] = None
        elif number is not None:
            if number not in numbers:
                numbers.add(number)
                fresh = [read for read in reads(index.nodes[number]) if read not in seen]
                seen.update(fresh)
                needed.extend(fresh)
        elif name not in index.constants:
            inputs[name] = None
    graph = GraphProto(name="slice")
    graph.node.extend(_without_outputs(index.nodes[number], inputs) for number in sorted(numbers))
    declared = {value.name: value for value in index.model.proto.graph.input}
    for name in inputs:
        graph.input.append(declared[name] if name in declared else given[name].declare(name))
    graph.initializer.extend(index.constants[name] for name in sorted(seen & index.constants.keys()) if name not in inputs)
    graph.output.extend(ValueInfoProto(name=name) for name in targets)
    return _model(index, graph), list(inputs)


def _without_outputs(node: NodeProto, given: Iterable[str]) -> NodeProto:
    """The node; where one of its outputs is given already, a copy that makes it under another name."""
    again = set(node.output).intersection(given)
    if not again:
        return node
    copy = NodeProto()
    copy.CopyFrom(node)
    for position, name in enumerate(node.output):
        if name in again:
            copy.output[position] = f"{name}//again"
    return copy


def _model(index: GraphIndex, graph: GraphProto, other: GraphIndex | None = None) -> Model:
    source = index.model.proto
    proto = ModelProto(ir_version=max(source.ir_version, _FIRST_IR_WITH_PLAIN_INITIALIZERS), graph=graph)
    proto.opset_import.extend(source.opset_import)
    if other is not None and other is not index:
        known = {normal_domain(entry.domain) for entry in source.opset_import}
        proto.opset_import.extend(entry for entry in other.model.proto.opset_import if normal_domain(entry.domain) not in known)
    proto.functions.extend(source.functions)
    return index.model.with_proto(proto)
