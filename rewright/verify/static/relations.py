"""What ties values to each other: a row and its own norm, a maximum and what it is the maximum of, weights that add up to 1.

Bounds of each value alone say nothing of ``x / sqrt(mean(x**2) + epsilon)``, where both ends of the division may be of any size.
That each element of ``x`` is at most ``sqrt(n)`` times the root of their mean square does: this is a *cover*. Covers begin at
squares, absolute values and sums, pass through what keeps or raises the covering value, and end at the division.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from rewright.model.elements import normal_domain
from rewright.verify.static.contraction import reduced_axes, reduced_size
from rewright.verify.static.interval import Interval, format_of
from rewright.verify.static.layout import drops_nothing
from rewright.verify.static.normalization import row_norm
from rewright.verify.static.ranges import ASSUMED_TERMS, Ranges, attribute_of

_SLACK: Final = 1e-4
"""What rounding adds to a norm in float32, sums over thousands of terms included."""
_COARSEST_WEIGHTS: Final = 2.0**-11
"""Half a unit in the last place of float16: weights of an average that are rounded more coarsely need not add up to 1."""


@dataclass(frozen=True)
class Cover:
    """``|x| ** power <= factor * t`` for each element of ``x``, of a value ``t`` that broadcasts to it along its last axes.

    Attributes:
        x: the identity of the value that is covered.
        power: 1 or 2.
        factor: see above.
        squared: whether squares were made on the way.
        inverse: ``|x| * t <= factor`` instead.
        row: how many elements lie along the last axis, if that is what was reduced.
        lost: elements of ``x`` up to here may have no part in ``t``, because their squares vanish in the type that holds them.
        rest: what these are at most after the division.
    """

    x: int
    power: int
    factor: float
    squared: bool
    inverse: bool = False
    row: int | None = None
    lost: float = 0.0
    rest: float = 0.0


def note(ranges: Ranges, node: Any) -> None:
    """Finds what the node's results have to do with its operands, and what follows for their bounds."""
    if not node.outputs or not node.outputs[0].name:
        return
    norm = row_norm(ranges, node)
    if norm is not None:
        ranges.relate(node.outputs[0], norm=norm)
    elif not normal_domain(node.domain):
        teller = _TELLERS.get(node.op)
        if teller is not None:
            teller(ranges, node)


def _same(ranges: Ranges, node: Any) -> None:
    """The result has the operand's elements where they were."""
    if node.op == "Identity" or drops_nothing(ranges, node):
        ranges.stand_for(node.outputs[0], node.inputs[0])


def _cast(ranges: Ranges, node: Any) -> None:
    kinds = [ranges.dtype(tensor) for tensor in (node.inputs[0], node.outputs[0])]
    if not all(kind is not None and format_of(kind).is_float and math.isfinite(format_of(kind).largest) for kind in kinds):
        return
    known = ranges.relations(node.inputs[0])
    slack = _slack(ranges, node)
    covers = _held(ranges, node, (replace(cover, factor=cover.factor * slack) for cover in known.covers))
    norm = None if known.norm is None else known.norm * slack
    ranges.relate(node.outputs[0], norm=norm, is_average=known.is_average and _adds_up(ranges, node), covers=covers)
    ranges.equate(node.outputs[0], node.inputs[0])


def _adds_up(ranges: Ranges, node: Any) -> bool:
    """Whether weights of an average still add up to 1, as nearly as matters, in the type of the node's result."""
    return format_of(ranges.dtype(node.outputs[0])).unit <= _COARSEST_WEIGHTS


def _keeps_rows(ranges: Ranges, node: Any) -> None:
    """The rows stay rows, though their order or number may change."""
    known = ranges.relations(node.inputs[0])
    size = ranges.size(node.inputs[0], -1)
    rank = len(ranges.shape(node.inputs[0]) or ())
    if node.op == "Gather" and attribute_of(node, "axis", 0) % max(rank, 1) == rank - 1:
        return  # it may take one element of a row more than once
    if known.norm is not None and size is not None and size == ranges.size(node.outputs[0], -1):
        ranges.relate(node.outputs[0], norm=known.norm)


def _softmax(ranges: Ranges, node: Any) -> None:
    axis = attribute_of(node, "axis", -1 if ranges.opset >= 13 else 1)
    rank = len(ranges.shape(node.inputs[0]) or ())
    if axis == -1 or (rank and axis == rank - 1):
        ranges.relate(node.outputs[0], is_average=_adds_up(ranges, node))


def _where(ranges: Ranges, node: Any) -> None:
    """Weights of an average, some of which are replaced by zero, as where a row of a mask lets nothing through."""
    for one, other in ((1, 2), (2, 1)):
        if ranges.relations(node.inputs[one]).is_average and ranges.scalar(node.inputs[other]) == 0.0:
            same = ranges.shape(node.inputs[one])
            if same is not None and same == ranges.shape(node.outputs[0]):
                ranges.relate(node.outputs[0], is_average=True)


def _multiply(ranges: Ranges, node: Any) -> None:
    one, two = node.inputs[:2]
    if ranges.root(one) == ranges.root(two):
        _square(ranges, node)
        return
    for x, t in ((one, two), (two, one)):
        for cover in ranges.relations(t).covers:
            if cover.inverse and cover.x == ranges.root(x):
                _bound(ranges, node, x, cover)
        _scale_norm(ranges, node, x, t)


def _square(ranges: Ranges, node: Any) -> None:
    cover = Cover(ranges.root(node.inputs[0]), 2, _slack(ranges, node), True)
    ranges.relate(node.outputs[0], covers=_held(ranges, node, [cover]))


def _held(ranges: Ranges, node: Any, covers: Iterable[Cover]) -> tuple[Cover, ...]:
    """The covers as the type of the node's result holds them: what is smaller than its numbers is lost."""
    tiny = format_of(ranges.dtype(node.outputs[0])).tiny
    return tuple(
        replace(cover, lost=max(cover.lost, (cover.factor * tiny) ** (1 / cover.power)))
        if cover.squared and not cover.inverse
        else cover
        for cover in covers
    )


def _scale_norm(ranges: Ranges, node: Any, x: Any, factor: Any) -> None:
    norm = ranges.relations(x).norm
    if norm is not None and _fits(ranges, node, x):
        size = ranges.of(factor).magnitude
        if math.isfinite(size):
            ranges.relate(node.outputs[0], norm=norm * size * _slack(ranges, node))


def _add(ranges: Ranges, node: Any) -> None:
    one, two = node.inputs[:2]
    for t, addend in ((one, two), (two, one)):
        if ranges.of(addend).low >= 0.0 and (covers := _upright(ranges, t)):
            ranges.relate(node.outputs[0], covers=covers)
        known = ranges.relations(t).norm
        size = _norm_of(ranges, addend, ranges.size(t, -1))
        if known is not None and size is not None and _fits(ranges, node, t):
            ranges.relate(node.outputs[0], norm=(known + size) * _slack(ranges, node))


def _norm_of(ranges: Ranges, tensor: Any, row: int | None) -> float | None:
    """A bound of the norm of each row of a value, or of a constant that is broadcast along rows."""
    known = ranges.relations(tensor).norm
    if known is not None and row is not None and ranges.size(tensor, -1) == row:
        return known
    array = ranges.constant(tensor)
    if array is not None and array.ndim == 1 and array.size == row:
        return float(np.linalg.norm(array.astype(np.float64)))
    size = ranges.of(tensor).magnitude
    return math.sqrt(row) * size if row is not None and math.isfinite(size) else None


def _fits(ranges: Ranges, node: Any, tensor: Any) -> bool:
    """Whether the node's result has rows as long as the operand's."""
    size = ranges.size(tensor, -1)
    return size is not None and size == ranges.size(node.outputs[0], -1)


def _upright(ranges: Ranges, tensor: Any) -> tuple[Cover, ...]:
    return tuple(cover for cover in ranges.relations(tensor).covers if not cover.inverse)


def _power(ranges: Ranges, node: Any) -> None:
    exponent = ranges.scalar(node.inputs[1])
    if exponent == 2.0:
        _square(ranges, node)
    elif exponent == 0.5:
        _root(ranges, node)
    elif exponent == -0.5:
        _inverse(ranges, node, _rooted(ranges, node), ranges.of(node.inputs[0]).mapped(_square_root))
    elif exponent == -1.0:
        _reciprocal(ranges, node)


def _absolute(ranges: Ranges, node: Any) -> None:
    ranges.relate(node.outputs[0], covers=(Cover(ranges.root(node.inputs[0]), 1, 1.0, False),))


def _reduce(ranges: Ranges, node: Any, is_mean: bool, is_max: bool = False) -> None:
    if not attribute_of(node, "keepdims", 1):
        return  # a row would meet another row's norm
    source, axes = node.inputs[0], reduced_axes(ranges, node)
    size = reduced_size(ranges, node)
    if axes is None or (is_mean and size is None):
        return
    covers = list(_upright(ranges, source))
    if ranges.of(source).low >= 0.0:
        covers.append(Cover(ranges.root(source), 1, 1.0, False))
    rank = len(ranges.shape(source) or ())
    row = size if size is not None and axes in ([-1], [rank - 1]) and not is_max else None
    factor = (float(size) if is_mean and size is not None else 1.0) * (1 + min(size or ASSUMED_TERMS, ASSUMED_TERMS) * 2.0**-23)
    made = _held(ranges, node, (replace(cover, factor=cover.factor * factor, row=row) for cover in covers))
    ranges.relate(node.outputs[0], covers=made, above=id(ranges.resolved(source)) if is_max else None)


def _reduce_l2(ranges: Ranges, node: Any) -> None:
    if attribute_of(node, "keepdims", 1):
        cover = Cover(ranges.root(node.inputs[0]), 1, _slack(ranges, node), True)
        least = math.sqrt(format_of(ranges.dtype(node.outputs[0])).tiny)  # it makes squares inside
        ranges.relate(node.outputs[0], covers=(replace(cover, lost=least),))


def _root(ranges: Ranges, node: Any) -> None:
    ranges.relate(node.outputs[0], covers=_rooted(ranges, node))


def _rooted(ranges: Ranges, node: Any) -> tuple[Cover, ...]:
    """The covers of the root of the node's first operand."""
    slack = _slack(ranges, node)
    return tuple(
        replace(cover, power=1, factor=math.sqrt(cover.factor) * slack)
        for cover in _upright(ranges, node.inputs[0])
        if cover.power == 2
    )


def _slack(ranges: Ranges, node: Any) -> float:
    """What a factor is raised by for rounding in the type of the node's result."""
    return 1 + _SLACK + 8 * format_of(ranges.dtype(node.outputs[0])).unit


def _square_root(number: float) -> float:
    return math.sqrt(max(number, 0.0))


def _reciprocal(ranges: Ranges, node: Any) -> None:
    _inverse(ranges, node, _upright(ranges, node.inputs[-1]), ranges.of(node.inputs[-1]))


def _inverse(ranges: Ranges, node: Any, covers: tuple[Cover, ...], t: Interval) -> None:
    """The node's result is one over a value in ``t`` that has these covers."""
    made = (_dividing(ranges, node, cover, t) for cover in covers if cover.power == 1)
    ranges.relate(node.outputs[0], covers=tuple(replace(cover, inverse=True) for cover in made if cover is not None))


def _dividing(ranges: Ranges, node: Any, cover: Cover, t: Interval) -> Cover | None:
    """The cover for a division by ``t``; None where what is lost in it could be divided by zero."""
    slack = _slack(ranges, node)
    if t.low <= 0.0:
        return replace(cover, factor=cover.factor * slack) if cover.lost == 0.0 else None
    rest = cover.lost / t.low * slack
    return replace(cover, factor=max(cover.factor * slack, rest), rest=rest)


def _divide(ranges: Ranges, node: Any) -> None:
    x, t = node.inputs[:2]
    if ranges.scalar(x) == 1.0:
        _reciprocal(ranges, node)
    for cover in _upright(ranges, t):
        dividing = _dividing(ranges, node, cover, ranges.of(t))
        if cover.power == 1 and cover.x == ranges.root(x) and dividing is not None:
            _bound(ranges, node, x, dividing)
    size = ranges.of(t)
    if 0.0 not in size and (norm := ranges.relations(x).norm) is not None and _fits(ranges, node, x):
        ranges.relate(node.outputs[0], norm=norm * size.reciprocal().magnitude * _slack(ranges, node))


def _bound(ranges: Ranges, node: Any, x: Any, cover: Cover) -> None:
    """Each element of the result is at most the factor; so is the norm of a row that was divided by its own."""
    factor = cover.factor * _slack(ranges, node)
    low = 0.0 if ranges.of(x).low >= 0.0 else -factor
    ranges.tighten(node.outputs[0], Interval(low, factor))
    if cover.row is not None and cover.squared:
        ranges.relate(node.outputs[0], norm=math.hypot(factor, cover.rest * math.sqrt(cover.row)))
    elif cover.row is not None:
        ranges.relate(node.outputs[0], is_average=low == 0.0 and factor < 1.01 and _adds_up(ranges, node))


def _raised(ranges: Ranges, node: Any) -> None:
    """Max: not smaller than any operand."""
    covers = tuple(cover for tensor in node.inputs for cover in _upright(ranges, tensor))
    ranges.relate(node.outputs[0], covers=covers)


def _clip(ranges: Ranges, node: Any) -> None:
    if ranges.opset >= 11 and ranges.operand(node, 2) is None:
        ranges.relate(node.outputs[0], covers=_upright(ranges, node.inputs[0]))


_TELLERS: Final[dict[str, Callable[[Ranges, Any], None]]] = {
    "Identity": _same,
    "Dropout": _same,
    "Cast": _cast,
    "Reshape": _keeps_rows,
    "Gather": _keeps_rows,
    "Slice": _keeps_rows,
    "Softmax": _softmax,
    "Where": _where,
    "Mul": _multiply,
    "Add": _add,
    "Pow": _power,
    "Abs": _absolute,
    "ReduceMean": lambda ranges, node: _reduce(ranges, node, is_mean=True),
    "ReduceSum": lambda ranges, node: _reduce(ranges, node, is_mean=False),
    "ReduceMax": lambda ranges, node: _reduce(ranges, node, is_mean=False, is_max=True),
    "ReduceL2": _reduce_l2,
    "Sqrt": _root,
    "Reciprocal": _reciprocal,
    "Div": _divide,
    "Max": _raised,
    "Clip": _clip,
}
"""What each op of the standard domain tells."""
