"""MatMul, Gemm and FusedMatMul between DequantizeLinear nodes, as ONNX Runtime looks for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from rewright.model.facts import attribute, constant_of
from rewright.pattern.builder import Builder
from rewright.pattern.values import Value
from rewright.quant.conversion import bias_of_columns
from rewright.quant.integer_products import convert_product, product_of
from rewright.quant.integer_weights import MissedError
from rewright.quant.selection import Candidate
from rewright.quant.static_conversion import StaticConversion


def convert_to_integers(work: StaticConversion, candidate: Candidate) -> None:
    """Replaces the node by an op that multiplies integers.

    Raises:
        MissedError: it cannot be done.
    """
    product_of(candidate.node)
    work.require(candidate.node.inputs[0])
    convert_product(work, candidate)


def convert_between_linear(work: StaticConversion, candidate: Candidate) -> None:
    """Replaces the operands of the node by ones that went through integers.

    Raises:
        MissedError: it cannot be done.
    """
    node, op = candidate.node, work.builder(candidate)
    found = product_of(node)
    if found.use is None:
        raise MissedError("the weight has more than two dimensions, which format=qoperator takes")
    work.require_linear(op)
    work.require(node.inputs[0])
    made = work.weights.get(found.use)
    levels = work.weights.operand(found.use, op)
    scale = made.scale
    if found.alpha != 1.0:
        scale = op.constant(np.asarray(np.asarray(made.scale.value) * np.float32(found.alpha), np.float32), "scale")
    weight = work.weight(levels, scale, made.zero_point, 1, op)
    operand = work.floats(node.inputs[0], op)
    if node.op == "Gemm":
        result = _gemm(work, node, op, operand, weight, scale)
    else:
        result = op.MatMul(op.Transpose(operand, perm=[1, 0]) if found.turns_a else operand, weight)
    work.replace(candidate, [node], op, result, node.outputs[0])
    work.say_quantized(node, found.use, made)


def _gemm(work: StaticConversion, node: Any, op: Builder, operand: Value, weight: Value, scale: Value) -> Value:
    """op(A) @ B + beta * C, with a bias as int32 where it is one, else with a sum after the product."""
    turns = attribute(node, "transA", 0) or None
    given = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    beta = float(attribute(node, "beta", 1.0))
    if given is None or beta == 0.0:
        return op.Gemm(operand, weight, transA=turns)  # type: ignore[no-any-return]
    columns = weight.dim(1)
    row = bias_of_columns(constant_of(given), columns, 2) if isinstance(columns, int) else None
    activation = work.quantized(node.inputs[0], op)
    integers = None if row is None else work.bias(np.asarray(row * np.float32(beta), np.float32), activation, scale, op)
    if integers is not None:
        bias = op.DequantizeLinear(*integers, axis=0 if integers[1].rank else None)
        return op.Gemm(operand, weight, bias, transA=turns)  # type: ignore[no-any-return]
    product = op.Gemm(operand, weight, transA=turns)
    addend = Value(given) if beta == 1.0 else op.Mul(Value(given), op.constant(np.float32(beta), "beta"))
    return op.Add(product, addend)  # type: ignore[no-any-return]
