"""Writing an attention: bringing values into the layout that the op takes, and bias terms into one additive bias."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from rewright.model.facts import Dim, attribute, constant_of, dtype_of, shape_of
from rewright.passes.attention.axes import Atom, Axes, Axis, Layout, Unproven, length, number, size_of
from rewright.passes.attention.operands import Place, Step
from rewright.passes.attention.recognition import Attention
from rewright.passes.contract import Target
from rewright.pattern.builder import Builder
from rewright.pattern.values import Value
from rewright.shapes.dimensions import Size, dim_of

_IMPOSSIBLE: Final = 1000


@dataclass
class Shared:
    """What the sites of one graph share: values that were written once, by what they mean."""

    graph: Any
    values: dict[Any, Value] = field(default_factory=dict)
    loose: set[int] = field(default_factory=set)  # values of which an axis may be whole or of length 1
    held: list[Any] = field(default_factory=list)  # so that no identity in a key is given away again


class Writer:
    """Makes the nodes that one attention needs."""

    def __init__(self, attention: Attention, op: Builder, shared: Shared, target: Target = "cpu") -> None:
        self.attention = attention
        self.target = target
        self.axes = attention.axes
        self.op = op
        self.opset = op.opset
        self.shared = shared
        self.made: dict[Any, Value] = {}
        self.assumptions: list[str] = []

    def cheapest(self, places: list[Place], wanted: Layout, scaled: bool = True) -> Place:
        """The place from which ``rows`` costs the least.

        Raises:
            Unproven: from none of them can it be written.
        """
        costs = [self.cost(place, wanted) if scaled or place.scale == 1 else _IMPOSSIBLE for place in places]
        best = min(costs)
        if best >= _IMPOSSIBLE:
            raise Unproven(
                f"the layout of '{places[0].tensor.name}' is not (batch, sequence, heads times head size)", places[0].tensor
            )
        return places[max(index for index, cost in enumerate(costs) if cost == best)]

    def cost(self, place: Place, wanted: Layout) -> int:
        """How many nodes ``rows`` would make; more than any model has where it cannot."""
        layout = self.axes.resolve(place.layout)
        if any(atom.start is not None for axis in layout for atom in axis):
            return _IMPOSSIBLE
        present, needed = set(_flat(layout)), set(_flat(wanted))
        if present != needed:
            return 10 + len(place.steps) if present < needed and not _has_rotary(place) else _IMPOSSIBLE
        if layout == wanted:
            return len(place.steps)
        return len(place.steps) + (1 if _flat(layout) == _flat(wanted) else 2)

    def rows(self, place: Place, wanted: Layout, heads: Axis) -> Value:
        """The place's value as (batch, sequence, heads x head size), its steps done, without its scale."""
        value = self.spread(Value(place.tensor), self.axes.resolve(place.layout), wanted)
        for step in place.steps:
            value = self._stepped(value, step, wanted, heads)
        return value

    def _stepped(self, value: Value, step: Step, wanted: Layout, heads: Axis) -> Value:
        if step.kind == "rotary":
            return self._rotated(value, step, wanted, heads)
        vector = self.vector(step, wanted[2])
        constant = self.op.constant(vector, f"{step.kind}_vector")
        made: Value = self.op.Add(value, constant) if step.kind == "add" else self.op.Mul(value, constant)
        return made

    def vector(self, step: Step, axis: Axis) -> np.ndarray[Any, Any]:
        """A constant that is added or multiplied, over the whole of ``axis``."""
        array = np.asarray(constant_of(step.value))
        present: list[Atom] = []
        for index, held in enumerate(self.axes.resolve(step.layout)):
            chosen, used = positions(self.axes, held)
            array = array.take(chosen, index) if array.shape[index] != len(chosen) else array
            present.extend(used)
        if any(atom not in axis for atom in present):
            raise Unproven(f"the constant '{step.value.name}' depends on more than the head and the place in it", step.node)
        array = array.reshape(numbers(present))
        order = sorted(range(len(present)), key=lambda index: axis.index(present[index]))
        array = array.transpose(order)
        shape = [size if atom in present else 1 for atom, size in zip(axis, numbers(axis), strict=True)]
        full = np.broadcast_to(array.reshape(shape), numbers(axis))
        return np.ascontiguousarray(full).reshape(-1)

    def _rotated(self, value: Value, step: Step, wanted: Layout, heads: Axis) -> Value:
        size = wanted[2][len(heads) :]
        # Heads that only repeat others turn like them.
        held = tuple(tuple(atom for atom in axis if atom in _flat(wanted)) for axis in self.axes.resolve(step.layout))
        if held != (wanted[0], heads, wanted[1], size):
            raise Unproven("the rotary embedding is not over (batch, heads, sequence, head size)", step.node)
        node = step.node
        made: Value = self.op.RotaryEmbedding(
            value,
            *(Value(tensor) for tensor in node.inputs[1:]),
            domain=node.domain,
            interleaved=attribute(node, "interleaved"),
            num_heads=number(heads),
            rotary_embedding_dim=attribute(node, "rotary_embedding_dim"),
            scale=attribute(node, "scale"),
        )
        made.tensor.dtype, made.tensor.shape = dtype_of(value.tensor), [fact_of(_whole(axis)) for axis in wanted]
        return made

    def relaid(self, value: Value, layout: Layout, wanted: Layout) -> Value:
        """The same elements in another layout; both are resolved and have the same atoms.

        Raises:
            Unproven: a length that the shape needs is not known.
        """
        if layout == wanted:
            return value
        order = _flat(wanted)
        if _flat(layout) != order:
            if not _in_blocks(layout, order):
                layout, value = self._reshaped(value, layout, tuple((atom,) for atom in _flat(layout)))
            blocks = sorted(range(len(layout)), key=lambda index: _first(order, layout[index], index))
            if blocks != list(range(len(layout))):
                value = self.op.Transpose(value, perm=blocks)
                layout = tuple(layout[index] for index in blocks)
        return self._reshaped(value, layout, wanted)[1]

    def spread(self, value: Value, layout: Layout, wanted: Layout, whole: bool = True) -> Value:
        """``value`` in the layout ``wanted``, repeated along the atoms that it does not have.

        Without ``whole``, an axis of which it has no atom at all becomes one of length 1.
        """
        present = set(_flat(layout))
        absent = [axis for axis in wanted if axis and not present & set(axis)]
        partial = [axis for axis in wanted if present & set(axis) and not set(axis) <= present]
        if not partial and not (whole and absent):
            return self.relaid(value, layout, tuple(axis if present & set(axis) else () for axis in wanted))
        fine: list[Axis] = []
        lengths: list[Size] = []
        result: list[Axis] = []
        for axis in wanted:
            pieces = [(atom,) for atom in axis] if axis in partial else [axis]
            for piece in pieces:
                here = bool(present & set(piece))
                fine.append(piece if here else ())
                lengths.append(1 if here or (axis in absent and not whole) else _whole(piece))
                result.append(piece if here or whole or axis in partial else ())
        value = self.relaid(value, layout, tuple(fine))
        if all(isinstance(size, int) for size in lengths):
            target = self.op.constant(np.array(lengths, np.int64), "shape")
        else:
            target = self.op.Concat(*(self.length(size) for size in lengths), axis=0)
        made: Value = self.op.Expand(value, target)
        made.tensor.shape = [fact_of(_whole(axis)) for axis in result]
        kept = tuple(axis if whole or present & set(axis) else () for axis in wanted)
        return self.relaid(made, tuple(result), kept)

    def _reshaped(self, value: Value, layout: Layout, wanted: Layout) -> tuple[Layout, Value]:
        if layout == wanted:
            return wanted, value
        places = _inserted(layout, wanted)
        if places is not None:
            axes = self.op.constant(np.array(places, np.int64), "axes")
            return wanted, self.op.Unsqueeze(value, axes) if self.opset >= 13 else self.op.Unsqueeze(value, axes=places)
        shape = self.shape([_whole(axis) for axis in wanted], [_whole(axis) for axis in layout])
        made: Value = self.op.Reshape(value, shape)
        made.tensor.shape = [fact_of(_whole(axis)) for axis in wanted]  # inference does not see through a computed shape
        return wanted, made

    def shape(self, sizes: list[Size], given: list[Size]) -> Value:
        """The shape operand of a Reshape from axes of the sizes ``given`` to ``sizes``."""
        entries: list[Size | None] = []
        for index, size in enumerate(sizes):
            same = index < len(given) and given[index] == size and not isinstance(size, int)
            entries.append(0 if same else size)
        open_ones = [index for index, entry in enumerate(entries) if not isinstance(entry, int)]
        if len(open_ones) <= 1:
            numbers = [entry if isinstance(entry, int) else -1 for entry in entries]
            return self.op.constant(np.array(numbers, np.int64), "shape")
        parts = [
            self.length(entry) if not isinstance(entry, int) else self.op.constant(np.array([entry], np.int64), "dim")
            for entry in entries
            if entry is not None
        ]
        made: Value = self.op.Concat(*parts, axis=0)
        return made

    def length(self, size: Size) -> Value:
        """A vector of one integer, the length ``size`` at run time, read off an input of the graph.

        Raises:
            Unproven: no input has an axis of that length.
        """
        key = ("length", size)
        if key in self.shared.values:
            return self.shared.values[key]
        if isinstance(size, int):
            made: Value = self.op.constant(np.array([size], np.int64), "length")
        else:
            made = self._measured(size)
        self.made[key] = made
        self.shared.values[key] = made
        return made

    def _measured(self, size: Size) -> Value:
        tensor, axis = self.measure(size)
        shape = self.op.Shape(Value(tensor))
        index = self.op.constant(np.array([axis], np.int64), "axis")
        made: Value = self.op.Gather(shape, index)
        return made

    def measure(self, size: Size) -> tuple[Any, int]:
        """A value and its axis of the length ``size``.

        Raises:
            Unproven: there is none.
        """
        # What is furthest up stays, whatever becomes of the nodes between.
        places = (*reversed(self.attention.queries), *reversed(self.attention.keys))
        for tensor in (*self.shared.graph.inputs, *(place.tensor for place in places)):
            for axis, dim in enumerate(shape_of(tensor) or ()):
                if dim is not None and size_of(dim) == size:
                    return tensor, axis
        raise Unproven(f"no value has an axis of the length {size}", self.attention.softmax)

    def scale(self, queries: float, keys: float) -> float:
        """The scale of the scores, where queries and keys still have to be scaled by these numbers.

        Raises:
            Unproven: the op could not hold it; for a scale of 0, ops take another.
        """
        found = self.attention.scores.scale * queries * keys
        range_of = np.finfo(np.float32)
        if not float(range_of.tiny) <= found <= float(range_of.max):
            raise Unproven(f"the scores are scaled by {found:g}, which is no number of the op", self.attention.softmax)
        return found

    def whole(self, axis: Axis) -> Size:
        """The length of an axis."""
        return _whole(self.axes.atoms(axis))

    def sizes(self, layout: Layout) -> list[Size]:
        """The lengths of the axes of a value that will be taken away; each can be measured.

        Raises:
            Unproven: one cannot.
        """
        found = [_whole(axis) for axis in self.axes.resolve(layout)]
        for size in found:
            if not isinstance(size, int):
                self.measure(size)
        return found

    def result(self, value: Value) -> tuple[Any, Value]:
        """The value to replace and what replaces it, where ``value`` is (batch, rows, heads x value size)."""
        roles = self.attention.roles
        made = (roles.batch, roles.rows, roles.heads + roles.value_size)
        best: tuple[int, Any, Layout] | None = None
        for tensor, raw in self.attention.results:
            layout = self.axes.resolve(raw)
            if {atom for axis in layout for atom in axis} != set(_flat(made)):
                continue
            cost = 0 if layout == made else 1 if _flat(layout) == _flat(made) else 2
            if best is None or cost <= best[0]:  # the latest, so that most goes
                best = (cost, tensor, layout)
        if best is None:
            raise Unproven("the layout of the result is not known", self.attention.softmax)
        return best[1], self.relaid(value, made, best[2])


def positions(axes: Axes, axis: Axis) -> tuple[np.ndarray[Any, Any], Axis]:
    """Positions along the whole axis that are used, and the atoms that they run over, the outermost first.

    Raises:
        Unproven: a size is no number.
    """
    index: np.ndarray[Any, Any] = np.zeros((), np.int64)
    used: list[Atom] = []
    for atom in axes.atoms(axis):
        if not isinstance(atom.size, int):
            raise Unproven("the width of a projection is not known")
        held = np.arange(atom.size)
        if atom.start is not None:
            inner = axes.atoms(atom.inner)
            held = held[atom.start : atom.start + int(np.prod(numbers(inner), dtype=np.int64))]
            used.extend(inner)
        else:
            used.append(atom)
        index = (index.reshape(-1, 1) * atom.size + held.reshape(1, -1)).reshape(-1)
    return index.reshape(-1), tuple(used)


def numbers(axis: Iterable[Atom]) -> list[int]:
    """The sizes of atoms that all have to be numbers.

    Raises:
        Unproven: one is not.
    """
    found = [atom.size for atom in axis]
    if not all(isinstance(size, int) for size in found):
        raise Unproven("the heads or their size are not known")
    return [size for size in found if isinstance(size, int)]


def fact_of(size: Size) -> Dim:
    """A length as a dimension of a value's shape; None if nothing is known of it."""
    return None if "unknown" in str(size) else dim_of(size)


def _has_rotary(place: Place) -> bool:
    return any(step.kind == "rotary" for step in place.steps)


def _flat(layout: Layout) -> Axis:
    return tuple(atom for axis in layout for atom in axis)


def _inserted(layout: Layout, wanted: Layout) -> list[int] | None:
    """Where axes of length 1 have to be inserted to get from one layout to the other, if that is all."""
    places: list[int] = []
    rest = list(layout)
    for index, axis in enumerate(wanted):
        if rest and rest[0] == axis:
            rest.pop(0)
        elif not axis:
            places.append(index)
        else:
            return None
    return places if places and not rest else None


def _in_blocks(layout: Layout, order: Axis) -> bool:
    """Whether each axis of the layout stays together in ``order``."""
    return all(order[order.index(axis[0]) : order.index(axis[0]) + len(axis)] == axis for axis in layout if axis)


def _first(order: Axis, axis: Axis, index: int) -> tuple[int, int]:
    return (order.index(axis[0]) if axis else -1, index)


def _whole(axis: Axis) -> Size:
    found = length(axis)
    if found is None:
        raise Unproven("an axis has too many factors")
    return found
