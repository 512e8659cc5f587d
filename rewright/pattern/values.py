"""What ``check`` and ``rewrite`` get to see: values and nodes with their facts, read-only."""

from __future__ import annotations

from typing import Any

import numpy as np

from rewright.model import facts
from rewright.model.edit import domain_of


class Value:
    """A value of the graph and what is known about it. Unknown facts are None."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Value) and other.tensor is self.tensor

    def __hash__(self) -> int:
        return id(self.tensor)

    def __repr__(self) -> str:
        return f"Value({self.name!r}, dtype={self.dtype}, shape={self.shape})"

    @property
    def name(self) -> str:
        """The value's name in the graph."""
        return str(self.tensor.name)

    @property
    def is_constant(self) -> bool:
        """Whether the value is an initializer or a Constant node's output."""
        return facts.is_constant(self.tensor)

    @property
    def value(self) -> np.ndarray[Any, Any] | None:
        """The constant's array (read-only), or None."""
        return facts.constant_of(self.tensor)

    @property
    def scalar(self) -> float | None:
        """The only element of a one-element constant, or None."""
        if not facts.is_constant(self.tensor) or not facts.is_small_constant(self.tensor, 1):
            return None
        found = self.value
        return float(found.reshape(-1)[0]) if found is not None and found.size == 1 and found.dtype != object else None

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The element type."""
        found = facts.dtype_of(self.tensor)
        value = self.value if found is None else None
        return found if value is None else np.dtype(value.dtype)

    @property
    def shape(self) -> tuple[facts.Dim, ...] | None:
        """Dimensions as int, symbol or None."""
        found = facts.shape_of(self.tensor)
        value = self.value if found is None else None
        return found if value is None else tuple(value.shape)

    @property
    def rank(self) -> int | None:
        """The number of dimensions."""
        shape = self.shape
        return None if shape is None else len(shape)

    def dim(self, axis: int) -> facts.Dim:
        """The dimension at ``axis`` (negative from the end), or None."""
        shape = self.shape
        return shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None

    def same_shape(self, other: Value) -> bool:
        """Whether both shapes are wholly known (ints or equal symbols) and equal."""
        left, right = self.shape, other.shape
        return left is not None and left == right and None not in left

    @property
    def producer(self) -> NodeRef | None:
        """The node that computes the value."""
        node = facts.producer(self.tensor)
        return None if node is None else NodeRef(node)


class NodeRef:
    """A node of the graph, read-only."""

    __slots__ = ("node",)

    def __init__(self, node: Any) -> None:
        self.node = node

    def __repr__(self) -> str:
        return f"NodeRef({self.op} {self.name!r})"

    @property
    def op(self) -> str:
        """The op type."""
        return str(self.node.op)

    @property
    def domain(self) -> str:
        """The domain, "" for the standard one."""
        return domain_of(self.node)

    @property
    def name(self) -> str:
        """The node's name."""
        return str(self.node.name)

    @property
    def inputs(self) -> list[Value]:
        """The inputs; an omitted one has the name ""."""
        return [Value(tensor) for tensor in self.node.inputs]

    @property
    def outputs(self) -> list[Value]:
        """The outputs."""
        return [Value(tensor) for tensor in self.node.outputs]

    def input(self, index: int) -> Value | None:
        """Input ``index``, or None if it is omitted."""
        inputs = self.node.inputs
        return Value(inputs[index]) if index < len(inputs) and inputs[index].name else None

    def attribute(self, name: str, default: Any = None) -> Any:
        """The attribute, or ``default``, which must be the specification's."""
        return facts.attribute(self.node, name, default)

    def ints(self, name: str, index: int) -> list[int] | None:
        """Integers given as the attribute ``name`` or, in later opsets, as constant input ``index``; None if absent or unknown.

        ``absent`` tells the two apart.
        """
        found = self.attribute(name)
        if isinstance(found, (list, tuple)):
            return [int(item) for item in found]
        value = self.input(index)
        if value is None or not value.is_constant:
            return None
        array = value.value
        return None if array is None else [int(item) for item in array.reshape(-1)]

    def absent(self, name: str, index: int) -> bool:
        """Whether neither the attribute nor the input is there."""
        return self.attribute(name) is None and self.input(index) is None
