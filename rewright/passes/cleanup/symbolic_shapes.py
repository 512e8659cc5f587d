"""Shapes of values in terms of symbols, for the ops behind which onnx's own inference loses the names of dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from rewright.model.facts import attribute
from rewright.passes.cleanup import dimensions
from rewright.passes.cleanup.dimensions import Size
from rewright.passes.cleanup.shape_items import Item, Items
from rewright.passes.cleanup.shape_values import ShapeValues

TO_THE_END: Final = 2**31 - 1
"""The operator's documentation asks for INT_MAX where a Slice runs to the end of a dimension of unknown size."""


def symbolic_dims(node: Any, values: ShapeValues) -> list[Item] | None:
    """The dimensions of the node's first output, None for one that is not known; None if nothing is.

    They hold whenever the node can be computed at all.
    """
    rule = _RULES.get(node.op)
    return rule(node, values) if rule is not None else None


def reshape(node: Any, values: ShapeValues) -> list[Item] | None:
    """Numbers, symbols, copied dimensions, and for -1 what remains."""
    target = values.of(node.inputs[1]) if len(node.inputs) > 1 else None
    if target is None or not target.is_vector:
        return None
    dims = values.dims_of(node.inputs[0])
    copies = not attribute(node, "allowzero", 0)
    sizes = [
        (dims[index] if dims is not None and index < len(dims) else None) if item == 0 and copies else item
        for index, item in enumerate(target.items)
    ]
    if -1 not in sizes:
        return sizes
    place = sizes.index(-1)
    others = [size for index, size in enumerate(sizes) if index != place and size is not None]
    sizes[place] = None
    if dims is not None and len(others) == len(sizes) - 1:
        whole, rest = dimensions.product(dims), dimensions.product(others)
        if whole is not None and rest is not None and rest != 0:
            sizes[place] = dimensions.divide(whole, rest)
    return sizes


def constant_of_shape(node: Any, values: ShapeValues) -> list[Item] | None:
    wanted = values.of(node.inputs[0])
    return list(wanted.items) if wanted is not None and wanted.is_vector else None


def expand(node: Any, values: ShapeValues) -> list[Item] | None:
    wanted, dims = values.of(node.inputs[1]), values.dims_of(node.inputs[0])
    if wanted is None or not wanted.is_vector or dims is None:
        return None
    return _broadcast([list(dims), list(wanted.items)], values)


def elementwise(node: Any, values: ShapeValues) -> list[Item] | None:
    shapes: list[list[Item]] = []
    for tensor in node.inputs:
        dims = values.dims_of(tensor) if tensor.name else None
        if dims is None:
            return None
        shapes.append(list(dims))
    return _broadcast(shapes, values)


def _broadcast(shapes: list[list[Item]], values: ShapeValues) -> list[Item]:
    rank = max(map(len, shapes))
    result: list[Item] = [1] * rank
    for shape in shapes:
        missing: list[Item] = [1] * (rank - len(shape))
        result = [_both(left, right, values) for left, right in zip(result, missing + shape, strict=True)]
    return result


def _both(left: Item, right: Item, values: ShapeValues) -> Item:
    """The dimension that two make: they are equal, or one of them is 1."""
    if right in (left, 1):
        return left
    if left == 1:
        return right
    for number in (left, right):
        if isinstance(number, int) and number > 1:
            return number
    # Where a and min(a, 32) differ, both exceed 1 and cannot be broadcast: position embeddings are sliced like that.
    if left is not None and values.bound_of(right) == left:
        return left
    if right is not None and values.bound_of(left) == right:
        return right
    return None


def slice_(node: Any, values: ShapeValues) -> list[Item] | None:
    ranges = slice_ranges(node, values)
    dims = values.dims_of(node.inputs[0])
    if ranges is None or dims is None:
        return None
    sizes: list[Item] = list(dims)
    for axis, (start, end, step) in ranges.items():
        dim = dims[axis]
        sizes[axis] = None
        if isinstance(start, int) and isinstance(end, int) and isinstance(step, int) and step > 0 and isinstance(dim, int):
            sizes[axis] = len(range(*slice(start, end, step).indices(dim)))
        elif start == 0 and step == 1 and end is not None:
            sizes[axis] = dim if reaches(end, dim) else values.smaller(end, dim)
    return sizes


def slice_ranges(node: Any, values: ShapeValues) -> dict[int, tuple[Item, Item, Item]] | None:
    """Start, end and step by axis, for a Slice with operands (opset 10 on); None if the axes are not known."""
    dims = values.dims_of(node.inputs[0])
    operands = [values.of(tensor) if tensor.name else None for tensor in node.inputs[1:]]
    given = [bool(tensor.name) for tensor in node.inputs[1:]] + [False] * 4
    if dims is None or len(operands) < 2:
        return None
    count = next((len(held.items) for held in operands if held is not None), None)
    if count is None:
        return None
    unknown: tuple[Item, ...] = (None,) * count
    columns: list[tuple[Item, ...]] = []
    for index, default in enumerate((unknown, unknown, tuple(range(count)), (1,) * count)):
        held = operands[index] if index < len(operands) else None
        columns.append(held.items if held is not None else unknown if given[index] else default)
    found: dict[int, tuple[Item, Item, Item]] = {}
    for start, end, axis, step in zip(*columns, strict=True):
        if not isinstance(axis, int) or not -len(dims) <= axis < len(dims):
            return None
        found[axis % len(dims)] = (start, end, step)
    return found


def reaches(end: Item, dim: Size) -> bool:
    """Whether a Slice up to ``end`` takes all of ``dim``."""
    return end == dim or (isinstance(end, int) and (end >= TO_THE_END or (isinstance(dim, int) and end >= dim)))


def range_(node: Any, values: ShapeValues) -> list[Item] | None:
    bounds = [_scalar(values.of(tensor)) for tensor in node.inputs]
    start, limit, delta = bounds
    if start is None or limit is None or delta != 1:
        return None
    length = dimensions.add(limit, start, -1)
    if length is None or isinstance(length, int):
        return None if length is None else [max(length, 0)]
    return [length] if length.is_not_negative else None


def concat(node: Any, values: ShapeValues) -> list[Item] | None:
    shapes = [values.dims_of(tensor) for tensor in node.inputs]
    axis = attribute(node, "axis")
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes) or not isinstance(axis, int) or not -len(known[0]) <= axis < len(known[0]):
        return None
    axis %= len(known[0])
    if any(len(shape) != len(known[0]) for shape in known):
        return None
    sizes: list[Item] = [next((dim for dim in column if isinstance(dim, int)), column[0]) for column in zip(*known, strict=True)]
    total: Item = 0
    for shape in known:
        total = dimensions.add(total, shape[axis]) if total is not None else None
    sizes[axis] = total
    return sizes


def _scalar(value: Items | None) -> Item:
    return value.items[0] if value is not None and len(value.items) == 1 else None


_BROADCASTING: Final = (
    "Add", "Sub", "Mul", "Div", "Pow", "Mod", "PRelu", "Where", "And", "Or", "Xor", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Min", "Max", "Mean", "Sum",
)  # fmt: skip

_RULES: Final[dict[str, Callable[[Any, ShapeValues], list[Item] | None]]] = {
    **dict.fromkeys(_BROADCASTING, elementwise),
    "Reshape": reshape,
    "ConstantOfShape": constant_of_shape,
    "Expand": expand,
    "Slice": slice_,
    "Range": range_,
    "Concat": concat,
}
