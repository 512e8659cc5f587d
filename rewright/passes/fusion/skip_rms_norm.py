"""The ``skip-rms-norm`` pass."""

from __future__ import annotations

from typing import Any

from rewright.ops.microsoft import DOMAIN
from rewright.ops.normalization import LAYER_NORMALIZATION_EPSILON
from rewright.passes.deferral import Deferral
from rewright.passes.fusion.residual_sums import check_residual, check_vector, operands, with_sum
from rewright.passes.pattern_pass import Match, PatternPass
from rewright.pattern.values import Value


class SkipRmsNorm(PatternPass):
    """RMSNormalization(x + skip) -> com.microsoft.SkipSimplifiedLayerNormalization, which also gives the sum.

    output = s / sqrt(mean(s^2) + epsilon) * gamma, with s = x + skip over the last axis. SimplifiedLayerNormalization, what
    ONNX Runtime calls the op below opset 23, is taken likewise.

    1. Both operands must have the same shape, of rank 2 or 3, wholly known by number or symbol; beside an operand of rank 3
       the other may be (1, S, H) or (S, H), and becomes the skip (not for the target dml).
    2. The normalised axis must be the last; epsilon is written out (the op's own default is 1e-12, not 1e-5).
    3. Where the sum is used elsewhere too, it becomes the fourth output.
    4. Refused: an operand that is a constant, gamma that is not of shape (H), of another dtype, or depends on the sum, a
       deviation output that is used, a dtype without kernel.

    Source: ONNX RMSNormalization-23; ONNX Runtime contrib operator SkipSimplifiedLayerNormalization.
    """

    name = "skip-rms-norm"
    exactness = "reassociating"
    emits = ("com.microsoft.SkipSimplifiedLayerNormalization",)
    after = ("rms-norm",)
    anchors = ("RMSNormalization", "SimplifiedLayerNormalization")
    ort = Deferral(
        classes=("FusionSkipSimplifiedLayerNormalization",),
        makes=("com.microsoft::SkipSimplifiedLayerNormalization",),
        anchors=("SimplifiedLayerNormalization",),
    )

    def pattern(self, op: Any, x: Any, skip: Any, gamma: Any) -> Any:
        total = op.Add(x, skip, bind="sum")
        return op.any_of(op.RMSNormalization(total, gamma), op.SimplifiedLayerNormalization(total, gamma)), total

    def check(self, match: Match, x: Value, skip: Value, gamma: Value) -> None:
        total = check_residual(match, x, skip)
        check_vector(match, "gamma", gamma, total.dim(-1))
        same = gamma.dtype is not None and gamma.dtype == total.dtype
        match.require(same, f"gamma is of {gamma.dtype}, and the sum of {total.dtype}", gamma)

    def rewrite(self, op: Any, match: Match, x: Value, skip: Value, gamma: Value) -> Any:
        full, other = operands(x, skip) or (x, skip)
        epsilon = match.root.attribute("epsilon", LAYER_NORMALIZATION_EPSILON)
        return with_sum(match, op.SkipSimplifiedLayerNormalization, [full, other, gamma], domain=DOMAIN, epsilon=epsilon)
