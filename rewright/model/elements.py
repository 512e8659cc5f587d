"""The objects of the editing view: onnx-graphsurgeon's own classes, with identity instead of deep equality.

graphsurgeon compares nodes by name, attributes and tensors, and tensors by name. Its lists then remove the wrong element, cost
O(fan-out) deep comparisons for each removal, and neither kind can be hashed. Here equality is identity, hashing works, and a
constant keeps its reference to the file until somebody assigns other values.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, NodeProto, TensorProto
from onnx_graphsurgeon.util.misc import SynchronizedList

from rewright.model.weights import WeightFiles


class WeightRef(gs.ir.tensor.LazyValues):  # type: ignore[misc]
    """The values of a tensor of the source model, read when they are asked for and never copied on export."""

    def __init__(self, tensor: TensorProto, files: WeightFiles) -> None:
        self.tensor = tensor
        self.shape = tuple(tensor.dims)
        self.dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        self._files = files

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return int(np.prod(self.shape, dtype=np.int64)) * int(self.dtype.itemsize)

    def load(self) -> np.ndarray[Any, Any]:
        """The values, read-only."""
        return self._files.array(self.tensor)


class Variable(gs.Variable):  # type: ignore[misc]
    """A value that is known at run time only. ``dtype`` and ``shape`` are facts: None where unknown."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def copy(self) -> Variable:
        """A tensor of the same name, dtype, shape and type without producers and consumers."""
        return Variable(self.name, self.dtype, self.shape, self.type)

    def to_constant(self, values: Any, export_dtype: Any = None) -> Any:
        """Makes this tensor a Constant in place."""
        super().to_constant(values, export_dtype=export_dtype)
        self._export_dtype = export_dtype
        self.__class__ = Constant
        return self


class Constant(gs.Constant):  # type: ignore[misc]
    """A value that is known. ``values`` reads it (read-only); assign an array to change it."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def values(self) -> np.ndarray[Any, Any]:
        """The array; a map of the weight file for large tensors."""
        held = self._values
        return held.load() if isinstance(held, gs.ir.tensor.LazyValues) else held

    @values.setter
    def values(self, values: np.ndarray[Any, Any]) -> None:
        self._values = values

    def to_variable(self, dtype: Any = None, shape: Any = ()) -> Any:
        """Makes this tensor a Variable in place."""
        super().to_variable(dtype, shape)
        self.type = "tensor_type"
        self.__class__ = Variable
        return self

    def copy(self) -> Constant:
        """A constant of the same name and values without consumers."""
        return Constant(self.name, self._values, self.data_location, self._export_dtype)


class Opaque:
    """An attribute that the view does not interpret (sparse tensors, types, lists of tensors): carried through unchanged."""

    def __init__(self, proto: AttributeProto) -> None:
        self.proto = proto


class Node(gs.Node):  # type: ignore[misc]
    """A node of the view. Attributes are decoded when they are first asked for."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    # Class-level defaults for nodes that graphsurgeon or a plugin constructs.
    proto: NodeProto | None = None
    metadata: dict[str, str] | None = None
    alive: bool = True
    _decoder: Any = None
    _pristine: dict[str, Any] | None = None

    @property
    def attrs(self) -> dict[str, Any]:
        """Attribute values by name: int, float, str, bytes, lists of those, Constant-like arrays, Graphs."""
        held: dict[str, Any] | None = self.__dict__.get("_attrs")
        if held is None:
            held = self._decoder(self) if self._decoder is not None else {}
            self.__dict__["_attrs"] = held
            self.__dict__["_pristine"] = {k: list(v) if isinstance(v, list) else v for k, v in held.items()}
        return held

    @attrs.setter
    def attrs(self, value: dict[str, Any]) -> None:
        self.__dict__["_attrs"] = value

    def attributes_changed(self) -> bool:
        """Whether the attributes differ from those of the source node."""
        held = self.__dict__.get("_attrs")
        if held is None:
            return False
        pristine = self._pristine
        if pristine is None or held.keys() != pristine.keys():
            return True
        return any(not _same(held[key], pristine[key]) for key in held)

    @property
    def domain_name(self) -> str:
        """The domain, with "" for the standard one however it was written."""
        return normal_domain(self.domain)


def _same(left: Any, right: Any) -> bool:
    if left is right:
        return True
    if isinstance(left, (int, float, str, bytes, list)):
        return type(left) is type(right) and bool(left == right)
    return False


def normal_domain(domain: str | None) -> str:
    """ "" for the standard domain, however it is spelled."""
    return "" if domain in (None, "", "ai.onnx") else str(domain)


def synchronized(parent: Any, field: str, items: Iterable[Any]) -> Any:
    """A graphsurgeon list that is already in step with its elements."""
    made = SynchronizedList.__new__(SynchronizedList)
    made.parent_obj = parent
    made.field_name = field
    list.extend(made, items)
    return made


def make_variable(name: str) -> Variable:
    """A Variable without facts, made without graphsurgeon's constructor, which costs more than the import can afford."""
    made = Variable.__new__(Variable)
    state = made.__dict__
    state["name"] = name
    state["dtype"] = state["shape"] = None
    state["type"] = "tensor_type"
    state["inputs"] = synchronized(made, "outputs", ())
    state["outputs"] = synchronized(made, "inputs", ())
    return made


def make_constant(name: str, values: Any) -> Constant:
    """A Constant without consumers."""
    made = Constant.__new__(Constant)
    state = made.__dict__
    state["name"] = name
    state["_values"] = values
    state["data_location"] = state["_export_dtype"] = None
    state["inputs"] = synchronized(made, "outputs", ())
    state["outputs"] = synchronized(made, "inputs", ())
    return made


def make_node(op: str, name: str, domain: str, inputs: list[Any], outputs: list[Any]) -> Node:
    """A node that is registered with its inputs and outputs."""
    made = Node.__new__(Node)
    state = made.__dict__
    state["op"] = op
    state["name"] = name
    state["domain"] = domain or None
    state["inputs"] = synchronized(made, "outputs", inputs)
    state["outputs"] = synchronized(made, "inputs", outputs)
    for tensor in inputs:
        list.append(tensor.outputs, made)
    for tensor in outputs:
        list.append(tensor.inputs, made)
    return made
