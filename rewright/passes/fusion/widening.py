"""Half precision: where an activation's inner function is computed in float32 between two Casts."""

from __future__ import annotations

from typing import Final

from rewright.passes.pattern_pass import Match
from rewright.pattern.values import Value

HALVES: Final = ("float16", "bfloat16")
FLOATS: Final = (*HALVES, "float32", "float64")


def require_float(match: Match, x: Value) -> None:
    """Refuses a value whose dtype is unknown or not a float."""
    match.require(x.dtype is not None and x.dtype.name in FLOATS, "the dtype is unknown or not a float", x)


def require_widening(match: Match, x: Value, function: str, cast: str = "widened") -> None:
    """Refuses a match whose Cast with the name ``cast`` does anything but give float32 for a half-precision ``x``.

    A fused op computes as if in float32 and rounds once, so that only a Cast that adds precision can be left out.
    """
    widened = match.node(cast)
    if widened is not None:
        inner = widened.outputs[0].dtype
        widens = inner is not None and inner.name == "float32" and x.dtype is not None and x.dtype.name in HALVES
        match.require(widens, f"the {function} is computed in {inner}, which does not widen {x.dtype}", widened)
