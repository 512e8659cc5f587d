"""From what was seen of a value to the range that is quantized: what is outside of it is cut off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from rewright.quant.calibration.histogram import BINS, Array, Observed

Method = Literal["minmax", "entropy", "percentile", "distribution"]
METHODS: Final[tuple[Method, ...]] = ("minmax", "entropy", "percentile", "distribution")

Range = tuple[float, float]

_MAGNITUDES: Final = 2048
_CANDIDATE_STEP: Final = 8
_NEVER: Final = 1e-9
"""The share of numbers that a level which holds none is given, so that a logarithm stays finite."""


@dataclass(frozen=True)
class CalibrationMethod:
    """How a range is found.

    Attributes:
        name: "minmax": the extremes, or with ``moving_average`` the moving averages of the extremes of the input sets.
            "percentile": the middle ``percentile`` percent of all numbers. "entropy": the magnitude at which cutting off makes
            the distribution of magnitudes, in ``levels`` levels, differ the least from what it is (Kullback-Leibler).
            "distribution": ``deviations`` standard deviations on either side of the mean. No range is wider than the extremes.
        averaging: how much of a moving average the newest input set is.
    """

    name: Method = "minmax"
    moving_average: bool = False
    averaging: float = 0.01
    percentile: float = 99.999
    levels: int = 128
    deviations: float = 6.0

    @property
    def needs_histogram(self) -> bool:
        """Whether numbers have to be counted."""
        return self.name in ("entropy", "percentile")

    def range_of(self, seen: Observed) -> Range | None:
        """The range of a value; None where no finite number was seen."""
        if not seen.count:
            return None
        if self.name == "minmax":
            return (seen.averaged_low, seen.averaged_high) if self.moving_average else (seen.low, seen.high)
        if self.name == "percentile":
            low, high = percentiles(seen, self.percentile)
        elif self.name == "entropy":
            threshold = entropy_threshold(seen, self.levels)
            low, high = -threshold, threshold
        else:
            reach = self.deviations * seen.deviation
            low, high = seen.mean - reach, seen.mean + reach
        return max(low, seen.low), min(high, seen.high)


def percentiles(seen: Observed, percentile: float) -> Range:
    """Between which two numbers the middle ``percentile`` percent are, each to within the width of a bin."""
    cut = (100.0 - percentile) / 200.0
    cumulative = np.cumsum(seen.bins) / seen.count
    first = int(np.searchsorted(cumulative, cut, side="right"))
    last = int(np.searchsorted(cumulative, 1.0 - cut, side="left"))
    return (first - BINS // 2) * seen.width, (min(last, BINS - 1) + 1 - BINS // 2) * seen.width


def entropy_threshold(seen: Observed, levels: int) -> float:
    """The magnitude to cut off at, in 2048 steps from 0 to the largest.

    Source: S. Migacz, 8-bit inference with TensorRT, 2017.
    """
    folded = seen.bins[BINS // 2 :] + seen.bins[BINS // 2 - 1 :: -1]
    magnitudes = folded.reshape(_MAGNITUDES, -1).sum(1)
    width = seen.width * (folded.size // _MAGNITUDES)
    occupied = np.flatnonzero(magnitudes)
    used = int(occupied[-1]) + 1
    candidates = [*range(levels, used, _CANDIDATE_STEP), used]
    if used <= levels:
        return used * width
    best: int = min(candidates, key=lambda kept: _divergence(magnitudes, kept, levels))
    return best * width


def _divergence(magnitudes: Array, kept: int, levels: int) -> float:
    """Of the distribution that has everything beyond ``kept`` bins in the last of them, from what ``levels`` levels say of it."""
    inside = magnitudes[:kept].astype(np.float64)
    wanted = inside.copy()
    wanted[-1] += magnitudes[kept:].sum()
    level = np.arange(kept) * levels // kept
    is_there = wanted > 0
    sums = np.bincount(level, inside, minlength=levels)
    places = np.bincount(level, is_there, minlength=levels)
    spread: Any = np.divide(sums, places, out=np.zeros(levels), where=places > 0)[level][is_there]
    wanted = wanted[is_there] / wanted.sum()
    spread = np.maximum(spread / max(spread.sum(), 1.0), _NEVER)
    return float((wanted * np.log(wanted / spread)).sum())
