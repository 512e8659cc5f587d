"""The ``fast-gelu`` pass."""

from __future__ import annotations

import math
from typing import Any, Final

from rewright.ops.microsoft import DOMAIN
from rewright.ops.targets import unsupported
from rewright.passes.deferral import Deferral
from rewright.passes.fusion.widening import require_float, require_widening
from rewright.passes.pattern_pass import Match, PatternPass
from rewright.pattern.values import Value

_STANDARD_SINCE: Final = 20
_SLOPE: Final = math.sqrt(2.0 / math.pi)
_CUBIC: Final = 0.044715
_SHORT_PRODUCT: Final = 0.035677
"""_SLOPE * _CUBIC as ONNX Runtime's documentation rounds it, 1.1e-5 away."""


class FastGelu(PatternPass):
    """0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))) -> FastGelu(x), in every association and order of the factors.

    1. The cube may be ``Pow(x, 3)`` or products of x, taken out of the sum (``x * (1 + 0.044715 * x * x)``), or have both numbers
       in one; sqrt(2 / pi) may be a number or an unfolded ``Sqrt``; the half may stand before, inside or after the sum.
       ``x * Sigmoid(2 * ...)`` is the same function. So is ``Gelu(approximate="tanh")`` of opset 20.
    2. Half precision: where only the tanh, or the tanh and its argument, are computed in float32 between two Casts, the whole
       becomes one op in half precision. Where all of it lies between the Casts, the float32 part is fused and the Casts stay;
       the half of x may then be taken in half precision, where it is exact but for subnormal numbers (torch autocast).
    3. Constants must be right within 1e-5 relative, or 4 units in the last place of their dtype.
    4. Refused: the tanh or another inner value is used elsewhere or is a graph output; the dtype is unknown; the tanh is
       computed in a narrower type than x has.

    Emits ``com.microsoft.FastGelu``, which can take a bias (``bias-gelu``), where the target has it for the dtype; else, from
    opset 20 on and not in double precision (ONNX defines it with float32 constants), the standard ``Gelu(approximate="tanh")``.
    On CPU the two are equally fast and exact, and take 0.25 to 0.4 of the time of the nine ops.
    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units"; ONNX Gelu-20; ONNX Runtime contrib operator FastGelu.
    """

    name = "fast-gelu"
    exactness = "reassociating"
    emits = ("com.microsoft.FastGelu",)
    after = ("constant-folding", "layer-norm")
    before = ("bias-gelu",)
    anchors = ("Tanh",)
    ort = Deferral(
        optimizers=("FastGeluFusion",),
        classes=("FusionFastGelu",),
        makes=("com.microsoft::FastGelu",),
        anchors=("Tanh",),
    )

    def pattern(self, op: Any, x: Any) -> Any:
        tanh = op.Tanh(_argument(op, x, 1.0))
        wide_tanh = op.any_of(
            op.Tanh(_argument(op, op.Cast(x, bind="widened"), 1.0)), op.Tanh(op.Cast(_argument(op, x, 1.0), bind="widened"))
        )
        mixed_tanh = op.Tanh(_argument(op, op.Cast(x, bind="mixed", keep=True), 1.0))
        return op.any_of(
            op.product(x, 0.5, tanh + 1),
            op.product(x, tanh * 0.5 + 0.5),
            op.product(x, 0.5, op.Cast(wide_tanh) + 1),
            op.product(x, 0.5, op.Cast(wide_tanh + 1)),
            op.product(x, op.Cast(op.product(0.5, wide_tanh + 1))),
            op.product(op.Cast(op.product(x, 0.5)), mixed_tanh + 1),
            op.product(x, op.Sigmoid(_argument(op, x, 2.0))),
            op.Gelu(x, approximate="tanh"),
        )

    def check(self, match: Match, x: Value) -> None:
        require_float(match, x)
        require_widening(match, x, "tanh")
        require_widening(match, x, "tanh", "mixed")

    def rewrite(self, op: Any, match: Match, x: Value) -> Any:
        mixed = match.node("mixed")
        x = x if mixed is None else mixed.outputs[0]
        standard = match.opset >= _STANDARD_SINCE and match.root.op != "Gelu" and x.dtype != "float64"
        if standard and unsupported(DOMAIN, "FastGelu", x.dtype, match.target) is not None:
            return op.Gelu(x, approximate="tanh")
        return op.FastGelu(x, domain=DOMAIN)


def _argument(op: Any, x: Any, factor: float) -> Any:
    """factor * sqrt(2 / pi) * (x + 0.044715 * x^3), in every spelling."""
    slope = factor * _SLOPE

    def square(number: float) -> Any:
        return op.any_of(op.product(number, x, x), op.product(number, op.Pow(x, 2)))

    def cube(number: float) -> Any:
        return op.any_of(op.product(number, x, x, x), op.product(number, op.Pow(x, 3)), op.product(number, x, op.Pow(x, 2)))

    both = (slope * _CUBIC, factor * _SHORT_PRODUCT)
    total = cube(_CUBIC) + x
    return op.any_of(
        op.product(slope, total),
        op.product(factor, total, op.Sqrt(2.0 / math.pi, keep=True)),
        op.product(slope, x, square(_CUBIC) + 1),
        op.any_of(*(cube(number) for number in both)) + op.product(slope, x),
        op.product(x, op.any_of(*(square(number) for number in both)) + slope),
    )
