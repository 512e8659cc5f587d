"""The ``layer-norm`` pass."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from rewright.model.facts import Dim
from rewright.passes.pattern_pass import Match, PatternPass
from rewright.pattern.values import NodeRef, Value

_STANDARD_SINCE: Final = 17
_FLOATS: Final = ("float16", "bfloat16", "float32")
_HALVES: Final = ("float16", "bfloat16")


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

    def pattern(self, op: Any, x: Any, epsilon: Any, scale: Any, bias: Any) -> Any:
        def mean(value: Any) -> Any:
            return op.ReduceMean(value, open_inputs=True)

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

    def check(self, match: Match, x: Value, epsilon: Value, scale: Value | None, bias: Value | None) -> None:
        opset = f"LayerNormalization is standard from opset {_STANDARD_SINCE} on, and the model is at opset {match.opset}"
        match.require(match.opset >= _STANDARD_SINCE, opset)
        match.require(x.dtype is not None, "the dtype is unknown", x)
        match.require(x.dtype is not None and x.dtype.name in _FLOATS, f"LayerNormalization does not compute in {x.dtype}", x)
        _check_epsilon(match, epsilon, x)
        lengths = _normalised_lengths(match, x)
        if scale is None:
            unknown = "there is no scale, and the lengths of the normalised axes are not known, so none can be made"
            match.require(_static(lengths) is not None, unknown, x)
        for name, value in (("scale", scale), ("bias", bias)):
            if value is not None:
                match.require(_fits(value, lengths, x.rank), _misfit(name, value, lengths), value)
        narrowed = match.node("narrowed")
        if narrowed is not None:
            source, half = _half_source(x), narrowed.outputs[0].dtype
            widened = source is not None and half is not None and half.name in _HALVES and source.dtype == half
            match.require(widened, "the result is cast before the scale, but x is not widened from the same half type", narrowed)

    def rewrite(self, op: Any, match: Match, x: Value, epsilon: Value, scale: Value | None, bias: Value | None) -> Any:
        lengths = _normalised_lengths(match, x)
        data = x if match.node("narrowed") is None else _half_source(x) or x
        if scale is None:
            made = op.constant(np.ones(_static(lengths) or (), data.dtype), "scale")
        else:
            made = _parameter(op, scale, lengths, "scale")
        shift = None if bias is None else _parameter(op, bias, lengths, "bias")
        inputs = (data, made) if shift is None else (data, made, shift)
        return op.LayerNormalization(*inputs, axis=-len(lengths), epsilon=epsilon.scalar)


def _check_epsilon(match: Match, epsilon: Value, x: Value) -> None:
    value, shape = epsilon.scalar, epsilon.shape
    match.require(value is not None, "epsilon is not a constant number", epsilon)
    match.require(value is not None and math.isfinite(value) and value > 0, f"epsilon is {value}, not positive", epsilon)
    match.require(shape is not None and len(shape) <= (x.rank or 1), "epsilon has more dimensions than x", epsilon)


def _normalised_axes(match: Match, x: Value) -> range:
    """The axes that every mean is taken over, as range(-k, 0); refuses the site if they are not the last ones."""
    found: range | None = None
    for node in (node for node in match.nodes if node.op == "ReduceMean"):
        match.require(node.attribute("keepdims", 1) == 1, "keepdims is 0", node)
        given = _axes(match, node, x)
        axes = range(-len(given), 0)
        match.require(given == list(axes), f"a mean is over the axes {given}, not over the last ones", node)
        match.require(found is None or axes == found, "the two means are over different axes", node)
        found = axes
    return found or range(0)


def _axes(match: Match, node: NodeRef, x: Value) -> list[int]:
    """The reduced axes in order, negative where the rank allows it. All of them if none are given (ONNX ReduceMean)."""
    rank = x.rank
    if node.absent("axes", 1):
        match.require(node.attribute("noop_with_empty_axes", 0) == 0, "a mean has no axes and reduces nothing", node)
        match.require(bool(rank), "a mean is over all axes, whose number is not known", node)
        return list(range(-(rank or 0), 0))
    axes = node.ints("axes", 1)
    match.require(bool(axes), "the axes of a mean are empty or not constant", node)
    return sorted(axis - rank if rank and axis >= 0 else axis for axis in axes or [])


def _normalised_lengths(match: Match, x: Value) -> tuple[Dim, ...]:
    count = len(_normalised_axes(match, x))
    return x.shape[-count:] if x.shape is not None and len(x.shape) >= count else (None,) * count


def _static(lengths: tuple[Dim, ...]) -> tuple[int, ...] | None:
    known = tuple(length for length in lengths if isinstance(length, int))
    return known if len(known) == len(lengths) else None


def _fits(value: Value, lengths: tuple[Dim, ...], rank: int | None) -> bool:
    """Whether broadcasting the value with x gives x's shape for certain, and the op can take it or a copy of it."""
    shape = value.shape
    if shape is None or len(shape) > (rank or len(lengths)):
        return False
    if shape == lengths and None not in lengths:
        return True
    static = _static(lengths)
    if not value.is_constant or static is None:
        return False
    inner = _without_leading_ones(shape, len(lengths))
    return len(inner) <= len(static) and all(a in (1, b) for a, b in zip(inner[::-1], static[::-1], strict=False))


def _without_leading_ones(shape: tuple[Dim, ...], rank: int) -> tuple[Dim, ...]:
    while len(shape) > rank and shape[0] == 1:
        shape = shape[1:]
    return shape


def _misfit(name: str, value: Value, lengths: tuple[Dim, ...]) -> str:
    described = tuple("?" if length is None else length for length in lengths)
    return f"the {name} has the shape {value.shape}, which does not surely fit the normalised lengths {described}"


def _parameter(op: Any, value: Value, lengths: tuple[Dim, ...], name: str) -> Value:
    if value.shape == lengths:
        return value
    static, array, shape = _static(lengths) or (), value.value, value.shape or ()
    inner = np.reshape(array, [int(length or 0) for length in _without_leading_ones(shape, len(static))])  # type: ignore[arg-type]
    made: Value = op.constant(np.ascontiguousarray(np.broadcast_to(inner, static)), name)
    return made


def _half_source(x: Value) -> Value | None:
    """What x was cast from."""
    cast = x.producer
    return cast.input(0) if cast is not None and cast.op == "Cast" and not cast.domain else None
