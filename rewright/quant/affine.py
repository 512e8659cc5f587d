"""Eight-bit numbers for the weights of a matrix: one scale and zero point for each channel, or one for all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

Array = np.ndarray[Any, Any]
IntegerType = Literal["int8", "uint8"]
StoredType = Literal["int8", "uint8", "int16", "uint16", "int4", "uint4"]

_ELEMENTS_AT_ONCE: Final = 1 << 22
_FULL: Final = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "uint16": (0, 65535),
    "int4": (-8, 7),
    "uint4": (0, 15),
}
_REDUCED: Final = {"int8": (-64, 63), "uint8": (0, 127)}
_MOST_OF_A_PAIR: Final = 128
"""255 * 128 is the largest product of an activation and the sum of two weights that 16 bits hold."""


@dataclass(frozen=True)
class Levels:
    """Which integers stand for weights.

    Attributes:
        dtype: "int8" or "uint8"; for some passes also those of 16 and of 4 bits.
        symmetric: the zero point is the middle, such as 0 or 128, and the largest magnitude gets the last level; else the zero
            point is where the range from the least to the largest value, 0 included, puts it.
        reduced: seven bits instead of eight, whose products in pairs fit into 16 bits.
    """

    dtype: StoredType = "int8"
    symmetric: bool = True
    reduced: bool = False

    @property
    def ends(self) -> tuple[int, int]:
        """The least and the largest integer."""
        return (_FULL | _REDUCED if self.reduced else _FULL)[self.dtype]

    def parameters(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Scale (float32) and zero point for values from ``low`` to ``high``, arrays of one shape."""
        first, last = self.ends
        low, high = np.minimum(low, 0.0).astype(np.float64), np.maximum(high, 0.0).astype(np.float64)
        if self.symmetric:
            middle = (first + last + 1) // 2
            scale = np.maximum(-low, high) / (last - middle)
        else:
            scale = (high - low) / (last - first)
        scale = scale.astype(np.float32)
        scale = np.where(scale > 0, scale, np.float32(1.0)).astype(np.float32)  # a channel of zeros, or of next to nothing
        if self.symmetric:
            return scale, np.full(scale.shape, middle, self.dtype)
        return scale, np.clip(np.rint(first - low / scale), first, last).astype(self.dtype)


@dataclass(frozen=True)
class Quantized:
    """Integers that stand for weights, value = (levels - zero_point) * scale, and what that costs.

    Attributes:
        levels: of the weight's shape.
        scale, zero_point: of shape (channels), or scalars.
        error: root mean square of the difference, relative to that of the weight.
        worst_channel, worst_error: the channel whose own relative error is the largest; None for a single scale.
    """

    levels: Array
    scale: Array
    zero_point: Array
    error: float
    worst_channel: int | None = None
    worst_error: float | None = None

    @property
    def nbytes(self) -> int:
        """Of levels, scales and zero points."""
        return int(self.levels.nbytes + self.scale.nbytes + self.zero_point.nbytes)


def quantized(weight: Array, axis: int | None, levels: Levels) -> Quantized | None:
    """The weight in integers; None where it holds a value that is not finite. Memory beyond the result is bounded.

    Args:
        weight: floats of shape (A, B); a mapped file is read in parts.
        axis: of the channels, or None for one scale.
        levels: which integers.
    """
    channels = 1 if axis is None else weight.shape[axis]
    low, high = np.zeros(channels), np.zeros(channels)
    for part in _parts(weight.shape, axis):
        block = weight[part]
        where = slice(None) if axis is None else part[axis]
        over = tuple(range(weight.ndim)) if axis is None else 1 - axis
        low[where] = np.minimum(low[where], block.min(axis=over, initial=0.0))
        high[where] = np.maximum(high[where], block.max(axis=over, initial=0.0))
        if not np.isfinite(block.sum(dtype=np.float64)):
            return None
    scale, zero_point = levels.parameters(low, high)
    result, noise, signal = np.empty(weight.shape, levels.dtype), np.zeros(channels), np.zeros(channels)
    for part in _parts(weight.shape, axis):
        block = weight[part].astype(np.float32, copy=False)
        where = slice(None) if axis is None else part[axis]
        scales, zeros = (_along(array[where], axis) for array in (scale, zero_point))
        rounded = np.rint(block / scales)
        rounded += zeros
        np.clip(rounded, *levels.ends, out=rounded)
        result[part] = rounded
        rounded -= zeros
        rounded *= scales
        rounded -= block
        over = tuple(range(weight.ndim)) if axis is None else 1 - axis
        noise[where] += np.square(rounded).sum(axis=over, dtype=np.float64)
        signal[where] += np.square(block).sum(axis=over, dtype=np.float64)
    error = _relative(noise.sum(), signal.sum())
    if axis is None:
        return Quantized(result, scale.reshape(()), zero_point.reshape(()), error)
    shares = np.sqrt(np.divide(noise, signal, out=np.zeros(channels), where=signal > 0))
    worst = int(shares.argmax()) if channels else None
    return Quantized(result, scale, zero_point, error, worst, None if worst is None else float(shares[worst]))


def rounding_error(weight: Array, levels: Array, scale: Array, zero_point: Array, axis: int | None) -> float:
    """Root mean square of what levels stand for, less the weight, relative to that of the weight; read in parts.

    Args:
        weight, levels: of one shape.
        scale, zero_point: of shape (channels) along ``axis``, or scalars where that is None.
    """
    along = [1] * weight.ndim
    if axis is not None:
        along[axis] = -1
    scales, zeros = (np.asarray(each).astype(np.float64).reshape(along) for each in (scale, zero_point))
    noise = signal = 0.0
    rows = max(_ELEMENTS_AT_ONCE // max(int(np.prod(weight.shape[1:])), 1), 1)
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        block = weight[part].astype(np.float64)
        its_scales, its_zeros = (each[part] if axis == 0 else each for each in (scales, zeros))
        noise += float(np.square((levels[part].astype(np.float64) - its_zeros) * its_scales - block).sum())
        signal += float(np.square(block).sum())
    return _relative(noise, signal)


def saturating_columns(levels: Array, axis: int) -> int:
    """How many columns can make a sum of two products with uint8 activations leave 16 bits; worked out from the weights alone.

    On x86 without VNNI, products of uint8 and int8 are added up in pairs along the summed axis, in 16 bits that saturate:
    255 * (w[2i] + w[2i + 1]) has to stay below 2^15, each activation being anything from 0 to 255.

    Args:
        levels: int8 of shape (A, B); zero points are taken away after the sum, and of no matter.
        axis: of the columns; the other one is summed over.
    """
    count = 0
    for part in _parts(levels.shape, axis):
        block = levels[part].T if axis == 0 else levels[part]
        even = block.shape[0] // 2 * 2
        first, second = (block[start:even:2].astype(np.int16) for start in (0, 1))
        above = np.maximum(first, 0) + np.maximum(second, 0)
        below = np.minimum(first, 0) + np.minimum(second, 0)
        count += int(((above > _MOST_OF_A_PAIR) | (below < -_MOST_OF_A_PAIR)).any(axis=0).sum())
    return count


def _relative(noise: float, signal: float) -> float:
    return float(np.sqrt(noise / signal)) if signal > 0 else 0.0


def _along(array: Array, axis: int | None) -> Array:
    if axis is None:
        return array.reshape(1, 1).astype(np.float32)
    return array.reshape((-1, 1) if axis == 0 else (1, -1)).astype(np.float32)


def _parts(shape: tuple[int, ...], axis: int | None) -> Iterator[tuple[slice, slice]]:
    """Blocks of whole channels, or of whole rows, with a bounded number of elements."""
    along = 0 if axis is None else axis
    length, other = shape[along], max(shape[1 - along], 1)
    step = max(_ELEMENTS_AT_ONCE // other, 1)
    for start in range(0, length, step):
        part = [slice(None), slice(None)]
        part[along] = slice(start, start + step)
        yield part[0], part[1]
