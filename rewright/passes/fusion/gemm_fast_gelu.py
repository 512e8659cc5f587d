"""The ``gemm-fast-gelu`` pass."""

from __future__ import annotations

from typing import Any

from rewright.ops.activations import GEMM_FAST_GELU
from rewright.ops.contract import CONTRACTS
from rewright.ops.microsoft import DOMAIN
from rewright.passes.deferral import Deferral
from rewright.passes.pattern_pass import Match, PatternPass
from rewright.pattern.values import Value


class GemmFastGelu(PatternPass):
    """FastGelu(MatMul(x, W) + bias) -> com.microsoft.GemmFastGelu(x, W, bias), for a target that has the kernel: today none.

    1. W is a constant matrix and the right operand of the product: W @ x is another product. x has at least two dimensions.
    2. The bias may be absent, added before the FastGelu, or its second input; it is a vector, an element for each column of W.
       The tanh approximation may also be the standard ``Gelu(approximate="tanh")``.
    3. Refused: other consumers of the product or the sum; a target or dtype without kernel. The op's only kernel was that of
       ROCm, so that every site is declined, with that reason.

    In no level. Source: ONNX Runtime contrib operator GemmFastGelu.
    """

    name = "gemm-fast-gelu"
    exactness = "reassociating"
    emits = ("com.microsoft.GemmFastGelu",)
    after = ("fast-gelu", "bias-gelu", "gelu-approximation")
    ort = Deferral(declines="FusionGemmFastGelu of onnxruntime.transformers swaps the operands of the product")

    def pattern(self, op: Any, x: Any, weight: Any, bias: Any) -> Any:
        product = op.MatMul(x, weight)
        total = op.any_of(product + bias, product)
        return op.any_of(
            op.FastGelu(total, domain=DOMAIN),
            op.FastGelu(product, bias, domain=DOMAIN),
            op.Gelu(total, approximate="tanh"),
        )

    def check(self, match: Match, x: Value, weight: Value, bias: Value | None) -> None:
        left = "the constant is the left operand of the product, and the op computes x @ W"
        match.require(weight.is_constant or not x.is_constant, left, x)
        match.require(
            weight.is_constant and weight.rank == 2, "the right operand of the product is not a constant matrix", weight
        )
        match.require(x.rank is not None and x.rank >= 2, f"x has the rank {x.rank}, and the op takes 2 or more", x)
        if bias is not None:
            columns = weight.dim(1)
            fits = f"the bias has the shape {bias.shape}, not ({columns},)"
            match.require(columns is not None and bias.shape == (columns,), fits, bias)
        contract = CONTRACTS[f"{GEMM_FAST_GELU.domain}::{GEMM_FAST_GELU.op}"]
        match.require(bool(contract.kernels), "no target has a kernel for com.microsoft.GemmFastGelu")

    def rewrite(self, op: Any, x: Value, weight: Value, bias: Value | None) -> Any:
        return op.GemmFastGelu(*((x, weight) if bias is None else (x, weight, bias)), domain=DOMAIN)
