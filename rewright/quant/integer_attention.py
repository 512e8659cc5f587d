"""com.microsoft.Attention: its packed projection in integers, attention itself in floats."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np

from rewright.model.facts import shape_of
from rewright.ops.microsoft import DOMAIN
from rewright.pattern.builder import Builder
from rewright.pattern.values import Value
from rewright.quant.attention_parts import (
    BIAS,
    MASK,
    PAST,
    SCORE_BIAS,
    attend,
    attributes,
    given,
    obstacle_to_parts,
    sizes_of,
    unknown,
)
from rewright.quant.conversion import Conversion
from rewright.quant.integer_weights import IntegerWeight, MissedError, Use
from rewright.quant.selection import Candidate
from rewright.quant.weights import weight_of

_DYNAMIC_QUANTIZE_LINEAR_SINCE: Final = 11
_MATRIX: Final = 2


def projection_of(node: Any) -> Use:
    """The packed weights (D, N*H + N*H + N*Hv), as they are used.

    Raises:
        MissedError: they are not constant, or no integer kernel takes what the node asks for.
    """
    weight = weight_of(node.inputs[1])
    if weight is None:
        raise MissedError("the weights are not constant")
    if weight.dtype != np.float32:
        raise MissedError(f"the weights are {weight.dtype}, and integer kernels give float32")
    use = Use.of(node.inputs[1], axis=1)
    if use is None or len(shape_of(node.inputs[1]) or ()) != _MATRIX:
        raise MissedError("the weights are no matrix")
    if reason := unknown(node):
        raise MissedError(reason)
    return use


def convert_attention(work: Conversion, candidate: Candidate) -> None:
    """Replaces the node by QAttention; with an attention_bias, which that op has no place for, or values of another size than the
    keys, by three products in integers and MultiHeadAttention.

    Raises:
        MissedError: it cannot be done.
    """
    node, op = candidate.node, work.builder(candidate)
    use = projection_of(node)
    sizes = _sizes(node, use)
    beyond = "attention_bias" if given(node, SCORE_BIAS) is not None else ""
    beyond = beyond or ("values of another size than the keys" if len(set(sizes)) > 1 else "")
    beyond = beyond or ("opset 11 or later needed" if op.opset < _DYNAMIC_QUANTIZE_LINEAR_SINCE else "")
    if beyond or work.obstacle("QAttention") is not None:
        _convert_projections(work, candidate, op, use, sizes, beyond or str(work.obstacle("QAttention")))
        return
    made = work.weights.get(use)
    quantized, scale, zero_point = work.activation(op, Value(node.inputs[0]))
    bias = given(node, BIAS) or op.constant(np.zeros(sum(sizes), np.float32), "bias")
    inputs = [quantized, work.weights.operand(use, op), bias, scale, made.scale, given(node, MASK), zero_point]
    inputs += [made.zero_point, given(node, PAST)]
    present = tuple(bool(tensor.name) for tensor in node.outputs)
    op.QAttention(*inputs, domain=DOMAIN, outputs=present if len(present) > 1 else (True,), **attributes(node))
    outputs = [Value(tensor) for tensor in op.nodes[-1].outputs]
    pairs = [(old, new) for old, new in zip(node.outputs, outputs, strict=True) if old.name]
    work.replace_all(candidate, [node], op, pairs)
    work.covered(node, [(use, made)], f"uint8 x {work.spelled}, as QAttention")


def _convert_projections(
    work: Conversion, candidate: Candidate, op: Builder, use: Use, sizes: tuple[int, ...], beyond: str
) -> None:
    node = candidate.node
    if reason := obstacle_to_parts(node):
        raise MissedError(f"QAttention does not do ({beyond}), and {reason}")
    obstacle = work.obstacle("MultiHeadAttention")
    if obstacle is not None:
        raise MissedError(obstacle)
    if (bias := given(node, BIAS)) is not None and not bias.is_constant:
        raise MissedError("the bias is not constant")
    work.require_multiplication(op)
    made = _projections(work, use, sizes)
    biases = _biases(node, op, sizes)
    parts = [
        work.product(op, Value(node.inputs[0]), each.levels, each.scale, work.zero_point(each), bias)
        for each, bias in zip(made, biases, strict=True)
    ]
    work.replace(candidate, [node], op, attend(op, node, parts), node.outputs[0])
    work.covered(node, [(use, each) for each in made], f"uint8 x {work.spelled}, before MultiHeadAttention")


def _projections(work: Conversion, use: Use, sizes: tuple[int, ...]) -> list[IntegerWeight]:
    """The weights of queries, keys and values, cut out of the packed ones."""
    found = work.weights.quantized(use)
    levels = found.levels.T if use.is_turned else found.levels
    made = []
    for cut in _cuts(sizes):
        part = np.ascontiguousarray(levels[:, cut])
        scale, zero_point = (array[cut] if array.ndim else array for array in (found.scale, found.zero_point))
        piece = replace(found, levels=part, scale=scale, zero_point=zero_point)
        made.append(work.weights.stored(use.weight, piece, part, scale.shape, 4 * part.size))
    return made


def _biases(node: Any, op: Builder, sizes: tuple[int, ...]) -> list[Value | None]:
    bias = given(node, BIAS)
    held = None if bias is None else bias.value
    if held is None:
        return [None] * len(sizes)
    return [op.constant(np.ascontiguousarray(held[cut]), "bias") for cut in _cuts(sizes)]


def _cuts(sizes: tuple[int, ...]) -> list[slice]:
    ends = [int(end) for end in np.cumsum(sizes)]
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _sizes(node: Any, use: Use) -> tuple[int, ...]:
    """Columns of queries, keys and values."""
    width = (shape_of(node.inputs[1]) or use.values().shape)[-1]
    sizes = sizes_of(node, width) if isinstance(width, int) else None
    if sizes is None:
        raise MissedError(f"the width of the weights, {width}, is not three times that of the heads")
    return sizes
