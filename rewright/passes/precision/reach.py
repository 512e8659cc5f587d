"""How far values reach: what is proven of them, what was measured with a margin, and what follows from their operands.

A mask adds, or puts in place of a score, a number that is far below any score. Such a number may be any that is far below, so
where a constant is provably nothing but that, it is replaced by one that the narrow type holds, and what is computed from it is
bounded from its operands and not from what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np

from rewright.model.elements import normal_domain
from rewright.model.facts import constant_of, dtype_of, is_constant, producer
from rewright.model.order import node_has_bodies
from rewright.ops.contract import CONTRACTS
from rewright.passes.bounds import Ends, ValueBounds
from rewright.passes.precision.operands import is_single

Array = np.ndarray[Any, Any]

MASK: Final = -1e4
"""Constants from here down are what masks add, or put in place of a score."""
ANYTHING: Final[Ends] = (-math.inf, math.inf)
_MOVING: Final = {
    "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Slice", "Gather", "GatherElements",
    "GatherND", "Tile", "Split", "Trilu", "Cast", "CastLike", "Dropout",
}  # fmt: skip
_JOINING: Final = {"Concat": None, "Where": (1, 2), "Max": None, "Min": None, "ScatterND": (0, 2), "ScatterElements": (0, 2)}
_MASKED: Final = {"attention_bias?", "mask_index?", "key_padding_mask?"}


class Reach:
    """The numbers that values may hold, by identity.

    Args:
        bounds: what the run tells, by name.
        margin: how many times what was measured a value may be on other inputs.
        largest: of the narrow type.
        floor: of the narrow type; constants further down than half of it are candidates for masks.
    """

    def __init__(self, bounds: Mapping[str, ValueBounds], margin: float, largest: float) -> None:
        self._bounds = bounds
        self._margin = margin
        self._largest = largest
        self._known: dict[int, Ends | None] = {}
        self._constants: dict[int, Array | None] = {}
        self._on_mask: set[int] = set()
        self.filler = -largest / 4  # so that three masks can be added up
        self.fillers: dict[int, Any] = {}
        """Constants that are nothing but masks, and hold numbers that are too low."""

    def look_for_masks(self, graphs: list[Any], returned: set[int]) -> None:
        """Finds the constants that are nothing but masks. ``returned``: what a graph returns."""
        for tensor in _constants_of(graphs):
            array = self.array(tensor)
            if array is None or not array.size or not is_single(tensor) or id(tensor) in self.fillers:
                continue
            low = array < -self._largest / 2
            if not low.any() or np.any(np.isnan(array)) or np.any(array > self._largest):
                continue
            path = self._mask_path(tensor, returned)
            if path is not None:
                self.fillers[id(tensor)] = tensor
                self._on_mask |= path

    def array(self, tensor: Any) -> Array | None:
        """The values of a float constant; large ones are mapped, not kept."""
        if not is_constant(tensor):
            return None
        found = constant_of(tensor)
        return found if found is not None and found.dtype.kind == "f" else None

    def is_mask(self, tensor: Any) -> bool:
        """Whether the value is a mask, or a score with one."""
        return id(tensor) in self._on_mask

    def is_cut_off(self, node: Any, tensor: Any) -> bool:
        """Whether the node reads the value as a mask alone, and nothing but how low it is keeps it from the narrow type.

        Its lowest numbers may then be any that are far below scores, as those of a constant.
        """
        found = self._bounds.get(tensor.name)
        if found is None or node.op == "Softmax" or not self._ends_at(node, tensor):
            return False
        low, high = found.measured or found.proven
        if found.measured is not None:
            low, high = self._margin * low, min(found.proven[1], self._margin * max(high, 0.0))
        return low < -self._largest and high <= self._largest

    def measured(self, tensor: Any) -> Ends | None:
        """What was measured, where that says something about the narrow model too."""
        found = self._bounds.get(tensor.name)
        return None if found is None or self.is_mask(tensor) else found.measured

    def of(self, tensor: Any) -> Ends | None:
        """The smallest and the largest number that the value may hold; None where nothing is known."""
        key = id(tensor)
        if key not in self._known:
            self._known[key] = self._find(tensor)
        return self._known[key]

    def _find(self, tensor: Any) -> Ends | None:
        if is_constant(tensor):
            array = self.array(tensor)
            return None if array is None else self._ends_of(tensor, array)
        found = self._bounds.get(tensor.name)
        proven = measured = None
        if found is not None and not self.is_mask(tensor):
            proven = found.proven if found.proven != ANYTHING else None
            measured = self._widened(found.measured)
        elif found is not None and found.proven[0] >= -self._largest:
            proven = found.proven
        return _tightest(proven, measured, self._from_operands(tensor))

    def _widened(self, measured: Ends | None) -> Ends | None:
        if measured is None:
            return None
        magnitude = self._margin * max(abs(measured[0]), abs(measured[1]))
        return -magnitude, magnitude

    def _ends_of(self, tensor: Any, array: Array) -> Ends | None:
        finite = array if array.dtype != np.float32 or np.isfinite(array.min(initial=0) + array.max(initial=0)) else None
        if finite is None:
            finite = array[np.isfinite(array)]
        if not finite.size:
            return 0.0, 0.0
        low, high = float(finite.min()), float(finite.max())
        if self.is_mask(tensor) and low < self.filler:
            return self.filler, max(high, self.filler)
        return low, high

    def _from_operands(self, tensor: Any) -> Ends | None:
        node = producer(tensor)
        rule = _RULES.get(node.op) if node is not None and not normal_domain(node.domain) else None
        if rule is None or node is None:
            return None
        return rule(node, [self._operand(item) for item in node.inputs])

    def _operand(self, tensor: Any) -> Ends | None:
        dtype = dtype_of(tensor)
        if dtype is not None and dtype.kind == "b":
            return 0.0, 1.0
        if dtype is not None and dtype.kind in "iu":
            return None
        known = self._known.get(id(tensor))
        # what stands in order was asked for before; a chain of thousands is not descended
        return known if id(tensor) in self._known or not is_constant(tensor) else self.of(tensor)

    def _mask_path(self, constant: Any, returned: set[int]) -> set[int] | None:
        """All that is computed from the constant up to softmaxes; None where it is something else than a mask."""
        pending, seen = [constant], set[int]()
        while pending:
            tensor = pending.pop()
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            if id(tensor) in returned:
                return None
            for user in tensor.outputs:
                if not getattr(user, "alive", True) or self._ends_at(user, tensor):
                    continue
                if not self._carries(user, tensor):
                    return None
                pending.extend(user.outputs)
        return seen

    def _ends_at(self, node: Any, tensor: Any) -> bool:
        places = [index for index, item in enumerate(node.inputs) if item is tensor]
        contract = CONTRACTS.get(f"{normal_domain(node.domain)}::{node.op}")
        if contract is not None:
            names = [contract.inputs[place] for place in places if place < len(contract.inputs)]
            return len(names) == len(places) and all(name in _MASKED for name in names)
        return not normal_domain(node.domain) and (node.op == "Softmax" or (node.op == "Attention" and places == [3]))

    def _carries(self, node: Any, tensor: Any) -> bool:
        """Whether a mask, or a score with one, comes out where one goes in."""
        if normal_domain(node.domain) or node_has_bodies(node):
            return False
        places = [index for index, item in enumerate(node.inputs) if item is tensor]
        if node.op in _MOVING:
            return places == [0] and (node.op != "Cast" or is_single(node.outputs[0]))
        if node.op in _JOINING:
            allowed = _JOINING[node.op]
            return node.op != "Min" and (allowed is None or all(place in allowed for place in places))
        if node.op == "Add":
            return len(places) == 1
        if node.op == "Mul" and len(places) == 1:
            other = self._bounds.get(node.inputs[1 - places[0]].name)
            return other is not None and other.proven[0] >= -_SLACK and other.proven[1] <= 1.0 + _SLACK
        return False


def _constants_of(graphs: list[Any]) -> Iterator[Any]:
    seen: set[int] = set()
    for graph in graphs:
        for node in graph.nodes:
            for tensor in (*node.inputs, *(node.outputs if node.op == "Constant" else ())):
                if id(tensor) not in seen and is_constant(tensor):
                    seen.add(id(tensor))
                    yield tensor


def _tightest(*known: Ends | None) -> Ends | None:
    found = [ends for ends in known if ends is not None]
    if not found:
        return None
    low, high = max(ends[0] for ends in found), min(ends[1] for ends in found)
    return (low, high) if low <= high else min(found, key=lambda ends: max(abs(ends[0]), abs(ends[1])))


_SLACK: Final = 1e-6
"""What proofs allow for rounding."""

Operands = list[Ends | None]


def _hull(places: tuple[int, ...] | None) -> Callable[[Any, Operands], Ends | None]:
    def rule(node: Any, operands: Operands) -> Ends | None:
        chosen = [operands[place] for place in places if place < len(operands)] if places is not None else operands
        known = [ends for ends in chosen if ends is not None]
        return (min(ends[0] for ends in known), max(ends[1] for ends in known)) if known and len(known) == len(chosen) else None

    return rule


def _with_zero(node: Any, operands: Operands) -> Ends | None:
    ends = operands[0]
    return None if ends is None else (min(ends[0], 0.0), max(ends[1], 0.0))


def _sum(node: Any, operands: Operands) -> Ends | None:
    one, other = operands[:2]
    return None if one is None or other is None else (one[0] + other[0], one[1] + other[1])


def _difference(node: Any, operands: Operands) -> Ends | None:
    one, other = operands[:2]
    return None if one is None or other is None else (one[0] - other[1], one[1] - other[0])


def _product(node: Any, operands: Operands) -> Ends | None:
    one, other = operands[:2]
    if one is None or other is None:
        return None
    corners = [0.0 if 0.0 in (left, right) else left * right for left in one for right in other]
    return min(corners), max(corners)


_RULES: Final[Mapping[str, Callable[[Any, Operands], Ends | None]]] = {
    **dict.fromkeys(_MOVING, _hull((0,))),
    **{op: _hull(places) for op, places in _JOINING.items()},
    "Trilu": _with_zero,
    "Add": _sum,
    "Sub": _difference,
    "Mul": _product,
}
"""What follows for a result from what its operands reach."""
