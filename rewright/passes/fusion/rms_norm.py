"""The ``rms-norm`` pass."""

from __future__ import annotations

from typing import Any, Final

from rewright.passes.deferral import Deferral
from rewright.passes.fusion.last_axes import (
    check_count,
    check_epsilon,
    check_input,
    check_narrowed,
    check_parameter,
    epsilon_of,
    half_source,
    mean_square_of,
    normalised_lengths,
    ones,
    parameter,
    with_epsilon,
)
from rewright.passes.pattern_pass import Match, PatternPass
from rewright.pattern.values import Value

_STANDARD_SINCE: Final = 23


class RmsNorm(PatternPass):
    """x / sqrt(mean(x^2) + epsilon) * scale -> RMSNormalization(x, scale), or SimplifiedLayerNormalization below opset 23.

    1. Spellings: Pow(2) or Mul with itself; epsilon on either side; Div by Sqrt or Pow(0.5), Mul with a reciprocal root; the
       scale before or after the root; the mean as ReduceMean, or as a sum over a constant number.
    2. The scale may be absent (it becomes ones), of shape (H), (1, H), (1, 1, H), or a number. A constant that only
       broadcasts becomes a copy of the normalised shape.
    3. The mean must be over the last axes, with ``keepdims`` or with the axes put back; epsilon must be a number that is
       not negative, or absent: exporters drop one that they take for 0, and then it is 0.
    4. Refused: a scale that may change the result's shape, unknown lengths where they matter, float64 (the op computes in
       float32), and inner values that are used elsewhere. A bias is not part of the op and stays an Add.
    5. Half precision: where a float32 interior is cast back before the scale, the op takes the half-precision input, for
       that is what its ``stash_type`` means. Where it is cast back later, the float32 part is fused and the Casts stay.
    6. Below opset 23 the op is ONNX Runtime's own, although it stands in the standard domain: not for the target portable. The
       target dml has no kernel of RMSNormalization and gets ONNX Runtime's op at any opset.

    On CPU both ops take the same time, about half of the decomposition's.
    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization"; ONNX RMSNormalization-23; ONNX Runtime
    SimplifiedLayerNormalization.
    """

    name = "rms-norm"
    exactness = "reassociating"
    emits = ("ai.onnx.SimplifiedLayerNormalization",)
    after = ("constant-folding", "layer-norm")
    anchors = ("ReduceMean",)
    backwards = True
    ort = Deferral(
        optimizers=("SimplifiedLayerNormFusion",),
        classes=("FusionSimplifiedLayerNormalization",),
        makes=("SimplifiedLayerNormalization",),
        anchors=("ReduceMean",),
    )

    def pattern(self, op: Any, x: Any, epsilon: Any, scale: Any, count: Any, share: Any) -> Any:
        variance = with_epsilon(op, mean_square_of(op, x, count, share), epsilon)
        root = variance**0.5
        inverse = op.inverse_sqrt(variance)
        normalised = op.any_of(x / root, inverse * x)
        narrowed = op.Cast(normalised, bind="narrowed")
        return op.any_of(
            op.any_of(normalised, narrowed) * scale,
            (inverse * scale) * x,
            inverse * (x * scale),
            (x * scale) / root,
            (scale / root) * x,
            normalised,
        )

    def check(
        self, match: Match, x: Value, epsilon: Value | None, scale: Value | None, count: Value | None, share: Value | None
    ) -> None:
        check_input(match, "the op", x)
        check_epsilon(match, epsilon, x)
        lengths = normalised_lengths(match, x)
        check_count(match, x, lengths, count, share)
        check_parameter(match, "scale", scale, lengths, x.rank)
        check_narrowed(match, x)

    def rewrite(self, op: Any, match: Match, x: Value, epsilon: Value | None, scale: Value | None) -> Any:
        lengths = normalised_lengths(match, x)
        data = x if match.node("narrowed") is None else half_source(x) or x
        made = ones(op, lengths, data) if scale is None else parameter(op, scale, lengths, "scale")
        attributes = {"axis": -len(lengths), "epsilon": epsilon_of(epsilon)}
        if match.opset >= _STANDARD_SINCE and match.target != "dml":
            return op.RMSNormalization(data, made, **attributes)
        return op.SimplifiedLayerNormalization(data, made, **attributes)
