"""One conversion of nodes to integers: what the modules for the single ops share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np

from rewright.model.edit import Editor
from rewright.model.facts import producer
from rewright.model.names import scope_of
from rewright.ops.microsoft import DOMAIN
from rewright.ops.targets import unsupported
from rewright.passes.coverage import Covered
from rewright.passes.session import PassSession, label, op_key
from rewright.pattern.builder import Builder
from rewright.pattern.values import Value
from rewright.quant.integer_weights import IntegerWeight, IntegerWeights, MissedError, Use
from rewright.quant.selection import Candidate

FLOAT: Final = 1
_INT8: Final = np.dtype(np.int8)
_DYNAMIC_QUANTIZE_LINEAR_SINCE: Final = 11


Integers = tuple[Value, Value, Value | None]
"""Levels, scale and zero point; without one it is 0."""


@dataclass
class Conversion:
    """The state of one run: the session, and the weights made so far."""

    session: PassSession
    weights: IntegerWeights

    @property
    def editor(self) -> Editor:
        """The session's."""
        return self.session.editor

    def builder(self, candidate: Candidate) -> Builder:
        """For new nodes in the place of the candidate."""
        return Builder(self.session.names, scope_of(candidate.node), self.session.view.opset_of(candidate.graph))

    @cached_property
    def fused_obstacle(self) -> str | None:
        """Why the target does not multiply by DynamicQuantizeMatMul."""
        return self.obstacle("DynamicQuantizeMatMul")

    def obstacle(self, op: str) -> str | None:
        """Why the target cannot run an op of com.microsoft in float32."""
        return unsupported(DOMAIN, op, np.dtype(np.float32), self.session.target)

    def require_multiplication(self, op: Builder) -> None:
        """
        Raises:
            MissedError: the target does not multiply by integers.
        """
        if self.fused_obstacle is None:
            return
        if self.session.target != "portable":
            raise MissedError(self.fused_obstacle)
        if op.opset < _DYNAMIC_QUANTIZE_LINEAR_SINCE:
            raise MissedError(f"DynamicQuantizeLinear is in opset 11 and later, not in {op.opset}")

    def product(
        self, op: Builder, operand: Value, levels: Value, scale: Value, zero_point: Value | None, bias: Value | None
    ) -> Value:
        """operand @ weight + bias, the operand quantized at run time: one op, or for a portable model five standard ones."""
        if self.fused_obstacle is None:
            fused: Value = op.DynamicQuantizeMatMul(operand, levels, scale, zero_point, bias, domain=DOMAIN)
            return fused
        return self.multiplied(op, self.activation(op, operand), (levels, scale, zero_point), bias)

    def multiplied(self, op: Builder, left: Integers, right: Integers, bias: Value | None = None) -> Value:
        """left @ right + bias: MatMulIntegerToFloat, or for a portable model four standard ops."""
        (levels, scale, zero_point), (other_levels, other_scale, other_zero) = left, right
        if self.session.target != "portable":
            inputs = [levels, other_levels, scale, other_scale, zero_point, other_zero, bias]
            fused: Value = op.MatMulIntegerToFloat(*inputs, domain=DOMAIN)
            fused.tensor.dtype = np.dtype(np.float32)
            return fused
        product = op.Cast(op.MatMulInteger(levels, other_levels, zero_point, other_zero), to=FLOAT)
        result: Value = op.Mul(product, op.Mul(scale, other_scale))
        return result if bias is None else op.Add(result, bias)

    def activation(self, op: Builder, operand: Value) -> tuple[Value, Value, Value]:
        """Levels, scale and zero point of an activation, found at run time."""
        return op.DynamicQuantizeLinear(operand, outputs=3)  # type: ignore[no-any-return]

    def zero_point(self, made: IntegerWeight) -> Value | None:
        """What the op is given: nothing where it is 0, which int8 weights may leave out."""
        return made.zero_point if made.needs_zero_point else None

    def replace(self, candidate: Candidate, removed: Sequence[Any], op: Builder, result: Value, output: Any) -> None:
        """Puts the new nodes where the candidate stands, with ``result`` as ``output``; what served the old ones alone goes."""
        self.replace_all(candidate, removed, op, [(output, result)])

    def replace_all(
        self,
        candidate: Candidate,
        removed: Sequence[Any],
        op: Builder,
        results: Iterable[tuple[Any, Value]],
        late: Sequence[Any] = (),
    ) -> None:
        """As ``replace``, for several outputs: pairs of an old value and the new one. ``late`` are those of the new nodes that
        stand where the last of the removed ones did, since they read what the candidate did not wait for."""
        feeders = {id(node): node for gone in removed for node in map(producer, gone.inputs) if node is not None}
        self.editor.insert([node for node in op.nodes if node not in late], candidate.node)
        self.editor.insert(late, removed[-1])
        for node in removed:
            self.editor.remove(node)
        for output, result in results:
            made: Any = producer(result.tensor)
            index = next(place for place, tensor in enumerate(made.outputs) if tensor is result.tensor)
            self.editor.take_output(output, made, index)
        unused = [
            node
            for node in feeders.values()
            if getattr(node, "alive", True) and not any(self.editor.is_used(tensor) for tensor in node.outputs)
        ]
        stranded = self.editor.remove_with_dead_producers(unused)
        self.session.record(candidate.graph, [*removed, *stranded], op.nodes)

    def covered(self, node: Any, uses: Sequence[tuple[Use, IntegerWeight]], became: str) -> None:
        """Records the node as quantized; bytes that several nodes share count with the first of them."""
        fresh = [made for _, made in uses if not made.is_counted]
        for made in fresh:
            made.is_counted = True
        worst = max((made for _, made in uses), key=lambda made: made.worst_error or made.error)
        self.session.coverage.append(
            Covered(
                label(node),
                op_key(node),
                "quantized",
                weight=", ".join(dict.fromkeys(use.weight.name for use, _ in uses)),
                became=became,
                bytes_before=sum(made.bytes_before for made in fresh),
                bytes_after=sum(made.bytes_after for made in fresh),
                error=max(made.error for _, made in uses),
                worst_channel=worst.worst_channel,
                worst_error=worst.worst_error,
            )
        )

    def missed(self, node: Any, reason: str, weight: str = "") -> None:
        """Records why the node stays as it is."""
        self.session.coverage.append(Covered(label(node), op_key(node), "missed", reason=reason, weight=weight))
        self.session.reject(node, reason)

    @property
    def spelled(self) -> str:
        """How the levels are called in records."""
        levels = self.weights.levels
        bits = f"{levels.dtype} of 7 bits" if levels.reduced else levels.dtype
        return f"{bits} per {'channel' if self.weights.per_channel else 'tensor'}"


def bias_of_columns(array: np.ndarray[Any, Any] | None, columns: int, most_rank: int | None) -> np.ndarray[Any, Any] | None:
    """The constant as one float32 number for each column, or None where adding it is something else.

    Args:
        array: what is added to a product.
        columns: of the product.
        most_rank: the rank of the product, beyond which the sum would have more dimensions; None where it is not known.
    """
    if array is None or array.dtype != np.float32 or array.ndim == 0 or array.size != columns or array.shape[-1] != columns:
        return None
    if array.ndim > 1 and (most_rank is None or array.ndim > most_rank):
        return None
    return np.ascontiguousarray(array.reshape(columns))
