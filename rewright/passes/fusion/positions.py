"""What row numbers of an embedding table hold: consecutive positions, one number throughout, or something to be passed on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from rewright.model.edit import domain_of
from rewright.model.facts import attribute, constant_of, is_small_constant, producer
from rewright.passes.session import PassSession
from rewright.shapes import dimensions
from rewright.shapes.dimensions import Size
from rewright.shapes.items import Item
from rewright.shapes.layout import reaches, slice_ranges
from rewright.shapes.walk import shapes_of

_MOST_IDS: Final = 1 << 20
_LONGEST_CHAIN: Final = 16
_SLICE_HAS_INPUTS: Final = 10
KEEP_ORDER: Final = frozenset(("Unsqueeze", "Squeeze", "Reshape", "Flatten", "Identity"))
"""Ops that give the same elements in the same order in another shape."""

_KEEP_ELEMENTS: Final = KEEP_ORDER | {"Expand", "Slice", "Gather", "GatherElements", "Transpose", "Tile"}


@dataclass(frozen=True)
class Run:
    """``start``, ``start + 1``, ... up to ``length`` numbers.

    With ``is_one_row`` that is the whole value, in the order of its elements. Otherwise each row over the last axis is that.
    """

    start: Size
    length: Size
    is_one_row: bool


class Positions:
    """Shapes and row numbers of the values in front of an embedding, learned when they are asked for."""

    def __init__(self, session: PassSession) -> None:
        self.shapes = shapes_of(session.view)
        self._opset = session.view.opset_of(session.view.graph)
        self._learned: dict[int, Any] = {}  # with the nodes themselves, so that no other gets their identity
        self._bounds: dict[Size, Size] = {}

    def learn(self, tensors: Iterable[Any]) -> None:
        """Evaluates the shape arithmetic that the values come from; every node once."""
        pending = [(node, False) for tensor in tensors for node in tensor.inputs]
        while pending:
            node, is_ready = pending.pop()
            if is_ready:
                self._learn_node(node)
            elif id(node) not in self._learned:
                self._learned[id(node)] = node
                pending.append((node, True))
                pending.extend((feeder, False) for tensor in node.inputs for feeder in tensor.inputs)

    def _learn_node(self, node: Any) -> None:
        if node.op == "Slice" and not domain_of(node) and self._opset >= _SLICE_HAS_INPUTS:
            self._learn_bounds(node)

    def _learn_bounds(self, node: Any) -> None:
        """Remembers which dimensions of a Slice are min(end, number) - start, whatever their names are.

        It must leave more than one element when it is cut short, see ``is_size``.
        """
        ranges, before = slice_ranges(self.shapes, node), self.dims(node.inputs[0])
        after = self.dims(node.outputs[0])
        if ranges is None or before is None or after is None or len(before) != len(after):
            return
        for axis, (start, end, step) in ranges.items():
            limit, name = before[axis], after[axis]
            if not isinstance(start, int) or not isinstance(limit, int) or not 0 <= start < limit - 1 or step != 1:
                continue
            if end is not None and not isinstance(end, int) and end.is_not_negative and not isinstance(name, int):
                length = dimensions.add(end, start, -1)
                if length is not None:
                    self._bounds[name] = length

    def dims(self, tensor: Any) -> list[Size] | None:
        """The dimensions, where only sizes that are equal for certain compare equal; None: the rank is unknown."""
        return self.shapes.dims(tensor)

    def is_size(self, size: Item, wanted: Size) -> bool:
        """Whether ``size`` is ``wanted`` wherever a value of that size can be added to one of size ``wanted``.

        min(wanted, limit) is, for a limit over 1: where the two differ, both exceed 1, and the sum is an error.
        """
        return size == wanted or (size is not None and self._bounds.get(size) == wanted)

    def constant(self, tensor: Any) -> np.ndarray[Any, Any] | None:
        """A constant of integers that is small enough to be read."""
        value = constant_of(tensor) if is_small_constant(tensor, _MOST_IDS) else None
        return value if value is not None and value.dtype.kind in "iu" else None

    def uniform(self, tensor: Any) -> int | None:
        """The number that every element is, or None if that is not known."""
        for _ in range(_LONGEST_CHAIN):
            value = self.constant(tensor)
            if value is not None:
                flat = value.reshape(-1)
                return int(flat[0]) if flat.size and (flat == flat[0]).all() else None
            node = producer(tensor)
            if node is None or domain_of(node):
                return None
            if node.op == "ConstantOfShape":
                fill = attribute(node, "value")
                values = fill.values if isinstance(fill, gs.Constant) else fill
                whole = isinstance(values, np.ndarray) and values.size == 1 and values.dtype.kind in "iu"
                return int(values.reshape(-1)[0]) if whole else None
            if node.op not in _KEEP_ELEMENTS and not _is_whole(node):
                return None
            tensor = node.inputs[0]
        return None

    def run(self, tensor: Any) -> Run | None:
        """The consecutive numbers that the value holds, or None if it is not known to hold any."""
        chain: list[Any] = []
        for _ in range(_LONGEST_CHAIN):
            value, node = self.constant(tensor), producer(tensor)
            found = _run_of_constant(value) if value is not None else None
            if found is None and node is not None and not domain_of(node) and node.op == "Range":
                found = self._range(node)
            if found is not None:
                for step in reversed(chain):
                    found = self._step(step, found) if found is not None else None
                return found
            if value is not None or node is None or domain_of(node) or not node.inputs:
                return None
            chain.append(node)
            summands = node.inputs if node.op == "Add" else node.inputs[:1]
            tensor = next((item for item in summands if self._scalar(item) is None), summands[0])
        return None

    def _range(self, node: Any) -> Run | None:
        start, limit, delta = (self._scalar(tensor) for tensor in node.inputs)
        if start is None or limit is None or delta != 1:
            return None
        length = dimensions.add(limit, start, -1)
        return Run(start, length, True) if length is not None and _is_not_negative(length) else None

    def _scalar(self, tensor: Any) -> Item:
        held = self.shapes.items(tensor) if tensor.name else None
        return held.items[0] if held is not None and len(held.items) == 1 else None

    def _step(self, node: Any, found: Run) -> Run | None:
        if _is_whole(node) or node.op == "Identity":
            return found
        if node.op in KEEP_ORDER or node.op == "Transpose":
            dims = self.dims(node.inputs[0])
            ones = [dim for dim in dims if dim == 1] if dims is not None else []
            is_vector = dims is not None and len(ones) >= len(dims) - 1
            return found if found.is_one_row and (node.op != "Transpose" or is_vector) else None
        if node.op in ("Add", "Sub"):
            return self._shifted(node, found)
        if node.op == "Expand":
            return self._repeated(node, found)
        return self._part(node, found) if node.op == "Slice" and self._opset >= _SLICE_HAS_INPUTS else None

    def _shifted(self, node: Any, found: Run) -> Run | None:
        offsets = [self._scalar(tensor) for tensor in node.inputs]
        offset = offsets[1] if node.op == "Sub" else next((item for item in offsets if item is not None), None)
        if offset is None or offsets.count(None) != 1:
            return None
        before, after = (self.dims(tensor) for tensor in (self._summand(node), node.outputs[0]))
        if before is None or after is None or len(before) != len(after):
            return None
        start = dimensions.add(found.start, offset, -1 if node.op == "Sub" else 1)
        return None if start is None else Run(start, found.length, found.is_one_row)

    def _summand(self, node: Any) -> Any:
        return next(tensor for tensor in node.inputs if self._scalar(tensor) is None)

    def _repeated(self, node: Any, found: Run) -> Run | None:
        before, after = self.dims(node.inputs[0]), self.dims(node.outputs[0])
        if not before or not after or not self.is_size(before[-1], found.length) or not self.is_size(after[-1], found.length):
            return None
        leading = [*before[:-1], *after[:-1]]
        return Run(found.start, found.length, found.is_one_row and all(dim == 1 for dim in leading))

    def _part(self, node: Any, found: Run) -> Run | None:
        """A Slice over the last axis of rows; where it ends beyond the constant ``length``, see ``is_size``."""
        dims, ranges = self.dims(node.inputs[0]), slice_ranges(self.shapes, node)
        if not dims or ranges is None or dims[-1] != found.length:
            return None
        if any(step != 1 for _, _, step in ranges.values()):
            return None
        first, end, _ = ranges.get(len(dims) - 1, (0, found.length, 1))
        if not isinstance(first, int) or first < 0 or end is None or not _is_not_negative(end):
            return None
        start = dimensions.add(found.start, first)
        if reaches(end, found.length):
            end = found.length
        elif not isinstance(found.length, int) or (not isinstance(end, int) and found.length - first < 2):
            return None
        length = dimensions.add(end, first, -1)
        if start is None or length is None or (isinstance(length, int) and length < 0):
            return None
        return Run(start, length, found.is_one_row)


def _is_not_negative(size: Size) -> bool:
    return size >= 0 if isinstance(size, int) else size.is_not_negative


def _is_whole(node: Any) -> bool:
    """Whether the node is a Cast that keeps integers as they are."""
    to = attribute(node, "to") if node.op == "Cast" else None
    return to in (onnx.TensorProto.INT32, onnx.TensorProto.INT64)


def _run_of_constant(value: np.ndarray[Any, Any]) -> Run | None:
    if value.size == 0:
        return None
    rows = value.reshape(-1, value.shape[-1] if value.ndim else 1).astype(np.int64)
    expected = np.arange(rows.shape[1], dtype=np.int64) + rows[0, 0]
    return Run(int(rows[0, 0]), rows.shape[1], rows.shape[0] == 1) if (rows == expected).all() else None
