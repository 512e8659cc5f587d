"""Gather on a constant table: the rows are picked as integers and made floats afterwards."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from rewright.model.facts import attribute, dtype_of, shape_of
from rewright.pattern.builder import Builder
from rewright.pattern.values import Value
from rewright.quant.conversion import FLOAT, Conversion
from rewright.quant.integer_weights import IntegerWeight, MissedError, Use
from rewright.quant.selection import Candidate
from rewright.quant.weights import Weight, weight_of

_FLOATS: Final = ("float16", "float32", "float64", "bfloat16")
_LEAST_ROWS: Final = 16
_LEAST_WIDTH: Final = 8
_DEQUANTIZE_LINEAR_SINCE: Final = 10


def table_of(node: Any) -> Weight | None:
    """The table of embeddings that the node looks rows up in; None where it gathers anything else, such as a dimension."""
    weight = weight_of(node.inputs[0])
    if weight is None or weight.dtype.name not in _FLOATS:
        return None
    shape = shape_of(node.inputs[0])
    return weight if shape is not None and len(shape) > 1 and shape[-1] != 1 else None


def lookup_of(node: Any) -> Use:
    """
    Raises:
        MissedError: rows of the table are not what the node picks, or there is nothing to gain.
    """
    weight, shape = table_of(node), shape_of(node.inputs[0]) or ()
    if weight is None or len(shape) != 2:
        raise MissedError(f"the table has {len(shape)} dimensions, not 2")
    if weight.dtype != np.float32:
        raise MissedError(f"the table is {weight.dtype}, not float32")
    if attribute(node, "axis", 0) not in (0, -2):
        raise MissedError("it picks columns of the table, not rows")
    rows, width = (int(size) for size in shape)  # type: ignore[arg-type]
    if rows < _LEAST_ROWS or width < _LEAST_WIDTH:
        raise MissedError(f"a table of {rows} x {width} has nothing to gain")
    use = Use.of(node.inputs[0], axis=0)
    if use is None or dtype_of(node.outputs[0]) not in (np.float32, None):
        raise MissedError("the table is not a constant of float32")
    return use


def convert_lookup(work: Conversion, candidate: Candidate) -> None:
    """Replaces the node.

    Raises:
        MissedError: it cannot be done.
    """
    node, op = candidate.node, work.builder(candidate)
    use = lookup_of(node)
    if op.opset < _DEQUANTIZE_LINEAR_SINCE:
        raise MissedError(f"DequantizeLinear is in opset {_DEQUANTIZE_LINEAR_SINCE} and later, not in {op.opset}")
    made = work.weights.get(use, multiplied=False)
    ids = Value(node.inputs[1])
    picked = op.Gather(work.weights.operand(use, op), ids, axis=0)
    if work.weights.per_channel:
        result = _dequantized_rows(work, op, picked, ids, made, use)
    else:
        result = op.DequantizeLinear(picked, made.scale, made.zero_point)
    work.replace(candidate, [node], op, result, node.outputs[0])
    work.covered(node, [(use, made)], f"{work.weights.levels.dtype} per {'row' if work.weights.per_channel else 'tensor'}")


def _dequantized_rows(work: Conversion, op: Builder, picked: Value, ids: Value, made: IntegerWeight, use: Use) -> Value:
    """(levels - zero_point) * scale with the scale of each row; DequantizeLinear has none for each element of a batch."""
    scale, zero_point = work.weights.by_row(made, use)
    wide = op.Cast(picked, to=FLOAT)
    if zero_point is not None:
        wide = op.Sub(wide, op.Cast(op.Gather(zero_point, ids, axis=0), to=FLOAT))
    result: Value = op.Mul(wide, op.Gather(scale, ids, axis=0))
    return result
