"""A quantizing pass that is as small as one can be: MatMul weights of few bits, one scale for all, dequantized at run time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from rewright.model.elements import make_node, make_variable
from rewright.passes.coverage import Covered
from rewright.passes.session import PassSession, label, op_key
from rewright.quant.selection import Candidate, QuantizingPass
from rewright.quant.weights import weight_of


class RoundingWeights(QuantizingPass):
    """The weights of MatMul as 8-bit integers, of which fewer bits may be used."""

    name = "rounding-weights"
    quantizes = ("MatMul",)
    bits: int = 8

    def quantize(self, session: PassSession, candidates: Sequence[Candidate]) -> None:
        for candidate in candidates:
            session.coverage.append(self._quantized(session, candidate))

    def _quantized(self, session: PassSession, candidate: Candidate) -> Covered:
        node = candidate.node
        name, op, weight = label(node), op_key(node), weight_of(node.inputs[1])
        if weight is None:
            return Covered(name, op, "missed", reason=f"'{node.inputs[1].name}' is not known before run time")
        values = weight.values().astype(np.float32)
        levels = 2 ** (self.bits - 1) - 1
        scale = np.float32(np.abs(values).max() / levels)
        rounded = np.rint(values / scale).astype(np.int8)
        lost = rounded * scale - values
        columns = np.linalg.norm(lost, axis=0) / np.linalg.norm(values, axis=0)
        if node.inputs[1].inputs and node.inputs[1].inputs[0].op == "DequantizeLinear":
            return Covered(name, op, "missed", reason="quantized already")
        unique = session.names.fresh
        operand = make_variable(unique(f"{name}/dequantized"))
        parts = [
            gs.Constant(unique(f"{name}/weight"), rounded),
            gs.Constant(unique(f"{name}/scale"), np.array(scale)),
        ]
        unpacked = make_node("DequantizeLinear", session.names.fresh(f"{name}/dequantize"), "", parts, [operand])
        inputs: list[Any] = [node.inputs[0], operand]
        product = make_node("MatMul", session.names.fresh(name), "", inputs, [make_variable(unique(f"{name}/product"))])
        session.editor.insert([unpacked, product], node)
        old = node.outputs[0]
        session.editor.remove_with_dead_producers([node])
        session.editor.take_output(old, product)
        session.record(candidate.graph, [node], [unpacked, product])
        return Covered(
            name,
            op,
            "quantized",
            weight=weight.name,
            became=f"int8 of {self.bits} bits",
            bytes_before=values.nbytes,
            bytes_after=rounded.nbytes + 4,
            error=float(np.linalg.norm(lost) / np.linalg.norm(values)),
            worst_channel=int(columns.argmax()),
            worst_error=float(columns.max()),
        )
