"""Parts of a model as models of their own: what they read becomes inputs, what others read of them becomes outputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from rewright.model import facts
from rewright.model.carrier import Model, bodies
from rewright.model.elements import normal_domain
from rewright.model.regions import GraphIndex, is_constant_node, reads
from rewright.model.view import MADE_UP_SYMBOL
from rewright.passes.contract import Pass
from rewright.passes.session import PassSession

Numbers = frozenset[int]
Fact = tuple[np.dtype, tuple[facts.Dim, ...] | None]

_FIRST_IR_WITH_PLAIN_INITIALIZERS = 4


class Cutter:
    """Cuts sets of nodes, given by their numbers, out of a model's main graph. Weights stay where they lie.

    Attributes:
        index: who makes and who reads the values of the model.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.index = GraphIndex(model)
        self._users: dict[str, list[int]] = {}
        for number, node in enumerate(self.index.nodes):
            for name in reads(node):
                self._users.setdefault(name, []).append(number)

    def named(self, names: Iterable[str]) -> Numbers:
        """The nodes of these names, or that make values of these names; nodes in bodies count as the node that holds them."""
        wanted = set(names)
        return frozenset(
            number
            for number, node in enumerate(self.index.nodes)
            if node.name in wanted or not wanted.isdisjoint(node.output) or _holds(node, wanted)
        )

    def around(self, numbers: Numbers, hops: int) -> Numbers:
        """The nodes, and those that are at most ``hops`` steps before or after them."""
        found, edge = set(numbers), set(numbers)
        for _ in range(hops):
            edge = {next_one for number in edge for next_one in self._next_to(number)} - found
            if not edge:
                break
            found |= edge
        return frozenset(found)

    def _next_to(self, number: int) -> Iterable[int]:
        node = self.index.nodes[number]
        for name in reads(node):
            if name in self.index.producer:
                yield self.index.producer[name]
        for name in node.output:
            yield from self._users.get(name, ())

    def boundary(self, numbers: Numbers) -> tuple[list[str], list[str]]:
        """What the nodes read from outside, constants left out, and what is read of them there or given by the model."""
        numbers = self._with_constants(numbers)
        made = {name for number in numbers for name in self.index.nodes[number].output if name}
        read = dict.fromkeys(name for number in sorted(numbers) for name in reads(self.index.nodes[number]))
        given = set(self.index.outputs)
        outputs = [
            name
            for number in sorted(numbers)
            for name in self.index.nodes[number].output
            if name and (name in given or any(user not in numbers for user in self._users.get(name, ())))
        ]
        return [name for name in read if name not in made and name not in self.index.constants], outputs

    def part(self, numbers: Numbers, arrays: Mapping[str, np.ndarray]) -> Model | None:
        """The nodes as a model; None where a value's type is not known, or where nothing outside would read the result.

        Args:
            numbers: the nodes; Constant nodes that they read are taken along.
            arrays: values of the model, which tell types that inference does not.
        """
        inputs, outputs = self.boundary(numbers)
        declared = [self._declaration(name, arrays) for name in (*inputs, *outputs)]
        kept = [value for value in declared if value is not None]
        if not outputs or len(kept) < len(declared):
            return None
        nodes = [self.index.nodes[number] for number in sorted(self._with_constants(numbers))]
        graph = GraphProto(name="reduced", node=nodes, input=kept[: len(inputs)], output=kept[len(inputs) :])
        read = dict.fromkeys(name for node in nodes for name in reads(node))
        source = self.model.proto
        # what a caller may override stays an input
        graph.input.extend(value for value in source.graph.input if value.name in read and value.name in self.index.constants)
        graph.initializer.extend(self.index.constants[name] for name in read if name in self.index.constants)
        graph.sparse_initializer.extend(tensor for tensor in source.graph.sparse_initializer if tensor.values.name in read)
        inner = {name for node in nodes for name in node.output} - set(outputs)
        graph.value_info.extend(value for value in source.graph.value_info if value.name in inner)
        proto = ModelProto(ir_version=max(source.ir_version, _FIRST_IR_WITH_PLAIN_INITIALIZERS), graph=graph)
        proto.opset_import.extend(source.opset_import)
        called = {(normal_domain(node.domain), node.op_type) for node in nodes}
        if any((normal_domain(function.domain), function.name) in called for function in source.functions):
            proto.functions.extend(source.functions)  # one may call another
        return self.model.with_proto(proto)

    def _with_constants(self, numbers: Numbers) -> Numbers:
        read = {name for number in numbers for name in reads(self.index.nodes[number])}
        makers = {self.index.producer[name] for name in read if name in self.index.producer}
        return numbers | {number for number in makers if is_constant_node(self.index.nodes[number])}

    def _declaration(self, name: str, arrays: Mapping[str, np.ndarray]) -> ValueInfoProto | None:
        if name in self._interface:
            return self._interface[name]
        dtype, shape = self._facts.get(name, (None, None))
        array = arrays.get(name)
        if dtype is not None:
            kind = int(helper.np_dtype_to_tensor_dtype(dtype))
        elif array is not None:
            kind = TensorProto.STRING if array.dtype.kind in "OUST" else int(helper.np_dtype_to_tensor_dtype(array.dtype))
        else:
            return None
        if shape is None and array is not None:
            shape = tuple(f"{name}_{axis}" for axis in range(array.ndim))
        return helper.make_tensor_value_info(name, kind, None if shape is None else [_plain(dim) for dim in shape])

    @cached_property
    def _interface(self) -> dict[str, ValueInfoProto]:
        graph = self.model.proto.graph
        return {value.name: value for value in (*graph.output, *graph.input)}

    @cached_property
    def _facts(self) -> dict[str, Fact]:
        """Element types and symbolic shapes, as a pass would see them."""
        session = PassSession(Pass(), self.model)
        session.ensure_facts()
        found: dict[str, Fact] = {}
        for node in session.view.graph.nodes:
            for tensor in node.outputs:
                dtype = facts.dtype_of(tensor)
                if tensor.name and dtype is not None:
                    found[tensor.name] = dtype, facts.shape_of(tensor)
        return found


def _plain(dim: facts.Dim) -> facts.Dim:
    """The dimension without the mark of names that inference made up, which would be forgotten again."""
    return dim.replace(MADE_UP_SYMBOL, "size_") if isinstance(dim, str) else dim


def _holds(node: NodeProto, wanted: Collection[str]) -> bool:
    """Whether a body of the node has a node of one of these names, or that makes a value of one."""
    pending = list(bodies(node)) if node.attribute else []
    while pending:
        for inner in pending.pop().node:
            if inner.name in wanted or any(name in wanted for name in inner.output):
                return True
            pending.extend(bodies(inner))
    return False
