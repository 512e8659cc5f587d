"""The ``gelu`` pass."""

from __future__ import annotations

import math
from typing import Any, Final

from rewright.passes.deferral import Deferral
from rewright.passes.fusion.widening import require_float, require_widening
from rewright.passes.pattern_pass import Match, PatternPass
from rewright.pattern.values import Value

_STANDARD_SINCE: Final = 20


class Gelu(PatternPass):
    """0.5 * x * (1 + erf(x / sqrt(2))) -> Gelu(x), in every association and order of the factors.

    1. x / sqrt(2) may divide or multiply, by a constant or by an unfolded ``Sqrt(2)``; the half may stand before, inside or
       after the sum, or be distributed over it (``0.5 + 0.5 * erf``).
    2. Half precision: where only the erf is computed in float32 between two Casts, the whole becomes a Gelu in half
       precision. Where all of it lies between the Casts, the float32 part is fused and the Casts stay.
    3. Constants must be right within 1e-5 relative, or 4 units in the last place of their dtype.
    4. Refused: the erf, its sum or another inner value is used elsewhere or is a graph output; the dtype is unknown; the
       erf is computed in a narrower type than x has.

    Emits the standard ``Gelu`` from opset 20 on, ``com.microsoft.Gelu`` below, which the target must have for the dtype.
    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units"; ONNX Gelu-20; ONNX Runtime contrib operator Gelu.
    """

    name = "gelu"
    exactness = "reassociating"
    emits = ("com.microsoft.Gelu",)
    after = ("constant-folding", "layer-norm")
    anchors = ("Erf",)
    ort = Deferral(
        optimizers=("GeluFusionL1", "GeluFusionL2"),
        classes=("FusionGelu",),
        makes=("Gelu", "com.microsoft::Gelu"),
        anchors=("Erf",),
    )

    def pattern(self, op: Any, x: Any) -> Any:
        def erf_over_sqrt2(value: Any) -> Any:
            root = op.Sqrt(2.0, keep=True)
            return op.Erf(op.any_of(value * math.sqrt(0.5), value / root, value * (1.0 / root)))

        erf = erf_over_sqrt2(x)
        wide_erf = erf_over_sqrt2(op.Cast(x, bind="widened"))
        return op.any_of(
            op.product(x, 0.5, erf + 1),
            op.product(x, erf * 0.5 + 0.5),
            op.product(x, 0.5, op.Cast(wide_erf + 1)),
            op.product(x, op.Cast(op.product(0.5, wide_erf + 1))),
        )

    def check(self, match: Match, x: Value) -> None:
        require_float(match, x)
        require_widening(match, x, "erf")

    def rewrite(self, op: Any, match: Match, x: Value) -> Any:
        return op.Gelu(x) if match.opset >= _STANDARD_SINCE else op.Gelu(x, domain="com.microsoft")
