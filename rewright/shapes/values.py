"""What small integer tensors hold, element by element: a number, a size in terms of dimensions, or something unknown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from rewright.model.facts import attribute, constant_of, dtype_of, is_constant, is_small_constant, shape_of
from rewright.shapes import dimensions, terms
from rewright.shapes.dimensions import Size
from rewright.shapes.items import Item, Items
from rewright.shapes.rule import Known

MOST_ITEMS: Final = 64
_AXES_ARE_INPUTS: Final = 13
_SLICE_HAS_INPUTS: Final = 10


def items_rule(op: str) -> Callable[[Known, Any], Items | None] | None:
    """The rule that evaluates a node of that type, if it can be shape arithmetic."""
    return _RULES.get(op)


def constant_items(tensor: Any) -> Items | None:
    """The elements of a small constant of integers or booleans."""
    if not is_constant(tensor) or not is_small_constant(tensor, MOST_ITEMS):
        return None
    dtype = tensor.dtype
    if dtype is not None and np.dtype(dtype).kind not in "iub":
        return None
    value = constant_of(tensor)
    if value is None or value.ndim > 1 or value.dtype.kind not in "iub":
        return None
    return Items(tuple(int(item) for item in value.reshape(-1)), value.ndim == 1, value.dtype)


def bounded(found: Items | None) -> Items | None:
    """The result of a rule, unless it is too long to be worth following."""
    if found is None or len(found.items) > MOST_ITEMS or (not found.is_vector and len(found.items) != 1):
        return None
    return found


def _shape(known: Known, node: Any) -> Items | None:
    dims = known.dims(node.inputs[0])
    if dims is None:
        return None
    return Items(tuple(dims[slice(attribute(node, "start", 0), attribute(node, "end", None))]), True, np.dtype(np.int64))


def _size(known: Known, node: Any) -> Items | None:
    dims = known.dims(node.inputs[0])
    return None if dims is None else Items((dimensions.product(dims),), False, np.dtype(np.int64))


def _gather(known: Known, node: Any) -> Items | None:
    data, indices = known.items(node.inputs[0]), known.items(node.inputs[1])
    if data is None or not data.is_vector or indices is None or attribute(node, "axis", 0) not in (0, -1):
        return None
    picked = indices.numbers()
    if picked is None or not all(-len(data.items) <= index < len(data.items) for index in picked):
        return None
    return Items(tuple(data.items[index] for index in picked), indices.is_vector, data.dtype)


def _slice(known: Known, node: Any) -> Items | None:
    data = known.items(node.inputs[0])
    starts = known.setting(node, "starts", 1, _SLICE_HAS_INPUTS, None)
    ends = known.setting(node, "ends", 2, _SLICE_HAS_INPUTS, None)
    steps = [1] if known.opset < _SLICE_HAS_INPUTS else known.setting(node, "steps", 4, _SLICE_HAS_INPUTS, [1])
    if data is None or not data.is_vector or starts is None or ends is None or steps is None:
        return None
    if len(starts) != 1 or len(ends) != 1 or len(steps) != 1 or steps[0] == 0:
        return None
    return Items(tuple(data.items[index] for index in taken(starts[0], ends[0], steps[0], len(data.items))), True, data.dtype)


def taken(start: int, end: int, step: int, dim: int) -> range:
    """The indices that a Slice takes. A negative end counts from the back even below -dim, where Python's means the same."""
    return range(*slice(start, end, step).indices(dim))


def _unsqueeze(known: Known, node: Any) -> Items | None:
    data = known.items(node.inputs[0])
    axes = known.setting(node, "axes", 1, _AXES_ARE_INPUTS, None)
    return None if data is None or data.is_vector or axes not in ([0], [-1]) else Items(data.items, True, data.dtype)


def _squeeze(known: Known, node: Any) -> Items | None:
    data = known.items(node.inputs[0])
    return None if data is None or len(data.items) != 1 else Items(data.items, False, data.dtype)


def _reshape(known: Known, node: Any) -> Items | None:
    data, target = known.items(node.inputs[0]), known.numbers(node, 1)
    if data is None or target is None or len(target) > 1:
        return None
    if target and target[0] not in (-1, len(data.items)):
        return None
    return Items(data.items, bool(target), data.dtype) if target or len(data.items) == 1 else None


def _concat(known: Known, node: Any) -> Items | None:
    parts = [known.items(tensor) for tensor in node.inputs]
    dtype = next((part.dtype for part in parts if part is not None), None) or dtype_of(node.outputs[0])
    if dtype is None or dtype.kind not in "iu":
        return None
    items: list[Item] = []
    for part, tensor in zip(parts, node.inputs, strict=True):
        if part is not None and part.is_vector:
            items.extend(part.items)
            continue
        length = shape_of(tensor)
        if part is not None or length is None or len(length) != 1 or not isinstance(length[0], int) or length[0] > MOST_ITEMS:
            return None
        items.extend([None] * length[0])
    return Items(tuple(items), True, dtype)


def _cast(known: Known, node: Any) -> Items | None:
    data, to = known.items(node.inputs[0]), attribute(node, "to")
    if data is None or not isinstance(to, int):
        return None
    dtype = onnx.helper.tensor_dtype_to_np_dtype(to)
    if dtype.kind == "b":
        truths = tuple(None if item is None or not isinstance(item, int) else int(item != 0) for item in data.items)
        return Items(truths, data.is_vector, dtype)
    if dtype.kind != "i" or dtype.itemsize < 4:
        return None
    narrow = dtype.itemsize < data.dtype.itemsize
    # A single dimension fits into 32 bits (ONNX Runtime could not hold the tensor); a product of several may not.
    kept = tuple(item if not narrow or _fits_32_bits(item) else None for item in data.items)
    return Items(kept, data.is_vector, dtype)


def _identity(known: Known, node: Any) -> Items | None:
    return known.items(node.inputs[0])


def _elementwise(known: Known, node: Any) -> Items | None:
    values = []
    for tensor in node.inputs:
        held = known.items(tensor)
        if held is None or not held.items:
            return None
        values.append(held)
    length = max(len(value.items) for value in values)
    if any(len(value.items) not in (1, length) for value in values):
        return None
    columns = [value.items * length if len(value.items) == 1 else value.items for value in values]
    operation = _ELEMENTWISE[node.op]
    items = tuple(
        None if None in column and node.op != "Where" else operation(known, *column) for column in zip(*columns, strict=True)
    )
    dtype = np.dtype(bool) if node.op in _LOGICAL else values[-1].dtype
    return Items(items, any(value.is_vector for value in values), dtype)


def _mod(known: Known, node: Any) -> Items | None:
    return None if attribute(node, "fmod", 0) else _elementwise(known, node)


def _reduced(operation: Callable[[list[Size]], Item], since: int) -> Callable[[Known, Any], Items | None]:
    def rule(known: Known, node: Any) -> Items | None:
        data = known.items(node.inputs[0])
        axes = known.setting(node, "axes", 1, since, [0])
        if data is None or not data.is_vector or axes not in ([0], [-1]) or None in data.items:
            return None
        if attribute(node, "noop_with_empty_axes", 0):
            return None
        whole = operation([item for item in data.items if item is not None])
        return Items((whole,), bool(attribute(node, "keepdims", 1)), data.dtype)

    return rule


def _sum(sizes: list[Size]) -> Item:
    total: Item = 0
    for size in sizes:
        total = dimensions.add(total, size) if total is not None else None
    return total


def _constant_of_shape(known: Known, node: Any) -> Items | None:
    length = known.numbers(node, 0)
    fill = attribute(node, "value")
    values = fill.values if isinstance(fill, gs.Constant) else fill
    if length is None or len(length) > 1 or not isinstance(values, np.ndarray) or values.dtype.kind not in "iub":
        return None
    count = length[0] if length else 1
    if not 0 <= count <= MOST_ITEMS:
        return None
    return Items((int(values.reshape(-1)[0]),) * count, bool(length), values.dtype)


def _range(known: Known, node: Any) -> Items | None:
    bounds = [known.numbers(node, index) for index in range(3)]
    first = known.items(node.inputs[0])
    if first is None or any(bound is None or len(bound) != 1 for bound in bounds):
        return None
    start, limit, delta = (bound[0] for bound in bounds if bound is not None)
    if delta == 0 or (limit - start) // delta > MOST_ITEMS:
        return None
    return Items(tuple(range(start, limit, delta)), True, first.dtype)


def _expand(known: Known, node: Any) -> Items | None:
    data, target = known.items(node.inputs[0]), known.numbers(node, 1)
    if data is None or target is None or len(target) != 1 or len(data.items) != 1 or not 0 < target[0] <= MOST_ITEMS:
        return None
    return Items(data.items * target[0], True, data.dtype)


def _fits_32_bits(item: Item) -> bool:
    if isinstance(item, int):
        return -(2**31) <= item < 2**31
    return item is not None and len(item.terms) == 1 and item.terms[0][1] == 1 and len(item.terms[0][0]) == 1


def _divided(known: Known, left: Size, right: Size) -> Item:
    """Div truncates, which is the floor where neither is negative."""
    if known.is_dimension(left) and terms.never_negative(right) and right != 0:
        return terms.floor_divide(left, right)
    return terms.truncated_divide(left, right)


def _modulo(_: Known, left: Size, right: Size) -> Item:
    """The remainder with the divisor's sign, as ONNX has it for fmod=0."""
    if isinstance(left, int) and isinstance(right, int):
        return left % right if right else None
    if not isinstance(right, int) or right <= 0:
        return None
    quotient = terms.floor_divide(left, right)
    whole = dimensions.multiply(quotient, right) if quotient is not None else None
    return dimensions.add(left, whole, -1) if whole is not None else None


def _equal(known: Known, left: Size, right: Size) -> Item:
    difference = dimensions.add(left, right, -1)
    if isinstance(difference, int):
        return int(difference == 0)
    if difference is not None and (_positive(difference) or _positive(dimensions.add(0, difference, -1))):
        return 0
    for size, other in ((left, right), (right, left)):
        if isinstance(other, int) and other < 0 and known.is_dimension(size):
            return 0
    return None


def _positive(size: Item) -> bool:
    less = dimensions.add(size, 1, -1) if size is not None else None
    return less is not None and terms.never_negative(less)


def _less(left: Size, right: Size, strictly: bool) -> Item:
    """Whether ``left < right`` (or ``<=``), if that is certain."""
    difference = dimensions.add(right, left, -1)
    opposite = dimensions.add(left, right, -1)
    if difference is None or opposite is None:
        return None
    if _positive(difference) or (not strictly and terms.never_negative(difference)):
        return 1
    return 0 if _positive(opposite) or (strictly and terms.never_negative(opposite)) else None


def _where(_: Known, condition: Item, yes: Item, no: Item) -> Item:
    if yes is not None and yes == no:
        return yes
    return None if not isinstance(condition, int) else yes if condition else no


def _both(left: Item, right: Item) -> Item:
    return int(bool(left and right)) if isinstance(left, int) and isinstance(right, int) else None


def _either(left: Item, right: Item) -> Item:
    return int(bool(left or right)) if isinstance(left, int) and isinstance(right, int) else None


def _extreme(operation: Callable[[Size, Size], Size], sizes: Iterable[Size]) -> Item:
    result: Item = None
    for size in sizes:
        result = size if result is None else operation(result, size)
    return result


def _absolute(size: Size) -> Item:
    return abs(size) if isinstance(size, int) else size if size.is_not_negative else None


_LOGICAL: Final = frozenset(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not"))

_ELEMENTWISE: Final[dict[str, Callable[..., Item]]] = {
    "Add": lambda _, left, right: dimensions.add(left, right),
    "Sub": lambda _, left, right: dimensions.add(left, right, -1),
    "Mul": lambda _, left, right: dimensions.multiply(left, right),
    "Div": _divided,
    "Mod": _modulo,
    "Neg": lambda _, size: dimensions.add(0, size, -1),
    "Abs": lambda _, size: _absolute(size),
    "Min": lambda _, *sizes: _extreme(terms.minimum, sizes),
    "Max": lambda _, *sizes: _extreme(terms.maximum, sizes),
    "Equal": _equal,
    "Greater": lambda _, left, right: _less(right, left, True),
    "GreaterOrEqual": lambda _, left, right: _less(right, left, False),
    "Less": lambda _, left, right: _less(left, right, True),
    "LessOrEqual": lambda _, left, right: _less(left, right, False),
    "And": lambda _, left, right: _both(left, right),
    "Or": lambda _, left, right: _either(left, right),
    "Not": lambda _, value: 1 - value if isinstance(value, int) else None,
    "Where": _where,
}

_RULES: Final[dict[str, Callable[[Known, Any], Items | None]]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    "Mod": _mod,
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Slice": _slice,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Concat": _concat,
    "Cast": _cast,
    "Identity": _identity,
    "ReduceProd": _reduced(dimensions.product, 18),
    "ReduceSum": _reduced(_sum, 13),
    "ReduceMax": _reduced(lambda sizes: _extreme(terms.maximum, sizes), 18),
    "ReduceMin": _reduced(lambda sizes: _extreme(terms.minimum, sizes), 18),
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Expand": _expand,
}
