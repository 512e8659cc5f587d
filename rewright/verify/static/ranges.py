"""Proven bounds of every value of a model: one walk over the nodes, from what is constant and what each op can give.

What the bounds say:

1. No run gives a number outside them, whatever the inputs; NaN is no number, and a maximum over nothing is none either. A value
   of which nothing is known has infinite bounds. What may overflow its element type does too.
2. They hold for the model as it is written, op by op, with each result rounded to its type, and sums that are accumulated in
   float32 or wider, over at most 2**20 terms where their number is not known.
3. A fused normalisation is taken at its word. A kernel that computes a variance as a difference of two large numbers may give
   more.

Inputs can be bounded from outside: token ids by the table that they index, masks by what a mask is. Such bounds are assumptions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import onnx_graphsurgeon as gs

from rewright.model.carrier import Model
from rewright.model.elements import normal_domain
from rewright.model.facts import attribute, constant_node_value, dtype_of, is_constant, producer, shape_of
from rewright.model.order import node_has_bodies
from rewright.model.view import View
from rewright.shapes import terms
from rewright.shapes.types import output_dtypes
from rewright.shapes.walk import shapes_of
from rewright.verify.static.interval import ANYTHING, NOT_NEGATIVE, DType, Interval, format_of, hull, rounded
from rewright.verify.static.weights import Columns, bounds_of, columns_of

Array = np.ndarray[Any, Any]

MOST_WEIGHT_BYTES: Final = 1 << 31
"""Constants larger than this are not read."""
ASSUMED_TERMS: Final = 1 << 20
_MOST_CALLS: Final = 10_000
_DEEPEST: Final = 40
_FLOAT32_UNIT: Final = 2.0**-24
_ROUNDED_ONCE: Final = {"Add", "Sub", "Mul", "Div", "Sqrt", "Neg", "Cast"}
"""Ops whose exact result is rounded, and nothing else."""


@dataclass(frozen=True)
class Accumulated:
    """What a rule says of a sum: its interval, and what rounding and overflow on the way depend on.

    Attributes:
        interval: of the exact result.
        total: the largest sum of the terms' absolute values.
        terms: how many terms there are; None if that is not known.
        share: what the sum is multiplied by: one over their number in a mean.
        keeps_sign: no term has the other sign, so that rounding does not cross zero.
    """

    interval: Interval
    total: float
    terms: int | None
    share: float = 1.0
    keeps_sign: bool = False


@dataclass(frozen=True)
class Exactly:
    """What a rule says of a result that is one of its operands' elements: nothing is rounded."""

    interval: Interval


Bound = Interval | Accumulated | Exactly | None
Rule = Callable[["Ranges", Any], Bound | list[Bound]]


@dataclass(frozen=True)
class Relations:
    """What is known of a value beside its bounds.

    Attributes:
        norm: a bound of the Euclidean norm of each row, which is what lies along the last axis.
        is_average: each row is not negative and adds up to 1 at most: the weights of an average.
        covers: see ``relations``.
        above: the value of which this one is the maximum along some axes.
    """

    norm: float | None = None
    is_average: bool = False
    covers: tuple[Any, ...] = ()
    above: int | None = None


NOTHING: Final = Relations()


class Ranges:
    """Bounds of the values of a model.

    Args:
        model: any model.
        given: bounds of inputs, by name.
        most_weight_bytes: constants larger than this are not read, so that nothing is known of them.
    """

    def __init__(
        self, model: Model, given: Mapping[str, Interval] | None = None, most_weight_bytes: int = MOST_WEIGHT_BYTES
    ) -> None:
        self.view = View(model)
        self.unread: list[str] = []
        self._given = dict(given or {})
        self._most = most_weight_bytes
        self._known: dict[int, Interval] = {}
        self._relations: dict[int, Relations] = {}
        self._roots: dict[int, int] = {}
        self._columns: dict[tuple[int, tuple[int, ...]], Columns | None] = {}
        self._alias: dict[int, Any] = {}
        self._functions = {(normal_domain(f.domain), f.name): f for f in self.view.functions}
        self._calls = 0
        self._typed: list[Any] = []
        self.shapes = shapes_of(self.view)
        self.shapes.refresh()
        self.opset = self.view.opset_of(self.view.graph)
        self._walk(self.view.graph, 0)

    def values(self) -> Iterator[tuple[Any, Any, Interval]]:
        """(value, the node that computes it or None, bounds) for the values of the graph and its bodies, in order."""
        pending = [self.view.graph]
        while pending:
            graph = pending.pop()
            for tensor in graph.inputs:
                yield tensor, None, self.of(tensor)
            for node in graph.nodes:
                for tensor in node.outputs:
                    if tensor.name:
                        yield tensor, node, self.of(tensor)
                if node_has_bodies(node):
                    pending.extend(node.subgraphs())

    def of(self, tensor: Any) -> Interval:
        """The bounds of a value."""
        tensor = self.resolved(tensor)
        found = self._known.get(id(tensor))
        if found is None:
            found = self._known[id(tensor)] = self._of_new(tensor)
        return found

    def operand(self, node: Any, index: int) -> Interval | None:
        """The bounds of an operand; None if it is omitted."""
        inputs = node.inputs
        return self.of(inputs[index]) if index < len(inputs) and inputs[index].name else None

    def relations(self, tensor: Any) -> Relations:
        """What is known of a value beside its bounds."""
        return self._relations.get(id(self.resolved(tensor)), NOTHING)

    def relate(self, tensor: Any, **known: Any) -> None:
        """Adds to what is known of a value."""
        key = id(self.resolved(tensor))
        self._relations[key] = replace(self._relations.get(key, NOTHING), **known)

    def tighten(self, tensor: Any, interval: Interval) -> None:
        """What a value is in besides its bounds."""
        self._known[id(tensor)] = self.of(tensor).meet(interval)

    def root(self, tensor: Any) -> int:
        """The identity of the value that this one is equal to, element by element, but for rounding."""
        key = id(self.resolved(tensor))
        return self._roots.get(key, key)

    def equate(self, tensor: Any, source: Any) -> None:
        """The value is ``source``, element by element, but for rounding."""
        self._roots[id(tensor)] = self.root(source)

    def stand_for(self, tensor: Any, source: Any) -> None:
        """The value is ``source``: all that is known of one holds for the other."""
        self._relations[id(tensor)] = self.relations(source)
        self.equate(tensor, source)

    def resolved(self, tensor: Any) -> Any:
        """The value that an input of a function stands for in the call that is looked at; else the value itself."""
        while (actual := self._alias.get(id(tensor))) is not None:
            tensor = actual
        return tensor

    def constant(self, tensor: Any) -> Array | None:
        """The array of a constant that is not too large to read."""
        tensor = self.resolved(tensor)
        if isinstance(tensor, gs.Constant):
            if _bytes(tensor) > self._most:
                if tensor.name not in self.unread:
                    self.unread.append(tensor.name)
                return None
            return tensor.values  # type: ignore[no-any-return]
        return constant_node_value(producer(tensor)) if is_constant(tensor) else None

    def scalar(self, tensor: Any) -> float | None:
        """The number that a value always is, if its bounds say so or it is a constant of one element."""
        known = self.of(tensor)
        return known.low if known.is_number else None

    def columns(self, tensor: Any, contracted: tuple[int, ...]) -> Columns | None:
        """The sums of a weight over the axes ``contracted``; None if it is no constant or is too large to read."""
        tensor = self.resolved(tensor)
        key = (id(tensor), contracted)
        if key not in self._columns:
            array = self.constant(tensor)
            self._columns[key] = None if array is None or array.ndim == 0 else columns_of(array, contracted)
        return self._columns[key]

    def shape(self, tensor: Any) -> tuple[Any, ...] | None:
        """The dimensions as far as they are known."""
        tensor = self.resolved(tensor)
        shape = shape_of(tensor)
        if shape is None and is_constant(tensor) and (array := self.constant(tensor)) is not None:
            return tuple(array.shape)
        return shape

    def size(self, tensor: Any, axis: int) -> int | None:
        """One dimension, if it is a number."""
        shape = self.shape(tensor)
        if shape is None or not -len(shape) <= axis < len(shape):
            return None
        return shape[axis] if isinstance(shape[axis], int) else None

    def dtype(self, tensor: Any) -> DType | None:
        """The element type."""
        return dtype_of(self.resolved(tensor))

    def _of_new(self, tensor: Any) -> Interval:
        if is_constant(tensor):
            array = self.constant(tensor)
            found = None if array is None else bounds_of(array)
            return found if found is not None else ANYTHING
        return self._unknown(tensor)

    def _unknown(self, tensor: Any) -> Interval:
        """What the element type, and what is known of small integer tensors, say."""
        dtype = self.dtype(tensor)
        if dtype is None or dtype.kind not in "iub":
            return ANYTHING
        held = format_of(dtype)
        everything = Interval(held.smallest, held.largest)
        items = self.shapes.items(tensor)
        if items is None or not items.items:
            return everything
        numbers = items.numbers()
        if numbers is not None:
            return Interval(float(min(numbers)), float(max(numbers))).meet(everything)
        if all(item is not None and terms.never_negative(item) for item in items.items):
            return everything.meet(Interval(0.0, held.largest))
        return everything

    def _walk(self, graph: Any, depth: int) -> None:
        for tensor in graph.inputs:
            if tensor.name in self._given and graph is self.view.graph:
                self._known[id(tensor)] = self._given[tensor.name]
        for node in graph.nodes:
            self._visit(node, depth)

    def _visit(self, node: Any, depth: int) -> None:
        from rewright.verify.static.relations import note
        from rewright.verify.static.rules import RULES

        if any(tensor.dtype is None for tensor in node.outputs):
            with suppress(IndexError, TypeError, ValueError, KeyError):
                for tensor, dtype in zip(node.outputs, self._dtypes(node), strict=False):
                    self._set_dtype(tensor, dtype)
        domain = normal_domain(node.domain)
        rule = RULES.get((domain, node.op))
        found: Bound | list[Bound] = None
        try:
            if rule is not None:
                found = rule(self, node)
            elif (domain, node.op) in self._functions:
                found = self._call(node, self._functions[domain, node.op], depth)
            elif node_has_bodies(node):
                found = self._bodies(node, depth)
        except (IndexError, TypeError, ValueError, ArithmeticError):  # a malformed node: nothing is known of its results
            found = None
        bounds = found if isinstance(found, list) else [found]
        is_once = not domain and node.op in _ROUNDED_ONCE
        for index, tensor in enumerate(node.outputs):
            if tensor.name:
                unknown = self._unknown(tensor)
                bound = bounds[index] if index < len(bounds) else None
                self._known[id(tensor)] = self._settled(bound, tensor, is_once).meet(unknown) if bound is not None else unknown
                self._relations.pop(id(tensor), None)  # of an earlier call of the function that the node is in
                self._roots.pop(id(tensor), None)
        if rule is not None:
            with suppress(IndexError, TypeError, ValueError, ArithmeticError):
                note(self, node)

    def _dtypes(self, node: Any) -> list[DType | None]:
        """The element types of a node's outputs."""
        if normal_domain(node.domain) or node.op not in ("QuantizeLinear", "DequantizeLinear"):
            return output_dtypes(node, self.opset)
        if attribute(node, "output_dtype", 0):
            return [None]
        if node.op == "DequantizeLinear":
            return [self.dtype(node.inputs[1])]
        has_zero_point = len(node.inputs) > 2 and node.inputs[2].name
        return [self.dtype(node.inputs[2]) if has_zero_point else np.dtype(np.uint8)]

    def _set_dtype(self, tensor: Any, dtype: DType | None) -> None:
        """Types a value of the view, which is this walk's own, and notes that it did."""
        if isinstance(tensor, gs.Variable) and tensor.dtype is None and dtype is not None:
            tensor.dtype = dtype
            self._typed.append(tensor)

    def _settled(self, bound: Bound, tensor: Any, is_once: bool) -> Interval:
        """The bounds of the result as its element type holds it."""
        dtype = self.dtype(tensor)
        if isinstance(bound, Exactly):
            return bound.interval
        if isinstance(bound, Accumulated):
            found = _rounded_sum(bound, dtype)
            if bound.keeps_sign and format_of(dtype).is_float:  # integers wrap around
                return found.meet(NOT_NEGATIVE if bound.interval.low >= 0.0 else -NOT_NEGATIVE)
            return found
        return rounded(bound, dtype, is_once=is_once) if bound is not None else ANYTHING

    def _call(self, node: Any, function: Any, depth: int) -> Bound | list[Bound]:
        """The bounds of what a function of the model returns, from those of what it is called with."""
        self._calls += 1
        if self._calls > _MOST_CALLS or depth > _DEEPEST:
            return None
        for index, formal in enumerate(function.inputs):
            self._alias.pop(id(formal), None)
            if index < len(node.inputs) and node.inputs[index].name:
                self._alias[id(formal)] = self.resolved(node.inputs[index])
            self._known.pop(id(formal), None)
        outer, self.opset = self.opset, self.view.opset_of(function)
        outer_typed, self._typed = self._typed, []
        for formal in function.inputs:
            self._set_dtype(formal, self.dtype(formal))
        for inner in function.nodes:
            self._visit(inner, depth + 1)
        self.opset = outer
        dtypes = [self.dtype(result) for result in function.outputs]
        for tensor in self._typed:
            tensor.dtype = None  # another call may be of another type
        self._typed = outer_typed
        for tensor, dtype in zip(node.outputs, dtypes, strict=False):
            self._set_dtype(tensor, dtype)
        found: list[Bound] = [Exactly(self.of(tensor)) for tensor in function.outputs]
        return found

    def _bodies(self, node: Any, depth: int) -> Bound | list[Bound]:
        """What the bodies of If, Loop and Scan give; what a loop carries is unknown at the start of a round."""
        bodies = list(node.subgraphs())
        for body in bodies:
            self._walk(body, depth + 1)
        if bodies and not normal_domain(node.domain):
            inner = bodies[0].outputs[node.op == "Loop" :]  # a Loop's body says first whether to go on
            for tensor, result in zip(node.outputs, inner, strict=False):
                self._set_dtype(tensor, self.dtype(result))
        if node.op == "If":
            branches = [[self.of(tensor) for tensor in body.outputs] for body in bodies]
            return [Exactly(hull(choices)) for choices in zip(*branches, strict=False)]
        if node.op == "Loop" and len(bodies) == 1:
            carried = len(node.inputs) - 2
            inner = [self.of(tensor) for tensor in bodies[0].outputs[1:]]
            first = [self.operand(node, index + 2) or ANYTHING for index in range(carried)]
            return [Exactly(one.join(first[index]) if index < carried else one) for index, one in enumerate(inner)]
        return None


def _rounded_sum(bound: Accumulated, dtype: DType | None) -> Interval:
    """The bounds of a sum as the element type holds it, with what its terms lose on the way."""
    held = format_of(dtype)
    if not held.is_float:
        return rounded(bound.interval, dtype) if bound.total < held.largest else ANYTHING
    count = ASSUMED_TERMS if bound.terms is None else bound.terms
    unit = min(held.unit, _FLOAT32_UNIT) * (count + 8)
    # a sum may overflow on the way to a result that does not
    if unit >= 0.5 or not bound.total * (1 + 2 * unit) <= held.largest:
        return ANYTHING
    return rounded(bound.interval, dtype, 2 * unit * bound.total * bound.share)


def _bytes(tensor: Any) -> int:
    held = tensor._values
    shape, dtype = held.shape, held.dtype
    return int(math.prod(shape) * np.dtype(dtype).itemsize)


def attribute_of(node: Any, name: str, default: Any) -> Any:
    """The attribute; ``default`` must be the specification's. A reference to a function's attribute is an error of type."""
    found = attribute(node, name, default)
    if isinstance(found, gs.Node.AttributeRef):
        raise TypeError(f"the attribute '{name}' is a reference")
    return found
