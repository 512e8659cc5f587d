"""Intervals of the numbers that a value can hold, and arithmetic on them that never loses one.

An interval speaks of numbers: infinities included where an end is infinite, NaN never. ``0 * inf`` is 0, because an infinite end
stands for "any size", and what really is infinite times zero is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from math import inf
from typing import Any, Final

import ml_dtypes
import numpy as np

DType = np.dtype[Any]

ROUNDINGS: Final = 8
"""Half units in the last place by which one op's result may be off; ONNX Runtime's transcendental functions need four."""


@dataclass(frozen=True, slots=True)
class Interval:
    """All numbers from ``low`` to ``high``."""

    low: float
    high: float

    @property
    def magnitude(self) -> float:
        """The largest absolute value."""
        return max(abs(self.low), abs(self.high))

    @property
    def is_bounded(self) -> bool:
        """Whether both ends are finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def is_number(self) -> bool:
        """Whether there is one number in it, which is finite."""
        return self.low == self.high and math.isfinite(self.low)

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high

    def __neg__(self) -> Interval:
        return Interval(-self.high, -self.low)

    def __add__(self, other: Interval) -> Interval:
        return Interval(_sum(self.low, other.low, -inf), _sum(self.high, other.high, inf))

    def __sub__(self, other: Interval) -> Interval:
        return self + -other

    def __mul__(self, other: Interval) -> Interval:
        corners = [product(one, two) for one in (self.low, self.high) for two in (other.low, other.high)]
        return Interval(min(corners), max(corners))

    def __truediv__(self, other: Interval) -> Interval:
        # a zero at the end is refused too: it may be a negative zero, which turns the sign of the infinity
        return ANYTHING if 0.0 in other else self * other.reciprocal()

    def reciprocal(self) -> Interval:
        """1 / x, for intervals without zero."""
        return ANYTHING if 0.0 in self else Interval(1.0 / self.high, 1.0 / self.low)

    def join(self, *others: Interval) -> Interval:
        """The smallest interval that holds both."""
        return Interval(min(self.low, *(other.low for other in others)), max(self.high, *(other.high for other in others)))

    def meet(self, other: Interval) -> Interval:
        """What is in both; ``other`` where nothing is."""
        low, high = max(self.low, other.low), min(self.high, other.high)
        return Interval(low, high) if low <= high else other

    def mapped(self, function: Callable[[float], float]) -> Interval:
        """The image under a function that never falls."""
        return Interval(function(self.low), function(self.high))


ANYTHING: Final = Interval(-inf, inf)
ZERO: Final = Interval(0.0, 0.0)
TRUTH: Final = Interval(0.0, 1.0)
NOT_NEGATIVE: Final = Interval(0.0, inf)


def hull(intervals: Iterable[Interval]) -> Interval:
    """The smallest interval that holds all of them; anything if there is none."""
    first, *rest = list(intervals) or [ANYTHING]
    return first.join(*rest) if rest else first


def product(one: float, two: float) -> float:
    """``one * two``, where zero times anything is zero."""
    return 0.0 if one == 0.0 or two == 0.0 else one * two


def scaled(interval: Interval, factor: float) -> Interval:
    """``factor`` times the interval."""
    return interval * Interval(factor, factor)


def _sum(one: float, two: float, undecided: float) -> float:
    total = one + two
    return undecided if math.isnan(total) else total


@dataclass(frozen=True, slots=True)
class Format:
    """What an element type can hold.

    Attributes:
        largest, smallest: the ends of its numbers; infinities aside.
        unit: half the distance from 1 to the next number; 0 for integers.
        tiny: the smallest positive normal number; 0 for integers.
        least: the smallest positive number, subnormal ones included; 1 for integers.
    """

    smallest: float
    largest: float
    unit: float
    tiny: float
    least: float

    @property
    def is_float(self) -> bool:
        """Whether it rounds."""
        return self.unit > 0


@cache
def format_of(dtype: DType | None) -> Format:
    """The format of an element type; the widest range and the coarsest rounding where it is unknown."""
    if dtype is None:
        return Format(-inf, inf, 2.0**-9, 2.0**-126, 2.0**-149)
    if dtype.kind == "b":
        return Format(0, 1, 0, 0, 1)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return Format(float(limits.min), float(limits.max), 0, 0, 1)
    try:
        found: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    except (TypeError, ValueError):  # strings, complex numbers, integers of four bits
        return Format(-inf, inf, 2.0**-9, 2.0**-126, 2.0**-149)
    return Format(float(found.min), float(found.max), float(found.eps) / 2, float(found.tiny), float(found.smallest_subnormal))


def rounded(interval: Interval, dtype: DType | None, error: float = 0.0, is_once: bool = False) -> Interval:
    """The interval of results as ``dtype`` holds them: widened by rounding, infinite where it overflows.

    Args:
        interval: of the exact results.
        error: what they may be off by, beside one rounding of the result.
        is_once: whether the exact result is rounded and nothing else, as IEEE 754 has it for arithmetic. What an approximation
            gives may be zero below the smallest normal number.
    """
    held = format_of(dtype)
    if not held.is_float:
        # the largest integer of 64 bits is none of float64, which rounds it up
        inside = interval.low >= held.smallest and interval.high < held.largest + (held.largest < 2.0**53)
        if not inside:
            return Interval(held.smallest, held.largest)  # integers wrap around
        slack = interval.magnitude * 2.0**-52 if interval.magnitude > 2.0**52 else 0.0
        return Interval(max(interval.low - slack, held.smallest), min(interval.high + slack, held.largest))
    unit = max(held.unit, 2.0**-52) * ROUNDINGS
    slack = (held.least if is_once else held.tiny) + error
    low = interval.low - abs(interval.low) * unit - slack if interval.low > -inf else -inf
    high = interval.high + abs(interval.high) * unit + slack if interval.high < inf else inf
    # Rounding never crosses zero; the error of a sum does.
    if interval.low >= 0.0 and error == 0.0:
        low = max(low, 0.0)
    if interval.high <= 0.0 and error == 0.0:
        high = min(high, 0.0)
    low = -inf if low < held.smallest else min(low, held.largest)
    high = inf if high > held.largest else max(high, held.smallest)
    return Interval(low, high)
