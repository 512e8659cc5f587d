"""One conversion of nodes to integers whose activations are quantized by ranges that are known beforehand."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from rewright.model import opsets
from rewright.model.elements import make_constant
from rewright.model.facts import dtype_of, producer
from rewright.ops.microsoft import DOMAIN
from rewright.passes.coverage import Covered
from rewright.passes.session import label, op_key
from rewright.pattern.builder import Builder
from rewright.pattern.values import Value
from rewright.quant.affine import Array, Levels
from rewright.quant.calibration.ranges import Ranges
from rewright.quant.conversion import Conversion
from rewright.quant.integer_weights import IntegerWeight, MissedError, Use

_LINEAR_SINCE: Final = 10
_AXIS_SINCE: Final = 13
_WIDE_SINCE: Final = 21
_EIGHT_BITS: Final = ("int8", "uint8", "int32")
_IR_WITH_INT4: Final = 10
_LARGEST_BIAS: Final = 2**31 - 1


@dataclass
class Activation:
    """A value in integers, value = (levels - zero_point) * scale.

    Attributes:
        levels: the integers.
        scale, zero_point: scalar constants.
        floats: the integers as floats again, made when they are first asked for.
    """

    levels: Value
    scale: Value
    zero_point: Value
    floats: Value | None = None


@dataclass
class StaticConversion(Conversion):
    """The state of one run.

    Attributes:
        ranges: of values, by name.
        levels: which integers stand for activations.
        quantizes_bias: whether biases become int32.
        dedicated: whether each node that reads a value has a QuantizeLinear and a DequantizeLinear of its own.
        filters: of convolutions, by what holds the same.
    """

    ranges: Ranges = field(default_factory=lambda: Ranges({}))
    levels: Levels = field(default_factory=lambda: Levels("uint8", symmetric=False))
    quantizes_bias: bool = True
    dedicated: bool = False
    _activations: dict[int, Activation] = field(default_factory=dict)
    filters: dict[Hashable, IntegerWeight] = field(default_factory=dict)
    _floats: dict[tuple[int, int], Value] = field(default_factory=dict)

    def allow_opset(self) -> None:
        """Raises the model to opset 13, where a scale for each channel became standard, if every node means the same there."""
        view = self.session.view
        lowest = min((view.opset_of(graph) for graph in view.graphs()), default=_AXIS_SINCE)
        if _LINEAR_SINCE <= lowest < _AXIS_SINCE and self.session.opset_obstacle(_AXIS_SINCE) is None:
            opsets.raise_to(view, _AXIS_SINCE)
        if "int4" in self.weights.levels.dtype:
            view.graph.ir_version = max(view.graph.ir_version or 0, _IR_WITH_INT4)

    def require(self, tensor: Any) -> None:
        """
        Raises:
            MissedError: the value cannot be quantized.
        """
        if id(tensor) in self._activations:
            return
        dtype = dtype_of(tensor)
        if dtype is None or dtype != np.float32:
            raise MissedError(f"'{tensor.name}' is {'of an unknown dtype' if dtype is None else dtype}, not float32")
        if tensor.name not in self.ranges.values:
            raise MissedError(f"no range is known for '{tensor.name}'")

    def require_linear(self, op: Builder) -> None:
        """
        Raises:
            MissedError: the model's opset has no QuantizeLinear, or the target none of the types.
        """
        if op.opset < _LINEAR_SINCE:
            raise MissedError(f"QuantizeLinear is in opset 10 and later, not in {op.opset}")
        for dtype, axis in ((self.levels.dtype, None), (self.weights.levels.dtype, 0 if self.weights.per_channel else None)):
            if self._domain(op, dtype, axis) and (obstacle := self.obstacle("DequantizeLinear")) is not None:
                raise MissedError(f"opset {op.opset} has no DequantizeLinear of {dtype} like that, and {obstacle}")

    def _domain(self, op: Builder, dtype: str, axis: int | None) -> str:
        """Where the op is that takes the type, with a scale for each channel where there is an axis."""
        if dtype not in _EIGHT_BITS:
            return "" if op.opset >= _WIDE_SINCE else DOMAIN
        return "" if axis is None or op.opset >= _AXIS_SINCE else DOMAIN

    def quantized(self, tensor: Any, op: Builder) -> Activation:
        """The value in integers; made once, before the first node that asks for it. ``require`` comes first."""
        found = self._activations.get(id(tensor))
        if found is None:
            found = self._activations[id(tensor)] = self.written(Value(tensor), tensor.name, op)
        return found

    def written(self, value: Value, name: str, op: Builder) -> Activation:
        """A new QuantizeLinear on a value that has the range of ``name``."""
        scale, zero_point = self.parameters(name)
        levels = op.QuantizeLinear(value, scale, zero_point, domain=self._domain(op, self.levels.dtype, None))
        return self.taken(levels, scale, zero_point)

    def parameters(self, name: str) -> tuple[Value, Value]:
        """New constants: scale and zero point for the range of ``name``."""
        names = self.session.names
        ends = zip(("scale", "zero_point"), self._numbers(name), strict=True)
        made = [Value(make_constant(names.fresh(f"{name}_{end}"), array)) for end, array in ends]
        return made[0], made[1]

    def _numbers(self, name: str) -> tuple[Array, Array]:
        low, high = self.ranges.values[name]
        scale, zero_point = self.levels.parameters(np.asarray(low), np.asarray(high))
        return np.asarray(scale, np.float32).reshape(()), np.asarray(zero_point, self.levels.dtype).reshape(())

    def taken(self, levels: Value, scale: Value, zero_point: Value) -> Activation:
        """A new value of integers as an activation."""
        levels.tensor.dtype = np.dtype(self.levels.dtype)
        return Activation(levels, scale, zero_point)

    def floats(self, tensor: Any, op: Builder) -> Value:
        """The value through integers and back."""
        if self.dedicated:
            return self.restored(self.written(Value(tensor), tensor.name, op), op)
        found = self.quantized(tensor, op)
        if found.floats is None:
            found.floats = self.restored(found, op)
        return found.floats

    def restored(self, found: Activation, op: Builder) -> Value:
        """A new DequantizeLinear on the integers."""
        domain = self._domain(op, self.levels.dtype, None)
        if self.moves_wrongly(op.opset) and self.obstacle("DequantizeLinear") is None:
            domain = DOMAIN
        result: Value = op.DequantizeLinear(found.levels, found.scale, found.zero_point, domain=domain)
        result.tensor.dtype = np.dtype(np.float32)
        return result

    def moves_wrongly(self, opset: int) -> bool:
        """Whether ONNX Runtime (1.31, 1.32) fails to load a standard DequantizeLinear in front of Transpose and the like:
        it moves that behind them, and from opset 21 on writes the zero point of an int8 as uint8."""
        return self.levels.dtype == "int8" and opset >= _WIDE_SINCE

    def leaves_results(self, op: Builder) -> bool:
        """Whether what nodes give has to stay floats, for want of a DequantizeLinear that ONNX Runtime loads."""
        return self.moves_wrongly(op.opset) and self.obstacle("DequantizeLinear") is not None

    def is_now(self, tensor: Any, found: Activation) -> None:
        """Takes note that a value of the model comes from integers."""
        found.floats = Value(tensor)
        self._activations[id(tensor)] = found

    def weight(self, levels: Value, scale: Value, zero_point: Value, axis: int | None, op: Builder) -> Value:
        """The floats of a quantized weight; made once for each."""
        key = id(levels.tensor), id(scale.tensor)
        found = self._floats.get(key)
        if found is None:
            per_axis = axis if scale.rank else None
            where = {"domain": self._domain(op, self.weights.levels.dtype, per_axis), "axis": per_axis}
            if self.weights.keeps_floats:
                levels = op.QuantizeLinear(levels, scale, zero_point, **where)
                levels.tensor.dtype = np.dtype(self.weights.levels.dtype)
            found = self._floats[key] = op.DequantizeLinear(levels, scale, zero_point, **where)
            found.tensor.dtype = np.dtype(np.float32)
        return found

    def bias(self, row: Array, tensor: Any, scale: Value, op: Builder) -> tuple[Value, Value] | None:
        """A bias (N) as int32 and its scale, the product of those of ``tensor`` and of the weight; None where it does not fit, or
        is not wanted."""
        if not self.quantizes_bias:
            return None
        step, _ = self._numbers(tensor.name)
        steps = np.broadcast_to(np.asarray(scale.value, np.float64) * float(step), row.shape)
        if not np.all(np.isfinite(row)) or np.any(steps < np.finfo(np.float32).tiny):
            return None
        levels = np.rint(row / steps)
        if np.any(np.abs(levels) > _LARGEST_BIAS):
            return None
        kept = np.ascontiguousarray(steps, np.float32) if scale.rank else np.float32(steps.flat[0])
        return op.constant(levels.astype(np.int32), "bias_quantized"), op.constant(np.asarray(kept, np.float32), "bias_scale")

    # what the conversions of the single ops ask for

    def require_multiplication(self, op: Builder) -> None:
        """
        Raises:
            MissedError: the target does not multiply integers.
        """
        self.require_linear(op)
        if self.session.target != "portable" and (obstacle := self.obstacle("MatMulIntegerToFloat")) is not None:
            raise MissedError(obstacle)

    def activation(self, op: Builder, operand: Value) -> tuple[Value, Value, Value]:
        """Levels, scale and zero point of an activation, by its range; those of a new Transpose are its operand's, transposed."""
        before = producer(operand.tensor)
        if before is not None and any(before is made for made in op.nodes) and before.op == "Transpose":
            found = self.quantized(before.inputs[0], op)
            turned = op.Transpose(found.levels, perm=before.attrs.get("perm"))
            return turned, found.scale, found.zero_point
        found = self.quantized(operand.tensor, op)
        return found.levels, found.scale, found.zero_point

    def product(
        self, op: Builder, operand: Value, levels: Value, scale: Value, zero_point: Value | None, bias: Value | None
    ) -> Value:
        """operand @ weight + bias, the operand quantized by its range."""
        return self.multiplied(op, self.activation(op, operand), (levels, scale, zero_point), bias)

    def say_quantized(self, node: Any, use: Use, made: IntegerWeight) -> None:
        """Records a node with a weight."""
        self.covered(node, [(use, made)], f"{self.levels.dtype} x {self.spelled}")

    def say_quantized_activations(self, node: Any) -> None:
        """Records a node without a weight."""
        self.session.coverage.append(Covered(label(node), op_key(node), "quantized", became=f"{self.levels.dtype} activations"))
