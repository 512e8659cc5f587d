"""The ``layer-norm`` pass."""

from __future__ import annotations

from typing import Any, Final

from rewright.passes.fusion.last_axes import (
    check_count,
    check_epsilon,
    check_input,
    check_narrowed,
    check_parameter,
    half_source,
    mean_of,
    normalised_lengths,
    ones,
    parameter,
)
from rewright.passes.pattern_pass import Match, PatternPass
from rewright.pattern.values import Value

_STANDARD_SINCE: Final = 17


class LayerNorm(PatternPass):
    """(x - mean) / sqrt(mean((x - mean)^2) + epsilon) * scale + bias -> LayerNormalization(x, scale, bias).

    1. Spellings: one Sub or two; Pow(2) or Mul with itself; epsilon on either side; Div by Sqrt or Pow(0.5), Mul with a
       reciprocal root; the scale before or after the root; TensorFlow's ``x * r + (bias - mean * r)``.
    2. Scale and bias may be absent (a missing scale becomes ones), of shape (H), (1, H), (1, 1, H), or a number: a constant
       that only broadcasts becomes a copy of the normalised shape.
    3. Both means must be over the same last axes, with ``keepdims``; epsilon must be a positive number.
    4. Refused: a scale or bias that may change the result's shape, unknown lengths where they matter, float64 (the op computes
       in float32), inner values that are used elsewhere, and models below opset 17, where the op is not standard.
    5. Half precision: where a float32 interior is cast back before the scale, the op takes the half-precision input, for
       that is what its ``stash_type`` means. Where it is cast back later, the float32 part is fused and the Casts stay.

    Source: Ba, Kiros and Hinton, "Layer Normalization"; ONNX LayerNormalization-17.
    """

    name = "layer-norm"
    exactness = "reassociating"
    after = ("constant-folding",)
    before = ("gelu",)
    anchors = ("ReduceMean",)
    backwards = True

    def pattern(self, op: Any, x: Any, epsilon: Any, scale: Any, bias: Any, count: Any, share: Any) -> Any:
        def mean(value: Any) -> Any:
            return mean_of(op, value, count, share)

        centred = x - mean(x)
        variance = mean(op.square(centred)) + epsilon
        root = variance**0.5
        inverse = op.inverse_sqrt(variance)
        normalised = op.any_of(centred / root, inverse * centred)
        narrowed = op.Cast(normalised, bind="narrowed")
        scaled = op.any_of(
            op.any_of(normalised, narrowed) * scale,
            (inverse * scale) * centred,
            inverse * (centred * scale),
            (centred * scale) / root,
        )

        def tensorflow(factor: Any) -> Any:
            return (bias - mean(x) * factor) + x * factor

        return op.any_of(
            tensorflow(inverse * scale),
            tensorflow(inverse),
            op.any_of(scaled, normalised, narrowed) + bias,
            scaled,
            normalised,
        )

    def check(
        self,
        match: Match,
        x: Value,
        epsilon: Value,
        scale: Value | None,
        bias: Value | None,
        count: Value | None,
        share: Value | None,
    ) -> None:
        opset = f"LayerNormalization is standard from opset {_STANDARD_SINCE} on, and the model is at opset {match.opset}"
        match.require(match.opset >= _STANDARD_SINCE, opset)
        check_input(match, "LayerNormalization", x)
        check_epsilon(match, epsilon, x)
        lengths = normalised_lengths(match, x)
        check_count(match, x, lengths, count, share)
        check_parameter(match, "scale", scale, lengths, x.rank)
        check_parameter(match, "bias", bias, lengths, x.rank)
        check_narrowed(match, x)

    def rewrite(self, op: Any, match: Match, x: Value, epsilon: Value, scale: Value | None, bias: Value | None) -> Any:
        lengths = normalised_lengths(match, x)
        data = x if match.node("narrowed") is None else half_source(x) or x
        made = ones(op, lengths, data) if scale is None else parameter(op, scale, lengths, "scale")
        inputs = (data, made) if bias is None else (data, made, parameter(op, bias, lengths, "bias"))
        return op.LayerNormalization(*inputs, axis=-len(lengths), epsilon=epsilon.scalar)
