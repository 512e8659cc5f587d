"""What the decomposed normalisations have in common: means over the last axes, epsilon, and parameters that only broadcast."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from rewright.model.facts import Dim
from rewright.passes.pattern_pass import Match
from rewright.pattern.language import Pattern
from rewright.pattern.values import NodeRef, Value

FLOATS: Final = ("float16", "bfloat16", "float32")
HALVES: Final = ("float16", "bfloat16")
_MEANS: Final = ("ReduceMean", "ReduceSum", "ReduceSumSquare")
_SQUEEZED_UNSQUEEZE: Final = "the axes that a mean drops are not those that come back"


def mean_of(op: Any, value: Pattern, count: Pattern, share: Pattern) -> Pattern:
    """The mean over some axes: ReduceMean, or a sum over the number of its elements, with the axes kept or put back."""
    kept = op.ReduceMean(value, open_inputs=True)
    total = op.ReduceSum(value, open_inputs=True)
    mean: Pattern = op.any_of(kept, op.Unsqueeze(kept, open_inputs=True), op.Div(total, count), op.Mul(total, share))
    return mean


def mean_square_of(op: Any, value: Pattern, count: Pattern, share: Pattern) -> Pattern:
    """The mean of the squares."""
    squares = op.ReduceSumSquare(value, open_inputs=True)
    mean: Pattern = op.any_of(mean_of(op, op.square(value), count, share), op.Div(squares, count), op.Mul(squares, share))
    return mean


def check_input(match: Match, op: str, x: Value) -> None:
    """Refuses dtypes that the op does not compute in."""
    match.require(x.dtype is not None, "the dtype is unknown", x)
    match.require(x.dtype is not None and x.dtype.name in FLOATS, f"{op} does not compute in {x.dtype}", x)


def with_epsilon(op: Any, variance: Pattern, epsilon: Pattern) -> Pattern:
    """The variance, to which exporters add nothing where epsilon is so small that they take it for 0."""
    stabilised: Pattern = op.any_of(variance + epsilon, variance)
    return stabilised


def check_epsilon(match: Match, epsilon: Value | None, x: Value) -> None:
    """Epsilon has to be a number that is not negative, and must add no dimensions."""
    if epsilon is not None:
        value, shape = epsilon.scalar, epsilon.shape
        match.require(value is not None, "epsilon is not a constant number", epsilon)
        match.require(
            value is not None and math.isfinite(value) and value >= 0, f"epsilon is {value}, not a number of at least 0", epsilon
        )
        match.require(shape is not None and len(shape) <= (x.rank or 1), "epsilon has more dimensions than x", epsilon)


def epsilon_of(epsilon: Value | None) -> float:
    """The number that the op adds. Without any, a row of zeros gives NaN, from the op as well."""
    return 0.0 if epsilon is None or epsilon.scalar is None else epsilon.scalar


def check_count(match: Match, x: Value, lengths: tuple[Dim, ...], count: Value | None, share: Value | None) -> None:
    """Where a mean is written as a sum over a number, that is the number of the summed elements."""
    size = static(lengths)
    elements = None if size is None else float(np.prod(size))
    for value, name, power in ((count, "divided by", 1), (share, "multiplied by", -1)):
        if value is None:
            continue
        number, rank = value.scalar, value.rank
        fits = (
            number is not None and elements is not None and elements > 0 and math.isclose(number, elements**power, rel_tol=1e-5)
        )
        match.require(fits, f"a sum is {name} {number}, which is not known to make it a mean", value)
        match.require(rank is not None and rank <= (x.rank or 1), "the number of elements has more dimensions than x", value)


def check_parameter(match: Match, name: str, value: Value | None, lengths: tuple[Dim, ...], rank: int | None) -> None:
    """A scale or bias must not change the result's shape, and the op must be able to take it or a copy of it."""
    if value is not None:
        match.require(_fits(value, lengths, rank), _misfit(name, value, lengths), value)
    elif name == "scale":
        unknown = "there is no scale, and the lengths of the normalised axes are not known, so none can be made"
        match.require(static(lengths) is not None, unknown)


def check_narrowed(match: Match, x: Value) -> None:
    """Where the result is cast before the scale, x has to be widened from that type: only then is that what the op does."""
    narrowed = match.node("narrowed")
    if narrowed is not None:
        source, half = half_source(x), narrowed.outputs[0].dtype
        widened = source is not None and half is not None and half.name in HALVES and source.dtype == half
        match.require(widened, "the result is cast before the scale, but x is not widened from the same half type", narrowed)


def normalised_axes(match: Match, x: Value) -> range:
    """The axes that every mean is taken over, as range(-k, 0); refuses the site if they are not the last ones."""
    found: range | None = None
    for node in (node for node in match.nodes if node.op in _MEANS):
        given = _axes(match, node, x)
        _check_kept(match, node, x, given)
        axes = range(-len(given), 0)
        match.require(given == list(axes), f"a mean is over the axes {given}, not over the last ones", node)
        match.require(found is None or axes == found, "the two means are over different axes", node)
        found = axes
    return found or range(0)


def _check_kept(match: Match, node: NodeRef, x: Value, axes: list[int]) -> None:
    """keepdims is 1, or a following Unsqueeze puts the same axes back."""
    back = next((user for user in match.nodes if user.op == "Unsqueeze" and user.inputs[0] == node.outputs[0]), None)
    kept = node.attribute("keepdims", 1) == 1
    if back is None:
        match.require(kept, "keepdims is 0", node)
        return
    given, rank = back.ints("axes", 1), x.rank
    restored = sorted(axis - rank if rank and axis >= 0 else axis for axis in given or [])
    match.require(not kept and restored == axes, _SQUEEZED_UNSQUEEZE, back)


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


def normalised_lengths(match: Match, x: Value) -> tuple[Dim, ...]:
    """The lengths of the normalised axes."""
    count = len(normalised_axes(match, x))
    return x.shape[-count:] if x.shape is not None and len(x.shape) >= count else (None,) * count


def static(lengths: tuple[Dim, ...]) -> tuple[int, ...] | None:
    """The lengths if all are numbers."""
    known = tuple(length for length in lengths if isinstance(length, int))
    return known if len(known) == len(lengths) else None


def ones(op: Any, lengths: tuple[Dim, ...], x: Value) -> Value:
    """A scale for a normalisation that has none."""
    made: Value = op.constant(np.ones(static(lengths) or (), x.dtype), "scale")
    return made


def parameter(op: Any, value: Value, lengths: tuple[Dim, ...], name: str) -> Value:
    """The value, or a copy of it that has exactly the normalised shape."""
    if value.shape == lengths:
        return value
    shape, array, own = static(lengths) or (), value.value, value.shape or ()
    inner = np.reshape(array, [int(length or 0) for length in _without_leading_ones(own, len(shape))])  # type: ignore[arg-type]
    made: Value = op.constant(np.ascontiguousarray(np.broadcast_to(inner, shape)), name)
    return made


def half_source(x: Value) -> Value | None:
    """What x was cast from."""
    cast = x.producer
    return cast.input(0) if cast is not None and cast.op == "Cast" and not cast.domain else None


def _fits(value: Value, lengths: tuple[Dim, ...], rank: int | None) -> bool:
    """Whether broadcasting the value with x gives x's shape for certain, and the op can take it or a copy of it."""
    shape = value.shape
    if shape is None or len(shape) > (rank or len(lengths)):
        return False
    if shape == lengths and None not in lengths:
        return True
    known = static(lengths)
    if not value.is_constant or known is None:
        return False
    inner = _without_leading_ones(shape, len(lengths))
    return len(inner) <= len(known) and all(a in (1, b) for a, b in zip(inner[::-1], known[::-1], strict=False))


def _without_leading_ones(shape: tuple[Dim, ...], rank: int) -> tuple[Dim, ...]:
    while len(shape) > rank and shape[0] == 1:
        shape = shape[1:]
    return shape


def _misfit(name: str, value: Value, lengths: tuple[Dim, ...]) -> str:
    described = tuple("?" if length is None else length for length in lengths)
    return f"the {name} has the shape {value.shape}, which does not surely fit the normalised lengths {described}"
