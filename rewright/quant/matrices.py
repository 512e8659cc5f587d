"""One weight matrix, quantized in slices of rows, so that memory holds its codes and little more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from rewright.quant.blocks import Array, BlockFormat, Blocks, packed

Method = Callable[[Array, BlockFormat], Blocks]
"""float32 rows (n, K) -> their blocks."""

_ELEMENTS_AT_ONCE: Final = 1 << 21


class NotFiniteError(ValueError):
    """The matrix holds NaN or infinity, for which no scale is right."""


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix (N, K) of few bits, and what that cost.

    Attributes:
        codes: uint8 (N, blocks, block_size).
        scales: (N, blocks).
        zero_points: uint8 (N, blocks), or floats in the dtype of the scales.
        form: of the blocks.
        width: K.
        error: root mean square of the error relative to that of the weights.
        worst_channel, worst_error: the row whose relative error is the largest, and that error.
    """

    codes: Array
    scales: Array
    zero_points: Array
    form: BlockFormat
    width: int
    error: float
    worst_channel: int
    worst_error: float

    def blobs(self) -> Array:
        """uint8 (N, blocks, block_size * bits / 8): what MatMulNBits reads as B."""
        return packed(self.codes, self.form.bits)

    @property
    def has_whole_points(self) -> bool:
        """Whether zero points are codes, as all kernels but that of MatMulNBits want them."""
        return bool(self.zero_points.dtype.kind == "u")

    def packed_zero_points(self) -> Array:
        """uint8 (N, ceil(blocks * bits / 8)); floats (N, blocks) as they are."""
        return packed(self.zero_points, self.form.bits) if self.has_whole_points else self.zero_points

    def rows(self) -> Array:
        """uint8 (N, K): the codes without the padding."""
        return self.codes.reshape(len(self.codes), -1)[:, : self.width]


def quantize_matrix(matrix: Array, form: BlockFormat, method: Method) -> QuantizedMatrix:
    """Quantizes a matrix (N, K) of floats, row by row.

    Raises:
        NotFiniteError: it holds NaN or infinity.
    """
    count, width = matrix.shape
    codes = np.empty((count, form.blocks_of(width), form.block_size), np.uint8)
    scales, zero_points = np.empty(codes.shape[:2], form.dtype), np.empty(0, np.uint8)
    errors, sizes = np.zeros(count), np.zeros(count)
    step = max(1, _ELEMENTS_AT_ONCE // max(1, width))
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        rows = np.ascontiguousarray(matrix[part], np.float32)
        if not np.isfinite(rows).all():
            raise NotFiniteError
        blocks = method(rows, form)
        if not start:
            zero_points = np.empty(codes.shape[:2], blocks.zero_points.dtype)
        codes[part], scales[part], zero_points[part] = blocks.codes, blocks.scales, blocks.zero_points
        errors[part] = _squares(rows - blocks.dequantized(width))
        sizes[part] = _squares(rows)
    relative = np.sqrt(errors / np.where(sizes > 0, sizes, 1))
    worst = int(relative.argmax())
    total = float(sizes.sum())
    error = float(np.sqrt(errors.sum() / total)) if total else 0.0
    return QuantizedMatrix(codes, scales, zero_points, form, width, error, worst, float(relative[worst]))


def _squares(rows: Array) -> Array:
    found: Array = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    return found


def stored_bytes(count: int, width: int, form: BlockFormat, *, padded: bool) -> int:
    """Bytes of codes, scales and zero points of a matrix (N, K); ``padded`` where blocks are stored whole."""
    blocks = form.blocks_of(width)
    elements = blocks * form.block_size if padded else width
    zero_points = 0 if form.symmetric else -(-blocks * form.bits // 8)
    return count * (-(-elements * form.bits // 8) + blocks * form.dtype.itemsize + zero_points)


def dtype_of_codes(form: BlockFormat) -> Any:
    """The type that DequantizeLinear reads them in: signed without zero point, or unsigned with one."""
    import ml_dtypes

    if form.bits == 8:
        return np.dtype(np.int8 if form.symmetric else np.uint8)
    return np.dtype(ml_dtypes.int4 if form.symmetric else ml_dtypes.uint4)
