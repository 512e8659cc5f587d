"""Bounds of sums of products and of averages: MatMul, Gemm, Conv, attention, reductions, Softmax."""

from __future__ import annotations

import math
from math import inf
from typing import Any, Final

import numpy as np

from rewright.verify.static.interval import ANYTHING, NOT_NEGATIVE, ZERO, Interval, hull, product, scaled
from rewright.verify.static.ranges import ASSUMED_TERMS, Accumulated, Bound, Ranges, Rule, attribute_of
from rewright.verify.static.weights import Columns


def _matmul(ranges: Ranges, node: Any) -> Bound:
    a, b = node.inputs[:2]
    known = ranges.relations(a)
    if known.is_average:
        return _averaged(ranges.of(b))
    columns = _right(ranges, b)
    if columns is not None:
        return _by_columns(columns, ranges.of(a), known.norm)
    rank = len(ranges.shape(a) or ())
    columns = ranges.columns(a, (-1,)) if rank else None
    if columns is not None:
        return _by_columns(columns, ranges.of(b), None)
    terms = ranges.size(a, -1)
    if terms is None:
        other = ranges.shape(b)
        terms = ranges.size(b, -2 if other is not None and len(other) > 1 else -1)
    return _products(ranges.of(a), ranges.of(b), terms)


def _right(ranges: Ranges, weight: Any) -> Columns | None:
    """The sums of the right operand of a MatMul over the axis that is contracted."""
    rank = len(ranges.shape(weight) or ())
    return ranges.columns(weight, (-2 if rank > 1 else -1,)) if rank else None


def _by_columns(columns: Columns, x: Interval, norm: float | None, bias: Any = None, alpha: float = 1.0) -> Bound:
    interval, total = columns.times(scaled(x, alpha), None if norm is None else norm * abs(alpha), bias)
    return Accumulated(interval, total, columns.terms + (bias is not None))


def _products(a: Interval, b: Interval, terms: int | None) -> Bound:
    """A sum of ``terms`` products."""
    one = a * b
    if terms is None:
        if one == ZERO:
            return ZERO
        return NOT_NEGATIVE if one.low >= 0.0 else Interval(-inf, 0.0) if one.high <= 0.0 else ANYTHING
    has_one_sign = one.low >= 0.0 or one.high <= 0.0
    return Accumulated(scaled(one, float(terms)), product(float(terms), one.magnitude), terms, keeps_sign=has_one_sign)


def _averaged(values: Interval) -> Bound:
    """A sum of values whose weights are not negative and add up to 1 at most."""
    found = values.join(ZERO)
    # The weights add up to 1 but for rounding.
    one_sign = values.low >= 0.0 or values.high <= 0.0
    return Accumulated(found, found.magnitude, ASSUMED_TERMS // 64, keeps_sign=one_sign)


def _gemm(ranges: Ranges, node: Any) -> Bound:
    alpha, beta = float(attribute_of(node, "alpha", 1.0)), float(attribute_of(node, "beta", 1.0))
    a, b = node.inputs[:2]
    is_turned = bool(attribute_of(node, "transB", 0))
    norm = None if attribute_of(node, "transA", 0) else ranges.relations(a).norm
    columns = ranges.columns(b, (-1 if is_turned else -2,))
    addend = ranges.operand(node, 2)
    bias = None if addend is None else ranges.constant(node.inputs[2])
    if columns is not None:
        width = columns.sums.size
        if bias is not None and (bias.size == 1 or (bias.size == width == bias.shape[-1])):
            return _by_columns(columns, ranges.of(a), norm, bias.astype(np.float64).reshape(-1) * beta, alpha)
        found = _by_columns(columns, ranges.of(a), norm, None, alpha)
    else:
        terms = ranges.size(b, -1 if is_turned else -2) or ranges.size(a, 0 if attribute_of(node, "transA", 0) else -1)
        found = _products(scaled(ranges.of(a), alpha), ranges.of(b), terms)
    return found if addend is None else _plus(found, scaled(addend, beta))


def _plus(found: Bound, addend: Interval) -> Bound:
    if isinstance(found, Accumulated):
        total = found.total + addend.magnitude
        return Accumulated(found.interval + addend, total, None if found.terms is None else found.terms + 1)
    return found + addend if isinstance(found, Interval) else None


def _conv(ranges: Ranges, node: Any) -> Bound:
    weight = node.inputs[1]
    rank = len(ranges.shape(weight) or ())
    columns = ranges.columns(weight, tuple(range(1, rank))) if rank > 2 else None
    if columns is None:
        return None
    x = ranges.of(node.inputs[0]).join(ZERO)  # padding
    addend = ranges.operand(node, 2)
    bias = None if addend is None else ranges.constant(node.inputs[2])
    if bias is not None and bias.size == columns.sums.size:
        return _by_columns(columns, x, None, bias.astype(np.float64).reshape(-1))
    found = _by_columns(columns, x, None)
    return found if addend is None else _plus(found, addend)


def _integer_matmul(ranges: Ranges, node: Any) -> Bound:
    a, b = ranges.of(node.inputs[0]), ranges.of(node.inputs[1])
    zero_a, zero_b = ranges.operand(node, 2) or ZERO, ranges.operand(node, 3) or ZERO
    return _products(a - zero_a, b - zero_b, ranges.size(node.inputs[0], -1) or ranges.size(node.inputs[1], -2))


def reduced_size(ranges: Ranges, node: Any) -> int | None:
    """How many elements a reduction makes one of; None if that is not known."""
    axes = reduced_axes(ranges, node)
    shape = ranges.shape(node.inputs[0])
    if axes is None or shape is None:
        return None
    sizes = [ranges.size(node.inputs[0], axis) for axis in axes]
    return math.prod(size for size in sizes if size is not None) if None not in sizes else None


def reduced_axes(ranges: Ranges, node: Any) -> list[int] | None:
    """The axes that a reduction goes over; None if they are not known. An empty list where it does nothing."""
    found = attribute_of(node, "axes", None)
    if found is None and len(node.inputs) > 1 and node.inputs[1].name:
        array = ranges.constant(node.inputs[1])
        if array is None:
            return None
        found = [int(axis) for axis in array.reshape(-1)]
    if found:
        return list(found)
    if attribute_of(node, "noop_with_empty_axes", 0):
        return []
    shape = ranges.shape(node.inputs[0])
    return None if shape is None else list(range(len(shape)))


def _reduce_mean(ranges: Ranges, node: Any) -> Bound:
    x, terms = ranges.of(node.inputs[0]), reduced_size(ranges, node)
    count = float(terms or ASSUMED_TERMS)
    return Accumulated(x, product(count, x.magnitude), terms, 1 / count, keeps_sign=x.low >= 0.0 or x.high <= 0.0)


def _reduce_sum(ranges: Ranges, node: Any) -> Bound:
    return _products(ranges.of(node.inputs[0]), Interval(1.0, 1.0), reduced_size(ranges, node))


def _reduce_sum_square(ranges: Ranges, node: Any) -> Bound:
    size = ranges.of(node.inputs[0]).magnitude
    return _products(Interval(0.0, product(size, size)), Interval(1.0, 1.0), reduced_size(ranges, node))


def _reduce_l1(ranges: Ranges, node: Any) -> Bound:
    return _products(Interval(0.0, ranges.of(node.inputs[0]).magnitude), Interval(1.0, 1.0), reduced_size(ranges, node))


def _reduce_l2(ranges: Ranges, node: Any) -> Bound:
    terms, size = reduced_size(ranges, node), ranges.of(node.inputs[0]).magnitude
    if terms is None:
        return NOT_NEGATIVE
    root = math.sqrt(terms)
    total = product(float(terms), product(size, size))
    return Accumulated(
        Interval(0.0, product(root, size)), total, terms, share=1 / (root * size) if total else 1.0, keeps_sign=True
    )


def _softmax(ranges: Ranges, node: Any) -> Bound:
    return Interval(0.0, 1.0)


def _log_softmax(ranges: Ranges, node: Any) -> Bound:
    return Interval(-inf, 1e-6)


def _attended(*places: int) -> Rule:
    """Attention: an average of values, which are operands at these places; nothing is said of the other outputs."""

    def rule(ranges: Ranges, node: Any) -> list[Bound]:
        found = [ranges.operand(node, place) for place in places]
        return [_averaged(hull([one for one in found if one is not None]))]

    return rule


def _multi_head_attention(ranges: Ranges, node: Any) -> list[Bound]:
    packed = ranges.operand(node, 1) or ranges.of(node.inputs[0])  # keys and values in one, or queries too
    value = ranges.operand(node, 2) or packed
    bias, past = ranges.operand(node, 3), ranges.operand(node, 7)
    value = value if bias is None else value + bias.join(ZERO)
    return [_averaged(value if past is None else value.join(past))]


def _grouped_attention(ranges: Ranges, node: Any) -> list[Bound]:
    value, past = ranges.operand(node, 2) or ranges.of(node.inputs[0]), ranges.operand(node, 4)
    return [_averaged(value if past is None else value.join(past))]


def _packed_attention(ranges: Ranges, node: Any) -> list[Bound]:
    columns = ranges.columns(node.inputs[1], (-2,))
    if columns is None:
        return [None]
    bias = ranges.constant(node.inputs[2]) if ranges.operand(node, 2) is not None else None
    if ranges.operand(node, 2) is not None and bias is None:
        return [None]
    flat = None if bias is None else bias.astype(np.float64).reshape(-1)
    value, total = columns.times(ranges.of(node.inputs[0]), ranges.relations(node.inputs[0]).norm, flat)
    past = ranges.operand(node, 4)
    found = (value if past is None else value.join(past)).join(ZERO)
    return [Accumulated(found, max(total, found.magnitude), max(columns.terms, ASSUMED_TERMS // 64))]


def _rotary(table: int) -> Rule:
    def rule(ranges: Ranges, node: Any) -> list[Bound]:
        size = ranges.of(node.inputs[0]).magnitude
        turned = ranges.of(node.inputs[table]).magnitude + ranges.of(node.inputs[table + 1]).magnitude
        most = product(size, max(turned, 1.0))  # dimensions that do not turn stay
        return [Accumulated(Interval(-most, most), most, 2)]

    return rule


RULES: Final[dict[tuple[str, str], Rule]] = {
    ("", "MatMul"): _matmul,
    ("", "Gemm"): _gemm,
    ("", "Conv"): _conv,
    ("", "MatMulInteger"): _integer_matmul,
    ("", "ReduceMean"): _reduce_mean,
    ("", "ReduceSum"): _reduce_sum,
    ("", "ReduceSumSquare"): _reduce_sum_square,
    ("", "ReduceL1"): _reduce_l1,
    ("", "ReduceL2"): _reduce_l2,
    ("", "Softmax"): _softmax,
    ("", "Hardmax"): _softmax,
    ("", "LogSoftmax"): _log_softmax,
    ("", "Attention"): _attended(2, 5),
    ("", "RotaryEmbedding"): _rotary(1),
    ("com.microsoft", "RotaryEmbedding"): _rotary(2),
    ("com.microsoft", "Attention"): _packed_attention,
    ("com.microsoft", "MultiHeadAttention"): _multi_head_attention,
    ("com.microsoft", "GroupQueryAttention"): _grouped_attention,
}
"""Rules by (domain, op)."""
