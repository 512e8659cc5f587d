"""MatMul, Gemm and FusedMatMul between DequantizeLinear nodes, as ONNX Runtime looks for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from rewright.model.facts import attribute, constant_of, shape_of
from rewright.pattern.builder import Builder
from rewright.pattern.values import Value
from rewright.quant.affine import Array
from rewright.quant.conversion import bias_of_columns
from rewright.quant.followers import follower_of
from rewright.quant.integer_products import convert_product, product_of
from rewright.quant.integer_weights import MissedError
from rewright.quant.selection import Candidate
from rewright.quant.static_conversion import StaticConversion

_MATRIX: Final = 2
_NO_ADDEND_SINCE: Final = 11
_BROADCASTS_SUMS_SINCE: Final = 8


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

    A MatMul of matrices becomes Gemm, with the row that is added to it as an integer bias. ONNX Runtime would make a Gemm of the
    two itself, before it looks for integers, and then a float bias keeps it from an integer kernel.

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
    operands = _Operands(node, found.alpha, found.turns_a, made.scale)
    if found.alpha != 1.0 and not work.weights.keeps_floats:
        operands.scale = op.constant(np.asarray(np.asarray(made.scale.value) * np.float32(found.alpha), np.float32), "scale")
        operands.alpha = 1.0
    weight = work.weight(levels, operands.scale, made.zero_point, 1, op)
    operand = work.floats(node.inputs[0], op)
    follower = None
    if node.op == "Gemm":
        result = _gemm(work, operands, op, operand, weight)
    elif len(shape_of(node.inputs[0]) or ()) == _MATRIX:
        bias, follower = _added(work, operands, op, weight)
        result = operands.times(op, operand, weight) if bias is None else op.Gemm(operand, weight, bias, **operands.attributes)
    else:
        result = operands.multiplied(op, operand, weight)
        addend, follower = _fused_anyway(work, node, op, weight)
        result = result if addend is None else op.Sum(result, addend)
    removed, output = ([node], node.outputs[0]) if follower is None else ([node, follower], follower.outputs[0])
    work.replace(candidate, removed, op, result, output)
    work.say_quantized(node, found.use, made)


@dataclass
class _Operands:
    """What a product is made of, beside its operands: alpha where it is not in the scale of the weight."""

    node: Any
    alpha: float
    turns_a: bool
    scale: Value

    @property
    def attributes(self) -> dict[str, Any]:
        """Of a Gemm."""
        return {"transA": int(self.turns_a) or None, "alpha": None if self.alpha == 1.0 else self.alpha}

    def times(self, op: Builder, operand: Value, weight: Value) -> Value:
        """The product of two matrices; a Gemm without C is in opset 11 and later."""
        if op.opset < _NO_ADDEND_SINCE:
            return self.multiplied(op, operand, weight)
        return op.Gemm(operand, weight, **self.attributes)  # type: ignore[no-any-return]

    def multiplied(self, op: Builder, operand: Value, weight: Value) -> Value:
        """The product by MatMul."""
        result: Value = op.MatMul(op.Transpose(operand, perm=[1, 0]) if self.turns_a else operand, weight)
        return result if self.alpha == 1.0 else op.Mul(result, op.constant(np.float32(self.alpha), "alpha"))


def _gemm(work: StaticConversion, operands: _Operands, op: Builder, operand: Value, weight: Value) -> Value:
    """alpha * op(A) @ B + beta * C, with a bias as int32 where it is one, else with a sum after the product."""
    node, attributes = operands.node, operands.attributes
    given = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    beta = float(attribute(node, "beta", 1.0))
    if given is None or beta == 0.0:
        return operands.times(op, operand, weight)
    columns, held = weight.dim(1), constant_of(given)
    if held is not None and held.size == 1 and isinstance(columns, int):
        held = np.full(columns, held.reshape(-1)[0], held.dtype)
    row = bias_of_columns(held, columns, _MATRIX) if isinstance(columns, int) else None
    bias = None if row is None else _restored(work, operands, op, np.asarray(row * np.float32(beta), np.float32))
    if bias is not None:
        return op.Gemm(operand, weight, bias, **attributes)  # type: ignore[no-any-return]
    if not work.quantizes_bias or held is None:  # an Add of two activations would be for a second run to quantize
        attributes["beta"] = None if beta == 1.0 else beta
        return op.Gemm(operand, weight, Value(given), **attributes)  # type: ignore[no-any-return]
    product = operands.times(op, operand, weight)
    addend = Value(given) if beta == 1.0 else op.constant(np.asarray(held * np.float32(beta), held.dtype), "bias")
    return op.Add(product, addend)  # type: ignore[no-any-return]


def _restored(work: StaticConversion, operands: _Operands, op: Builder, row: Array) -> Value | None:
    """A bias (N) through int32, None where it does not fit."""
    integers = work.bias(row, operands.node.inputs[0], operands.scale, op)
    if integers is None:
        return None
    return op.DequantizeLinear(*integers, axis=0 if integers[1].rank else None)  # type: ignore[no-any-return]


def _fused_anyway(work: StaticConversion, node: Any, op: Builder, weight: Value) -> tuple[Value | None, Any | None]:
    """The row that an Add after the product adds, and the Add, where ONNX Runtime would make a Gemm in floats between two
    Reshape of them: it does where all sizes are known. Of a Sum it does not."""
    shape, columns = shape_of(node.inputs[0]), weight.dim(1)
    found = follower_of(work.editor, node)
    if shape is None or not all(isinstance(size, int) for size in shape) or op.opset < _BROADCASTS_SUMS_SINCE:
        return None, None
    if found is None or found[0].op != "Add" or not isinstance(columns, int):
        return None, None
    row = bias_of_columns(constant_of(found[1]), columns, len(shape))
    return (None, None) if row is None else (Value(found[1]), found[0])


def _added(work: StaticConversion, operands: _Operands, op: Builder, weight: Value) -> tuple[Value | None, Any | None]:
    """The constant row that an Add after a product of matrices adds, as a bias, and the Add."""
    found = follower_of(work.editor, operands.node)
    columns = weight.dim(1)
    if found is None or found[0].op != "Add" or not isinstance(columns, int):
        return None, None
    row = bias_of_columns(constant_of(found[1]), columns, _MATRIX)
    bias = None if row is None else _restored(work, operands, op, row)
    return bias, None if bias is None else found[0]
