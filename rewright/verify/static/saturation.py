"""What quantized types can hold, and what is cut off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from rewright.passes.session import label
from rewright.verify.static.evidence import Finding, ends
from rewright.verify.static.interval import DType, Interval, format_of
from rewright.verify.static.ranges import Ranges

_ACCUMULATOR: Final = 2.0**31
_INTEGER_PRODUCTS: Final = {"MatMulInteger": (0, 1)}


@dataclass(frozen=True)
class Saturation:
    """What a scale and a zero point make of an interval.

    Attributes:
        held: the numbers that the quantized type can stand for.
        below, above: how far the interval reaches beyond ``held``, as a share of the width of ``held``.
        used: the share of ``held`` that the interval spans; little of it means few levels.
    """

    held: Interval
    below: float
    above: float
    used: float

    @property
    def is_cut(self) -> bool:
        """Whether something is cut off, beside rounding to the last level."""
        return self.below > 0.0 or self.above > 0.0


def saturation(values: Interval, scale: float, zero_point: int, dtype: DType) -> Saturation:
    """How ``values`` fit into an integer type of eight or sixteen bits with this scale and zero point.

    Half a level beyond the ends still rounds to the last level.

    Raises:
        ValueError: the scale is not a positive number.
    """
    if not scale > 0.0:
        raise ValueError(f"the scale is {scale}")
    limits = format_of(dtype)
    held = Interval((limits.smallest - zero_point) * scale, (limits.largest - zero_point) * scale)
    width, slack = held.high - held.low, scale / 2
    below, above = max(held.low - slack - values.low, 0.0), max(values.high - held.high - slack, 0.0)
    used = max(min(values.high, held.high) - max(values.low, held.low), 0.0)
    return Saturation(held, below / width, above / width, used / width)


def saturating(ranges: Ranges, measured: Mapping[str, Interval]) -> Iterator[Finding]:
    """The nodes that quantize with constant scales, and cut off what their input holds; and sums that leave 32 bits."""
    for tensor, node, _ in ranges.values():
        if node is None or node.domain or tensor is not node.outputs[0]:
            continue
        if node.op == "QuantizeLinear":
            yield from _quantized(ranges, node, measured)
        elif node.op in _INTEGER_PRODUCTS:
            yield from _accumulated(ranges, node)


def _quantized(ranges: Ranges, node: Any, measured: Mapping[str, Interval]) -> Iterator[Finding]:
    dtype, scales = ranges.dtype(node.outputs[0]), ranges.constant(node.inputs[1])
    zero = ranges.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2].name else None
    if zero is not None:
        dtype = np.dtype(zero.dtype)
    if dtype is None or dtype.kind not in "iu" or scales is None or scales.size != 1:
        return  # of several scales each has a share of the input, whose bounds are those of the whole
    scale, point = float(scales.reshape(-1)[0]), 0 if zero is None else int(zero.reshape(-1)[0])
    source = node.inputs[0]
    known, seen = ranges.of(source), measured.get(source.name)
    low, high = ends(known)
    measured_low, measured_high = ends(seen)
    for found, is_measured in ((seen, True), (known, False)):
        if found is None or not found.is_bounded:
            continue
        cut = saturation(found, scale, point, dtype)
        if cut.is_cut:
            reaches = "reaches" if is_measured else "may reach"
            yield Finding(
                kind="saturation",
                certainty="measured" if is_measured else "possible",
                node=label(node),
                op=node.op,
                value=source.name,
                message=(
                    f"the input {reaches} from {found.low:.4g} to {found.high:.4g}, and {dtype.name} holds"
                    f" {cut.held.low:.4g} to {cut.held.high:.4g}"
                ),
                low=low,
                high=high,
                measured_low=measured_low,
                measured_high=measured_high,
            )
            return


def _accumulated(ranges: Ranges, node: Any) -> Iterator[Finding]:
    """int32 accumulators of a product of integers."""
    one, two = (ranges.of(node.inputs[place]) for place in (0, 1))
    terms = ranges.size(node.inputs[0], -1) or ranges.size(node.inputs[1], -2)
    if terms is not None and one.magnitude * two.magnitude * terms >= _ACCUMULATOR:
        message = f"the sum of {terms} products of {one.magnitude:.0f} and {two.magnitude:.0f} may leave 32 bits"
        yield Finding(kind="saturation", certainty="possible", node=label(node), op=node.op, message=message)
