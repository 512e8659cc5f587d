"""LSTM with constant weights: com.microsoft.DynamicQuantizeLSTM."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np

from rewright.model.facts import attribute
from rewright.ops.integer import DYNAMIC_QUANTIZE_LSTM
from rewright.ops.microsoft import DOMAIN
from rewright.pattern.values import Value
from rewright.quant.affine import quantized
from rewright.quant.conversion import Conversion
from rewright.quant.integer_weights import IntegerWeight, MissedError, Use
from rewright.quant.selection import Candidate
from rewright.quant.weights import Weight, weight_of

_OPERANDS: Final = 8
"""X, W, R, B, sequence_lens, initial_h, initial_c, P."""


def lstm_weights(node: Any) -> list[Weight]:
    """W (directions, 4 * H, I) and R (directions, 4 * H, H).

    Raises:
        MissedError: they are not constant, or the node asks for what the integer kernel does not have.
    """
    found = [weight_of(node.inputs[index]) for index in (1, 2)]
    if any(weight is None for weight in found):
        raise MissedError("the weights are not constant")
    weights = [weight for weight in found if weight is not None]
    for weight in weights:
        if weight.dtype != np.float32:
            raise MissedError(f"the weights are {weight.dtype}, and integer kernels give float32")
    if attribute(node, "layout", 0):
        raise MissedError("the batch comes first (layout 1), which the kernel does not have")
    unknown = [name for name in node.attrs if name not in (*DYNAMIC_QUANTIZE_LSTM.attributes, "layout")]
    if unknown:
        raise MissedError(f"the integer kernel has no attribute {unknown[0]}")
    return weights


def convert_lstm(work: Conversion, candidate: Candidate) -> None:
    """Replaces the node.

    Raises:
        MissedError: it cannot be done.
    """
    node, op = candidate.node, work.builder(candidate)
    obstacle = work.obstacle("DynamicQuantizeLSTM")
    if obstacle is not None:
        raise MissedError(obstacle)
    made = [_integer_weight(work, weight) for weight in lstm_weights(node)]
    inputs: list[Value | None] = [Value(tensor) if tensor.name else None for tensor in node.inputs]
    inputs += [None] * (_OPERANDS - len(inputs))
    inputs[1], inputs[2] = made[0].levels, made[1].levels
    for each in made:
        inputs += [each.scale, each.zero_point]
    attributes = {name: value for name, value in node.attrs.items() if name != "layout"}
    given = tuple(bool(tensor.name) for tensor in node.outputs)
    op.DynamicQuantizeLSTM(*inputs, domain=DOMAIN, outputs=given if len(given) > 1 else (True,), **attributes)
    outputs = [Value(tensor) for tensor in op.nodes[-1].outputs]
    uses = [(Use(weight, weight.key, False, 0), each) for weight, each in zip(lstm_weights(node), made, strict=True)]
    work.replace_all(candidate, [node], op, [(old, new) for old, new in zip(node.outputs, outputs, strict=True) if old.name])
    work.covered(node, uses, f"uint8 x {work.spelled}")


def _integer_weight(work: Conversion, weight: Weight) -> IntegerWeight:
    """Levels (directions, inputs, 4 * H), scale and zero point (directions, 4 * H), or (directions) for one scale each."""
    values = weight.values()
    directions, gates, inputs = values.shape
    by_gate = work.weights.per_channel
    found = quantized(values.reshape((directions * gates, inputs) if by_gate else (directions, -1)), 0, work.weights.levels)
    if found is None:
        raise MissedError(f"the weight '{weight.name}' holds values that are not finite")
    flat = replace(found, levels=found.levels.reshape(directions * gates, inputs))
    work.weights.note_risk(weight.name, flat, 0)
    levels = np.ascontiguousarray(flat.levels.reshape(values.shape).swapaxes(1, 2))
    return work.weights.stored(weight, flat, levels, (directions, gates) if by_gate else (directions,), int(values.nbytes))
