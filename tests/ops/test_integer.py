"""The contracts of the dynamically quantized ops: their bodies against ONNX Runtime's own kernels."""

import numpy as np
import pytest
from one_node import assert_body_is_kernel

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 5, 8)).astype(np.float32)
BIAS = RNG.standard_normal(6).astype(np.float32)


def levels(dtype, *shape):
    return RNG.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)


def scales(*shape):
    return (RNG.random(shape) * 0.01 + 0.001).astype(np.float32)


PRODUCTS = {
    "int8 without zero points": (levels(np.int8, 8, 6), scales(6), None, None),
    "one scale and a bias": (levels(np.int8, 8, 6), scales(), None, BIAS),
    "uint8, a zero point for each column": (levels(np.uint8, 8, 6), scales(6), levels(np.uint8, 6), BIAS),
    "int8, one zero point": (levels(np.int8, 8, 6), scales(6), levels(np.int8), None),
    "a batch of weights": (levels(np.int8, 2, 8, 6), scales(2, 1, 6), None, None),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_is_what_its_body_computes(name):
    weight, scale, zero_point, bias = PRODUCTS[name]
    inputs = {"A": X, "B": weight, "b_scale": scale, "b_zero_point": zero_point, "bias": bias}
    assert_body_is_kernel("DynamicQuantizeMatMul", inputs)


@pytest.mark.parametrize("mask", [None, "raw", "lengths"])
@pytest.mark.parametrize("options", [{}, {"unidirectional": 1}, {"scale": 0.3, "mask_filter_value": -5.0}])
def test_attention_is_what_its_body_computes(mask, options):
    masks = {None: None, "raw": np.asarray([[0, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32), "lengths": np.asarray([3, 5], np.int32)}
    inputs = {
        "input": levels(np.uint8, 2, 5, 8),
        "weight": levels(np.int8, 8, 24),
        "bias": RNG.standard_normal(24).astype(np.float32),
        "input_scale": np.float32(0.02),
        "weight_scale": scales(24),
        "mask_index": masks[mask],
        "input_zero_point": np.uint8(117),
        "weight_zero_point": levels(np.int8, 24),
    }
    assert_attention(inputs, num_heads=2, **options)


def test_attention_with_a_past_is_what_its_body_computes():
    inputs = {
        "input": levels(np.uint8, 2, 3, 8),
        "weight": levels(np.int8, 8, 24),
        "bias": RNG.standard_normal(24).astype(np.float32),
        "input_scale": np.float32(0.02),
        "weight_scale": scales(),
        "mask_index": None,
        "input_zero_point": np.uint8(117),
        "weight_zero_point": np.int8(0),
        "past": RNG.standard_normal((2, 2, 2, 4, 4)).astype(np.float32),
    }
    assert_attention(inputs, ranks=(3, 5), num_heads=2, unidirectional=1)


def assert_attention(inputs, ranks=(3,), **options):
    assert_body_is_kernel("QAttention", inputs, ranks=ranks, kind=np.float32, **options)
