"""The ``bias-gelu`` pass."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from pydantic import Field

from rewright.ops.microsoft import DOMAIN
from rewright.passes.deferral import Deferral
from rewright.passes.pattern_pass import Match, PatternPass
from rewright.pattern.values import NodeRef, Value

_C_IS_OPTIONAL_SINCE: Final = 11
_GEMM: Final = {"alpha": 1.0, "transA": 0, "transB": 0}


class BiasGelu(PatternPass):
    """Gelu(x + bias) -> com.microsoft.BiasGelu(x, bias), and FastGelu(x + bias) -> com.microsoft.FastGelu(x, bias).

    The bias is a constant vector over the last axis.

    1. The Gelu may be the standard one or that of com.microsoft; the operands of the sum may stand in either order. The tanh
       approximation, also as ``Gelu(approximate="tanh")``, becomes FastGelu, never BiasGelu, which is exact.
    2. With the option ``gemm`` the bias is taken out of a Gemm too: ``Gelu(Gemm(x, W, C))`` becomes
       ``BiasGelu(Gemm(x, W), beta * C)``. It is off because it gains nothing on CPU: a Gemm starts from its bias at no cost,
       while BiasGelu takes 1.8 times as long as Gelu, and FastGelu with bias 1.25 times as long as without; a layer of 768 to
       3072 features takes 1.00 to 1.04 times as long.
    3. Refused: a bias that is not a constant of one dimension whose length is proven to be that of x's last axis (a Gemm's
       C may also have the shape (1, length)); a sum that is used elsewhere; a target or dtype without kernel.

    Source: ONNX Gelu-20, Gemm-13; ONNX Runtime contrib operators Gelu, BiasGelu and FastGelu.
    """

    name = "bias-gelu"
    exactness = "reassociating"
    emits = ("com.microsoft.BiasGelu", "com.microsoft.FastGelu")
    after = ("gelu", "fast-gelu", "skip-layer-norm")
    ort = Deferral(
        optimizers=("BiasGeluFusion",),
        classes=("FusionBiasGelu", "FusionBiasGelu:fast"),
        makes=("com.microsoft::BiasGelu", "com.microsoft::FastGelu"),
        anchors=("Gelu", "com.microsoft::Gelu", "com.microsoft::FastGelu"),
    )

    gemm: bool = Field(default=False, description="Take the bias out of a Gemm too; no faster on CPU.")

    def pattern(self, op: Any, x: Any, bias: Any, weight: Any) -> Any:
        total = op.any_of(x + bias, op.Gemm(x, weight, op.optional(bias), bind="gemm"))
        return op.any_of(op.Gelu(total, domain=("", DOMAIN)), op.FastGelu(total, domain=DOMAIN))

    def check(self, match: Match, x: Value, bias: Value | None) -> None:
        approximate = match.root.attribute("approximate", "none")
        match.require(approximate in ("none", "tanh"), f"the Gelu is the {approximate} approximation", match.root)
        gemm = match.node("gemm")
        if bias is None:
            match.require(False, "the Gemm has no bias", gemm)
        elif gemm is None:
            match.require(bias.is_constant and bias.rank == 1, "no operand of the sum is a constant vector", bias)
            length, last = bias.dim(0), x.dim(-1)
            match.require(length == last, f"the bias has {length} elements, the last axis of the other operand {last}", bias)
        else:
            match.require(self.gemm, "the Gemm adds the bias at no cost; the option gemm would take it out", gemm)
            match.require(match.opset >= _C_IS_OPTIONAL_SINCE, "before opset 11 a Gemm must have a bias", gemm)
            _check_gemm_bias(match, gemm, bias)

    def rewrite(self, op: Any, match: Match, x: Value, bias: Value, weight: Value | None) -> Any:
        gemm = match.node("gemm")
        if gemm is not None and weight is not None:
            beta = gemm.attribute("beta", 1.0)
            if beta != 1 or bias.rank != 1:
                array = np.asarray(bias.value)
                bias = op.constant((array * array.dtype.type(beta)).reshape(-1), "bias")
            x = op.Gemm(x, weight, **{name: gemm.attribute(name, default) for name, default in _GEMM.items()})
        approximate = match.root.op == "FastGelu" or match.root.attribute("approximate", "none") == "tanh"
        return op.FastGelu(x, bias, domain=DOMAIN) if approximate else op.BiasGelu(x, bias, domain=DOMAIN)


def _check_gemm_bias(match: Match, gemm: NodeRef, bias: Value) -> None:
    shape, last = bias.shape, gemm.outputs[0].dim(-1)
    vector = bias.is_constant and shape is not None and 1 <= len(shape) <= 2 and (len(shape) == 1 or shape[0] == 1)
    match.require(vector, "the bias of the Gemm is not a constant vector", bias)
    match.require(bias.dim(-1) == last, f"the bias has {bias.dim(-1)} elements, the Gemm {last} columns", bias)
