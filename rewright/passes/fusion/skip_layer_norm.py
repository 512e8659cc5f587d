"""The ``skip-layer-norm`` pass."""

from __future__ import annotations

from typing import Any

from rewright.ops.microsoft import DOMAIN
from rewright.ops.normalization import LAYER_NORMALIZATION_EPSILON
from rewright.passes.deferral import Deferral
from rewright.passes.fusion.residual_sums import check_residual, check_vector, operands, with_sum
from rewright.passes.pattern_pass import Match, PatternPass
from rewright.pattern.values import Value


class SkipLayerNorm(PatternPass):
    """LayerNormalization(x + skip) -> com.microsoft.SkipLayerNormalization, which also gives the sum.

    output = (s - mean(s)) / sqrt(var(s) + epsilon) * gamma + beta, with s = x + skip over the last axis.

    1. Both operands must have the same shape, of rank 2 or 3, wholly known by number or symbol; beside an operand of rank 3
       the other may be (1, S, H) or (S, H), and becomes the skip (not for the target dml).
    2. The normalised axis must be the last, epsilon is written out (the op's own default is 1e-12, not 1e-5), a missing bias of
       the LayerNormalization stays missing.
    3. Where the sum is used elsewhere too, it becomes the fourth output.
    4. Refused: an operand that is a constant (that is a bias or a position table, not a residual), gamma or beta that is
       not of shape (H) or depends on the sum, a mean or deviation output that is used, a dtype without kernel.

    The CPU kernel agrees with float64 to a few units in the last place; where a row's mean is a hundred times its spread, its
    error is up to ten times that of LayerNormalization (about 1.5e-7 times the ratio).
    Source: ONNX LayerNormalization-17; ONNX Runtime contrib operator SkipLayerNormalization.
    """

    name = "skip-layer-norm"
    exactness = "reassociating"
    emits = ("com.microsoft.SkipLayerNormalization",)
    after = ("layer-norm",)
    anchors = ("LayerNormalization",)
    ort = Deferral(
        optimizers=("SkipLayerNormFusion",),
        classes=("FusionSkipLayerNormalization",),
        makes=("com.microsoft::SkipLayerNormalization",),
        anchors=("LayerNormalization",),
    )

    def pattern(self, op: Any, x: Any, skip: Any, gamma: Any, beta: Any) -> Any:
        total = op.Add(x, skip, bind="sum")
        return op.LayerNormalization(total, gamma, op.optional(beta)), total

    def check(self, match: Match, x: Value, skip: Value, gamma: Value, beta: Value | None) -> None:
        size = check_residual(match, x, skip).dim(-1)
        check_vector(match, "gamma", gamma, size)
        check_vector(match, "beta", beta, size)

    def rewrite(self, op: Any, match: Match, x: Value, skip: Value, gamma: Value, beta: Value | None) -> Any:
        full, other = operands(x, skip) or (x, skip)
        epsilon = match.root.attribute("epsilon", LAYER_NORMALIZATION_EPSILON)
        return with_sum(match, op.SkipLayerNormalization, [full, other, gamma, beta], domain=DOMAIN, epsilon=epsilon)
