"""The objects of the editing view: onnx-graphsurgeon's own classes, with identity instead of deep equality.

graphsurgeon compares nodes by name, attributes and tensors, and tensors by name. Its lists then remove the wrong element, cost
O(fan-out) deep comparisons for each removal, and neither kind can be hashed. Here equality is identity, hashing works, and a
constant keeps its reference to the file until somebody assigns other values.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, NodeProto, TensorProto
from onnx_graphsurgeon.util.misc import SynchronizedList

from rewright.model.errors import ModelError
from rewright.model.weights import Slice, WeightFiles, is_stub, slice_of

_MOST_ELEMENTS_KEPT = 1024


class Links(SynchronizedList):  # type: ignore[misc]
    """A graphsurgeon list that finds its counterparts by identity and from both ends.

    graphsurgeon's own searches with deep equality from the front: killing the consumers of a shared constant in reverse
    order then costs the square of their number.
    """

    def _remove_from_elem(self, elem: Any) -> None:
        drop(getattr(elem, self.field_name), self.parent_obj)

    def remove(self, item: Any) -> None:
        """Removes one occurrence of ``item``, here and on the other side."""
        drop(self, item)
        self._remove_from_elem(item)


def drop(items: Any, wanted: Any) -> None:
    """Removes one occurrence of ``wanted`` from a graphsurgeon list, by identity, without touching the other side.

    Searches from both ends at once, so that removals in either order of the list cost O(1).
    """
    last = len(items) - 1
    for index in range(last // 2 + 1):
        if items[last - index] is wanted:
            list.pop(items, last - index)
            return
        if items[index] is wanted:
            list.pop(items, index)
            return


class _Identity:
    """Equality is identity, and copies are refused where they would tear a graph apart."""

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be deep-copied alone; copy the graph with graph.copy().")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be pickled; pass the model's serialized proto instead.")


class WeightRef(gs.ir.tensor.LazyValues):  # type: ignore[misc]
    """The values of a tensor of the source model, read when they are asked for and never copied on export."""

    def __init__(self, tensor: TensorProto, files: WeightFiles) -> None:
        self.tensor = tensor
        self.shape = tuple(tensor.dims)
        try:
            self.dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        except KeyError:
            raise ModelError(
                f"tensor '{tensor.name}' has the data type {tensor.data_type}, which onnx {onnx.__version__} does not know.",
                "Install a newer onnx, or export the model again.",
            ) from None
        self._files = files
        self._small: np.ndarray[Any, Any] | None = None
        self._place: Slice | None = None

    @property
    def place(self) -> Slice | None:
        """Where the bytes lie, or None if they are inline."""
        if self._place is None and is_stub(self.tensor):
            self._place = slice_of(self.tensor)
        return self._place

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * int(self.dtype.itemsize)

    def load(self) -> np.ndarray[Any, Any]:
        """The values, read-only."""
        if self._small is not None:
            return self._small
        values = self._files.array(self.tensor)
        if values.size <= _MOST_ELEMENTS_KEPT and not is_stub(self.tensor):
            self._small = values
        return values


class Variable(_Identity, gs.Variable):  # type: ignore[misc]
    """A value that is known at run time only. ``dtype`` and ``shape`` are facts: None where unknown."""

    def copy(self) -> Variable:
        """A tensor of the same name, dtype, shape and type without producers and consumers."""
        made = make_variable(self.name)
        made.dtype, made.shape, made.type = self.dtype, copy.copy(self.shape), self.type
        return made

    def to_constant(self, values: Any, export_dtype: Any = None) -> Any:
        """Makes this tensor a Constant in place."""
        state = self.__dict__
        del state["dtype"], state["shape"]
        state.update(_values=values, data_location=None, _export_dtype=export_dtype)
        self.__class__ = Constant
        return self


class Constant(_Identity, gs.Constant):  # type: ignore[misc]
    """A value that is known. ``values`` reads it (read-only); assign an array to change it."""

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
        made = make_constant(self.name, self._values)
        made.data_location, made._export_dtype = self.data_location, self._export_dtype
        return made


class Opaque:
    """An attribute that the view does not interpret (sparse tensors, types, lists of tensors): carried through unchanged."""

    def __init__(self, proto: AttributeProto) -> None:
        self.proto = proto


class Node(_Identity, gs.Node):  # type: ignore[misc]
    """A node of the view. Attributes are decoded when they are first asked for."""

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
        return any(not same_attribute(held[key], pristine[key]) for key in held)

    def subgraphs(self, recursive: bool = False) -> Iterator[Any]:
        """The graphs in the node's attributes, lists of graphs included, and with ``recursive`` the bodies below them."""
        pending: list[Any] = [self]
        while pending:
            for value in pending.pop().attrs.values():
                for graph in value if isinstance(value, list) else (value,):
                    if isinstance(graph, gs.Graph):
                        yield graph
                        if recursive:
                            pending.extend(graph.nodes)

    def copy(self, inputs: Any = None, outputs: Any = None, tensor_map: Any = None) -> Node:
        """The same op with other inputs and outputs; bodies are copied, weights are shared, metadata stays."""
        made = make_node(self.op, self.name, self.domain or "", list(inputs or ()), list(outputs or ()))
        made.__dict__["domain"] = self.domain
        made.proto, made.metadata, made._decoder = self.proto, self.metadata, self._decoder
        if (held := self.__dict__.get("_attrs")) is None:
            del made.__dict__["_attrs"]  # not decoded yet, so the copy decodes when it is asked
            return made
        pristine = self._pristine or {}
        made.__dict__["_attrs"] = copied = {key: _copied(value, tensor_map) for key, value in held.items()}
        made.__dict__["_pristine"] = {
            key: copied[key] if key in held and held[key] is value else value for key, value in pristine.items()
        }
        if self.__dict__.get("has_bodies"):
            made.__dict__["has_bodies"] = True
        return made


def _copied(value: Any, tensor_map: Any) -> Any:
    if isinstance(value, gs.Graph):
        return value.copy(tensor_map)
    if isinstance(value, list):
        return [_copied(item, tensor_map) for item in value]
    return value


def same_attribute(left: Any, right: Any) -> bool:
    """Whether an attribute still has the value that was read. A tensor whose values were assigned has not."""
    if left is right:
        return not isinstance(left, gs.Constant) or isinstance(left._values, WeightRef)
    if isinstance(left, (int, float, str, bytes, list)):
        return type(left) is type(right) and bool(left == right)
    return False


def normal_domain(domain: str | None) -> str:
    """ "" for the standard domain, however it is spelled."""
    return "" if domain in (None, "", "ai.onnx") else str(domain)


def synchronized(parent: Any, field: str, items: Sequence[Any]) -> Any:
    """A graphsurgeon list that is already in step with its elements."""
    made = Links.__new__(Links)
    made.parent_obj = parent
    made.field_name = field
    if items:
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
    state["_attrs"] = {}
    state["inputs"] = synchronized(made, "outputs", inputs)
    state["outputs"] = synchronized(made, "inputs", outputs)
    for tensor in inputs:
        list.append(tensor.outputs, made)
    for tensor in outputs:
        list.append(tensor.inputs, made)
    return made
