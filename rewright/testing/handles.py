"""The values and nodes that a GraphBuilder holds until it writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TypeProto, ValueInfoProto, helper, numpy_helper

if TYPE_CHECKING:
    from rewright.testing.builder import GraphBuilder


class Value:
    """A value of a graph that is being built; ``+ - * / @ **`` and ``-x`` add nodes.

    Attributes:
        builder: the graph that holds it.
        name: what it is going to be called.
        type: what is known of it.
        is_stated: whether its maker said the type, rather than inference.
    """

    def __init__(self, builder: GraphBuilder, name: str, type_: TypeProto | None) -> None:
        self.builder, self.name, self.type, self.is_stated = builder, name, type_, False

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element type; float32 as long as it is not known."""
        elem_type = self.type.tensor_type.elem_type if self.type is not None else 0
        return np.dtype(helper.tensor_dtype_to_np_dtype(elem_type)) if elem_type else np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int | str | None, ...] | None:
        """Sizes, symbols, and None where a dimension is not known; None if the rank is not."""
        if self.type is None or not self.type.tensor_type.HasField("shape"):
            return None
        dims = self.type.tensor_type.shape.dim
        return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in dims)

    def info(self) -> ValueInfoProto:
        """The value as an input or output of its graph."""
        info = ValueInfoProto(name=self.name)
        if self.type is not None:
            info.type.CopyFrom(self.type)
        return info

    def __repr__(self) -> str:
        return f"<{self.name}: {self.dtype}{list(self.shape) if self.shape is not None else ''}>"

    def __add__(self, other: Any) -> Value:
        return self._with("Add", self, other)

    def __radd__(self, other: Any) -> Value:
        return self._with("Add", other, self)

    def __sub__(self, other: Any) -> Value:
        return self._with("Sub", self, other)

    def __rsub__(self, other: Any) -> Value:
        return self._with("Sub", other, self)

    def __mul__(self, other: Any) -> Value:
        return self._with("Mul", self, other)

    def __rmul__(self, other: Any) -> Value:
        return self._with("Mul", other, self)

    def __truediv__(self, other: Any) -> Value:
        return self._with("Div", self, other)

    def __rtruediv__(self, other: Any) -> Value:
        return self._with("Div", other, self)

    def __matmul__(self, other: Any) -> Value:
        return self._with("MatMul", self, other)

    def __rmatmul__(self, other: Any) -> Value:
        return self._with("MatMul", other, self)

    def __pow__(self, other: Any) -> Value:
        return self._with("Pow", self, other)

    def __neg__(self) -> Value:
        return self._with("Neg", self)

    __array_ufunc__ = None  # numpy arrays on the left leave the operation to this class

    def _with(self, op: str, *operands: Any) -> Value:
        """The node goes where its operands are all seen: into the innermost body among theirs."""
        builders = [operand.builder for operand in operands if isinstance(operand, Value)]
        made: Value = max(builders, key=lambda builder: builder.depth).op(op, *operands)
        return made


@dataclass
class Node:
    """A node that is being built; names and bodies are written when the graph is."""

    op: str
    domain: str
    name: str
    inputs: list[Value | None]
    outputs: list[Value]
    attributes: dict[str, Any]
    schema: onnx.defs.OpSchema | None

    def proto(self) -> NodeProto:
        """The node as it is now."""
        proto = NodeProto(op_type=self.op, domain=self.domain, name=self.name)
        proto.input.extend(value.name if value is not None else "" for value in self.inputs)
        proto.output.extend(value.name for value in self.outputs)
        proto.attribute.extend(self._attribute(key, value) for key, value in self.attributes.items() if value is not None)
        return proto

    def reads(self) -> list[Value]:
        """The node's inputs, and what its bodies capture."""
        captured = [value for body in self.attributes.values() if hasattr(body, "captures") for value in body.captures().values()]
        return [value for value in self.inputs if value is not None] + captured

    def _attribute(self, key: str, value: Any) -> AttributeProto:
        if hasattr(value, "captures"):
            value = value.graph()
        elif isinstance(value, (np.ndarray, np.generic)):
            value = numpy_helper.from_array(np.asarray(value))
        elif key == "to" and not isinstance(value, int):
            value = helper.np_dtype_to_tensor_dtype(np.dtype(value))
        declared = self.schema.attributes.get(key) if self.schema is not None else None
        if declared is not None and declared.type == onnx.defs.OpSchema.AttrType.FLOAT:
            value = float(value)  # 1 is a float here, and helper would make an integer of it
        attr_type = int(cast(Any, declared.type).value) if declared is not None else None
        return helper.make_attribute(key, value, attr_type=attr_type)
