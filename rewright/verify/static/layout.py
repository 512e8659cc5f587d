"""Bounds of ops that move, choose or make elements: each result is an element of an operand, or a given number."""

from __future__ import annotations

from math import inf
from typing import Any, Final

import numpy as np

from rewright.model.elements import Constant
from rewright.verify.static.interval import NOT_NEGATIVE, TRUTH, ZERO, Format, Interval, format_of, hull
from rewright.verify.static.ranges import Accumulated, Bound, Exactly, Ranges, Rule, attribute_of
from rewright.verify.static.weights import bounds_of

_MOVES: Final = (
    "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Slice", "Tile", "Gather", "GatherElements",
    "GatherND", "SpaceToDepth", "DepthToSpace", "Compress", "ReverseSequence", "GlobalMaxPool", "ReduceMax", "ReduceMin",
)  # fmt: skip


def _first(ranges: Ranges, node: Any) -> Bound:
    return Exactly(ranges.of(node.inputs[0]))


def _split(ranges: Ranges, node: Any) -> list[Bound]:
    return [_first(ranges, node)] * len(node.outputs)


def _then_unknown(ranges: Ranges, node: Any) -> list[Bound]:
    return [_first(ranges, node), *([None] * (len(node.outputs) - 1))]


def _concat(ranges: Ranges, node: Any) -> Bound:
    return Exactly(hull(ranges.of(tensor) for tensor in node.inputs))


def _pad(ranges: Ranges, node: Any) -> Bound:
    x = ranges.of(node.inputs[0])
    if attribute_of(node, "mode", "constant") != "constant":
        return Exactly(x)
    if ranges.opset < 11:
        filling = float(attribute_of(node, "value", 0.0))
        return Exactly(x.join(Interval(filling, filling)))
    return Exactly(x.join(ranges.operand(node, 2) or ZERO))


def _scatter(ranges: Ranges, node: Any) -> Bound:
    if attribute_of(node, "reduction", "none") != "none":
        return None
    return Exactly(ranges.of(node.inputs[0]).join(ranges.of(node.inputs[2])))


def _one_hot(ranges: Ranges, node: Any) -> Bound:
    return Exactly(ranges.of(node.inputs[2]))


def _with_zero(ranges: Ranges, node: Any) -> Bound:
    return Exactly(ranges.of(node.inputs[0]).join(ZERO))


def drops_nothing(ranges: Ranges, node: Any) -> bool:
    """Whether a Dropout is that of inference."""
    if ranges.opset < 12:
        return bool(attribute_of(node, "is_test", 1))
    training = ranges.operand(node, 2)
    return training is None or training == ZERO


def _dropout(ranges: Ranges, node: Any) -> Bound | list[Bound]:
    return [_first(ranges, node), TRUTH] if drops_nothing(ranges, node) else None


def _max_pool(ranges: Ranges, node: Any) -> Bound | list[Bound]:
    # where a window lies in the padding alone the lowest number of the type remains
    pads = attribute_of(node, "pads", None)
    has_pads = any(pads or ()) or attribute_of(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    x = ranges.of(node.inputs[0])
    return [Exactly(Interval(-inf, x.high) if has_pads or attribute_of(node, "ceil_mode", 0) else x)]


def _average_pool(ranges: Ranges, node: Any) -> Bound:
    x = ranges.of(node.inputs[0]).join(ZERO)
    return Accumulated(x, x.magnitude, None)


def _resize(ranges: Ranges, node: Any) -> Bound:
    if attribute_of(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return None
    mode = attribute_of(node, "mode", "nearest")
    if mode == "nearest":
        return _first(ranges, node)
    return ranges.of(node.inputs[0]) if mode == "linear" else None


def _constant(ranges: Ranges, node: Any) -> Bound:
    array = ranges.constant(node.outputs[0])
    found = None if array is None else bounds_of(array)
    return None if found is None else Exactly(found)


def _constant_of_shape(ranges: Ranges, node: Any) -> Bound:
    value = attribute_of(node, "value", None)
    if value is None:
        return Exactly(ZERO)
    array = value.values if isinstance(value, Constant) else np.asarray(value)
    found = bounds_of(array)
    return None if found is None else Exactly(found)


def _range(ranges: Ranges, node: Any) -> Bound:
    return ranges.of(node.inputs[0]).join(ranges.of(node.inputs[1]))


def _cumulative_sum(ranges: Ranges, node: Any) -> Bound:
    x = ranges.of(node.inputs[0])
    if x.low >= 0.0:
        return NOT_NEGATIVE
    return Interval(-inf, 0.0) if x.high <= 0.0 else None


def _top(ranges: Ranges, node: Any) -> list[Bound]:
    return [_first(ranges, node), NOT_NEGATIVE]


def _not_negative(ranges: Ranges, node: Any) -> Bound:
    # more may be known of dimensions: what inference says of the value is met with this
    return NOT_NEGATIVE


def _random_uniform(ranges: Ranges, node: Any) -> Bound:
    return Interval(float(attribute_of(node, "low", 0.0)), float(attribute_of(node, "high", 1.0)))


def _quantize(ranges: Ranges, node: Any) -> Bound:
    """Rounded to the nearest level, or the next one where both are near, and cut off at the ends of the type."""
    dtype = ranges.dtype(node.outputs[0])
    if dtype is None or dtype.kind not in "iu":
        return None
    held = format_of(dtype)
    levels = ranges.of(node.inputs[0]) / ranges.of(node.inputs[1]) + (ranges.operand(node, 2) or ZERO) + Interval(-1.0, 1.0)
    return Exactly(Interval(_within(levels.low, held), _within(levels.high, held)))


def _within(level: float, held: Format) -> float:
    return min(max(level, held.smallest), held.largest)


def _dequantize(ranges: Ranges, node: Any) -> Bound:
    x, scale, zero = ranges.of(node.inputs[0]), ranges.of(node.inputs[1]), ranges.operand(node, 2)
    return (x if zero is None else x - zero) * scale


def _dynamic_quantize(ranges: Ranges, node: Any) -> list[Bound]:
    x = ranges.of(node.inputs[0]).join(ZERO)
    return [Interval(0.0, 255.0), Interval(0.0, (x.high - x.low) / 255), Interval(0.0, 255.0)]


RULES: Final[dict[tuple[str, str], Rule]] = {
    **{("", op): _first for op in _MOVES},
    ("", "MaxPool"): _max_pool,
    ("", "AveragePool"): _average_pool,
    ("", "GlobalAveragePool"): _average_pool,
    ("", "Split"): _split,
    ("", "Unique"): _then_unknown,
    ("", "TopK"): _top,
    ("", "Dropout"): _dropout,
    ("", "Concat"): _concat,
    ("", "Pad"): _pad,
    ("", "ScatterElements"): _scatter,
    ("", "ScatterND"): _scatter,
    ("", "Scatter"): _scatter,
    ("", "OneHot"): _one_hot,
    ("", "Trilu"): _with_zero,
    ("", "Resize"): _resize,
    ("", "Constant"): _constant,
    ("", "ConstantOfShape"): _constant_of_shape,
    ("", "Range"): _range,
    ("", "CumSum"): _cumulative_sum,
    ("", "Shape"): _not_negative,
    ("", "Size"): _not_negative,
    ("", "NonZero"): _not_negative,
    ("", "ArgMax"): _not_negative,
    ("", "ArgMin"): _not_negative,
    ("", "RandomUniform"): _random_uniform,
    ("", "QuantizeLinear"): _quantize,
    ("", "DequantizeLinear"): _dequantize,
    ("", "DynamicQuantizeLinear"): _dynamic_quantize,
}
"""Rules by (domain, op)."""
