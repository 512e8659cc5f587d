"""Rows without any key: where the model turns their NaN into zeros, the fused form has to as well."""

from __future__ import annotations

from typing import Any

import numpy as np

from rewright.model.facts import constant_of, dtype_of, is_small_constant
from rewright.passes.attention.axes import Unproven
from rewright.passes.attention.writing import Writer
from rewright.pattern.values import Value


def guarded(writer: Writer, result: Value, bias: Value | None) -> Value:
    """``result`` (batch, rows, width) with zeros in the rows that the bias masks wholly.

    After the softmax such a row is NaN, which the guard makes 0, and its product with the values is 0.

    Raises:
        Unproven: which rows those are differs from head to head.
    """
    if not writer.attention.guard or bias is None or _is_finite(bias.tensor) or _has_a_key_in_each_row(bias.tensor):
        return result
    if bias.dim(1) != 1:
        raise Unproven("rows of NaN become zeros, and the mask may differ from head to head", writer.attention.softmax)
    key = ("masked rows", id(bias.tensor))
    if key not in writer.shared.values:
        writer.shared.values[key] = writer.made[key] = _masked_rows(writer, bias)
    zero = writer.op.constant(np.zeros((), dtype_of(result.tensor)), "zero")
    made: Value = writer.op.Where(writer.shared.values[key], zero, result)
    return made


def _masked_rows(writer: Writer, bias: Value) -> Value:
    """(1 or batch, 1 or rows, 1): whether all of the row is masked."""
    op = writer.op
    last, lowest = op.constant(np.array([-1], np.int64), "last"), op.constant(np.array(-np.inf, dtype_of(bias.tensor)), "lowest")
    highest = op.ReduceMax(bias, last, keepdims=1) if writer.opset >= 18 else op.ReduceMax(bias, axes=[-1], keepdims=1)
    # Equal compares floats since opset 11.
    masked = op.Equal(highest, lowest) if writer.opset >= 11 else op.Not(op.Greater(highest, lowest))
    if writer.opset >= 13:
        made: Value = op.Squeeze(masked, op.constant(np.array([1], np.int64), "heads"))
    else:
        made = op.Squeeze(masked, axes=[1])
    return made


def _is_finite(tensor: Any, depth: int = 0) -> bool:
    """Whether the value is proven to hold no infinity."""
    if is_small_constant(tensor, 1 << 20):
        value = constant_of(tensor)
        return value is not None and bool(np.isfinite(value).all())
    if not tensor.inputs or depth > 8:
        return False
    node = tensor.inputs[0]
    if node.op == "Where":
        return all(_is_finite(branch, depth + 1) for branch in node.inputs[1:])
    if node.op in ("Expand", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Identity"):
        return _is_finite(node.inputs[0], depth + 1)
    return False


def _has_a_key_in_each_row(tensor: Any) -> bool:
    """Whether a constant bias leaves a key in each row."""
    if not is_small_constant(tensor, 1 << 20):
        return False
    value = constant_of(tensor)
    return value is not None and bool((value > -np.inf).any(axis=-1).all())
