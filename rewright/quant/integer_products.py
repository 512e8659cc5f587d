"""MatMul, Gemm and FusedMatMul with a constant right operand: products of integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from rewright.model.facts import attribute, constant_of, shape_of
from rewright.pattern.builder import Builder
from rewright.pattern.values import Value
from rewright.quant.affine import quantized
from rewright.quant.conversion import Conversion, bias_of_columns
from rewright.quant.followers import follower_of, without_bias
from rewright.quant.integer_weights import MissedError, Use
from rewright.quant.selection import Candidate
from rewright.quant.weights import Weight, weight_of

_BROADCASTS_SINCE: Final = 7
_MATRIX: Final = 2


@dataclass(frozen=True)
class Product:
    """alpha * op(A) @ op(B) of one node, without what is added to it.

    Attributes:
        use: of B, where its rank is 2; ``weight`` where it is more.
        turns_a: whether A, of rank 2, is transposed first.
    """

    weight: Weight
    use: Use | None
    turns_a: bool
    alpha: float


def product_of(node: Any) -> Product:
    """
    Raises:
        MissedError: the node is no product by a weight that a kernel multiplies by.
    """
    weight = weight_of(node.inputs[1])
    if weight is None:
        if weight_of(node.inputs[0]) is not None:
            raise MissedError("the weight is the left operand, and kernels quantize the left one at run time")
        raise MissedError("no operand is constant: activations are not multiplied by activations in integers")
    if weight.dtype != np.float32:
        raise MissedError(f"the weight is {weight.dtype}, and integer kernels give float32")
    rank = _rank(node.inputs[1], weight)
    if rank < _MATRIX:
        raise MissedError("the weight is a vector")
    if weight_of(node.inputs[0]) is not None:
        raise MissedError("both operands are constant: constant-folding computes the product")
    if any(attribute(node, name, 0) for name in ("transBatchA", "transBatchB")):
        raise MissedError("the batch is transposed")
    turned, turns_a = bool(attribute(node, "transB", 0)), bool(attribute(node, "transA", 0))
    if rank > _MATRIX and (turned or turns_a):
        raise MissedError("the weight has more than two dimensions, and an operand is transposed")
    if turns_a and node.op != "Gemm" and len(shape_of(node.inputs[0]) or ()) != _MATRIX:
        raise MissedError("the left operand is transposed, and its rank is not known to be 2")
    alpha = float(attribute(node, "alpha", 1.0))
    if not np.isfinite(alpha) or alpha == 0.0:
        raise MissedError(f"alpha is {alpha}")
    use = Use.of(node.inputs[1], axis=1, transposed=turned) if rank == _MATRIX else None
    return Product(weight, use, turns_a, alpha)


def _rank(tensor: Any, weight: Weight) -> int:
    shape = shape_of(tensor)
    if shape is None:
        shape = shape_of(weight.source) if not weight.steps else weight.values().shape
    return len(shape or ())


def convert_product(work: Conversion, candidate: Candidate) -> None:
    """Replaces the node, and the sum with a constant after it.

    Raises:
        MissedError: it cannot be done.
    """
    node, op = candidate.node, work.builder(candidate)
    found = product_of(node)
    if op.opset < _BROADCASTS_SINCE:
        raise MissedError(f"sums do not broadcast in opset {op.opset}")
    work.require_multiplication(op)
    if found.use is None:
        _convert_batched(work, candidate, found.weight, op)
        return
    made = work.weights.get(found.use)
    levels = work.weights.operand(found.use, op)
    columns = int(made.levels.shape[found.use.channels ^ made.is_turned])  # type: ignore[index, arg-type]
    scale = made.scale
    if found.alpha != 1.0:
        scale = op.constant(np.asarray(np.asarray(made.scale.value) * np.float32(found.alpha), np.float32), "scale")
    operand = Value(node.inputs[0])
    if found.turns_a:
        operand = op.Transpose(operand, perm=[1, 0])
    bias, rest, follower = _added(work, node, op, columns)
    result = work.product(op, operand, levels, scale, work.zero_point(made), bias)
    if rest is not None:
        result = op.Add(result, rest)
    if follower is None:
        work.replace(candidate, [node], op, result, node.outputs[0])
    elif follower.op == "Add":
        work.replace(candidate, [node, follower], op, result, follower.outputs[0])
    else:
        before = len(op.nodes)
        outputs = without_bias(op, follower, node.outputs[0], result, splits_norm=work.session.target == "cpu")
        work.replace_all(candidate, [node, follower], op, outputs, late=op.nodes[before:])
    work.covered(node, [(found.use, made)], f"uint8 x {work.spelled}")


def _added(work: Conversion, node: Any, op: Builder, columns: int) -> tuple[Value | None, Value | None, Any | None]:
    """What is added to the product: a bias for its columns, anything else, and the node after it that says so."""
    if node.op == "Gemm":
        given = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
        beta = float(attribute(node, "beta", 1.0))
        if given is not None and beta != 0.0:
            return (*_gemm_bias(given, beta, op, columns), None)
    found = follower_of(work.editor, node)
    if found is None:
        return None, None, None
    follower, constant = found
    rank = len(shape_of(node.outputs[0]) or ()) or None
    bias = bias_of_columns(constant_of(constant), columns, rank)
    if bias is None:
        return None, None, None
    same = bias.shape == (shape_of(constant) or ())
    return Value(constant) if same else op.constant(bias, "bias"), None, follower


def _gemm_bias(given: Any, beta: float, op: Builder, columns: int) -> tuple[Value | None, Value | None]:
    """beta * C as a bias for columns where it is a constant row, else as something to add."""
    array = constant_of(given)
    row = bias_of_columns(array, columns, 2)
    if row is None and array is not None and array.size == 1 and array.dtype == np.float32 and array.ndim <= _MATRIX:
        row = np.full(columns, array.reshape(-1)[0], np.float32)
    if row is not None:
        if beta == 1.0 and array is not None and array.shape == (columns,):
            return Value(given), None
        return op.constant((row * np.float32(beta)).astype(np.float32), "bias"), None
    if beta == 1.0:
        return None, Value(given)
    return None, op.Mul(Value(given), op.constant(np.float32(beta), "beta"))


def _convert_batched(work: Conversion, candidate: Candidate, weight: Weight, op: Builder) -> None:
    """A weight (..., K, N): each column of each matrix has a scale, of shape (..., 1, N)."""
    node, values = candidate.node, weight.values()
    batch, (rows, columns) = values.shape[:-2], values.shape[-2:]
    flat = np.ascontiguousarray(np.swapaxes(values, -1, -2)).reshape(-1, rows)
    found = quantized(flat, 0 if work.weights.per_channel else None, work.weights.levels)
    if found is None:
        raise MissedError(f"the weight '{weight.name}' holds values that are not finite")
    work.weights.note_risk(weight.name, found, 0)
    levels = np.ascontiguousarray(np.swapaxes(found.levels.reshape(*batch, columns, rows), -1, -2))
    shape = (*batch, 1, columns) if work.weights.per_channel else ()
    made = work.weights.stored(weight, found, levels, shape, int(values.nbytes))
    result = work.product(op, Value(node.inputs[0]), made.levels, made.scale, work.zero_point(made), None)
    work.replace(candidate, [node], op, result, node.outputs[0])
    work.covered(node, [(Use(weight, weight.key, False, 0), made)], f"uint8 x {work.spelled}")
