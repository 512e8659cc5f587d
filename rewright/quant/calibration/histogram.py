"""What is kept of the numbers of one value while data streams by: extremes, moments and a histogram, all of a fixed size.

The bins of a histogram are powers of two wide, and their whole range reaches to the next power of two above the largest magnitude
that was seen. When a larger one comes, the range doubles and neighbouring bins are merged. Which bin a number is in then depends
on the number and the final range alone: the result is the histogram of all data at once, whatever its order and its batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, Any]

BINS: Final = 8192
_AT_ONCE: Final = 1 << 20
_LEAST_EXPONENT: Final = -100
_FIELDS: Final = ("count", "skipped", "low", "high", "mean", "squares", "averaged_low", "averaged_high", "batches", "exponent")


@dataclass
class Observed:
    """The numbers of one value.

    Attributes:
        with_histogram: whether the numbers are counted in bins; extremes and moments need none.
        averaging: how much of the moving average of a batch's extremes is the newest batch.
        count: of finite numbers; ``skipped`` of others.
        low, high: the extremes.
        mean, squares: the mean, and the sum of squared differences from it.
        averaged_low, averaged_high: the moving averages of the extremes of batches.
        exponent: the histogram goes from -2**exponent to 2**exponent.
        bins: of shape (BINS,), int64.
    """

    with_histogram: bool = False
    averaging: float = 0.01
    count: int = 0
    skipped: int = 0
    low: float = math.inf
    high: float = -math.inf
    mean: float = 0.0
    squares: float = 0.0
    averaged_low: float = 0.0
    averaged_high: float = 0.0
    batches: int = 0
    exponent: int = _LEAST_EXPONENT
    bins: Array = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)

    def __post_init__(self) -> None:
        if self.with_histogram and not self.bins.size:
            self.bins = np.zeros(BINS, np.int64)

    @property
    def width(self) -> float:
        """Of a bin."""
        return math.ldexp(2.0, self.exponent) / BINS

    @property
    def deviation(self) -> float:
        """The standard deviation."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def add(self, batch: Array) -> None:
        """Takes in one batch of floats of any shape; numbers that are not finite are left out. It is read in parts."""
        flat = batch.reshape(-1)
        low, high = math.inf, -math.inf
        for start in range(0, flat.size, _AT_ONCE):
            part = flat[start : start + _AT_ONCE]
            finite = np.isfinite(part)
            if not finite.all():
                self.skipped += int(part.size - finite.sum())
                part = part[finite]
            if not part.size:
                continue
            low, high = min(low, float(part.min())), max(high, float(part.max()))
            self._add_moments(part)
            if self.with_histogram:
                self._count(part)
        if low > high:
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        share = self.averaging if self.batches else 1.0
        self.averaged_low += share * (low - self.averaged_low)
        self.averaged_high += share * (high - self.averaged_high)
        self.batches += 1

    def _add_moments(self, part: Array) -> None:
        """Merges the moments of a part, by Chan, Golub and LeVeque's update."""
        mean = float(part.mean(dtype=np.float64))
        squares = float(np.square(part - mean, dtype=np.float64).sum())
        total, difference = self.count + part.size, mean - self.mean
        self.squares += squares + difference * difference * self.count * part.size / total
        self.mean += difference * part.size / total
        self.count = total

    def _count(self, part: Array) -> None:
        largest = max(float(part.max()), -float(part.min()))
        self._reach(math.frexp(largest)[1] if largest else _LEAST_EXPONENT)
        # dividing by a power of two is exact, and so is flooring: no number is ever in the neighbouring bin
        places = np.floor(np.ldexp(part.astype(np.float64), (BINS.bit_length() - 2) - self.exponent)).astype(np.int64)
        places += BINS // 2
        np.clip(places, 0, BINS - 1, out=places)
        self.bins += np.bincount(places, minlength=BINS)

    def _reach(self, exponent: int) -> None:
        """Doubles the range until 2**exponent is in it."""
        while self.exponent < exponent:
            if not self.bins.any():
                self.exponent = exponent
                return
            merged = np.zeros_like(self.bins)
            merged[BINS // 4 : 3 * BINS // 4] = self.bins.reshape(-1, 2).sum(1)
            self.bins = merged
            self.exponent += 1


def save(path: str, observed: list[Observed]) -> None:
    """Writes the states of several values, all with histograms or all without."""
    numbers = {name: np.array([getattr(each, name) for each in observed]) for name in _FIELDS}
    numbers["bins"] = np.stack([each.bins for each in observed])
    with open(path, "wb") as file:
        np.savez(file, allow_pickle=False, **numbers)


def restore(path: str, *, with_histogram: bool, averaging: float) -> list[Observed]:
    """What ``save`` has written."""
    with np.load(path, allow_pickle=False) as archive:
        bins, numbers = archive["bins"], {name: archive[name].tolist() for name in _FIELDS}
    return [
        Observed(with_histogram, averaging, **{name: numbers[name][place] for name in _FIELDS}, bins=row.copy())
        for place, row in enumerate(bins)
    ]
