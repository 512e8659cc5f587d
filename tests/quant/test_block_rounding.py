"""Rows in blocks of few bits: each algorithm against what it promises, and how codes are packed."""

from __future__ import annotations

import numpy as np
import pytest

from rewright.quant.blocks import (
    HQQ_NORM,
    BlockFormat,
    half_quadratic,
    inverse_factor,
    optimal_rounding,
    packed,
    round_to_nearest,
    unpacked,
)
from rewright.quant.matrices import NotFiniteError, quantize_matrix, stored_bytes

RNG = np.random.default_rng(11)
FLOAT = np.dtype(np.float32)


def heavy_tailed(count, width):
    return RNG.standard_t(3, (count, width)).astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("width", [1, 31, 32, 80])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_no_weight_is_further_than_a_step_from_its_code(bits, symmetric, width, dtype):
    form = BlockFormat(bits, 32, symmetric, np.dtype(dtype))
    rows = heavy_tailed(7, width)
    blocks = round_to_nearest(rows, form)
    assert blocks.codes.shape == (7, -(-width // 32), 32)
    assert blocks.codes.max() <= form.highest
    assert blocks.scales.dtype == dtype
    step = np.repeat(np.abs(blocks.scales.astype(np.float32)), 32, 1)[:, :width]
    error = np.abs(rows - blocks.dequantized(width))
    assert (error <= (1.02 if symmetric else 0.52) * step + 1e-6).all()  # the opposite end of a symmetric block is cut by a step
    assert (error <= 0.51 * step).mean() > 0.9


def test_the_largest_weight_of_a_symmetric_block_and_zero_in_any_are_met_exactly():
    rows = np.asarray([[0.0, -3.2, 1.0, 0.5] * 4, [0.0, 3.2, -1.0, 0.0] * 4], np.float32)
    symmetric = round_to_nearest(rows, BlockFormat(4, 16, True, FLOAT)).dequantized(16)
    np.testing.assert_allclose(symmetric[:, 1], rows[:, 1], rtol=1e-6)
    for is_symmetric in (True, False):
        found = round_to_nearest(rows + 5 * (rows > 0), BlockFormat(4, 16, is_symmetric, FLOAT)).dequantized(16)
        assert not found[:, 0].any()


def test_a_block_of_zeros_stays_one():
    for method in (round_to_nearest, half_quadratic):
        for symmetric in (True, False):
            blocks = method(np.zeros((2, 40), np.float32), BlockFormat(4, 32, symmetric, FLOAT))
            assert np.isfinite(blocks.scales).all()
            assert not blocks.dequantized(40).any()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_half_quadratic_has_a_smaller_norm_of_errors_in_every_block(symmetric, bits):
    form = BlockFormat(bits, 32, symmetric, FLOAT)
    rows = heavy_tailed(16, 96)

    def norms(blocks):
        return (np.abs(rows - blocks.dequantized(96)) ** HQQ_NORM).reshape(16, 3, 32).sum(-1)

    nearest, found = norms(round_to_nearest(rows, form)), norms(half_quadratic(rows, form))
    assert (found <= nearest * (1 + 1e-5)).all()
    assert found.sum() < (0.98 if bits == 4 else 0.995) * nearest.sum()


def test_the_factor_is_that_of_the_damped_inverse():
    x = RNG.standard_normal((50, 6))
    moments = x.T @ x
    factor = inverse_factor(moments)
    assert np.allclose(factor, np.triu(factor))
    hessian = 2 * moments + 0.01 * np.trace(2 * moments) / 6 * np.eye(6)
    np.testing.assert_allclose(factor.T @ factor, np.linalg.inv(hessian), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("width", [64, 72])
def test_optimal_rounding_has_the_smaller_error_of_the_product(symmetric, width):
    form = BlockFormat(4, 32, symmetric, FLOAT)
    x = (RNG.standard_normal((200, 12)) @ RNG.standard_normal((12, width)) + 0.1 * RNG.standard_normal((200, width))).astype("f")
    x[:, 5] = 0  # an input that is never used
    rows = heavy_tailed(24, width)

    def error(blocks):
        return np.square(x @ (rows - blocks.dequantized(width)).T).sum()

    found = optimal_rounding(rows, form, inverse_factor(x.T @ x))
    assert found.codes.shape == (24, -(-width // 32), 32)
    assert error(found) < 0.6 * error(round_to_nearest(rows, form))


def test_optimal_rounding_of_inputs_that_do_not_correlate_is_rounding_to_nearest():
    form, rows = BlockFormat(4, 16, True, FLOAT), heavy_tailed(5, 48)
    found, nearest = optimal_rounding(rows, form, inverse_factor(np.eye(48, dtype=np.float32))), round_to_nearest(rows, form)
    np.testing.assert_array_equal(found.codes, nearest.codes)
    np.testing.assert_array_equal(found.scales, nearest.scales)


def test_moments_of_few_rows_have_a_factor():
    x = np.ones((1, 40), np.float32)
    assert np.isfinite(inverse_factor(x.T @ x)).all()
    assert np.isfinite(inverse_factor(np.zeros((4, 4), np.float32))).all()


def test_codes_of_four_bits_lie_low_half_first():
    assert packed(np.asarray([[1, 2, 3]], np.uint8), 4).tolist() == [[0x21, 0x03]]
    for bits, count in ((4, 7), (4, 8), (8, 5)):
        codes = RNG.integers(0, 1 << bits, (3, count)).astype(np.uint8)
        np.testing.assert_array_equal(unpacked(packed(codes, bits), bits, count), codes)


def test_a_matrix_tells_its_error_and_the_row_that_lost_most():
    rows = RNG.standard_normal((3000, 1000)).astype(np.float32)  # more than one slice
    rows[2500] = 0
    rows[2500, ::32] = 100
    rows[2500, 1::32] = 5
    form = BlockFormat(4, 32, True, FLOAT)
    found = quantize_matrix(rows, form, round_to_nearest)
    whole = round_to_nearest(rows, form)
    np.testing.assert_array_equal(found.codes, whole.codes)
    error = rows - whole.dequantized(1000)
    assert found.error == pytest.approx(np.linalg.norm(error) / np.linalg.norm(rows), rel=1e-4)
    each = np.linalg.norm(error, axis=1) / np.linalg.norm(rows, axis=1)
    assert (found.worst_channel, found.worst_error) == (each.argmax(), pytest.approx(each.max(), rel=1e-4))


def test_what_is_not_finite_is_refused():
    rows = np.zeros((4, 64), np.float32)
    rows[3, 60] = np.inf
    with pytest.raises(NotFiniteError):
        quantize_matrix(rows, BlockFormat(4, 32, True, FLOAT), round_to_nearest)


def test_bytes_are_those_of_what_is_stored():
    for width, symmetric in ((64, True), (80, False)):
        form = BlockFormat(4, 32, symmetric, FLOAT)
        found = quantize_matrix(heavy_tailed(6, width), form, round_to_nearest)
        arrays = [found.blobs(), found.scales, *([] if symmetric else [found.packed_zero_points()])]
        assert stored_bytes(6, width, form, padded=True) == sum(array.nbytes for array in arrays)
