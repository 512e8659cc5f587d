"""What small integer tensors hold, element by element: a number, a size in terms of dimensions, or something unknown."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from rewright.model.edit import domain_of
from rewright.model.facts import Dim, attribute, constant_of, dtype_of, is_small_constant, shape_of
from rewright.model.view import MADE_UP_SYMBOL
from rewright.passes.cleanup import dimensions
from rewright.passes.cleanup.dimensions import Polynomial, Size, symbol
from rewright.passes.cleanup.shape_items import Item, Items

_MOST_ITEMS: Final = 64
_AXES_ARE_INPUTS: Final = 13
_SLICE_HAS_INPUTS: Final = 10
_UNNAMED: Final = f"{MADE_UP_SYMBOL}dim"
_numbers: Iterator[int] = itertools.count()  # one for the process, so that a name never stands for two dimensions


class ShapeValues:
    """Evaluates shape arithmetic in topological order. ``visit`` each node; ask ``of`` for a value."""

    def __init__(self, opset: int) -> None:
        self._opset = opset
        self._known: dict[int, tuple[Any, Items | None]] = {}
        self._sums_and_products: dict[str, Polynomial] = {}
        self._bounds: dict[Polynomial, Size] = {}
        self._named_inputs: list[tuple[Any, Any]] = []

    def dims_of(self, tensor: Any) -> list[Size] | None:
        """The dimensions of a value; unnamed ones get a name here, so that they can be compared. None: the rank is unknown."""
        shape = shape_of(tensor)
        if shape is None:
            return None
        if None in shape and isinstance(tensor, gs.Variable):
            if not tensor.inputs:
                self._named_inputs.append((tensor, tensor.shape))
            shape = tuple(f"{_UNNAMED}{next(_numbers)}" if dim is None else dim for dim in shape)
            tensor.shape = list(shape)
        return [dim if isinstance(dim, int) else self._sums_and_products.get(str(dim)) or symbol(str(dim)) for dim in shape]

    def forget_input_names(self) -> None:
        """Takes back the names that inputs' dimensions got: they are the model's signature."""
        for tensor, shape in self._named_inputs:
            tensor.shape = shape
        self._named_inputs.clear()

    def fact(self, size: Item) -> Dim:
        """A size as ``shape_of`` gives it: a number, or a name that ``dims_of`` knows."""
        if size is None or isinstance(size, int):
            return size
        name = _closed(str(size))
        if size != symbol(name):
            self._sums_and_products[name] = size
        return name

    def smaller(self, size: Size, limit: Size) -> Item:
        """``min(size, limit)`` for a size that is not negative and a positive number; None else."""
        if not isinstance(limit, int) or limit < 1:
            return None
        if isinstance(size, int):
            return min(size, limit) if size >= 0 else None
        if not size.is_not_negative:
            return None
        made = symbol(_closed(f"min({size}, {limit})"))
        self._bounds[made] = size
        return made

    def bound_of(self, size: Item) -> Size | None:
        """``a`` if the size is ``min(a, positive number)``, made by ``smaller``."""
        return self._bounds.get(size) if isinstance(size, Polynomial) else None

    def of(self, tensor: Any) -> Items | None:
        """What is known about the value."""
        held = self._known.get(id(tensor))
        if held is None:
            held = (tensor, _constant_items(tensor))  # with the tensor itself, so that no other gets its identity
            self._known[id(tensor)] = held
        return held[1]

    def visit(self, node: Any) -> Items | None:
        """Evaluates the node's output, if it is shape arithmetic."""
        rule = _RULES.get(node.op)
        if rule is None or domain_of(node) or len(node.outputs) != 1:
            return None
        found = rule(self, node)
        if found is not None and (len(found.items) > _MOST_ITEMS or (not found.is_vector and len(found.items) != 1)):
            found = None
        self._known[id(node.outputs[0])] = (node.outputs[0], found)
        return found

    def _inputs(self, node: Any) -> list[Items] | None:
        values = [self.of(tensor) for tensor in node.inputs if tensor.name]
        return None if None in values else [value for value in values if value is not None]

    def _numbers_of(self, node: Any, index: int) -> list[int] | None:
        """The elements of an input, if all are numbers."""
        value = self.of(node.inputs[index]) if len(node.inputs) > index and node.inputs[index].name else None
        if value is None or not all(isinstance(item, int) for item in value.items):
            return None
        return [item for item in value.items if isinstance(item, int)]

    def _setting(self, node: Any, name: str, index: int, since: int, default: list[int]) -> list[int] | None:
        """An operand that was an attribute before opset ``since``; ``default`` where it is absent."""
        if self._opset < since:
            held = attribute(node, name)
            return [int(item) for item in held] if isinstance(held, list) else default
        if len(node.inputs) <= index or not node.inputs[index].name:
            return default
        return self._numbers_of(node, index)

    def shape(self, node: Any) -> Items | None:
        dims = self.dims_of(node.inputs[0])
        if dims is None:
            return None
        return _vector(dims[slice(attribute(node, "start", 0), attribute(node, "end", None))])

    def size(self, node: Any) -> Items | None:
        dims = self.dims_of(node.inputs[0])
        return None if dims is None else Items((dimensions.product(dims),), False, np.dtype(np.int64))

    def gather(self, node: Any) -> Items | None:
        data, indices = self.of(node.inputs[0]), self.of(node.inputs[1])
        picked = self._numbers_of(node, 1)
        if data is None or not data.is_vector or indices is None or picked is None or attribute(node, "axis", 0) not in (0, -1):
            return None
        if not all(-len(data.items) <= index < len(data.items) for index in picked):
            return None
        return Items(tuple(data.items[index] for index in picked), indices.is_vector, data.dtype)

    def slice(self, node: Any) -> Items | None:
        data = self.of(node.inputs[0])
        starts = self._setting(node, "starts", 1, _SLICE_HAS_INPUTS, [])
        ends = self._setting(node, "ends", 2, _SLICE_HAS_INPUTS, [])
        steps = [1] if self._opset < _SLICE_HAS_INPUTS else self._setting(node, "steps", 4, _SLICE_HAS_INPUTS, [1])
        if data is None or not data.is_vector or starts is None or ends is None or steps is None:
            return None
        if len(starts) != 1 or len(ends) != 1 or len(steps) != 1 or steps[0] <= 0:
            return None
        return Items(data.items[starts[0] : ends[0] : steps[0]], True, data.dtype)

    def unsqueeze(self, node: Any) -> Items | None:
        data = self.of(node.inputs[0])
        axes = self._setting(node, "axes", 1, _AXES_ARE_INPUTS, [])
        return None if data is None or data.is_vector or axes not in ([0], [-1]) else Items(data.items, True, data.dtype)

    def squeeze(self, node: Any) -> Items | None:
        data = self.of(node.inputs[0])
        return None if data is None or len(data.items) != 1 else Items(data.items, False, data.dtype)

    def reshape(self, node: Any) -> Items | None:
        data, target = self.of(node.inputs[0]), self._numbers_of(node, 1) if len(node.inputs) > 1 else None
        if data is None or target is None or len(target) > 1:
            return None
        if target and target[0] not in (-1, len(data.items)):
            return None
        return Items(data.items, bool(target), data.dtype) if target or len(data.items) == 1 else None

    def concat(self, node: Any) -> Items | None:
        parts = [self.of(tensor) for tensor in node.inputs]
        lengths = [shape_of(tensor) for tensor in node.inputs]
        dtype = next((part.dtype for part in parts if part is not None), None) or dtype_of(node.outputs[0])
        if dtype is None or dtype.kind not in "iu":
            return None
        items: list[Item] = []
        for part, length in zip(parts, lengths, strict=True):
            if part is not None and part.is_vector:
                items.extend(part.items)
            elif (
                part is None
                and length is not None
                and len(length) == 1
                and isinstance(length[0], int)
                and length[0] <= _MOST_ITEMS
            ):
                items.extend([None] * length[0])
            else:
                return None
        return Items(tuple(items), True, dtype)

    def cast(self, node: Any) -> Items | None:
        data, to = self.of(node.inputs[0]), attribute(node, "to")
        if data is None or not isinstance(to, int):
            return None
        dtype = onnx.helper.tensor_dtype_to_np_dtype(to)
        if dtype.kind == "b" or data.dtype.kind == "b" or dtype.kind not in "iu":
            return None
        if dtype.itemsize < 4 or dtype.kind == "u":
            return None
        narrow = dtype.itemsize < data.dtype.itemsize
        # A single dimension fits into 32 bits (ONNX Runtime could not hold the tensor); a product of several may not.
        kept = tuple(item if not narrow or _fits_32_bits(item) else None for item in data.items)
        return Items(kept, data.is_vector, dtype)

    def identity(self, node: Any) -> Items | None:
        return self.of(node.inputs[0])

    def elementwise(self, node: Any) -> Items | None:
        values = self._inputs(node)
        if values is None or len(values) != len(node.inputs) or not values:
            return None
        length = max(len(value.items) for value in values)
        if any(len(value.items) not in (1, length) for value in values) or any(not value.items for value in values):
            return None
        columns = [value.items * length if len(value.items) == 1 else value.items for value in values]
        operation = _ELEMENTWISE[node.op]
        items = tuple(
            None if None in column and node.op != "Where" else operation(*column) for column in zip(*columns, strict=True)
        )
        dtype = np.dtype(bool) if node.op in _LOGICAL else values[-1].dtype
        return Items(items, any(value.is_vector for value in values), dtype)

    def mod(self, node: Any) -> Items | None:
        return None if attribute(node, "fmod", 0) else self.elementwise(node)

    def reduce_product(self, node: Any) -> Items | None:
        data = self.of(node.inputs[0])
        axes = self._setting(node, "axes", 1, 18, [0])
        if data is None or not data.is_vector or axes not in ([0], [-1]) or None in data.items:
            return None
        if attribute(node, "noop_with_empty_axes", 0):
            return None
        whole = dimensions.product([item for item in data.items if item is not None])
        return Items((whole,), bool(attribute(node, "keepdims", 1)), data.dtype)

    def constant_of_shape(self, node: Any) -> Items | None:
        length = self._numbers_of(node, 0)
        fill = attribute(node, "value")
        values = fill.values if isinstance(fill, gs.Constant) else fill
        if length is None or len(length) > 1 or not isinstance(values, np.ndarray) or values.dtype.kind not in "iub":
            return None
        count = length[0] if length else 1
        if not 0 <= count <= _MOST_ITEMS:
            return None
        return Items((int(values.reshape(-1)[0]),) * count, bool(length), values.dtype)

    def range(self, node: Any) -> Items | None:
        bounds = [self._numbers_of(node, index) for index in range(3)]
        first = self.of(node.inputs[0])
        if first is None or any(bound is None or len(bound) != 1 for bound in bounds):
            return None
        start, limit, delta = (bound[0] for bound in bounds if bound is not None)
        if delta == 0 or (limit - start) // delta > _MOST_ITEMS:
            return None
        return Items(tuple(range(start, limit, delta)), True, first.dtype)

    def expand(self, node: Any) -> Items | None:
        data, target = self.of(node.inputs[0]), self._numbers_of(node, 1)
        if data is None or target is None or len(target) != 1 or len(data.items) != 1 or not 0 < target[0] <= _MOST_ITEMS:
            return None
        return Items(data.items * target[0], True, data.dtype)


def _closed(name: str) -> str:
    """The name, marked as made up if it is made of made-up ones: such a symbol must not leave this view."""
    return name if MADE_UP_SYMBOL not in name or name.isidentifier() else f"{MADE_UP_SYMBOL}({name})"


def _vector(items: list[Size]) -> Items:
    return Items(tuple(items), True, np.dtype(np.int64))


def _fits_32_bits(item: Item) -> bool:
    if isinstance(item, int):
        return -(2**31) <= item < 2**31
    return item is not None and len(item.terms) == 1 and item.terms[0][1] == 1 and len(item.terms[0][0]) == 1


def _constant_items(tensor: Any) -> Items | None:
    if not is_small_constant(tensor, _MOST_ITEMS):
        return None
    value = constant_of(tensor)
    if value is None or value.ndim > 1 or value.dtype.kind not in "iub":
        return None
    return Items(tuple(int(item) for item in value.reshape(-1)), value.ndim == 1, value.dtype)


def _divided(left: Size, right: Size) -> Item:
    exact = dimensions.divide(left, right)
    if exact is not None or right == 0:
        return exact
    # Not a number that can be told, but the same division gives the same number again.
    names = f"({left})/({right})"
    return symbol(names) if _is_not_negative(left) and _is_not_negative(right) else None


def _modulo(left: Size, right: Size) -> Item:
    return left % right if isinstance(left, int) and isinstance(right, int) and right else None


def _is_not_negative(size: Size) -> bool:
    return size >= 0 if isinstance(size, int) else size.is_not_negative


def _equal(left: Size, right: Size) -> Item:
    if left == right:
        return 1
    if isinstance(left, int) and isinstance(right, int):
        return 0
    for size, other in ((left, right), (right, left)):
        if isinstance(size, Polynomial) and size.is_not_negative and isinstance(other, int) and other < 0:
            return 0
    return None


def _where(condition: Item, yes: Item, no: Item) -> Item:
    if yes is not None and yes == no:
        return yes
    return None if not isinstance(condition, int) else yes if condition else no


def _numbers_only(operation: Callable[[int, int], int]) -> Callable[[Size, Size], Item]:
    def apply(left: Size, right: Size) -> Item:
        return int(operation(left, right)) if isinstance(left, int) and isinstance(right, int) else None

    return apply


def _extreme(operation: Callable[[int, int], int]) -> Callable[..., Item]:
    def apply(*sizes: Size) -> Item:
        if all(size == sizes[0] for size in sizes):
            return sizes[0]
        numbers = [size for size in sizes if isinstance(size, int)]
        if len(numbers) < len(sizes):
            return None
        result = numbers[0]
        for number in numbers[1:]:
            result = operation(result, number)
        return result

    return apply


_LOGICAL: Final = frozenset(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not"))

_ELEMENTWISE: Final[dict[str, Callable[..., Item]]] = {
    "Add": dimensions.add,
    "Sub": lambda left, right: dimensions.add(left, right, -1),
    "Mul": dimensions.multiply,
    "Div": _divided,
    "Mod": _modulo,
    "Neg": lambda size: dimensions.add(0, size, -1),
    "Min": _extreme(min),
    "Max": _extreme(max),
    "Equal": _equal,
    "Greater": _numbers_only(lambda left, right: left > right),
    "GreaterOrEqual": _numbers_only(lambda left, right: left >= right),
    "Less": _numbers_only(lambda left, right: left < right),
    "LessOrEqual": _numbers_only(lambda left, right: left <= right),
    "And": _numbers_only(lambda left, right: left and right),
    "Or": _numbers_only(lambda left, right: left or right),
    "Not": lambda value: 1 - value,
    "Where": _where,
}

_RULES: Final[dict[str, Callable[[ShapeValues, Any], Items | None]]] = {
    **dict.fromkeys(_ELEMENTWISE, ShapeValues.elementwise),
    "Mod": ShapeValues.mod,
    "Shape": ShapeValues.shape,
    "Size": ShapeValues.size,
    "Gather": ShapeValues.gather,
    "Slice": ShapeValues.slice,
    "Unsqueeze": ShapeValues.unsqueeze,
    "Squeeze": ShapeValues.squeeze,
    "Reshape": ShapeValues.reshape,
    "Concat": ShapeValues.concat,
    "Cast": ShapeValues.cast,
    "Identity": ShapeValues.identity,
    "ReduceProd": ShapeValues.reduce_product,
    "ConstantOfShape": ShapeValues.constant_of_shape,
    "Range": ShapeValues.range,
    "Expand": ShapeValues.expand,
}
