"""Bounds of constants, and sums over the columns of weights, read in blocks so that no weight is in memory as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from rewright.verify.static.interval import Interval

Array = np.ndarray[Any, Any]

_BLOCK: Final = 1 << 22
"""Elements that are converted at once."""


def bounds_of(array: Array) -> Interval | None:
    """From the smallest to the largest element, NaN aside; None for strings and where there is no number."""
    if array.dtype.kind in "OSUc" or array.size == 0:
        return None
    low, high = math.inf, -math.inf
    for block in _blocks(array.reshape(-1)):
        low = min(low, float(np.fmin.reduce(block)))
        high = max(high, float(np.fmax.reduce(block)))
    return Interval(low, high) if low <= high else None


@dataclass(frozen=True)
class Columns:
    """For each output of ``x @ weight``: sums over the weights that it is made with.

    Attributes:
        sums: of the weights.
        magnitudes: of their absolute values.
        norms: the root of the sum of their squares.
        terms: how many there are.
    """

    sums: Array
    magnitudes: Array
    norms: Array
    terms: int

    def times(self, x: Interval, norm: float | None = None, bias: Array | None = None) -> tuple[Interval, float]:
        """The interval of ``x @ weight + bias`` for elements of ``x`` in an interval, and the sum of magnitudes that rounds.

        Args:
            x: what each element of ``x`` is in.
            norm: a bound of the Euclidean norm of each row of ``x``, if there is one.
            bias: one number for each output.
        """
        if self.sums.size == 0:
            return Interval(0.0, 0.0), 0.0
        offset = 0.0 if bias is None else bias
        if not x.is_bounded:
            if float(self.magnitudes.max()) > 0:
                return Interval(-math.inf, math.inf), math.inf
            x = Interval(0.0, 0.0)
        centre, radius = (x.low + x.high) / 2, (x.high - x.low) / 2
        low = centre * self.sums - radius * self.magnitudes
        high = centre * self.sums + radius * self.magnitudes
        if norm is not None:
            low, high = np.maximum(low, -norm * self.norms), np.minimum(high, norm * self.norms)
        total = float(self.magnitudes.max()) * x.magnitude + (0.0 if bias is None else float(np.abs(bias).max(initial=0.0)))
        return Interval(float((low + offset).min()), float((high + offset).max())), total


def columns_of(array: Array, contracted: tuple[int, ...]) -> Columns | None:
    """The sums over the axes ``contracted``; None for an array of strings."""
    if array.dtype.kind in "OSUc":
        return None
    axes = tuple(axis % array.ndim for axis in contracted)
    kept = [axis for axis in range(array.ndim) if axis not in axes]
    terms = math.prod(array.shape[axis] for axis in axes)
    rows = array.transpose(*axes, *kept).reshape(terms, -1)  # no copy of a matrix
    width = rows.shape[1]
    sums, magnitudes, squares = np.zeros(width), np.zeros(width), np.zeros(width)
    step = max(1, _BLOCK // max(width, 1))
    for start in range(0, terms, step):
        block = _numbers(rows[start : start + step])
        sums += block.sum(axis=0, dtype=np.float64)
        magnitudes += np.abs(block).sum(axis=0, dtype=np.float64)
        squares += np.einsum("ij,ij->j", block, block, dtype=np.float64)
    if not np.isfinite(magnitudes).all():
        return None
    # the sums themselves are rounded: upwards, where they bound something
    return Columns(sums, magnitudes * (1 + 1e-12), np.sqrt(squares) * (1 + 1e-6), terms)


def _blocks(flat: Array) -> Iterator[Array]:
    for start in range(0, flat.size, _BLOCK):
        yield _numbers(flat[start : start + _BLOCK])


def _numbers(block: Array) -> Array:
    """The block in a type that numpy calculates with."""
    if block.dtype.kind in "biu":
        return block.astype(np.float64)
    return block if block.dtype in (np.float32, np.float64) else block.astype(np.float32)
