"""The tables of cosines and sines: which of their elements are equal, and new values with one element for each pair."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, Final

import numpy as np

from rewright.model.edit import domain_of
from rewright.model.facts import attribute, constant_of, is_constant, is_small_constant, producer, shape_of
from rewright.passes.rotary.moves import Index, Moves, ints, trailing

_DEEPEST: Final = 24
_UNARY: Final = frozenset(("Cos", "Sin", "Cast", "Neg", "Identity", "Sqrt", "Exp", "Reciprocal", "Abs"))
_WITH_NUMBER: Final = frozenset(("Mul", "Div", "Add", "Sub"))

Make = Callable[..., Any]
"""(op, inputs, attributes) -> the output of a new node."""


class Caches:
    """Knows which elements of a value are the same by construction, and picks elements as early as possible."""

    def __init__(self, moves: Moves) -> None:
        self._moves = moves
        self._labels: dict[tuple[int, int], tuple[Any, list[tuple[int, int]]]] = {}

    def equal(self, left: Any, element: int, right: Any, other: int) -> bool:
        """Whether two elements (of one value or of two) are the same wherever the other axes point."""
        if left is right and element == other:
            return True
        labels = [self._labels_of(tensor, _elements(tensor), _DEEPEST) for tensor in (left, right)]
        return bool(labels[0]) and bool(labels[1]) and labels[0][element] == labels[1][other]

    def _labels_of(self, tensor: Any, count: int, depth: int) -> list[tuple[int, int]]:
        """A label for each element over the last ``count`` axes; equal labels mean equal elements. Empty if unknown."""
        key = id(tensor), count
        if key not in self._labels:
            self._labels[key] = tensor, self._read(tensor, count, depth)
        return self._labels[key][1]

    def _read(self, tensor: Any, count: int, depth: int) -> list[tuple[int, int]]:
        dims = trailing(tensor, count)
        if dims is None:
            return []
        size = prod(dims)
        own = [(id(tensor), element) for element in range(size)]
        if is_constant(tensor):
            return _by_column(own, tensor, size)
        if not depth:
            return own
        move = self._moves.of(tensor, count)
        if move is not None:
            lead = len(shape_of(tensor) or ()) - count
            parts = [self._labels_of(part, len(shape_of(part) or ()) - lead, depth - 1) for part in move.inputs]
            joined = [label for part in parts for label in part]
            return [joined[place] for place in move.index.reshape(-1)] if all(parts) else own
        data = along_other_axes(tensor, count)
        if data is None:
            return own
        inner = self._labels_of(data, count, depth - 1)
        first: dict[tuple[int, int], int] = {}
        return [(id(tensor), first.setdefault(label, place)) for place, label in enumerate(inner)] or own

    def picked(
        self, tensor: Any, count: int, elements: Index, make: Make, constant: Callable[[Any], Any], depth: int = 24
    ) -> Any:
        """``elements`` of the value's last ``count`` axes as one axis. Other axes keep their order, not their number.

        What is the same for all elements (Cos, Sin, a factor) is computed again for the picked ones alone.
        """
        rank = len(shape_of(tensor) or ())
        size = prod(trailing(tensor, count) or (0,))
        if np.array_equal(elements, np.arange(size)):
            return tensor
        if is_constant(tensor):
            array = np.asarray(constant_of(tensor))
            return constant(np.ascontiguousarray(array.reshape(*array.shape[: rank - count], size)[..., elements]))
        move = self._moves.of(tensor, count) if depth else None
        if move is not None:
            places, first = move.index.reshape(-1)[elements], 0
            for part in move.inputs:
                part_count = len(shape_of(part) or ()) - rank + count
                width = prod(trailing(part, part_count) or (0,))
                if ((places >= first) & (places < first + width)).all():
                    return self.picked(part, part_count, places - first, make, constant, depth - 1)
                first += width
        node, data = producer(tensor), along_other_axes(tensor, count) if depth else None
        if node is not None and data is not None:
            if node.op in ("Unsqueeze", "Squeeze"):
                return self.picked(data, count, elements, make, constant, depth - 1)
            from_table = node.op in ("Gather", "Slice") and count == 1 and is_constant(data)
            if node.op in _UNARY | _WITH_NUMBER or from_table:
                inner = self.picked(data, count, elements, make, constant, depth - 1)
                return make(node.op, [inner if item is data else item for item in node.inputs], dict(node.attrs))
        flat = tensor if count == 1 else make("Reshape", [tensor, constant(np.array([0] * (rank - count) + [size]))], {})
        return make("Gather", [flat, constant(np.asarray(elements, np.int64))], {"axis": -1})


def _elements(tensor: Any) -> int:
    return max(len(shape_of(tensor) or ()) - 3, 1)


def along_other_axes(tensor: Any, count: int) -> Any | None:
    """What the value was made of, if each element over its last ``count`` axes was made of the same element of that alone."""
    node = producer(tensor)
    if node is None or domain_of(node) or not node.inputs:
        return None
    data, rank = node.inputs[0], len(shape_of(tensor) or ())
    held = len(shape_of(data) or ())
    if node.op in _WITH_NUMBER:
        for operand, other in (node.inputs, tuple(reversed(node.inputs))):
            if is_number(other) and len(shape_of(other) or ()) <= len(shape_of(operand) or ()):
                return operand
        return None
    if node.op in _UNARY:
        return data
    if trailing(data, count) is None or trailing(data, count) != trailing(tensor, count):
        return None
    if node.op == "Gather":
        return data if attribute(node, "axis", 0) % held < held - count else None
    if node.op in ("Expand", "Reshape"):
        return data if held >= count else None
    if node.op == "Transpose":
        permutation = attribute(node, "perm") or list(reversed(range(rank)))
        return data if permutation[rank - count :] == list(range(rank - count, rank)) else None
    axes = ints(node, "axes", 1 if node.op in ("Unsqueeze", "Squeeze") else 3)
    if axes is None:
        return None
    if node.op == "Unsqueeze":
        return data if all(axis % rank < rank - count for axis in axes) else None
    if node.op in ("Squeeze", "Slice"):
        return data if all(axis % held < held - count for axis in axes) else None
    return None


def is_number(tensor: Any) -> bool:
    """Whether the value has one element for certain."""
    return is_small_constant(tensor, 1) or shape_of(tensor) in ((), (1,), (1, 1), (1, 1, 1), (1, 1, 1, 1))


def _by_column(own: list[tuple[int, int]], tensor: Any, size: int) -> list[tuple[int, int]]:
    """Labels of a constant's elements: those are equal that hold the same numbers everywhere."""
    array = constant_of(tensor)
    if array is None or array.dtype == object:
        return own
    columns = np.ascontiguousarray(np.asarray(array).reshape(-1, size).T)
    first: dict[bytes, int] = {}
    return [own[first.setdefault(column.tobytes(), place)] for place, column in enumerate(columns)]
