"""The ``layer-norm`` pass."""

from __future__ import annotations

from typing import Any, Final

from rewright.model import opsets
from rewright.ops.microsoft import DOMAIN
from rewright.passes.deferral import Deferral
from rewright.passes.fusion.decomposed_layer_norm import check_layer_norm, layer_norm_of
from rewright.passes.fusion.last_axes import epsilon_of, half_source, normalised_lengths, ones, parameter
from rewright.passes.fusion.residual_sums import check_residual, operands, with_sum
from rewright.passes.pattern_pass import Match, PatternPass
from rewright.passes.session import PassSession
from rewright.pattern.values import Value

_STANDARD_SINCE: Final = 17


class LayerNorm(PatternPass):
    """(x - mean) / sqrt(mean((x - mean)^2) + epsilon) * scale + bias -> LayerNormalization(x, scale, bias).

    1. Spellings: one Sub or two; Pow(2) or Mul with itself; epsilon on either side; Div by Sqrt or Pow(0.5), Mul with a
       reciprocal root; the scale before or after the root; TensorFlow's ``x * r + (bias - mean * r)``; a mean as ReduceMean or
       as a sum over a constant number.
    2. Scale and bias may be absent (a missing scale becomes ones), of shape (H), (1, H), (1, 1, H), or a number: a constant
       that only broadcasts becomes a copy of the normalised shape.
    3. Both means must be over the same last axes, with ``keepdims`` or with the axes put back; epsilon must be a number
       that is not negative, or absent: exporters drop one that they take for 0, and then it is 0.
    4. Refused: a scale or bias that may change the result's shape, unknown lengths where they matter, float64 (the op computes
       in float32), and inner values that are used elsewhere.
    5. Half precision: where a float32 interior is cast back before the scale, the op takes the half-precision input, for
       that is what its ``stash_type`` means. Where it is cast back later, the float32 part is fused and the Casts stay.
    6. Below opset 17 the op is not standard. Where every node of the model means the same at 17, the model's opset is raised.
       Where one does not, a normalisation of a residual sum becomes com.microsoft.SkipLayerNormalization, which follows no
       opset; any other is refused with the node that stands in the way.

    Source: Ba, Kiros and Hinton, "Layer Normalization"; ONNX LayerNormalization-17.
    """

    name = "layer-norm"
    exactness = "reassociating"
    emits = ("com.microsoft.SkipLayerNormalization",)
    after = ("constant-folding",)
    before = ("gelu",)
    anchors = ("ReduceMean",)
    backwards = True
    ort = Deferral(
        optimizers=("LayerNormFusionL1", "LayerNormFusionL2"),
        classes=("FusionLayerNormalization", "FusionLayerNormalizationTF"),
        makes=("LayerNormalization",),
        anchors=("ReduceMean",),
    )

    def pattern(self, op: Any, x: Any, epsilon: Any, scale: Any, bias: Any, count: Any, share: Any) -> Any:
        return layer_norm_of(op, x, epsilon, scale, bias, count, share)

    def check(
        self,
        match: Match,
        x: Value,
        epsilon: Value | None,
        scale: Value | None,
        bias: Value | None,
        count: Value | None,
        share: Value | None,
    ) -> None:
        check_layer_norm(match, x, epsilon, scale, bias, count, share)
        if match.opset < _STANDARD_SINCE:
            obstacle = match.opset_obstacle(_STANDARD_SINCE)
            reason = (
                f"LayerNormalization is standard from opset {_STANDARD_SINCE} on, the model is at {match.opset}, and {obstacle}"
            )
            match.require(obstacle is None, reason)

    def rewrite(self, op: Any, match: Match, x: Value, epsilon: Value | None, scale: Value | None, bias: Value | None) -> Any:
        lengths = normalised_lengths(match, x)
        data = x if match.node("narrowed") is None else half_source(x) or x
        made = ones(op, lengths, data) if scale is None else parameter(op, scale, lengths, "scale")
        inputs = (data, made) if bias is None else (data, made, parameter(op, bias, lengths, "bias"))
        return op.LayerNormalization(*inputs, axis=-len(lengths), epsilon=epsilon_of(epsilon))

    def apply(self, session: PassSession) -> None:
        view = session.view
        oldest = min(filter(None, map(view.opset_of, view.graphs())), default=_STANDARD_SINCE)
        raised = oldest < _STANDARD_SINCE and session.opset_obstacle(_STANDARD_SINCE) is None
        if oldest < _STANDARD_SINCE and not raised:
            _OfResidual().apply(session)
            session.rejections.clear()  # what is left has a better reason below
        before = len(session.sites)
        super().apply(session)
        if raised and len(session.sites) > before:
            opsets.raise_to(view, _STANDARD_SINCE)
            session.notes.append(f"the opset was raised from {oldest} to {_STANDARD_SINCE}, where LayerNormalization is standard")


class _OfResidual(PatternPass):
    """A decomposed normalisation of x + skip -> com.microsoft.SkipLayerNormalization, where the opset can not be raised."""

    name = "layer-norm"
    exactness = "reassociating"
    anchors = ("ReduceMean",)
    backwards = True

    def pattern(self, op: Any, a: Any, b: Any, epsilon: Any, scale: Any, bias: Any, count: Any, share: Any) -> Any:
        total = op.Add(a, b, bind="sum")
        return layer_norm_of(op, total, epsilon, scale, bias, count, share), total

    def check(
        self,
        match: Match,
        a: Value,
        b: Value,
        epsilon: Value | None,
        scale: Value | None,
        bias: Value | None,
        count: Value | None,
        share: Value | None,
    ) -> None:
        match.require(match.opset < _STANDARD_SINCE, "LayerNormalization is standard here")
        total = check_residual(match, a, b)
        lengths = check_layer_norm(match, total, epsilon, scale, bias, count, share)
        match.require(len(lengths) == 1, "more than the last axis is normalised")

    def rewrite(
        self, op: Any, match: Match, a: Value, b: Value, epsilon: Value | None, scale: Value | None, bias: Value | None
    ) -> Any:
        total = match.the_node("sum").outputs[0]
        lengths = normalised_lengths(match, total)
        full, other = operands(a, b) or (a, b)
        gamma = ones(op, lengths, total) if scale is None else parameter(op, scale, lengths, "gamma")
        beta = None if bias is None else parameter(op, bias, lengths, "beta")
        return with_sum(match, op.SkipLayerNormalization, [full, other, gamma, beta], domain=DOMAIN, epsilon=epsilon_of(epsilon))
