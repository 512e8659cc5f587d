"""What a narrower floating-point type would do to a model: values and constants that it cannot hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, get_args

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs

from rewright.model.elements import normal_domain
from rewright.passes.session import label
from rewright.verify.static.contraction import reduced_size
from rewright.verify.static.evidence import Certainty, Finding, Kind, ends
from rewright.verify.static.interval import DType, Format, Interval, format_of, product
from rewright.verify.static.ranges import Array, Ranges, attribute_of
from rewright.verify.static.weights import bounds_of

Precision = Literal["float16", "bfloat16", "float8e4m3fn", "float8e5m2"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)

_DTYPES: Final[dict[str, DType]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
_MASK: Final = -1e4
"""Constants from here down are what masks add, or put in place of a score."""
_MEANS: Final = {"ReduceMean", "GlobalAveragePool", "Mean"}
_SUMS: Final = {"ReduceSum", "ReduceSumSquare", *_MEANS}


def reduced_precision(ranges: Ranges, precision: Precision, measured: Mapping[str, Interval]) -> list[Finding]:
    """What would go wrong if every floating-point value and constant that is wider became ``precision``.

    Args:
        ranges: proven bounds.
        precision: the narrower type.
        measured: what values measure on inputs, by name; see ``measured``.
    """
    return list(_Narrowing(ranges, precision, measured).findings())


class _Narrowing:
    def __init__(self, ranges: Ranges, precision: Precision, measured: Mapping[str, Interval]) -> None:
        self.ranges = ranges
        self.name = precision
        self.dtype = _DTYPES[precision]
        self.held: Format = format_of(self.dtype)
        self.measured = measured
        self._seen: set[int] = set()

    def findings(self) -> Iterator[Finding]:
        for tensor, node, known in self.ranges.values():
            if node is None:
                continue
            for source in node.inputs:
                yield from self._constant(source, node)
            yield from self._epsilon(node)
            if node.op == "Constant":
                yield from self._constant(tensor, node)
            elif self._is_wider(tensor):
                yield from self._value(tensor, node, known)
                yield from self._integers(tensor, node)
                if tensor is node.outputs[0]:
                    yield from self._sum(tensor, node)

    def _is_wider(self, tensor: Any) -> bool:
        dtype = self.ranges.dtype(tensor)
        if dtype is None or not (held := format_of(dtype)).is_float or not math.isfinite(held.largest):
            return False
        return held.largest > self.held.largest or held.unit < self.held.unit

    def _value(self, tensor: Any, node: Any, known: Interval) -> Iterator[Finding]:
        limit, seen = self.held.largest, self.measured.get(tensor.name)
        squared = _squared(self.ranges, node) and any(user.op in _SUMS for user in tensor.outputs)
        kind: Kind = "square" if squared else "overflow"
        told = f"the largest {self.name} is {limit:.6g}"
        if squared:
            told += f", so that what is squared must stay below {math.sqrt(limit):.4g}"
        if self._beyond(known.low) > 0 or self._beyond(known.high) < 0:
            yield self._finding(kind, "certain", tensor, node, f"every element is beyond what it can hold: {told}")
        elif seen is not None and (self._beyond(seen.low) or self._beyond(seen.high)):
            yield self._finding(kind, "measured", tensor, node, f"it reaches {_farthest(seen):.4g}, and {told}")
        elif self._beyond(known.low) or self._beyond(known.high):
            if known.is_bounded:
                yield self._finding(kind, "possible", tensor, node, f"it may reach {_farthest(known):.4g}, and {told}")
            elif squared:
                yield self._finding(kind, "possible", tensor, node, f"nothing bounds it, and {told}")
        for found, certainty in ((known, "certain"), (seen, "measured")):
            if found is not None and 0.0 < found.magnitude < self.held.least / 2:
                message = (
                    f"it becomes zero: it is {found.magnitude:.3g} at most, the smallest {self.name} is {self.held.least:.3g}"
                )
                yield self._finding("underflow", "certain" if certainty == "certain" else "measured", tensor, node, message)
                break

    def _beyond(self, number: float) -> int:
        """1 or -1 if the number becomes infinite with that sign; 0 if it does not."""
        # what rounds to the largest number does not overflow
        limit = self.held.largest * (1 + self.held.unit / 2)
        return 1 if number > limit else -1 if number < -limit else 0

    def _integers(self, tensor: Any, node: Any) -> Iterator[Finding]:
        """Integers that were exact and are not any more: positions, as a rule."""
        source = self.ranges.dtype(node.inputs[0]) if node.inputs else None
        if node.op != "Cast" or source is None or source.kind not in "iu":
            return
        exact, seen, known = 1.0 / self.held.unit, self.measured.get(tensor.name), self.ranges.of(node.inputs[0])
        if seen is not None and seen.magnitude > exact:
            message = f"it holds integers up to {seen.magnitude:.6g}, and {self.name} rounds those above {exact:.0f}"
            yield self._finding("rounding", "measured", tensor, node, message)
        elif known.magnitude > exact and known.magnitude < 2.0**31:
            message = f"it may hold integers up to {known.magnitude:.6g}, and {self.name} rounds those above {exact:.0f}"
            yield self._finding("rounding", "possible", tensor, node, message)

    def _sum(self, tensor: Any, node: Any) -> Iterator[Finding]:
        """A mean that fits, of a sum that does not: kernels that add up in the narrow type lose it."""
        if node.op not in ("ReduceMean", "GlobalAveragePool") or normal_domain(node.domain):
            return
        count = reduced_size(self.ranges, node) if node.op == "ReduceMean" else None
        seen, known = self.measured.get(tensor.name), self.ranges.of(tensor)
        if count is None:
            return
        for found, certainty in ((seen, "measured"), (known, "possible")):
            if found is None or self._beyond(found.high) or self._beyond(found.low):
                continue
            total = product(float(count), found.magnitude)
            if self._beyond(total):
                reaches = "reaches" if certainty == "measured" else "may reach"
                message = f"the sum of {count} terms under the mean {reaches} {total:.4g}; add up in float32"
                yield self._finding("sum", "possible", tensor, node, message)
                return

    def _constant(self, tensor: Any, node: Any) -> Iterator[Finding]:
        tensor = self.ranges.resolved(tensor)
        is_new = id(tensor) not in self._seen and (isinstance(tensor, gs.Constant) or node.op == "Constant")
        if not is_new or not self._is_wider(tensor):
            return
        self._seen.add(id(tensor))
        array = self.ranges.constant(tensor)
        known = None if array is None else bounds_of(array)
        if array is None or known is None:
            return
        user = next(iter(tensor.outputs), node)
        if any(math.isfinite(end) and self._beyond(end) for end in (known.low, known.high)):
            yield self._finding("overflow", "certain", tensor, user, self._too_large(known), known)
        elif 0.0 < known.magnitude <= self.held.least / 2:
            message = f"the constant {known.low if known.low else known.high:.3g} becomes zero"
            if user.op in ("Add", "Max", "Clip"):
                message += " and keeps nothing from being zero any more"
            yield self._finding("underflow", "certain", tensor, user, message, known)
        elif array.size == 1 and 0.0 < known.magnitude < self.held.tiny:
            shown = float(_narrow(array, self.dtype).reshape(-1)[0])
            message = f"the constant {_farthest(known):.4g} becomes {shown:.5g}: below {self.held.tiny:.3g} digits are lost"
            yield self._finding("underflow", "possible", tensor, user, message, known)

    def _too_large(self, known: Interval) -> str:
        if known.low < _MASK and known.high <= 0.0:
            return f"the mask value {known.low:.4g} becomes -inf, and a row that is masked as a whole NaN"
        return f"the constant {_farthest(known):.4g} becomes infinite: the largest {self.name} is {self.held.largest:.6g}"

    def _epsilon(self, node: Any) -> Iterator[Finding]:
        """The attribute of a normalisation, which kernels that compute in the narrow type round as well."""
        epsilon = attribute_of(node, "epsilon", None) if node.op.endswith(("Normalization", "LayerNorm")) else None
        if isinstance(epsilon, float) and 0.0 < epsilon < self.held.least / 2 and id(node) not in self._seen:
            self._seen.add(id(node))
            message = f"epsilon {epsilon:.3g} is zero in {self.name}: the kernel has to compute in float32"
            yield Finding(kind="underflow", certainty="possible", node=label(node), op=node.op, message=message)

    def _finding(
        self, kind: Kind, certainty: Certainty, tensor: Any, node: Any, message: str, known: Interval | None = None
    ) -> Finding:
        low, high = ends(known if known is not None else self.ranges.of(tensor))
        measured_low, measured_high = ends(self.measured.get(tensor.name))
        return Finding(
            kind=kind, certainty=certainty, node=label(node), op=node.op, value=tensor.name, message=message, low=low, high=high,
            measured_low=measured_low, measured_high=measured_high,
        )  # fmt: skip


def _squared(ranges: Ranges, node: Any) -> bool:
    if node.op == "Mul":
        return ranges.resolved(node.inputs[0]) is ranges.resolved(node.inputs[1])
    return node.op == "Pow" and ranges.scalar(node.inputs[1]) == 2.0


def _farthest(interval: Interval) -> float:
    """The end that is farther from zero."""
    return interval.low if abs(interval.low) > abs(interval.high) else interval.high


def _narrow(array: Array, dtype: DType) -> Array:
    return array.astype(np.float32).astype(dtype)


def dtype_named(precision: Precision) -> DType:
    """The element type."""
    return _DTYPES[precision]
