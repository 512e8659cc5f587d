"""Between which numbers a bias lies, as far as its graph tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from rewright.model.edit import domain_of
from rewright.model.facts import attribute, constant_of, dtype_of, is_small_constant, producer
from rewright.passes.attention.scores import Term, lowest
from rewright.passes.attention.writing import Writer

_LONGEST: Final = 32
_MOST_ELEMENTS: Final = 1 << 22
_MOVING: Final = frozenset(
    ("Expand", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Slice", "Identity", "Gather", "Flatten", "Tile", "Split")
)


@dataclass(frozen=True)
class Extent:
    """All finite values lie from ``low`` to ``high``; ``masks`` tells whether -inf may be among the others.

    Other infinities and NaN are excluded.
    """

    low: float
    high: float
    masks: bool = False

    def joined(self, other: Extent) -> Extent:
        """Of values of either kind."""
        return Extent(min(self.low, other.low), max(self.high, other.high), self.masks or other.masks)


def extent(writer: Writer) -> Extent | None:
    """That of everything that is added to the scores; None where it is not known.

    A score that is replaced counts as one to which the lowest number of its type is added. A mask of integers that is an input
    of the graph is taken to hold zeros and ones, which is noted.
    """
    walk = _Walk(writer, lowest(dtype_of(writer.attention.scores.product.operands[0]) or np.dtype(np.float32)))
    total: Extent | None = Extent(0.0, 0.0)
    for term in writer.attention.scores.terms:
        total = None if total is None else walk.after(term, total)
    if total is not None:
        writer.assumptions.extend(walk.assumptions)
    return total


class _Walk:
    def __init__(self, writer: Writer, lowest: float) -> None:
        self.lowest = lowest
        self.inputs = {id(tensor) for tensor in writer.shared.graph.inputs}
        self.assumptions: list[str] = []
        self._known: dict[int, Extent | None] = {}

    def after(self, term: Term, before: Extent) -> Extent | None:
        """The extent of what has been added after the term."""
        if term.kind in ("keep-where", "mask-where"):
            masked = before.low if term.number == -np.inf else self.lowest
            return before.joined(Extent(masked, before.high, masks=term.number == -np.inf))
        value = Extent(term.number, term.number) if term.value is None else self.of(term.value, 0)
        if value is None:
            return None
        op = {"add": "Add", "subtract": "Sub", "multiply": "Mul", "at-least": "Max"}[term.kind]
        return self._computed(op, [before, value])

    def of(self, tensor: Any, depth: int) -> Extent | None:
        """The extent of a value."""
        key = id(tensor)
        if key not in self._known:
            self._known[key] = None  # a value deeper than we look
            self._known[key] = self._found(tensor, depth)
        return self._known[key]

    def _found(self, tensor: Any, depth: int) -> Extent | None:
        if is_small_constant(tensor, _MOST_ELEMENTS):
            return _of_constant(np.asarray(constant_of(tensor)))
        kind = dtype_of(tensor)
        if kind is None or depth > _LONGEST:
            return None
        if kind.kind == "b":
            return Extent(0.0, 1.0)
        node = producer(tensor)
        if node is None:
            if kind.kind not in "iu" or id(tensor) not in self.inputs:
                return None
            self.assumptions.append(f"the mask '{tensor.name}' is taken to hold only zeros and ones")
            return Extent(0.0, 1.0)
        return None if domain_of(node) else self._node(node, depth + 1)

    def _node(self, node: Any, depth: int) -> Extent | None:
        if node.op in _MOVING or node.op == "Cast":
            return self.of(node.inputs[0], depth)
        if node.op in ("Sigmoid", "Softmax"):
            return Extent(0.0, 1.0)
        if node.op == "Tanh":
            return Extent(-1.0, 1.0)
        if node.op == "ConstantOfShape":
            fill = attribute(node, "value")
            return Extent(0.0, 0.0) if fill is None else _of_constant(np.asarray(getattr(fill, "values", fill)))
        if node.op == "Neg":
            return _negated(self.of(node.inputs[0], depth))
        operands = [self.of(tensor, depth) for tensor in node.inputs[1 if node.op == "Where" else 0 :]]
        if node.op == "Trilu":
            operands = [operands[0], Extent(0.0, 0.0)]
        return self._computed(node.op, operands)

    def _computed(self, op: str, operands: list[Extent | None]) -> Extent | None:
        rule = _RULES.get(op)
        if rule is None or not operands:
            return None
        made = operands[0]
        for other in operands[1:]:
            made = None if made is None or other is None else rule(made, other)
        return made if made is not None and self._fits(made) else None

    def _fits(self, made: Extent) -> bool:
        """Whether no sum has left the numbers of the type."""
        return made.low >= self.lowest and made.high <= -self.lowest


def _of_constant(array: np.ndarray[Any, Any]) -> Extent | None:
    if array.dtype == object or not array.size:
        return None
    values = array.astype(np.float64)
    finite = values[np.isfinite(values)]
    if not (values[~np.isfinite(values)] == -np.inf).all():
        return None
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    return Extent(low, high, masks=finite.size != values.size)


def _add(left: Extent, right: Extent) -> Extent | None:
    return Extent(left.low + right.low, left.high + right.high, left.masks or right.masks)


def _subtract(left: Extent, right: Extent) -> Extent | None:
    return None if right.masks else Extent(left.low - right.high, left.high - right.low, left.masks)


def _multiply(left: Extent, right: Extent) -> Extent | None:
    if (left.masks and right.low <= 0) or (right.masks and left.low <= 0):
        return None
    corners = [a * b for a in (left.low, left.high) for b in (right.low, right.high)]
    return Extent(min(corners), max(corners), left.masks or right.masks)


def _divide(left: Extent, right: Extent) -> Extent | None:
    if right.low != right.high or right.low <= 0 or right.masks:
        return None
    return Extent(left.low / right.low, left.high / right.low, left.masks)


def _negated(value: Extent | None) -> Extent | None:
    return None if value is None or value.masks else Extent(-value.high, -value.low)


def _highest(left: Extent, right: Extent) -> Extent | None:
    return Extent(max(left.low, right.low), max(left.high, right.high), left.masks and right.masks)


def _lowest(left: Extent, right: Extent) -> Extent | None:
    return Extent(min(left.low, right.low), min(left.high, right.high), left.masks or right.masks)


_RULES: Final[dict[str, Callable[[Extent, Extent], Extent | None]]] = {
    "Add": _add,
    "Sub": _subtract,
    "Mul": _multiply,
    "Div": _divide,
    "Max": _highest,
    "Min": _lowest,
    "Where": Extent.joined,
    "Concat": Extent.joined,
    "Trilu": Extent.joined,
}
