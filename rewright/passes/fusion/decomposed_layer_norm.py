"""Layer normalisation as exporters decompose it: the pattern and its proof, for whichever op takes its place."""

from __future__ import annotations

from typing import Any

from rewright.model.facts import Dim
from rewright.passes.fusion.last_axes import (
    check_count,
    check_epsilon,
    check_input,
    check_narrowed,
    check_parameter,
    mean_of,
    normalised_lengths,
    with_epsilon,
)
from rewright.passes.pattern_pass import Match
from rewright.pattern.values import Value


def layer_norm_of(op: Any, x: Any, epsilon: Any, scale: Any, bias: Any, count: Any, share: Any) -> Any:
    """(x - mean) / sqrt(mean((x - mean)^2) [+ epsilon]) [* scale] [+ bias]; ``count`` and ``share`` as in ``mean_of``."""
    mean = mean_of(op, x, count, share)
    centred = x - mean
    variance = with_epsilon(op, mean_of(op, op.square(centred), count, share), epsilon)
    root = variance**0.5
    inverse = op.inverse_sqrt(variance)
    normalised = op.any_of(centred / root, inverse * centred)
    narrowed = op.Cast(normalised, bind="narrowed")
    scaled = op.any_of(
        op.any_of(normalised, narrowed) * scale,
        (inverse * scale) * centred,
        inverse * (centred * scale),
        (centred * scale) / root,
        (scale / root) * centred,
    )

    def tensorflow(factor: Any) -> Any:
        return (bias - mean * factor) + x * factor

    return op.any_of(
        tensorflow(inverse * scale),
        tensorflow(inverse),
        op.any_of(scaled, normalised, narrowed) + bias,
        scaled,
        normalised,
    )


def check_layer_norm(
    match: Match,
    x: Value,
    epsilon: Value | None,
    scale: Value | None,
    bias: Value | None,
    count: Value | None,
    share: Value | None,
) -> tuple[Dim, ...]:
    """Refuses what is not a layer normalisation over the last axes; returns their lengths."""
    check_input(match, "LayerNormalization", x)
    check_epsilon(match, epsilon, x)
    lengths = normalised_lengths(match, x)
    check_count(match, x, lengths, count, share)
    check_parameter(match, "scale", scale, lengths, x.rank)
    check_parameter(match, "bias", bias, lengths, x.rank)
    check_narrowed(match, x)
    return lengths
