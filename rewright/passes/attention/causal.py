"""The proof that a bias is the causal mask: that it depends on nothing but how far a key lies behind the query.

Positions are counted from 0 along the queries and along the keys. Values of the mask's graph are evaluated symbolically, for all
lengths at once: as a sum of positions (``Line``), or as a function of the distance query - key that is constant between a few
bounds (``Steps``). Comparing two lines that differ by the distance gives such steps; what is computed from steps are steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from rewright.model.edit import domain_of
from rewright.model.facts import attribute, constant_of, dtype_of, is_small_constant, producer
from rewright.passes.attention.axes import Axis, Layout, Unproven, length
from rewright.passes.attention.padding import applied
from rewright.passes.attention.scores import Term, absorbing
from rewright.passes.attention.steps import broadcast, upwards
from rewright.passes.attention.writing import Writer

_LONGEST: Final = 32
_MOST_ELEMENTS: Final = 1 << 22
_MOST_STEPS: Final = 8
_COMPARISONS: Final = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")


@dataclass(frozen=True)
class Causal:
    """Query i sees key j only for 0 <= i - j, and < ``window`` if there is one; T = S.

    ``rest`` are the terms that this leaves, which say what is masked or added otherwise; none for a mask that is purely causal.
    """

    window: int | None
    rest: tuple[Term, ...]


def causal(writer: Writer, masking: float | None = None) -> Causal | None:
    """The causal mask among the terms of the scores, or None where none is proven.

    What masks a score is at most ``masking``, by default such that no score comes near it. The diagonal is always kept: without
    ``rest``, each row has a key.
    """
    roles = writer.attention.roles
    if not roles.rows or length(roles.rows) != length(roles.columns):
        return None
    walk = _Walk(writer)
    total: Steps | None = None
    rest: list[Term] = []
    for term in writer.attention.scores.terms:
        found = walk.added(term, Steps.of(0.0) if total is None else total)
        if found is not None:
            total = found
        elif term.kind in ("add", "subtract", "keep-where", "mask-where"):
            rest.append(term)
        else:
            return None
    if masking is None:
        masking = absorbing(writer.attention.scores.product.operands[0])
    return None if total is None else _read(total, tuple(rest), masking)


def _read(total: Steps, rest: tuple[Term, ...], masking: float) -> Causal | None:
    kept = [value == 0 for value in total.values]
    if not all(keeps or value <= masking for keeps, value in zip(kept, total.values, strict=True)):
        return None
    if kept == [False, True] and total.bounds == (0,):
        return Causal(None, rest)
    if kept == [False, True, False] and total.bounds[0] == 0:
        return Causal(total.bounds[1], rest)
    return None


@dataclass(frozen=True)
class Line:
    """rows * i + columns * j + offset, for query i and key j."""

    rows: int
    columns: int
    offset: int

    def shifted(self, rows: int, columns: int) -> Line:
        """As a function of positions that lie further on."""
        return Line(self.rows, self.columns, self.offset + rows * self.rows + columns * self.columns)


@dataclass(frozen=True)
class Steps:
    """A function of the distance i - j: ``values[k]`` from ``bounds[k - 1]`` on, and below ``bounds[k]``."""

    bounds: tuple[int, ...]
    values: tuple[Any, ...]

    @staticmethod
    def of(value: Any) -> Steps:
        """The same everywhere."""
        return Steps((), (value,))

    @staticmethod
    def joined(bounds: Sequence[int], values: Sequence[Any]) -> Steps:
        """Without bounds where nothing changes."""
        kept = [index for index in range(len(bounds)) if not _same(values[index], values[index + 1])]
        return Steps(tuple(bounds[index] for index in kept), (values[0], *(values[index + 1] for index in kept)))

    def at(self, distance: int) -> Any:
        """The value for one distance."""
        return self.values[sum(bound <= distance for bound in self.bounds)]

    def shifted(self, rows: int, columns: int) -> Steps:
        """As a function of positions that lie further on."""
        return Steps(tuple(bound - rows + columns for bound in self.bounds), self.values)


def _same(left: Any, right: Any) -> bool:
    return bool(left == right)


def _after(term: Term, before: float, value: Any) -> float:
    """What has been added to a score after the term."""
    if term.kind in ("keep-where", "mask-where"):
        return before if bool(value) == (term.kind == "keep-where") else term.number
    number = float(value)
    made = {"add": before + number, "subtract": before - number, "multiply": before * number, "at-least": max(before, number)}
    return made[term.kind]


class _Walk:
    """Evaluates values of the mask's graph."""

    def __init__(self, writer: Writer) -> None:
        self.axes = writer.axes
        self.roles = writer.attention.roles
        self._known: dict[Any, Line | Steps | None] = {}

    def added(self, term: Term, total: Steps) -> Steps | None:
        """What the scores have had added after the term, where it was ``total`` before; None if the term is something else."""
        if term.value is None:
            value: Steps | None = Steps.of(term.number)
        else:
            found = self.value(term.value, term.layout, 0)
            value = found if isinstance(found, Steps) else None
        if value is None:
            return None
        bounds = sorted({*total.bounds, *value.bounds})
        with np.errstate(over="ignore", invalid="ignore"):
            made = [_after(term, float(total.at(d)), value.at(d)) for d in _representatives(bounds)]
        return Steps.joined(bounds, made)

    def value(self, tensor: Any, layout: Layout, depth: int) -> Line | Steps | None:
        """The value as a function of the positions; None if it is none of the two kinds, or not known to be."""
        key = (id(tensor), self.axes.resolve(layout))
        if key not in self._known:
            try:
                self._known[key] = self._found(tensor, key[1], depth)
            except Unproven:
                self._known[key] = None
        return self._known[key]

    def _found(self, tensor: Any, layout: Layout, depth: int) -> Line | Steps | None:
        if is_small_constant(tensor, _MOST_ELEMENTS):
            return self._constant(np.asarray(constant_of(tensor)), layout)
        node = producer(tensor)
        if node is None or domain_of(node) or depth > _LONGEST:
            return None
        return self._node(node, tensor, layout, depth + 1)

    def _node(self, node: Any, tensor: Any, layout: Layout, depth: int) -> Line | Steps | None:
        if node.op == "Range":
            return self._range(node, layout)
        if node.op == "Slice":
            return self._slice(node, layout, depth)
        if node.op == "ConstantOfShape":
            fill = attribute(node, "value")
            return Steps.of(0.0 if fill is None else np.asarray(getattr(fill, "values", fill)).reshape(-1)[0])
        if node.op == "Trilu":
            return self._triangle(node, layout, depth)
        moved = upwards(self.axes, node, tensor, layout)
        if moved is not None:
            return self.value(*moved, depth)
        operands = [self.value(operand, broadcast(layout, operand), depth) for operand in node.inputs]
        if any(operand is None for operand in operands):
            return None
        if any(isinstance(operand, Line) for operand in operands):
            return _of_lines(node, operands)
        bounds = sorted({bound for operand in operands for bound in operand.bounds})  # type: ignore[union-attr]
        points = _representatives(bounds)
        arrays = [np.array([operand.at(d) for d in points]) for operand in operands]  # type: ignore[union-attr]
        with np.errstate(over="ignore", invalid="ignore"):
            made = applied(node, tensor, arrays)
        return None if made is None else Steps.joined(bounds, list(made))

    def _place(self, axis: Axis) -> tuple[int, int] | None:
        """(1, 0) for the queries' positions, (0, 1) for the keys', (0, 0) for an axis of length 1."""
        held = {self.roles.rows: (1, 0), self.roles.columns: (0, 1), (): (0, 0)}
        return held.get(axis)

    def _range(self, node: Any, layout: Layout) -> Line | None:
        start, step = (_whole(node.inputs[index]) for index in (0, 2))
        place = self._place(layout[-1]) if layout else None
        if place is None or start is None or step is None:
            return None
        return Line(step * place[0], step * place[1], start)

    def _slice(self, node: Any, layout: Layout, depth: int) -> Line | Steps | None:
        """From a constant position on: what comes before is not counted."""
        given = [constant_of(tensor) if is_small_constant(tensor, 8) else None for tensor in node.inputs[1:]]
        if len(given) < 3:
            return None
        starts, axes, steps = given[0], given[2], given[3] if len(given) > 3 else np.ones(1)
        if starts is None or axes is None or steps is None or not (steps == 1).all() or not (starts >= 0).all():
            return None
        found = self.value(node.inputs[0], layout, depth)
        if found is None:
            return None
        shift = [0, 0]
        for start, axis in zip(starts.reshape(-1), axes.reshape(-1), strict=True):
            place = self._place(layout[int(axis)])
            if start and place not in ((1, 0), (0, 1)):
                return None
            shift = [held + int(start) * one for held, one in zip(shift, place or (0, 0), strict=True)]
        return found.shifted(shift[0], shift[1])

    def _triangle(self, node: Any, layout: Layout, depth: int) -> Steps | None:
        diagonal = _whole(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1].name else 0
        held = self.value(node.inputs[0], layout, depth)
        if diagonal is None or not isinstance(held, Steps) or layout[-2:] != (self.roles.rows, self.roles.columns):
            return None
        upper = bool(attribute(node, "upper", 1))
        bounds = sorted({*held.bounds, -diagonal, 1 - diagonal})  # upper keeps i - j <= -diagonal
        points = _representatives(bounds)
        return Steps.joined(
            bounds, [held.at(d) if (d <= -diagonal if upper else d >= -diagonal) else type(held.at(d))(0) for d in points]
        )

    def _constant(self, array: np.ndarray[Any, Any], layout: Layout) -> Line | Steps | None:
        if array.size == 1:
            return Steps.of(array.reshape(-1)[0])
        places = [self._place(axis) for axis in layout[len(layout) - array.ndim :]]
        if array.dtype == object or any(place is None for place in places) or not array.size:
            return None
        varying = [axis for axis in range(array.ndim) if array.shape[axis] != 1]
        if any(places[axis] == (0, 0) for axis in varying):
            return None
        if len(varying) == 1:
            return _vector(array.reshape(-1), places[varying[0]])  # type: ignore[arg-type]
        if len(varying) != 2:
            return None
        plane = array.reshape([array.shape[axis] for axis in varying])
        return _plane(plane if places[varying[0]] == (1, 0) else plane.T)


def _vector(array: np.ndarray[Any, Any], place: tuple[int, int]) -> Line | Steps | None:
    if (array == array[0]).all():
        return Steps.of(array[0])
    step = array[1] - array[0] if array.dtype.kind in "iuf" else 0
    if not np.array_equal(array, array[0] + step * np.arange(len(array))) or step != int(step) or array[0] != int(array[0]):
        return None
    return Line(int(step) * place[0], int(step) * place[1], int(array[0]))


def _plane(array: np.ndarray[Any, Any]) -> Steps | None:
    """A constant over (rows, columns) that is constant along its diagonals."""
    if not np.array_equal(array[1:, 1:], array[:-1, :-1]):
        return None
    values = np.concatenate([array[0, ::-1], array[1:, 0]])  # by distance, from the last key of the first query on
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    if len(changes) > _MOST_STEPS:
        return None
    bounds = [int(index) - (array.shape[1] - 1) for index in changes]
    return Steps(tuple(bounds), (values[0], *(values[index] for index in changes)))


def _of_lines(node: Any, operands: list[Any]) -> Line | Steps | None:
    """Sums of positions, and comparisons of positions that differ by the distance."""
    op = node.op
    lines = [_as_line(operand) for operand in operands]
    if any(line is None for line in lines):
        return None
    if op == "Cast":
        return lines[0] if _keeps_apart(node) else None
    if op == "Neg":
        return Line(-lines[0].rows, -lines[0].columns, -lines[0].offset)  # type: ignore[union-attr]
    if len(lines) != 2 or op not in ("Add", "Sub", *_COMPARISONS):
        return None
    sign = 1 if op == "Add" else -1
    rows, columns, offset = (getattr(lines[0], name) + sign * getattr(lines[1], name) for name in ("rows", "columns", "offset"))
    if op in ("Add", "Sub"):
        return Line(rows, columns, offset)
    if rows + columns or not rows:
        return None
    root = -offset // rows
    bounds = [root, root + 1]
    return Steps.joined(bounds, [_compared(op, rows * d + offset) for d in _representatives(bounds)])


def _compared(op: str, difference: int) -> bool:
    return {
        "Equal": difference == 0,
        "Greater": difference > 0,
        "GreaterOrEqual": difference >= 0,
        "Less": difference < 0,
        "LessOrEqual": difference <= 0,
    }[op]


def _as_line(operand: Line | Steps) -> Line | None:
    if isinstance(operand, Line):
        return operand
    value = operand.values[0]
    return Line(0, 0, int(value)) if not operand.bounds and np.isfinite(value) and int(value) == value else None


def _representatives(bounds: list[int]) -> list[int]:
    """One distance of each piece."""
    return [bounds[0] - 1, *bounds] if bounds else [0]


def _whole(tensor: Any) -> int | None:
    value = constant_of(tensor) if is_small_constant(tensor, 1) else None
    return int(value.reshape(-1)[0]) if value is not None and value.size == 1 and value.reshape(-1)[0] % 1 == 0 else None


def _keeps_apart(cast: Any) -> bool:
    """Whether a Cast keeps positions apart: to wide integers and floats."""
    kind = dtype_of(cast.outputs[0])
    return kind is not None and kind.kind in "if" and kind.itemsize >= 4
