"""Bounds of normalisations: what is divided by its own root mean square is at most the root of how many there are."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from rewright.verify.static.interval import Interval, format_of, product
from rewright.verify.static.ranges import Bound, Ranges, Rule, attribute_of

_SLACK: Final = 1 + 1e-4
"""What rounding adds to a norm."""


def normalised(root: float, scale: Any, bias: Any) -> tuple[Interval, float] | None:
    """Bounds of ``x * scale + bias`` for rows of norm ``root``, and a bound of the norm of the results.

    Args:
        root: the root of the number of elements in a row; no element is larger.
        scale, bias: an array, an Interval, or None for 1 and 0.
    """
    root *= _SLACK
    low_scale, high_scale = _ends(scale, 1.0)
    low_bias, high_bias = _ends(bias, 0.0)
    size = np.maximum(np.abs(low_scale), np.abs(high_scale)) * root
    if size.size != low_bias.size and 1 not in (size.size, low_bias.size):
        return None
    interval = Interval(float((low_bias - size).min()), float((high_bias + size).max()))
    if isinstance(bias, np.ndarray):
        shift = float(np.linalg.norm(low_bias))
    else:
        shift = product(root, max(abs(float(low_bias.min())), abs(float(high_bias.max()))))
    return interval, float(size.max()) + shift


def _ends(operand: Any, default: float) -> tuple[Any, Any]:
    if operand is None:
        operand = Interval(default, default)
    if isinstance(operand, Interval):
        return np.array([operand.low]), np.array([operand.high])
    numbers = np.asarray(operand).astype(np.float64).reshape(-1)
    return numbers, numbers


def _operand(ranges: Ranges, node: Any, index: int) -> Any:
    """The array of a constant, else an interval; None where the operand is omitted."""
    found = ranges.operand(node, index)
    if found is None:
        return None
    array = ranges.constant(node.inputs[index])
    return found if array is None or array.size == 0 else array


def _layer_norm(scale: int, bias: int | None, summed: dict[int, tuple[int, ...]]) -> Rule:
    """LayerNormalization and its kin.

    Args:
        scale, bias: which operands these are.
        summed: outputs that are sums of operands.
    """

    def rule(ranges: Ranges, node: Any) -> list[Bound]:
        bounds: list[Bound] = [None] * len(node.outputs)
        for output, places in summed.items():
            if output < len(bounds):
                known = [ranges.operand(node, place) for place in places]
                bounds[output] = sum((one for one in known if one is not None), Interval(0.0, 0.0))
        terms = _row(ranges, node, scale)
        if terms is not None:
            root = math.sqrt(terms)
            found = normalised(root, _operand(ranges, node, scale), None if bias is None else _operand(ranges, node, bias))
            bounds[0] = None if found is None else found[0]
        return bounds

    return rule


def row_norm(ranges: Ranges, node: Any) -> float | None:
    """A bound of the norm of each row of a normalisation's result; None if it is no such op or goes over several axes."""
    places = NORMALISED.get((node.domain or "", node.op))
    if places is None or not _is_last(ranges, node):
        return None
    scale, bias = places
    terms = _row(ranges, node, scale)
    found = terms and normalised(
        math.sqrt(terms), _operand(ranges, node, scale), None if bias is None else _operand(ranges, node, bias)
    )
    unit = format_of(ranges.dtype(node.outputs[0])).unit
    return found[1] * (1 + 1e-5 + 8 * unit) if found else None


def _is_last(ranges: Ranges, node: Any) -> bool:
    axis = attribute_of(node, "axis", -1)
    return axis in (-1, len(ranges.shape(node.inputs[0]) or ()) - 1)


def _row(ranges: Ranges, node: Any, scale: int) -> int | None:
    """How many elements are normalised together."""
    shape = ranges.shape(node.inputs[0]) if node.op not in _OF_IDS else None
    axis = attribute_of(node, "axis", -1)
    if shape is not None and -len(shape) <= axis < len(shape):
        sizes = shape[axis:]
        if all(isinstance(size, int) for size in sizes):
            return int(math.prod(sizes))
    # the scale is broadcast: only one that spans the last axis tells its size
    found = ranges.shape(node.inputs[scale])
    is_vector = found is not None and len(found) == 1 and isinstance(found[0], int) and found[0] > 1
    return int(found[0]) if is_vector and found is not None and _is_last(ranges, node) else None


def _instance_norm(ranges: Ranges, node: Any) -> list[Bound]:
    shape = ranges.shape(node.inputs[0])
    sizes = shape[2:] if shape is not None else ()
    if not sizes or not all(isinstance(size, int) for size in sizes):
        return [None]
    found = normalised(math.sqrt(math.prod(sizes)), _operand(ranges, node, 1), _operand(ranges, node, 2))
    return [None] if found is None else [found[0]]


def _batch_norm(ranges: Ranges, node: Any) -> list[Bound]:
    if attribute_of(node, "training_mode", 0):
        return [None]
    arrays = [ranges.constant(tensor) for tensor in node.inputs[1:5]]
    x = ranges.of(node.inputs[0])
    if any(array is None for array in arrays) or not x.is_bounded:
        return [None]
    scale, bias, mean, variance = (array.astype(np.float64).reshape(-1) for array in arrays if array is not None)
    factor = scale / np.sqrt(variance + float(attribute_of(node, "epsilon", 1e-5)))
    ends = np.stack([(x.low - mean) * factor + bias, (x.high - mean) * factor + bias])
    # kernels fold the mean into the bias, so that both are rounded
    slack = 1e-6 * float((np.abs(factor) * (x.magnitude + np.abs(mean)) + np.abs(bias)).max(initial=0.0))
    return [Interval(float(ends.min()) - slack, float(ends.max()) + slack)] if np.isfinite(ends).all() else [None]


def _lp_norm(ranges: Ranges, node: Any) -> Bound:
    return Interval(-1.0, 1.0)


NORMALISED: Final[dict[tuple[str, str], tuple[int, int | None]]] = {
    ("", "LayerNormalization"): (1, 2),
    ("", "RMSNormalization"): (1, None),
    ("", "SimplifiedLayerNormalization"): (1, None),
    ("com.microsoft", "SimplifiedLayerNormalization"): (1, None),
    ("com.microsoft", "SkipLayerNormalization"): (2, 3),
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): (2, None),
    ("com.microsoft", "EmbedLayerNormalization"): (5, 6),
}
"""Where the scale and the bias are."""
_SUMS: Final[dict[str, dict[int, tuple[int, ...]]]] = {
    "SkipLayerNormalization": {3: (0, 1, 4)},
    "SkipSimplifiedLayerNormalization": {3: (0, 1, 3)},
    "EmbedLayerNormalization": {2: (2, 3, 4)},
}
"""Outputs that are the sum that is normalised, and its operands."""
_OF_IDS: Final = {"EmbedLayerNormalization"}
"""Ops whose first operand is not what is normalised."""

RULES: Final[dict[tuple[str, str], Rule]] = {
    **{key: _layer_norm(*places, _SUMS.get(key[1], {})) for key, places in NORMALISED.items()},
    ("", "InstanceNormalization"): _instance_norm,
    ("", "BatchNormalization"): _batch_norm,
    ("", "LpNormalization"): _lp_norm,
}
"""Rules by (domain, op)."""
