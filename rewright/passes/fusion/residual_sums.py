"""What the fused residual normalisations have in common: which sums their kernels take."""

from __future__ import annotations

from typing import Any, Final

from rewright.model.facts import Dim
from rewright.passes.pattern_pass import Match
from rewright.pattern.values import Value

_RANKS: Final = (2, 3)
_SINGLE: Final = 1


def check_residual(match: Match, x: Value, skip: Value) -> Value:
    """Refuses a normalisation of ``x + skip`` that the kernels do not take; returns the sum.

    The match names the Add "sum"; its root is the normalisation, with ``axis`` and ``stash_type``.
    """
    total = match.the_node("sum").outputs[0]
    for operand in (x, skip):
        match.require(not operand.is_constant, "an operand of the sum is a constant, not a residual", operand)
    match.require(total.rank in _RANKS, f"the sum has rank {total.rank}, and the op takes 2 or 3", total)
    axis = match.root.attribute("axis", -1)
    match.require(axis in (-1, (total.rank or 0) - 1), f"the normalised axes begin at {axis}, not at the last", match.root)
    match.require(match.root.attribute("stash_type", _SINGLE) == _SINGLE, "stash_type is not float", match.root)
    match.require(operands(x, skip) is not None, f"the operands have the shapes {x.shape} and {skip.shape}", total)
    same = x.same_shape(skip) or match.target != "dml"
    match.require(same, "the operands' shapes differ, and the kernel of the target 'dml' takes only equal ones", total)
    return total


def check_vector(match: Match, name: str, value: Value | None, size: Dim) -> None:
    """Refuses a parameter that is not a vector over the last axis."""
    if value is not None:
        match.require(size is not None and value.shape == (size,), f"{name} has the shape {value.shape}, not ({size},)", value)


def operands(x: Value, skip: Value) -> tuple[Value, Value] | None:
    """(input, skip) as the kernels take them: the same shape, or skip (1, S, H) or (S, H) beside an input of rank 3."""
    if x.same_shape(skip):
        return x, skip
    for full, other in ((x, skip), (skip, x)):
        if full.shape is None or other.shape is None or full.rank != 3 or other.rank not in _RANKS:
            continue
        known = None not in full.shape[1:]
        if known and other.shape[-2:] == full.shape[1:] and other.shape[:-2] in ((), (1,)):
            return full, other
    return None


def with_sum(match: Match, make: Any, inputs: list[Value | None], **attributes: Any) -> Any:
    """The fused op, and beside its first output the sum as the fourth, where something else uses it."""
    if not match.used_elsewhere("sum"):
        return make(*inputs, **attributes)
    output, _, _, total = make(*inputs, outputs=(True, False, False, True), **attributes)
    return output, total
