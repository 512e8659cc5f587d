"""Inputs on which a rewrite that drops something shows, where none that are given tell.

A rewrite that drops a mask is right as long as nothing is masked, one that drops positions as long as they count from 0, one that
drops token types as long as all are 0. Inputs of a user's own are often like that, and made-up token ids need not meet the one
that a model compares with its padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from zlib import crc32

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
_LATER: Final = 3


def hard_sets(original: Model, input_sets: Sequence[InputSet]) -> list[InputSet]:
    """The smallest input set with other values for what does not vary in any of the sets; at most two.

    In the first, masks that never mask anything, and integers that the model compares with numbers which no set has, do so at the
    end of the last row; positions that always count from 0 begin later; indices that are always the same are others. In the
    second, flags are the other way round, which may not go with the shapes of the other inputs.
    """
    if not input_sets:
        return []
    try:
        roles = infer_roles(original)
    except UsageError:
        return []
    base = min(input_sets, key=lambda one: sum(array.size for array in one.arrays.values()))
    uses = Uses(original)
    varied: dict[str, np.ndarray] = {}
    flipped: dict[str, np.ndarray] = {}
    for role in roles:
        arrays = [one.arrays[role.name] for one in input_sets if role.name in one.arrays]
        if role.name not in base.arrays or not arrays:
            continue
        if role.kind == "flag":
            if len({bool(array.all()) for array in arrays}) == 1:
                flipped[role.name] = ~base.arrays[role.name]
            continue
        found = _varied(role, base.arrays[role.name], arrays, uses)
        if found is not None:
            varied[role.name] = found
    masks = {role.name for role in roles if role.kind == "mask" and len(role.dims) == 2}
    padding = tuple(name for name in base.arrays if name in masks or name in base.padding_masks)
    return [
        InputSet(name, {**base.arrays, **changed}, f"'{base.name}' with other values of {', '.join(changed)}", padding)
        for name, changed in (("varied", varied), ("flags", flipped))
        if changed
    ]


def _varied(role: InputRole, array: np.ndarray, arrays: Sequence[np.ndarray], uses: Uses) -> np.ndarray | None:
    """Other legal values for an input that does not vary, or that masks nothing; None if it does vary."""
    if array.ndim < 2 or array.shape[-1] < 2:
        return None
    masking = _masking_values(role, arrays, uses)
    if masking:
        return _with_end(array, masking)
    if role.kind not in ("index", "position") or role.bound is None or not all(map(_is_usual, arrays)):
        return None
    if role.kind == "position":
        later = min(_LATER, role.bound - 1 - int(array.max(initial=0)))
        return array + array.dtype.type(later) if later > 0 else None
    rng = np.random.default_rng(crc32(role.name.encode()))
    return rng.integers(role.low, role.bound, array.shape).astype(array.dtype) if role.bound > role.low + 1 else None


def _is_usual(array: np.ndarray) -> bool:
    """Whether every element is the same, or each row counts from 0."""
    return bool(np.all(array == array.flat[0]) or np.all(array == np.arange(array.shape[-1]))) if array.size else True


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
