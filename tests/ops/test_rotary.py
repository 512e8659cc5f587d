"""RotaryEmbedding: the body against the CPU kernel, what the kernel takes, and where the standard op differs."""

import numpy as np
import onnx
import pytest
from one_node import assert_body_is_kernel, kernel, one_node

from rewright.model.load import load
from rewright.ops.lowering import lower

OP = "RotaryEmbedding"
ROWS = 9


class Sample:
    """x as (B, N, S, H) and (B, S, N*H), caches of ``width``, positions."""

    def __init__(self, batch=2, heads=2, queries=3, size=8, width=None):
        rng = np.random.default_rng(0)
        self.width = width or size // 2
        self.four = rng.standard_normal((batch, heads, queries, size)).astype(np.float32)
        self.three = merged(self.four)
        self.cos, self.sin = rng.standard_normal((2, ROWS, self.width)).astype(np.float32)
        self.positions = rng.integers(0, ROWS, (batch, queries))

    def inputs(self, value, positions=None):
        positions = self.positions if positions is None else positions
        return {"input": value, "position_ids": positions, "cos_cache": self.cos, "sin_cache": self.sin}

    def expected(self, interleaved=0, positions=None):
        positions = self.positions if positions is None else positions
        turning, kept = np.split(np.float64(self.four), [2 * self.width], -1)
        left, right = (turning[..., 0::2], turning[..., 1::2]) if interleaved else np.split(turning, 2, -1)
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        pair = [left * cos - right * sin, left * sin + right * cos]
        turned = np.stack(pair, -1).reshape(turning.shape) if interleaved else np.concatenate(pair, -1)
        return np.concatenate([turned, kept], -1)


def merged(value):
    batch, heads, queries, size = value.shape
    return np.ascontiguousarray(value.transpose(0, 2, 1, 3).reshape(batch, queries, heads * size))


def body_and_kernel(sample, value, expected, **kwargs):
    found = assert_body_is_kernel(OP, sample.inputs(value, kwargs.pop("positions", None)), (value.ndim,), **kwargs)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("opset", [11, 13, 17, 23])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("size", [2, 4, 6, 8, 10, 80])
def test_any_even_head_size_and_either_rank(size, interleaved, opset):
    sample = Sample(size=size)
    expected = sample.expected(interleaved)
    body_and_kernel(sample, sample.four, expected, interleaved=interleaved, opset=opset)
    body_and_kernel(sample, sample.three, merged(expected), interleaved=interleaved, opset=opset)
    body_and_kernel(sample, sample.three, merged(expected), interleaved=interleaved, opset=opset, num_heads=2)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize(("size", "width"), [(8, 1), (8, 2), (8, 3), (10, 2)])
def test_a_part_of_each_head(size, width, interleaved):
    sample = Sample(size=size, width=width)
    options = {"interleaved": interleaved, "num_heads": 2, "rotary_embedding_dim": 2 * width}
    body_and_kernel(sample, sample.four, sample.expected(interleaved), **options)
    body_and_kernel(sample, sample.three, merged(sample.expected(interleaved)), **options)


@pytest.mark.parametrize("missing", ["num_heads", "rotary_embedding_dim"])
def test_a_part_of_each_head_needs_both_attributes(missing):
    sample = Sample(width=2)
    options = {"num_heads": 2, "rotary_embedding_dim": 4}
    options.pop(missing)
    with pytest.raises(Exception, match=r"num_heads must be provided|cos_cache"):
        kernel(OP, sample.inputs(sample.four), (4,), **options)


@pytest.mark.parametrize("offset", [np.array([4]), np.array(4)])
def test_one_position_is_an_offset(offset):
    sample = Sample()
    expected = sample.expected(positions=np.broadcast_to(4 + np.arange(3), (2, 3)))
    body_and_kernel(sample, sample.four, expected, positions=offset)
    body_and_kernel(sample, sample.three, merged(expected), positions=offset)


def test_a_batch_and_a_query_of_one():
    sample = Sample(batch=1, queries=1)
    body_and_kernel(sample, sample.four, sample.expected())
    body_and_kernel(sample, sample.three, merged(sample.expected()), positions=sample.positions.reshape(1))


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (3,)])
def test_positions_do_not_broadcast(shape):
    sample = Sample()
    with pytest.raises(Exception, match="position_ids"):
        kernel(OP, sample.inputs(sample.four, np.zeros(shape, np.int64)), (4,))


def test_positions_stay_within_caches_that_have_a_row_for_each_query():
    sample = Sample()
    for positions in (np.full((2, 3), ROWS), np.full((2, 3), -1), np.array([ROWS - 2])):
        with pytest.raises(Exception, match="position_ids"):
            kernel(OP, sample.inputs(sample.four, positions), (4,))
    long = Sample(queries=ROWS + 1)
    with pytest.raises(Exception, match="cos_cache"):
        kernel(OP, long.inputs(long.four), (4,))


def test_scale_changes_nothing_in_the_kernel_and_is_not_described():
    sample = Sample()
    found = kernel(OP, sample.inputs(sample.four), (4,), scale=2.0)[0]
    np.testing.assert_allclose(found, sample.expected(), atol=1e-6)
    for options in ({"scale": 2.0}, {"is_packed_batching": 1}):
        model = load(one_node(OP, sample.inputs(sample.four), (4,), **options))
        assert lower(model, every=True) is model


def test_float16_and_empty_values():
    sample = Sample()
    half = {name: value.astype(np.float16) for name, value in sample.inputs(sample.four).items() if name != "position_ids"}
    inputs = {"input": half["input"], "position_ids": sample.positions} | half
    assert_body_is_kernel(OP, inputs, (4,), tolerance=5e-3)
    for empty in (Sample(batch=0), Sample(queries=0)):
        assert_body_is_kernel(OP, empty.inputs(empty.four), (4,))
        assert_body_is_kernel(OP, empty.inputs(empty.three), (3,), num_heads=2)


def test_shape_inference_sees_through_the_body():
    for shape in (["B", "S", 16], ["B", 2, "S", 8]):
        proto = one_node(OP, Sample().inputs(np.zeros([1] * len(shape), np.float32)), (len(shape),))
        proto.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("input", 1, shape))
        inferred = onnx.shape_inference.infer_shapes(lower(load(proto), every=True).proto, data_prop=True)
        dims = inferred.graph.output[0].type.tensor_type.shape.dim
        assert [dim.dim_param or dim.dim_value for dim in dims] == shape


def standard(sample, value, cos, sin, positions=None, **attributes):
    inputs = {"X": value, "cos_cache": cos, "sin_cache": sin, "position_ids": positions}
    return kernel(OP, inputs, (value.ndim,), opset=23, domain="", **attributes)[0]


@pytest.mark.parametrize("interleaved", [0, 1])
def test_the_standard_op_takes_rows_by_position_or_one_row_for_each_query(interleaved):
    sample = Sample(width=2)
    partial = {"interleaved": interleaved, "rotary_embedding_dim": 4}
    expected = sample.expected(interleaved)
    found = standard(sample, sample.four, sample.cos, sample.sin, sample.positions, **partial)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    cos, sin = sample.cos[sample.positions], sample.sin[sample.positions]
    np.testing.assert_allclose(standard(sample, sample.four, cos, sin, **partial), expected, atol=1e-6)
    found = standard(sample, sample.three, cos, sin, num_heads=2, **partial)
    np.testing.assert_allclose(found, merged(expected), atol=1e-6)
    with pytest.raises(Exception, match="num_heads attribute must be provided"):
        standard(sample, sample.three, cos, sin, **partial)


def test_caches_and_positions_of_the_standard_op_do_not_broadcast_over_the_batch():
    """The exporter writes caches of batch 1: such a model runs at batch 1 only."""
    sample = Sample()
    cos, sin = sample.cos[sample.positions[:1]], sample.sin[sample.positions[:1]]
    with pytest.raises(Exception, match="cos_cache"):
        standard(sample, sample.four, cos, sin)
    with pytest.raises(Exception, match="position_ids"):
        standard(sample, sample.four, sample.cos, sample.sin, sample.positions[:1])
    with pytest.raises(Exception, match="3 dimensions"):
        standard(sample, sample.four, sample.cos[:3], sample.sin[:3])
    one = standard(sample, sample.four[:1], cos, sin)
    np.testing.assert_allclose(one, sample.expected()[:1], atol=1e-6)
