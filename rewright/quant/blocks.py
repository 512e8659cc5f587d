"""Weights in blocks of few bits: how codes, scales and zero points are found, and how the kernels read them.

A matrix has a row for each output channel, (N, K), and is cut along K into blocks of ``block_size``, the last padded with zeros.
A weight w of a block with scale s and zero point z is stored as a code q of ``bits`` bits:

    q = clip(round(w / s) + z, 0, 2^bits - 1)        w ~ (q - z) * s

Symmetric blocks have z = 2^(bits-1), and s = (the element of largest magnitude, with its sign) / -2^(bits-1), so that this
element is met exactly and all codes are used. Others have s = (max - min) / (2^bits - 1) and z = round(-min / s), 0 being within.

Scales are rounded to the type in which they are stored before the codes are found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, Any]

HQQ_NORM: Final = 0.7
HQQ_STEPS: Final = 20
_HQQ_BETA: Final = 10.0
_HQQ_KAPPA: Final = 1.01

GPTQ_DAMPING: Final = 0.01
_WIDEST_IN_DOUBLE: Final = 4096


@dataclass(frozen=True)
class BlockFormat:
    """What a block looks like.

    Attributes:
        bits: of a code, 4 or 8.
        block_size: elements of a block.
        symmetric: whether the zero point is the middle of the range.
        dtype: of the scales, float32 or float16.
    """

    bits: int
    block_size: int
    symmetric: bool
    dtype: np.dtype[Any]

    @property
    def highest(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point of symmetric blocks, which kernels take where none is given."""
        return 1 << (self.bits - 1)

    def blocks_of(self, width: int) -> int:
        """Blocks of a row of ``width`` elements."""
        return -(-width // self.block_size)


@dataclass(frozen=True)
class Blocks:
    """Rows in blocks.

    Attributes:
        codes: uint8 (n, blocks, block_size).
        scales: (n, blocks) in the format's dtype.
        zero_points: uint8 (n, blocks), or floats in the dtype of the scales.
    """

    codes: Array
    scales: Array
    zero_points: Array

    def dequantized(self, width: int) -> Array:
        """float32 (n, width): what the kernels compute with."""
        offset = self.codes.astype(np.float32) - self.zero_points.astype(np.float32)[..., None]
        return (offset * self.scales.astype(np.float32)[..., None]).reshape(len(self.codes), -1)[:, :width]


def in_blocks(rows: Array, form: BlockFormat) -> Array:
    """float32 (n, blocks, block_size) of rows (n, K), padded with zeros."""
    count, width = rows.shape
    padded = np.zeros((count, form.blocks_of(width) * form.block_size), np.float32)
    padded[:, :width] = rows
    return padded.reshape(count, -1, form.block_size)


def ranges(blocks: Array, form: BlockFormat) -> tuple[Array, Array]:
    """Scales, as float32 rounded to the stored type, and zero points, as float32, of blocks (..., block_size)."""
    if form.symmetric:
        largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)[..., 0]
        scales = largest / np.float32(-form.middle)
    else:
        low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
        scales = (high - low) / np.float32(form.highest)
    scales = scales.astype(form.dtype).astype(np.float32)
    scales[scales == 0] = 1
    if form.symmetric:
        return scales, np.full_like(scales, form.middle)
    return scales, np.clip(np.round(-low / scales), 0, form.highest)


def _codes(blocks: Array, scales: Array, zero_points: Array, form: BlockFormat) -> Array:
    return np.clip(np.round(blocks / scales[..., None]) + zero_points[..., None], 0, form.highest)


def _made(blocks: Array, scales: Array, zero_points: Array, form: BlockFormat) -> Blocks:
    codes = _codes(blocks, scales, zero_points, form).astype(np.uint8)
    return Blocks(codes, scales.astype(form.dtype), zero_points.astype(np.uint8))


def round_to_nearest(rows: Array, form: BlockFormat) -> Blocks:
    """Each weight of rows (n, K) to the code that is nearest."""
    blocks = in_blocks(rows, form)
    return _made(blocks, *ranges(blocks, form), form)


def half_quadratic(rows: Array, form: BlockFormat) -> Blocks:
    """Scales and zero points that suit most weights of a block, whatever the few largest errors are.

    min over s and z of |W - s (q - z)|_p^p with p = 0.7 is split into steps that are alternated, with an auxiliary error E and a
    beta that grows:

        E = sign(R) max(|R| - |R|^(p-1) / beta, 0),  R = W - s (q - z)
        z = mean over the block of q - (W - E) / s, rounded, as kernels read whole zero points
        s = sum over the block of (q - z) (W - E) / sum of (q - z)^2

    E is found in units of the first scale, so that beta means the same for all weights. Symmetric blocks keep their z. A block
    keeps the best of all steps; the first of them is ``round_to_nearest``.

    Source: Badri and Shaji, Half-Quadratic Quantization of Large Machine Learning Models, 2023, which has the steps for E and z;
    that for s is the same least squares problem.
    """
    blocks = in_blocks(rows, form)
    scales, points = best_scales, best_points = ranges(blocks, form)
    least: Array = np.full(points.shape, np.inf, np.float32)
    beta, unit = _HQQ_BETA, np.abs(scales)[..., None]
    for _ in range(HQQ_STEPS):
        codes = _codes(blocks, scales, points, form)
        residual = blocks - (codes - points[..., None]) * scales[..., None]
        size = np.abs(residual)
        error: Array = np.asarray(np.power(size, np.float32(HQQ_NORM)).sum(-1))
        is_better = error < least
        least = np.where(is_better, error, least)
        best_scales, best_points = np.where(is_better, scales, best_scales), np.where(is_better, points, best_points)
        far = np.maximum(size / unit, np.finfo(np.float32).tiny)
        shrunk = np.maximum(far - far ** np.float32(HQQ_NORM - 1) / np.float32(beta), 0)
        target = blocks - np.sign(residual) * shrunk * unit
        if not form.symmetric:
            points = np.asarray(np.clip(np.round(np.mean(codes - target / scales[..., None], axis=-1)), 0, form.highest))
        offsets = codes - points[..., None]
        lengths = np.square(offsets).sum(-1)
        fitted = (offsets * target).sum(-1) / np.where(lengths > 0, lengths, 1)
        fitted = fitted.astype(form.dtype).astype(np.float32)
        scales = np.where(fitted != 0, fitted, scales)
        beta *= _HQQ_KAPPA
    return _made(blocks, best_scales, best_points, form)


def inverse_factor(moments: Array) -> Array:
    """The upper factor U with U^T U = (2 X^T X + damping)^-1 of the moments X^T X (K, K) of a product's input.

    The damping is ``GPTQ_DAMPING`` of the mean of the diagonal, more where the matrix is singular all the same; an input that was
    always zero stands for itself.

    Source: Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, arXiv 2210.17323.
    """
    hessian: Array = 2 * moments.astype(np.float64 if len(moments) <= _WIDEST_IN_DOUBLE else np.float32)
    diagonal = np.einsum("ii->i", hessian)
    mean = float(diagonal.mean()) or 1.0
    diagonal[diagonal == 0] = mean
    for damping in (GPTQ_DAMPING, 9 * GPTQ_DAMPING, 90 * GPTQ_DAMPING):
        diagonal += damping * mean
        try:
            return np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(hessian)).T, np.float32)
        except np.linalg.LinAlgError:
            continue
    raise np.linalg.LinAlgError("the moments of the input are no positive matrix")


def optimal_rounding(rows: Array, form: BlockFormat, factor: Array) -> Blocks:
    """Rounds the columns of rows (n, K) one after the other, and lets those to come make up for the error.

    With U from ``inverse_factor``, the error of column j, e = (w_j - (q_j - z) s) / U_jj, is spread: w_k -= e U_jk for k > j.
    Scales and zero points of a block are those of its weights when it is reached.

    Source: Frantar et al., GPTQ, arXiv 2210.17323, algorithm 1.
    """
    count, width = rows.shape
    work = np.array(rows, np.float32)
    made: list[Blocks] = []
    for start in range(0, width, form.block_size):
        stop = min(start + form.block_size, width)
        scales, zero_points = (found[:, 0] for found in ranges(in_blocks(work[:, start:stop], form), form))
        codes = np.repeat(zero_points[:, None], form.block_size, 1)
        errors = np.empty((count, stop - start), np.float32)
        for column in range(start, stop):
            weights = work[:, column]
            code = np.clip(np.round(weights / scales) + zero_points, 0, form.highest)
            errors[:, column - start] = error = (weights - (code - zero_points) * scales) / factor[column, column]
            codes[:, column - start] = code
            work[:, column + 1 : stop] -= np.outer(error, factor[column, column + 1 : stop])
        work[:, stop:] -= errors @ factor[start:stop, stop:]
        made.append(Blocks(codes.astype(np.uint8), scales.astype(form.dtype), zero_points.astype(np.uint8)))
    return Blocks(
        np.stack([each.codes for each in made], 1),
        np.stack([each.scales for each in made], 1),
        np.stack([each.zero_points for each in made], 1),
    )


def packed(codes: Array, bits: int) -> Array:
    """uint8: two codes of 4 bits in a byte along the last axis, the first in the low half; codes of 8 bits as they are."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], 1), np.uint8)], -1)
    low, high = codes[..., 0::2], codes[..., 1::2]
    found: Array = low | (high << 4)
    return found


def unpacked(stored: Array, bits: int, count: int) -> Array:
    """The first ``count`` codes along the last axis of what ``packed`` made."""
    if bits == 8:
        return stored[..., :count]
    halves = np.stack([stored & 15, stored >> 4], -1)
    found: Array = halves.reshape(*stored.shape[:-1], -1)[..., :count]
    return found
