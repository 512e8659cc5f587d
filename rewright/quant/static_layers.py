"""Conv, Add and Mul, whose integer kernels give integers: what comes out of them is quantized too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np

from rewright.model.edit import Editor, domain_of
from rewright.model.facts import constant_of
from rewright.pattern.builder import Builder
from rewright.pattern.values import Value
from rewright.quant.affine import Array, quantized
from rewright.quant.integer_weights import IntegerWeight, MissedError, Use
from rewright.quant.selection import Candidate
from rewright.quant.static_conversion import Activation, StaticConversion
from rewright.quant.weights import Weight, weight_of

_EIGHT_BITS: Final = ("int8", "uint8")

NOT_LOADED: Final = "ONNX Runtime fails to load results in int8 at opset 21 and later, in standard ops: use uint8 activations"


def result_of(editor: Editor, node: Any) -> tuple[Any, Any | None]:
    """The value that is quantized after a node, and the Relu in between, whose result it then is."""
    output = node.outputs[0]
    readers = editor.consumers(output)
    if editor.is_graph_output(output) or len(readers) != 1:
        return output, None
    follower = readers[0]
    if follower.op != "Relu" or domain_of(follower) or editor.graph_of(follower) is not editor.graph_of(node):
        return output, None
    return follower.outputs[0], follower


def convert_convolution(work: StaticConversion, candidate: Candidate, *, between_linear: bool) -> None:
    """Conv, and a Relu after it: between QuantizeLinear and DequantizeLinear, or as QLinearConv where the bias fits into 32 bits.

    Raises:
        MissedError: it cannot be done.
    """
    node, op = candidate.node, work.builder(candidate)
    weight, row = filters_of(node), _bias(node)
    work.require_linear(op)
    work.require(node.inputs[0])
    if work.leaves_results(op):
        _convert_operands(work, candidate, op, weight, row, between_linear=between_linear)
        return
    output, follower = result_of(work.editor, node)
    if not between_linear and follower is not None and not _is_relu_free(work, output.name):
        output, follower = node.outputs[0], None
    work.require(output)
    made = _stored(work, weight)
    bias = None if row is None else work.bias(row, node.inputs[0], made.scale, op)
    if between_linear or (row is not None and bias is None):
        result = _between_linear(work, op, node, made, row, bias)
        found = work.written(result if follower is None else op.Relu(result), output.name, op)
    else:
        scale, zero_point = work.parameters(output.name)
        inputs = [*_three(work.quantized(node.inputs[0], op)), made.levels, made.scale, made.zero_point, scale, zero_point]
        result = op.QLinearConv(*inputs, *(() if bias is None else bias[:1]), **dict(node.attrs))
        found = work.taken(result, scale, zero_point)
    last = work.restored(found, op)
    work.replace(candidate, [node] if follower is None else [node, follower], op, last, output)
    work.is_now(output, found)
    work.say_quantized(node, Use(weight, weight.key, False, 0), made)


def _convert_operands(
    work: StaticConversion, candidate: Candidate, op: Builder, weight: Weight, row: Array | None, *, between_linear: bool
) -> None:
    """Rounds what a convolution reads, and not what it gives."""
    if not between_linear:
        raise MissedError(NOT_LOADED)
    node, made = candidate.node, _stored(work, weight)
    bias = None if row is None else work.bias(row, node.inputs[0], made.scale, op)
    work.replace(candidate, [node], op, _between_linear(work, op, node, made, row, bias), node.outputs[0])
    work.say_quantized(node, Use(weight, weight.key, False, 0), made)


def _between_linear(
    work: StaticConversion, op: Builder, node: Any, made: IntegerWeight, row: Array | None, bias: tuple[Value, Value] | None
) -> Value:
    inputs = [work.floats(node.inputs[0], op), work.weight(made.levels, made.scale, made.zero_point, 0, op)]
    if bias is not None:
        inputs.append(op.DequantizeLinear(*bias, axis=0 if bias[1].rank else None))
    elif row is not None:
        inputs.append(op.constant(row, "bias"))
    return op.Conv(*inputs, **dict(node.attrs))  # type: ignore[no-any-return]


def _three(activation: Activation) -> tuple[Value, Value, Value]:
    return activation.levels, activation.scale, activation.zero_point


def convert_sum(work: StaticConversion, candidate: Candidate) -> None:
    """Add or Mul of two activations, between QuantizeLinear and DequantizeLinear.

    Raises:
        MissedError: it cannot be done.
    """
    node, op = candidate.node, work.builder(candidate)
    if any(weight_of(tensor) is not None for tensor in node.inputs):
        raise MissedError("an operand is constant")
    if work.levels.dtype not in _EIGHT_BITS:
        raise MissedError(f"no kernel adds or multiplies {work.levels.dtype}")
    work.require_linear(op)
    if work.leaves_results(op):
        raise MissedError(NOT_LOADED)
    output = node.outputs[0]
    for tensor in (*node.inputs, output):
        work.require(tensor)
    operands = [work.floats(tensor, op) for tensor in node.inputs]
    found = work.written(getattr(op, node.op)(*operands), output.name, op)
    work.replace(candidate, [node], op, work.restored(found, op), output)
    work.is_now(output, found)
    work.say_quantized_activations(node)


def filters_of(node: Any) -> Weight:
    """
    Raises:
        MissedError: they are not constant, or not float32.
    """
    weight = weight_of(node.inputs[1])
    if weight is None:
        raise MissedError("the filters are not constant")
    if weight.dtype != np.float32:
        raise MissedError(f"the filters are {weight.dtype}, and integer kernels take float32 ones")
    return weight


def _bias(node: Any) -> Array | None:
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return None
    row = constant_of(node.inputs[2])
    if row is None or row.dtype != np.float32:
        raise MissedError("the bias is not constant")
    return np.asarray(row)


def _stored(work: StaticConversion, weight: Weight) -> IntegerWeight:
    """The filters (M, C, ...) with a symmetric scale for each of M, or one; kernels take no other zero points by channel."""
    known = work.filters.get(weight.key)
    if known is not None:
        return known
    values = weight.values()
    levels = replace(work.weights.levels, symmetric=True)
    if levels.dtype not in _EIGHT_BITS:
        raise MissedError(f"no kernel convolves with filters of {levels.dtype}")
    found = quantized(values.reshape(len(values), -1), 0 if work.weights.per_channel else None, levels)
    if found is None:
        raise MissedError(f"the weight '{weight.name}' holds values that are not finite")
    work.weights.note_risk(weight.name, found, 0)
    kept: Array | Value = found.levels.reshape(values.shape)
    if work.weights.keeps_floats:
        kept = values if weight.steps or not hasattr(weight.source, "values") else Value(weight.source)
    made = work.filters[weight.key] = work.weights.stored(weight, found, kept, found.scale.shape, int(values.nbytes))
    return made


def _is_relu_free(work: StaticConversion, name: str) -> bool:
    """Whether rounding into the range of the Relu's result cuts off what is negative, so that no Relu is needed."""
    low, high = work.ranges.values.get(name, (-1.0, 0.0))
    _, zero_point = work.levels.parameters(np.asarray(low), np.asarray(high))
    return bool(low >= 0.0 and int(zero_point) == work.levels.ends[0])
