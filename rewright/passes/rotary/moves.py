"""Ops that only move elements along the trailing axes of a value, and where each element comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np

from rewright.model.edit import domain_of
from rewright.model.facts import attribute, constant_of, dtype_of, is_small_constant, producer, shape_of
from rewright.shapes.dimensions import Size
from rewright.shapes.walk import Shapes

Index = np.ndarray[Any, Any]

MOST_ELEMENTS: Final = 4096
"""Heads have hundreds of elements; wider trailing axes are weights or scores, which are not looked into."""


@dataclass(frozen=True, eq=False)
class Move:
    """``index`` has the shape of the output's trailing axes; it counts through the elements of the inputs, one after another."""

    inputs: tuple[Any, ...]
    index: Index


def trailing(tensor: Any, count: int) -> tuple[int, ...] | None:
    """The last ``count`` dimensions, if they are known and small."""
    shape = tensor.shape
    if shape is None or not 1 <= count <= len(shape):
        return None
    dims = tuple(int(dim) for dim in shape[-count:] if isinstance(dim, (int, np.integer)))
    return dims if len(dims) == count and prod(dims) <= MOST_ELEMENTS else None


def ints(node: Any, name: str, index: int) -> list[int] | None:
    """An operand that is an attribute in some opsets and a constant input in others; None if absent or not constant."""
    held = attribute(node, name)
    if isinstance(held, list):
        return [int(item) for item in held]
    if len(node.inputs) <= index or not is_small_constant(node.inputs[index], MOST_ELEMENTS):
        return None
    value = constant_of(node.inputs[index])
    return None if value is None or value.dtype.kind not in "iu" else [int(item) for item in value.reshape(-1)]


class Moves:
    """Reads moves, for values whose first axes are to stay as they are."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes

    def dims(self, tensor: Any) -> list[Size] | None:
        """The dimensions as sizes that can be compared."""
        return self._shapes.dims(tensor)

    def of(self, tensor: Any, count: int) -> Move | None:
        """How the elements over the last ``count`` axes got there, if by a move that leaves the axes before alone."""
        node = producer(tensor)
        rule = _RULES.get(node.op) if node is not None and not domain_of(node) else None
        shape = trailing(tensor, count) if rule is not None else None
        if rule is None or shape is None:
            return None
        try:
            found = rule(self, node, tensor, len(tensor.shape) - count)
        except (ValueError, IndexError):
            return None  # the shapes that the model states contradict its operands
        return found if found is not None and found.index.shape == shape else None

    def source(self, tensor: Any, lead: int) -> Index | None:
        """The elements behind the first ``lead`` axes of an input, numbered."""
        dims = trailing(tensor, len(tensor.shape) - lead) if tensor.shape is not None else None
        return None if dims is None else np.arange(prod(dims)).reshape(dims)

    def identity(self, node: Any, tensor: Any, lead: int) -> Move | None:
        source = self.source(node.inputs[0], lead)
        return None if source is None else Move((node.inputs[0],), source)

    def slice(self, node: Any, tensor: Any, lead: int) -> Move | None:
        source = self.source(node.inputs[0], lead)
        starts, ends = ints(node, "starts", 1), ints(node, "ends", 2)
        if source is None or starts is None or ends is None:
            return None
        axes, steps = ints(node, "axes", 3), ints(node, "steps", 4)
        if (axes is None and _given(node, 3)) or (steps is None and _given(node, 4)):
            return None
        axes = list(range(len(starts))) if axes is None else axes
        picks = [slice(None)] * source.ndim
        for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(starts), strict=True):
            place = axis % (lead + source.ndim) - lead
            if place < 0 or step <= 0:
                return None
            picks[place] = slice(start, end, step)
        return Move((node.inputs[0],), source[tuple(picks)])

    def split(self, node: Any, tensor: Any, lead: int) -> Move | None:
        source = self.source(node.inputs[0], lead)
        if source is None:
            return None
        place = attribute(node, "axis", 0) % (lead + source.ndim) - lead
        if place < 0:
            return None
        start = 0
        for output in node.outputs:
            width = (shape_of(output) or (None,) * (lead + source.ndim))[lead + place]
            if not isinstance(width, int):
                return None
            if output is tensor:
                return Move((node.inputs[0],), np.take(source, np.arange(start, start + width), axis=place))
            start += width
        return None

    def gather(self, node: Any, tensor: Any, lead: int) -> Move | None:
        source, data = self.source(node.inputs[0], lead), node.inputs[1]
        picked = constant_of(data) if is_small_constant(data, MOST_ELEMENTS) else None
        if source is None or picked is None:
            return None
        place = attribute(node, "axis", 0) % (lead + source.ndim) - lead
        if place < 0 or (picked.size and not -source.shape[place] <= picked.min() <= picked.max() < source.shape[place]):
            return None
        return Move((node.inputs[0],), np.take(source, picked, axis=place))

    def concat(self, node: Any, tensor: Any, lead: int) -> Move | None:
        rank, first, parts = len(shape_of(tensor) or ()), 0, []
        axis = attribute(node, "axis", 0)
        if axis % rank < lead:
            return None
        for operand in node.inputs:
            source = self.source(operand, lead)
            if source is None:
                return None
            parts.append(source + first)
            first += source.size
        return Move(tuple(node.inputs), np.concatenate(parts, axis=axis % rank - lead))

    def reshape(self, node: Any, tensor: Any, lead: int) -> Move | None:
        source, shape = self.source(node.inputs[0], lead), shape_of(tensor)
        before, after = self.dims(node.inputs[0]), self.dims(tensor)
        if source is None or shape is None or before is None or after is None or before[:lead] != after[:lead]:
            return None
        wanted = trailing(tensor, len(shape) - lead)
        return None if wanted is None or prod(wanted) != source.size else Move((node.inputs[0],), source.reshape(wanted))

    def unsqueeze(self, node: Any, tensor: Any, lead: int) -> Move | None:
        axes, rank = ints(node, "axes", 1), len(shape_of(tensor) or ())
        if axes is None or any(axis % rank < lead for axis in axes):
            return None
        source = self.source(node.inputs[0], lead)
        if source is None:
            return None
        return Move((node.inputs[0],), np.expand_dims(source, tuple(axis % rank - lead for axis in axes)))

    def squeeze(self, node: Any, tensor: Any, lead: int) -> Move | None:
        axes, shape = ints(node, "axes", 1), shape_of(node.inputs[0])
        if axes is None or shape is None or any(axis % len(shape) < lead for axis in axes):
            return None
        source = self.source(node.inputs[0], lead)
        places = tuple(axis % len(shape) - lead for axis in axes)
        if source is None or any(source.shape[place] != 1 for place in places):
            return None
        return Move((node.inputs[0],), source.squeeze(places))

    def transpose(self, node: Any, tensor: Any, lead: int) -> Move | None:
        permutation, source = attribute(node, "perm"), self.source(node.inputs[0], lead)
        if permutation is None or source is None or list(permutation[:lead]) != list(range(lead)):
            return None
        return Move((node.inputs[0],), source.transpose([axis - lead for axis in permutation[lead:]]))

    def expand(self, node: Any, tensor: Any, lead: int) -> Move | None:
        source, before, after = self.source(node.inputs[0], lead), self.dims(node.inputs[0]), self.dims(tensor)
        if source is None or before is None or after is None or len(before) != len(after) or before[:lead] != after[:lead]:
            return None
        wanted = trailing(tensor, len(after) - lead)
        return None if wanted is None else Move((node.inputs[0],), np.broadcast_to(source, wanted))

    def tile(self, node: Any, tensor: Any, lead: int) -> Move | None:
        repeats, source = ints(node, "repeats", 1), self.source(node.inputs[0], lead)
        if repeats is None or source is None or any(repeat != 1 for repeat in repeats[:lead]):
            return None
        return Move((node.inputs[0],), np.tile(source, repeats[lead:]))


def signs(tensor: Any) -> Index | None:
    """A constant of ones and minus ones over its last axis, which only flips signs; None for any other value."""
    if not is_small_constant(tensor, MOST_ELEMENTS) or (dtype := dtype_of(tensor)) is None or dtype.kind not in "fi":
        return None
    value = constant_of(tensor)
    if value is None or value.size == 0 or not np.all(np.abs(value) == 1):
        return None
    return np.asarray(value.reshape(-1), np.int8) if value.size == (value.shape[-1] if value.ndim else 1) else None


def _given(node: Any, index: int) -> bool:
    return len(node.inputs) > index and bool(node.inputs[index].name)


_RULES: Final[dict[str, Callable[[Moves, Any, Any, int], Move | None]]] = {
    "Identity": Moves.identity,
    "Slice": Moves.slice,
    "Split": Moves.split,
    "Gather": Moves.gather,
    "Concat": Moves.concat,
    "Reshape": Moves.reshape,
    "Unsqueeze": Moves.unsqueeze,
    "Squeeze": Moves.squeeze,
    "Transpose": Moves.transpose,
    "Expand": Moves.expand,
    "Tile": Moves.tile,
}
