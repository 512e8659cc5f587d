"""The ``gelu`` pass."""

from __future__ import annotations

import math
from typing import Any

from rewright.passes.pattern_pass import Match, PatternPass
from rewright.pattern.values import Value

_STANDARD_SINCE = 20


class Gelu(PatternPass):
    """0.5 * x * (1 + erf(x / sqrt(2))) -> Gelu(x), in every association and order of the factors.

    Emits the standard ``Gelu`` from opset 20 on, ``com.microsoft.Gelu`` below.
    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units"; ONNX Gelu-20; ONNX Runtime contrib operator Gelu.
    """

    name = "gelu"
    exactness = "reassociating"
    emits = ("com.microsoft::Gelu",)
    after = ("constant-folding", "layer-norm")
    anchors = ("Erf",)

    def pattern(self, op: Any, x: Any) -> Any:
        return op.product(x, 0.5, op.Erf(x * (1 / math.sqrt(2))) + 1)

    def check(self, match: Match, x: Value) -> None:
        match.require(x.dtype is not None and x.dtype.kind == "f", "the dtype is unknown or not a float", x)

    def rewrite(self, op: Any, match: Match, x: Value) -> Any:
        return op.Gelu(x) if match.opset >= _STANDARD_SINCE else op.Gelu(x, domain="com.microsoft")
