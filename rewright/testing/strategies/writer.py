"""Writes a typed ONNX graph node by node, with the choices left to hypothesis.

Every value carries its element type and its dimensions, a number or a symbol each, so that what is written is well typed by
construction and holds for every size of the symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from hypothesis import strategies as st
from onnx import FunctionProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

Dim = int | str | None
"""A size, a symbol, or None where it is not known."""

Dims = tuple[Dim, ...]
Attributes = dict[str, Any]
T = TypeVar("T")

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
LOCAL: Final = "local"
"""The domain of model-local functions."""

FLOATS: Final = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE}


@dataclass(frozen=True)
class Value:
    """A tensor of the graph: its name, ONNX element type and dimensions."""

    name: str
    kind: int
    dims: Dims

    @property
    def rank(self) -> int:
        return len(self.dims)


@dataclass(frozen=True)
class Sizes:
    """The dimensions that the parts of one model share; ``hidden`` is ``heads * size``."""

    batch: int | str
    sequence: int | str
    heads: int
    size: int

    @property
    def hidden(self) -> int:
        return self.heads * self.size

    @property
    def stream(self) -> Dims:
        """Of the values that most parts read and write."""
        return (self.batch, self.sequence, self.hidden)


class Writer:
    """Writes one list of nodes: the main graph, or a body or a function of it.

    Attributes:
        root: the writer of the main graph.
        opset: of the standard domain.
        kind: the element type of the float values.
        values: what parts read: values of the stream's dimensions and type, newest last.
        others: further values that parts leave, of any type.
        spans: for each part of the main graph: its first node, the node after it, and what it gave.
        is_function: there is nothing to capture, and constants are nodes.
    """

    def __init__(self, draw: st.DrawFn, opset: int, kind: int, sizes: Sizes, root: Writer | None = None) -> None:
        self.draw, self.opset, self.kind, self.sizes = draw, opset, kind, sizes
        self.root: Writer = root or self
        self.is_function = False
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.values: list[Value] = []
        self.others: list[Value] = []
        self.produced: list[Value] = []
        self.attributes: dict[str, float] = {}
        self.spans: list[tuple[int, int, Value]] = []
        if root is None:
            self.inputs: dict[str, Value] = {}
            self.functions: list[FunctionProto] = []
            self.domains: set[str] = set()
            self.overridable: list[str] = []
            self.constants: dict[tuple[int, bytes, tuple[int, ...]], Value] = {}
            self.count = self.node_count = 0
            self.naming = self.pick("v{}", "/layer.0/out_{}", "{}")
            self.node_naming = self.pick("n_{}", "")

    # choices

    def pick(self, *choices: T) -> T:
        """One of them; the first is the simplest."""
        return self.draw(st.sampled_from(choices))

    def chance(self) -> bool:
        return self.draw(st.booleans())

    def rarely(self) -> bool:
        return self.draw(st.integers(0, 9)) == 9

    def nearly(self, right: T, *wrong: T) -> T:
        """The right one, but sometimes one that is nearly right."""
        return self.pick(*wrong) if self.rarely() else right

    def some(self, minimum: int, maximum: int) -> int:
        return self.draw(st.integers(minimum, maximum))

    def read(self) -> Value:
        """A value of the stream; the newest is twice as likely as any other, so that parts form chains."""
        return self.pick(*self.values, self.values[-1])

    # values

    def fresh(self, kind: int, dims: Sequence[Dim]) -> Value:
        self.root.count += 1
        return Value(self.root.naming.format(self.root.count), kind, tuple(dims))

    def input(self, name: str, kind: int, *dims: int | str) -> Value:
        """An input of the model, declared when it is first read."""
        return self.root.inputs.setdefault(name, Value(name, kind, dims))

    def nodes_of(self, op: str, inputs: Sequence[Value | None], results: Sequence[Value], **attributes: Any) -> list[Value]:
        """Writes a node with the given results."""
        domain = attributes.pop("domain", "")
        if domain:
            self.root.domains.add(domain)
        self.root.node_count += 1
        name = self.root.node_naming.format(self.root.node_count)
        read = ["" if value is None else value.name for value in inputs]
        self.nodes.append(helper.make_node(op, read, [value.name for value in results], name=name, domain=domain, **attributes))
        self.produced.extend(value for value in results if value.name)
        return list(results)

    def op(
        self,
        op: str,
        *inputs: Value | None,
        kind: int | None = None,
        dims: Sequence[Dim] | None = None,
        **attributes: Any,
    ) -> Value:
        """Writes a node with one result: by default of the first input's type, and of all inputs' dimensions broadcast."""
        given = [value for value in inputs if value is not None]
        if dims is None:
            dims = given[0].dims
            for value in given[1:]:
                dims = broadcast(dims, value.dims)
        result = self.fresh(given[0].kind if kind is None else kind, dims)
        return self.nodes_of(op, inputs, [result], **attributes)[0]

    def commuted(self, op: str, a: Value, b: Value) -> Value:
        return self.op(op, b, a) if self.chance() else self.op(op, a, b)

    def cast(self, x: Value, kind: int) -> Value:
        return self.op("Cast", x, kind=kind, dims=x.dims, to=kind)

    # constants

    def constant(self, value: Any, kind: int | None = None) -> Value:
        """A constant, stored in one of the ways in which exporters store them."""
        kind = self.kind if kind is None else kind
        array = np.asarray(value).astype(helper.tensor_dtype_to_np_dtype(kind))
        if self.is_function:
            return self._constant_node(array, kind)
        key = (kind, array.tobytes(), array.shape)
        if key in self.root.constants and self.chance():
            return self.root.constants[key]
        storage = self.pick("initializer", "node", "outer initializer", "overridable", "half")
        if storage == "node":
            return self._constant_node(array, kind)
        if storage == "half" and array.dtype == np.float32 and _fits_half(array):
            return self.cast(self._initializer(array.astype(np.float16), TensorProto.FLOAT16, self), kind)
        if storage == "overridable" and not self.rarely():
            storage = "outer initializer"
        found = self._initializer(array, kind, self if storage == "initializer" else self.root)
        if storage == "overridable":
            self.root.overridable.append(found.name)
        if storage != "initializer" or self is self.root:
            self.root.constants[key] = found
        return found

    def integers(self, *values: int) -> Value:
        """A vector of int64."""
        return self.constant(values, INT64)

    def scalar(self, value: float, kind: int | None = None) -> Value:
        """One number, in one of the shapes that broadcast."""
        return self.constant(np.reshape(value, self.pick((), (), (1,), (1, 1, 1))), kind)

    def weight(self, *dims: int, mean: float = 0.0, spread: float = 0.3) -> Value:
        """Random numbers, others for each weight."""
        self.root.count += 1
        return self.constant(np.random.default_rng(self.root.count).normal(mean, spread, dims))

    def _constant_node(self, array: np.ndarray, kind: int) -> Value:
        found = self.fresh(kind, array.shape)
        single = array.ndim == 0 and self.chance()
        if single and array.dtype == np.float32:
            attribute: Attributes = {"value_float": float(array)}
        elif single and array.dtype == np.int64:
            attribute = {"value_int": int(array)}
        elif array.ndim == 1 and array.dtype == np.int64 and array.size and self.chance():
            attribute = {"value_ints": array.tolist()}
        else:
            attribute = {"value": numpy_helper.from_array(array, found.name)}
        return self.nodes_of("Constant", [], [found], **attribute)[0]

    def _initializer(self, array: np.ndarray, kind: int, owner: Writer) -> Value:
        found = self.fresh(kind, array.shape)
        owner.initializers.append(numpy_helper.from_array(array, found.name))
        return found

    # ops whose form depends on the opset

    def reduce(self, op: str, x: Value, axes: Sequence[int], keepdims: int = 1) -> Value:
        """A reduction over the given axes, which are written from the end or from the start."""
        positive = [axis % x.rank for axis in axes]
        kept = [1 if axis in positive else dim for axis, dim in enumerate(x.dims) if keepdims or axis not in positive]
        written = self.pick(list(axes), positive)
        attributes: Attributes = {} if keepdims and self.chance() else {"keepdims": keepdims}
        if self.opset >= 18 or op == "ReduceSum":
            return self.op(op, x, self.integers(*written), dims=kept, **attributes)
        return self.op(op, x, dims=kept, axes=written, **attributes)

    def unsqueeze(self, x: Value, *axes: int) -> Value:
        dims = list(x.dims)
        for axis in sorted(axis % (x.rank + len(axes)) for axis in axes):
            dims.insert(axis, 1)
        return self.op("Unsqueeze", x, self.integers(*axes), dims=dims)

    def squeeze(self, x: Value, *axes: int) -> Value:
        gone = [axis % x.rank for axis in axes]
        return self.op("Squeeze", x, self.integers(*axes), dims=[dim for axis, dim in enumerate(x.dims) if axis not in gone])

    def transpose(self, x: Value, *perm: int) -> Value:
        return self.op("Transpose", x, dims=[x.dims[axis] for axis in perm], perm=list(perm))

    def split(self, x: Value, axis: int, count: int) -> list[Value]:
        """Equal parts along an axis whose size is a number."""
        size = x.dims[axis]
        if not isinstance(size, int) or size % count:
            raise ValueError(f"an axis of size {size} has no {count} equal parts")
        dims = list(x.dims)
        dims[axis] = size // count
        results = [self.fresh(x.kind, dims) for _ in range(count)]
        if self.chance():
            return self.nodes_of("Split", [x, self.integers(*[size // count] * count)], results, axis=axis)
        numbers = {"num_outputs": count} if self.opset >= 18 else {}
        return self.nodes_of("Split", [x], results, axis=axis, **numbers)

    def size(self, x: Value, axis: int) -> Value:
        """One dimension of a value, int64[1], computed."""
        form = self.pick("Gather", "scalar", "Slice", "Shape")
        if form == "Shape" and self.opset >= 15:
            return self.op("Shape", x, kind=INT64, dims=[1], start=axis, end=axis + 1)
        shape = self.op("Shape", x, kind=INT64, dims=[x.rank])
        if form == "scalar":
            return self.unsqueeze(self.op("Gather", shape, self.constant(axis, INT64), dims=[], axis=0), 0)
        if form == "Slice":
            return self.op("Slice", shape, self.integers(axis), self.integers(axis + 1), self.integers(0), dims=[1])
        return self.op("Gather", shape, self.integers(axis), dims=[1], axis=0)

    def reshape(self, x: Value, source: Value, dims: Sequence[Dim]) -> Value:
        """A reshape whose target is written as a constant or computed. Symbols are sizes of ``source`` at the same axis."""
        unknown = [axis for axis, dim in enumerate(dims) if not isinstance(dim, int)]
        if len(unknown) <= 1 and self.chance():
            return self.op("Reshape", x, self.integers(*(dim if isinstance(dim, int) else -1 for dim in dims)), dims=dims)
        if all(dims[axis] == x.dims[axis] for axis in unknown) and self.chance():
            return self.op("Reshape", x, self.integers(*(dim if isinstance(dim, int) else 0 for dim in dims)), dims=dims)
        pieces = [self.integers(dim) if isinstance(dim, int) else self.size(source, axis) for axis, dim in enumerate(dims)]
        return self.op("Reshape", x, self.op("Concat", *pieces, dims=[len(dims)], axis=0), dims=dims)

    # bodies

    def nested(self, *, is_function: bool = False) -> Writer:
        """A writer for a body, which sees this one's values, or for a function, which sees none."""
        inner = Writer(self.draw, self.opset, self.kind, self.sizes, self.root)
        inner.is_function = is_function
        if not is_function:
            inner.values, inner.others = list(self.values), list(self.others)
        return inner

    def graph(self, name: str, inputs: Sequence[Value], outputs: Sequence[Value]) -> GraphProto:
        return helper.make_graph(
            self.nodes,
            name,
            [declaration(value) for value in inputs],
            [declaration(value) for value in outputs],
            self.initializers,
        )


Part = Callable[[Writer], Value]
"""Writes a piece of a graph and gives its result, a value of the stream's type and dimensions."""


def broadcast(a: Dims, b: Dims) -> Dims:
    """The dimensions of an elementwise op's result; None where a symbol meets another one."""
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    ahead = len(longer) - len(shorter)
    joined = [
        x if y in (x, 1) else y if x == 1 else x if isinstance(x, int) else y if isinstance(y, int) else None
        for x, y in zip(longer[ahead:], shorter, strict=True)
    ]
    return (*longer[:ahead], *joined)


def _fits_half(array: np.ndarray) -> bool:
    return bool(np.all(np.abs(array) < 6e4)) and np.array_equal(array.astype(np.float16), array)


def declaration(value: Value, *, has_dims: bool = True) -> ValueInfoProto:
    return helper.make_tensor_value_info(value.name, value.kind, value.dims if has_dims else [None] * value.rank)
