"""The ``bias-gelu`` pass."""

from __future__ import annotations

from typing import Any

from rewright.ops.microsoft import DOMAIN
from rewright.passes.pattern_pass import Match, PatternPass
from rewright.pattern.values import Value


class BiasGelu(PatternPass):
    """Gelu(x + bias) -> com.microsoft.BiasGelu(x, bias), where bias is a constant vector over the last axis.

    1. The Gelu may be the standard one or that of com.microsoft; the operands of the sum may stand in either order.
    2. Refused: the tanh approximation, which BiasGelu does not compute; a bias that is not a constant of one dimension whose
       length is proven to be that of x's last axis; a sum that is used elsewhere; a target or dtype without kernel.

    Source: ONNX Gelu-20; ONNX Runtime contrib operators Gelu and BiasGelu.
    """

    name = "bias-gelu"
    exactness = "reassociating"
    emits = ("com.microsoft.BiasGelu",)
    after = ("gelu", "skip-layer-norm")

    def pattern(self, op: Any, x: Any, bias: Any) -> Any:
        return op.Gelu(x + bias, domain=("", DOMAIN))

    def check(self, match: Match, x: Value, bias: Value) -> None:
        approximate = match.root.attribute("approximate", "none")
        match.require(approximate == "none", f"the Gelu is the {approximate} approximation, BiasGelu is exact", match.root)
        match.require(bias.is_constant and bias.rank == 1, "no operand of the sum is a constant vector", bias)
        length, last = bias.dim(0), x.dim(-1)
        match.require(length == last, f"the bias has {length} elements, the last axis of the other operand {last}", bias)

    def rewrite(self, op: Any, x: Value, bias: Value) -> Any:
        return op.BiasGelu(x, bias, domain=DOMAIN)
