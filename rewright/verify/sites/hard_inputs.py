"""Inputs that make a model mask something, where none that are given do.

A rewrite that drops a mask is right as long as nothing is masked. Inputs of a user's own often have no padding, and made-up token
ids need not meet the one that a model compares with its padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from rewright.model.carrier import Model
from rewright.model.errors import UsageError
from rewright.verify.inputs import InputSet
from rewright.verify.roles import InputRole, infer_roles
from rewright.verify.uses import Uses, Value

_MASKED: Final = -1e4
_EQUALITY: Final = frozenset({"Equal"})
_ORDER: Final = frozenset({"Less", "LessOrEqual", "Greater", "GreaterOrEqual"})
_MOVES: Final = frozenset({"Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose", "Expand"})
_MOST_VALUES: Final = 256


def masking_set(original: Model, input_sets: Sequence[InputSet]) -> InputSet | None:
    """The smallest input set with the end of its last row masked: by each mask that never masks anything in the sets, and by
    the numbers that the model compares integers with, where no set has them. None if there is nothing of the kind.
    """
    if not input_sets:
        return None
    try:
        roles = infer_roles(original)
    except UsageError:
        return None
    base = min(input_sets, key=lambda one: sum(array.size for array in one.arrays.values()))
    uses = Uses(original)
    changed: dict[str, np.ndarray] = {}
    for role in roles:
        arrays = [one.arrays[role.name] for one in input_sets if role.name in one.arrays]
        wanted = _masking_values(role, arrays, uses)
        if wanted and role.name in base.arrays and base.arrays[role.name].ndim >= 2 and base.arrays[role.name].shape[-1] > 1:
            changed[role.name] = _with_end(base.arrays[role.name], wanted)
    if not changed:
        return None
    masks = {role.name for role in roles if role.kind == "mask" and len(role.dims) == 2}
    padding = tuple(name for name in base.arrays if name in masks or name in base.padding_masks)
    return InputSet("masking", {**base.arrays, **changed}, f"'{base.name}' with {', '.join(changed)} masking something", padding)


def _masking_values(role: InputRole, arrays: Sequence[np.ndarray], uses: Uses) -> list[float]:
    if role.kind == "mask" and all(np.all(array == 1) for array in arrays):
        return [0]
    if role.kind == "additive-mask" and all(np.all(array == 0) for array in arrays):
        return [_MASKED]
    if role.kind in ("index", "integer") and role.dtype.kind in "iu":
        held = set().union(*(np.unique(array).tolist() for array in arrays))
        return [number for number in _compared_with(role.name, uses) if number not in held and _is_legal(number, role)]
    return []


def _is_legal(number: int, role: InputRole) -> bool:
    limits = np.iinfo(role.dtype)
    return limits.min <= number <= limits.max and number >= role.low and (role.bound is None or number < role.bound)


def _compared_with(name: str, uses: Uses) -> list[int]:
    """The numbers that decide a comparison of the input's elements."""
    numbers: dict[int, None] = {}
    pending: list[Value] = [("", name)]
    seen = set(pending)
    while pending and len(seen) < _MOST_VALUES:
        value = pending.pop()
        followers = list(uses.aliases(value))
        for use in uses.readers(value):
            node = use.node
            if node.op_type in _EQUALITY | _ORDER and len(node.input) == 2:
                operand = uses.constant((use.scope, node.input[1 - use.index]))
                if operand is not None and operand.size == 1 and operand.dtype.kind in "iuf":
                    number = int(operand.reshape(-1)[0])
                    numbers.update(dict.fromkeys([number] if node.op_type in _EQUALITY else [number - 1, number, number + 1]))
            elif node.op_type in _MOVES and use.index == 0:
                followers += [(use.scope, output) for output in node.output if output]
        fresh = [follower for follower in followers if follower not in seen]
        seen.update(fresh)
        pending += fresh
    return list(numbers)


def _with_end(array: np.ndarray, values: Sequence[float]) -> np.ndarray:
    """The array with these values, in turn, at the end of each of its last rows; the first row stays if there are several."""
    made = np.array(array)
    length = array.shape[-1]
    end = slice(length - max(1, length // 2), None)
    rows = slice(1, None) if array.shape[0] > 1 else slice(None)
    made[rows, ..., end] = np.resize(np.asarray(values), made[rows, ..., end].shape)
    return made
