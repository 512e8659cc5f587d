"""Bounds of inputs that follow from what they mean: a token id lies in the table that it indexes, a mask is 0 or 1."""

from __future__ import annotations

from rewright.model.carrier import Model
from rewright.model.errors import UsageError
from rewright.verify.roles import InputRole, infer_roles
from rewright.verify.static.interval import TRUTH, Interval


def assumed_bounds(model: Model) -> dict[str, tuple[Interval, str]]:
    """The bounds of inputs by name, and what they rest on. A run that violates them may leave every other bound."""
    try:
        roles = infer_roles(model)
    except UsageError:  # an input that is no tensor
        return {}
    found = {role.name: _bounds(role) for role in roles}
    return {name: known for name, known in found.items() if known is not None}


def _bounds(role: InputRole) -> tuple[Interval, str] | None:
    if role.kind in ("index", "position") and role.bound is not None and role.bound > role.low:
        return Interval(float(role.low), float(role.bound - 1)), f"{role.evidence}, which has a size"
    if role.kind == "mask":
        return TRUTH, f"a mask of ones and zeros: {role.evidence}"
    return None
