"""MatMul of two activations: both quantized at run time, where that is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from rewright.model.facts import dtype_of, shape_of
from rewright.passes.coverage import Covered
from rewright.passes.session import label, op_key
from rewright.pattern.values import Value
from rewright.quant.conversion import Conversion
from rewright.quant.integer_weights import MissedError
from rewright.quant.selection import Candidate
from rewright.quant.weights import weight_of


def multiplies_activations(node: Any) -> bool:
    """Whether the node is a MatMul of two values that are computed at run time."""
    return op_key(node) == "MatMul" and not any(weight_of(tensor) is not None for tensor in node.inputs)


def convert_activations(work: Conversion, candidate: Candidate) -> None:
    """Replaces MatMul by MatMulIntegerToFloat, for a portable model by MatMulInteger, behind a DynamicQuantizeLinear for each
    operand: one scale and one zero point for all of it, batches and heads included.

    Raises:
        MissedError: it cannot be done.
    """
    node, op = candidate.node, work.builder(candidate)
    if any(dtype_of(tensor) != np.float32 for tensor in node.inputs):
        raise MissedError("an operand is not float32, or its type is not known")
    if any(len(shape_of(tensor) or ()) < 2 for tensor in node.inputs):
        raise MissedError("an operand has fewer than two dimensions, or an unknown number of them")
    work.require_multiplication(op)
    if work.session.target != "portable" and (obstacle := work.obstacle("MatMulIntegerToFloat")) is not None:
        raise MissedError(obstacle)
    left, right = (work.activation(op, Value(tensor)) for tensor in node.inputs)
    result = work.multiplied(op, left, right)
    work.replace(candidate, [node], op, result, node.outputs[0])
    work.session.coverage.append(Covered(label(node), op_key(node), "quantized", became="uint8 x uint8, both at run time"))
