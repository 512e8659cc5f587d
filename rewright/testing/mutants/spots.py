"""A place where a fault can be put: one emitted node in a copy of a pass's result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from rewright.model.carrier import Model, all_graphs
from rewright.model.elements import normal_domain
from rewright.ops.contract import CONTRACTS

Array = np.ndarray[Any, Any]
Shape = tuple[int | str | None, ...]

_PLACEHOLDER: Final = ""


@dataclass
class Spot:
    """One node of ``model``, whose skeleton may be changed.

    Attributes:
        model: a copy of the result.
        graph: the graph or body that holds the node.
        node: the node.
        facts: shapes of values by name, as the model before the pass has them.
    """

    model: Model
    graph: GraphProto
    node: NodeProto
    facts: Mapping[str, Shape]

    @property
    def op(self) -> str:
        """ "Attention", or "com.microsoft::Attention"."""
        domain = normal_domain(self.node.domain)
        return f"{domain}::{self.node.op_type}" if domain else str(self.node.op_type)

    @cached_property
    def formal_inputs(self) -> tuple[str, ...]:
        """The names that the op's contract or schema gives its inputs."""
        return _formal_names(self, "inputs")

    @cached_property
    def optional_inputs(self) -> frozenset[str]:
        """Those of them that a node may leave out."""
        contract = CONTRACTS.get(f"{normal_domain(self.node.domain)}::{self.node.op_type}")
        if contract is not None:
            return frozenset(name.rstrip("?") for name in contract.inputs if name.endswith("?"))
        schema = _schema(self)
        optional = onnx.defs.OpSchema.FormalParameterOption.Optional
        return frozenset(item.name for item in schema.inputs if item.option == optional) if schema is not None else frozenset()

    def index(self, name: str) -> int | None:
        """Where the input stands, None if the node omits it or the op has no such input."""
        position = self.formal_inputs.index(name) if name in self.formal_inputs else len(self.node.input)
        return position if position < len(self.node.input) and self.node.input[position] else None

    def shape(self, name: str) -> Shape | None:
        """What is known of the shape of an input."""
        position = self.index(name)
        return None if position is None else self.facts.get(self.node.input[position])

    def constant(self, name: str) -> Array | None:
        """The numbers of an input that is an initializer."""
        position = self.index(name)
        tensor = None if position is None else self._initializers.get(self.node.input[position])
        return None if tensor is None else self.model.tensor(tensor)

    def attribute(self, name: str, default: Any = None) -> Any:
        """The node's attribute."""
        found = next((item for item in self.node.attribute if item.name == name), None)
        return default if found is None else helper.get_attribute_value(found)

    def set_attribute(self, name: str, value: Any) -> None:
        """Gives the node the attribute; takes it away if ``value`` is None."""
        kept = [item for item in self.node.attribute if item.name != name]
        del self.node.attribute[:]
        self.node.attribute.extend(kept)
        if value is not None:
            self.node.attribute.append(helper.make_attribute(name, value))

    def set_constant(self, name: str, array: Array) -> None:
        """Lets this node alone read other numbers."""
        position = self.index(name)
        assert position is not None
        fresh = f"{self.node.input[position]}/mutant/{self.node.name}/{position}"
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), fresh))
        self.node.input[position] = fresh

    def drop(self, name: str) -> None:
        """Leaves the input out."""
        position = self.index(name)
        assert position is not None
        self.node.input[position] = _PLACEHOLDER
        while self.node.input and not self.node.input[-1]:
            self.node.input.pop()

    def swap(self, first: str, second: str) -> None:
        """Exchanges two inputs."""
        one, other = self.index(first), self.index(second)
        assert one is not None
        assert other is not None
        self.node.input[one], self.node.input[other] = self.node.input[other], self.node.input[one]

    def become(self, op: str) -> None:
        """Lets the node be another op, "domain::Op"."""
        domain, _, name = op.rpartition("::")
        self.node.op_type, self.node.domain = name, domain
        if domain and all(entry.domain != domain for entry in self.model.proto.opset_import):
            self.model.proto.opset_import.append(helper.make_opsetid(domain, 1))

    def become_identity(self) -> None:
        """Lets the first input stand for the first output, as if the op had been left out."""
        first, result = self.node.input[0], self.node.output[0]
        self.node.CopyFrom(helper.make_node("Identity", [first], [result], self.node.name))

    @cached_property
    def opset(self) -> int:
        """The version of the standard domain."""
        return next((entry.version for entry in self.model.proto.opset_import if not normal_domain(entry.domain)), 1)

    @cached_property
    def _initializers(self) -> dict[str, TensorProto]:
        return {tensor.name: tensor for graph in all_graphs(self.model.proto) for tensor in graph.initializer}


def _schema(spot: Spot) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(spot.node.op_type, spot.opset, normal_domain(spot.node.domain))
    except onnx.defs.SchemaError:
        return None


def _formal_names(spot: Spot, which: str) -> tuple[str, ...]:
    contract = CONTRACTS.get(f"{normal_domain(spot.node.domain)}::{spot.node.op_type}")
    if contract is not None:
        return tuple(name.rstrip("?") for name in getattr(contract, which))
    schema = _schema(spot)
    return () if schema is None else tuple(item.name for item in getattr(schema, which))
