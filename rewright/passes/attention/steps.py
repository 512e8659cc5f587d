"""One step along a value's history: which layout the input of a node has, when that of its output is known, and back."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from rewright.model.edit import domain_of
from rewright.model.facts import attribute, constant_of, is_small_constant
from rewright.passes.attention.axes import Atom, Axes, Axis, Layout, Unproven, length, number, sizes_of
from rewright.shapes.dimensions import Size
from rewright.shapes.terms import term_of

_REGROUPING = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")
_MOST_REPEATED: Final = 1 << 10


def upwards(axes: Axes, node: Any, output: Any, layout: Layout) -> tuple[Any, Layout] | None:
    """The data input of a node that only moves elements, and its layout; None for any other node.

    Raises:
        Unproven: the node moves elements, but the shapes do not say how.
    """
    if domain_of(node):
        return None
    data = node.inputs[0] if node.inputs else None
    if _is_copy(node) and output is node.outputs[0]:
        return data, layout
    if node.op in _REGROUPING:
        return data, axes.regroup(layout, sizes_of(data), data)
    if node.op == "Transpose":
        source: list[Axis] = [()] * len(layout)
        for index, axis in zip(_permutation(node, len(layout)), layout, strict=True):
            source[index] = axis
        return data, tuple(source)
    if node.op == "Expand":
        return data, broadcast(layout, data)
    if node.op == "Gather":
        return _picked(node, layout) or _repeated(axes, node, layout)
    if node.op in ("Tile", "Concat"):
        return _tiled(axes, node, layout)
    if node.op == "Split":
        return _split(node, output, layout)
    if node.op == "Slice":
        return _sliced(node, layout)
    return None


def downwards(axes: Axes, node: Any, layout: Layout) -> Layout | None:
    """The layout of the first output of a node that only moves elements; None for any other node."""
    if domain_of(node):
        return None
    if _is_copy(node):
        return layout
    if node.op in _REGROUPING:
        return axes.regroup(layout, sizes_of(node.outputs[0]), node)
    if node.op == "Transpose":
        return tuple(layout[index] for index in _permutation(node, len(layout)))
    return None


def broadcast(layout: Layout, operand: Any) -> Layout:
    """The layout of an operand that is broadcast to ``layout``: the axes along which it is repeated have no atoms.

    Raises:
        Unproven: the operand's shape does not say along which.
    """
    sizes = sizes_of(operand)
    missing = len(layout) - len(sizes)
    if missing < 0:
        raise Unproven(f"'{operand.name}' has more axes than what it is combined with", operand)
    found: list[Axis] = []
    for size, axis in zip(sizes, layout[missing:], strict=True):
        if size == 1:
            found.append(())
            continue
        whole = length(axis)
        if whole is None or not equal_where_broadcast(size, whole):
            raise Unproven(f"an axis of '{operand.name}' has the length {size}, which is not known to be {whole}", operand)
        found.append(axis)
    return tuple(found)


def over(layout: Layout, operand: Any) -> tuple[Layout, bool]:
    """The layout of an operand that is broadcast to ``layout``, taking axes of unknown length for whole ones.

    Returns:
        the layout, and whether an axis of it may just as well have the length 1.

    Raises:
        Unproven: the operand has more axes than the layout, or its rank is not known.
    """
    try:
        return broadcast(layout, operand), False
    except Unproven:
        sizes = sizes_of(operand)
        missing = len(layout) - len(sizes)
        if missing < 0 or any(
            isinstance(size, int) and size != 1 and isinstance(length(axis), int) and length(axis) != size
            for size, axis in zip(sizes, layout[missing:], strict=True)
        ):
            raise
        return tuple(() if size == 1 else axis for size, axis in zip(sizes, layout[missing:], strict=True)), True


def equal_where_broadcast(size: Size, whole: Size) -> bool:
    """Whether an operand's axis has the length of the result's, given that the operand can be broadcast to the result.

    Where a and min(a, 64) differ, the smaller exceeds 1 and cannot be broadcast: buffers for the longest sequence are sliced so.
    """
    if size == whole:
        return True
    capped = term_of(size, "min")
    return capped is not None and whole in capped.arguments and any(isinstance(cap, int) and cap > 1 for cap in capped.arguments)


def _is_copy(node: Any) -> bool:
    """Identity, or a Dropout that drops nothing and whose mask nobody asks for."""
    if node.op != "Dropout":
        return bool(node.op == "Identity")
    if any(tensor.name for tensor in node.outputs[1:]):
        return False
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return True
    training = constant_of(node.inputs[2]) if is_small_constant(node.inputs[2], 1) else None
    return training is not None and not training.any()


def _permutation(node: Any, rank: int) -> list[int]:
    return list(attribute(node, "perm") or reversed(range(rank)))


def _picked(node: Any, layout: Layout) -> tuple[Any, Layout] | None:
    """Gather of one element of an axis of fixed length."""
    data, index = node.inputs[0], node.inputs[1]
    chosen = constant_of(index) if is_small_constant(index, 1) else None
    sizes = sizes_of(data)
    axis = int(attribute(node, "axis", 0))
    axis += len(sizes) if axis < 0 else 0
    whole = sizes[axis]
    if chosen is None or chosen.ndim or not isinstance(whole, int):
        return None
    pick = int(chosen) % whole
    middle: Axis = (Atom(whole, pick),) if whole != 1 else ()
    return data, (*layout[:axis], middle, *layout[axis:])


def _repeated(axes: Axes, node: Any, layout: Layout) -> tuple[Any, Layout] | None:
    """Gather of all elements of an axis, each several times: one after the other (0, 0, 1, 1) or in turns (0, 1, 0, 1)."""
    data, index = node.inputs[0], node.inputs[1]
    chosen = constant_of(index) if is_small_constant(index, _MOST_REPEATED) else None
    sizes = sizes_of(data)
    axis = int(attribute(node, "axis", 0)) % len(sizes)
    whole = sizes[axis]
    if chosen is None or chosen.ndim != 1 or not isinstance(whole, int) or not whole or len(chosen) % whole:
        return None
    times = len(chosen) // whole
    held = np.where(chosen < 0, chosen + whole, chosen)
    if np.array_equal(held, np.repeat(np.arange(whole), times)):
        return data, _without(axes, layout, axis, (whole, times), 1, node)
    if np.array_equal(held, np.tile(np.arange(whole), times)):
        return data, _without(axes, layout, axis, (times, whole), 0, node)
    return None


def _tiled(axes: Axes, node: Any, layout: Layout) -> tuple[Any, Layout] | None:
    """Tile by constants, or Concat of one value with itself."""
    data = node.inputs[0]
    if node.op == "Concat":
        if any(tensor is not data for tensor in node.inputs):
            return None
        repeats = [1] * len(layout)
        repeats[int(attribute(node, "axis", 0)) % len(layout)] = len(node.inputs)
    else:
        given = constant_of(node.inputs[1]) if is_small_constant(node.inputs[1], len(layout)) else None
        if given is None or len(given) != len(layout):
            return None
        repeats = [int(times) for times in given]
    for axis, (size, times) in enumerate(zip(sizes_of(data), repeats, strict=True)):
        if times != 1:
            layout = _without(axes, layout, axis, (times, size), 0, node)
    return data, layout


def _without(axes: Axes, layout: Layout, axis: int, sizes: tuple[Size, Size], dropped: int, where: Any) -> Layout:
    """The layout with an axis of the two given lengths, of which one only repeats the other."""
    parts = axes.regroup((layout[axis],), sizes, where)
    return (*layout[:axis], parts[1 - dropped], *layout[axis + 1 :])


def _split(node: Any, output: Any, layout: Layout) -> tuple[Any, Layout] | None:
    data = node.inputs[0]
    axis = int(attribute(node, "axis", 0)) % len(layout)
    lengths = [sizes_of(part)[axis] for part in node.outputs]
    before = lengths[: next(index for index, part in enumerate(node.outputs) if part is output)]
    if not all(isinstance(held, int) for held in lengths):
        return None
    return data, _part(layout, axis, sum(lengths), sum(before))  # type: ignore[arg-type]


def _sliced(node: Any, layout: Layout) -> tuple[Any, Layout] | None:
    """Slice along one axis of fixed length, without gaps."""
    data = node.inputs[0]
    given = [constant_of(tensor) if tensor.name and is_small_constant(tensor, 1) else None for tensor in node.inputs[1:]]
    if len(given) < 3 or any(value is None for value in given) or (len(given) == 4 and int(given[3].reshape(-1)[0]) != 1):  # type: ignore[union-attr]
        return None
    axis = int(given[2].reshape(-1)[0]) % len(layout)  # type: ignore[union-attr]
    whole = sizes_of(data)[axis]
    if not isinstance(whole, int):
        return None
    start, end, _ = slice(int(given[0].reshape(-1)[0]), int(given[1].reshape(-1)[0])).indices(whole)  # type: ignore[union-attr]
    if number(layout[axis]) != end - start:
        return None
    return data, _part(layout, axis, whole, start)


def _part(layout: Layout, axis: int, whole: int, start: int) -> Layout:
    """The layout of a value of which the elements from ``start`` on, along ``axis``, have the given layout."""
    count = number(layout[axis])
    if count is None or count == whole:
        return layout
    if whole % count == 0 and start % count == 0:  # so that what follows may still be regrouped
        held = (Atom(whole // count, start // count), *layout[axis])
    else:
        held = (Atom(whole, start, layout[axis]),)
    return (*layout[:axis], held, *layout[axis + 1 :])
