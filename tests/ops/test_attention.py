"""Attention and MultiHeadAttention: the bodies against the CPU kernels, and what the kernels do that passes rely on."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from one_node import assert_body_is_kernel, kernel, lowered, one_node

from rewright.model.load import load
from rewright.ops.lowering import lower

LOWEST = np.finfo(np.float32).min
OPSETS = [11, 13, 14, 17, 18, 20, 23]


class Sample:
    """Operands of one attention: B batch, S queries, T keys, N heads, H and V head sizes."""

    def __init__(self, b=2, s=3, t=4, n=2, h=4, v=None, seed=0):
        self.rng = np.random.default_rng(seed)
        self.B, self.S, self.T, self.N, self.H, self.V = b, s, t, n, h, v or h
        self.query, self.key, self.value = self.draw(b, s, n * h), self.draw(b, t, n * h), self.draw(b, t, n * self.V)

    def draw(self, *shape):
        return self.rng.standard_normal(shape).astype(np.float32)

    def heads_first(self, value):
        return np.ascontiguousarray(value.reshape(self.B, self.T, self.N, -1).transpose(0, 2, 1, 3))

    def inputs(self, **more):
        names = ("query", "key", "value", "bias", "key_padding_mask", "attention_bias", "past_key", "past_value")
        given = {"query": self.query, "key": self.key, "value": self.value} | more
        return {name: given.get(name) for name in names}

    def expected(self, added=0.0, scale=None):
        """In float64; ``added`` broadcasts to (B, N, S, T)."""
        split = [
            np.float64(item).reshape(self.B, -1, self.N, size).transpose(0, 2, 1, 3)
            for item, size in ((self.query, self.H), (self.key, self.H), (self.value, self.V))
        ]
        scores = split[0] @ split[1].transpose(0, 1, 3, 2) * (scale or self.H**-0.5) + added
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        result = (weights / weights.sum(-1, keepdims=True)) @ split[2]
        return result.transpose(0, 2, 1, 3).reshape(self.B, self.S, -1)

    def mask(self, form):
        """An int32 mask of a form; the last sequence keeps nothing."""
        B, S, T = self.B, self.S, self.T
        lengths = self.rng.integers(1, T + 1, B)
        lengths[-1] = 0
        return {
            "lengths": lengths,
            "ends and starts": np.concatenate([lengths, np.minimum(lengths, self.rng.integers(0, T, B))]),
            "cumulated": np.concatenate([lengths, np.arange(B + 1) * S, np.arange(B + 1) * T]),
            "raw": np.arange(T) < lengths[:, None],
            "left": np.arange(T) >= T - lengths[:, None],
            "signed": np.where(np.arange(T) < lengths[:, None], 2, -1),
            "3-D": (self.rng.random((B, S, T)) < 0.5) & (np.arange(B) < B - 1)[:, None, None],
        }[form].astype(np.int32)


MASKS = ["lengths", "cumulated", "raw", "left", "signed", "3-D"]


@pytest.mark.parametrize("opset", OPSETS)
def test_multi_head_attention_without_mask(opset):
    sample = Sample(t=5, v=6)
    found = assert_body_is_kernel("MultiHeadAttention", sample.inputs(), num_heads=2, opset=opset)
    np.testing.assert_allclose(found[0], sample.expected(), atol=1e-6)
    assert_body_is_kernel("MultiHeadAttention", sample.inputs(bias=sample.draw(28)), num_heads=2, opset=opset)
    assert_body_is_kernel("MultiHeadAttention", sample.inputs(), (3, 4, 4), num_heads=2, opset=opset)


@pytest.mark.parametrize("scale", [0.3, 1.0, -0.5])
def test_the_scale_counts_with_and_without_attention_bias_and_zero_is_the_default(scale):
    sample = Sample()
    zeros = np.zeros((1, 1, 3, 4), np.float32)
    for inputs in (sample.inputs(), sample.inputs(attention_bias=zeros)):  # the flash path, and the other
        found = assert_body_is_kernel("MultiHeadAttention", inputs, num_heads=2, scale=scale)
        np.testing.assert_allclose(found[0], sample.expected(scale=scale), atol=1e-6)
        zero = kernel("MultiHeadAttention", inputs, num_heads=2, scale=0.0)
        np.testing.assert_allclose(zero[0], sample.expected(), atol=1e-6)


def test_key_and_value_with_heads_first_get_no_part_of_the_bias():
    sample = Sample(t=5)
    four = {"key": sample.heads_first(sample.key), "value": sample.heads_first(sample.value)}
    found = assert_body_is_kernel("MultiHeadAttention", sample.inputs(**four), (3, 4, 4), num_heads=2)
    np.testing.assert_allclose(found[0], sample.expected(), atol=1e-6)
    bias = sample.draw(24)
    found = assert_body_is_kernel("MultiHeadAttention", sample.inputs(**four, bias=bias), num_heads=2)
    sample.query = sample.query + bias[:8]
    np.testing.assert_allclose(found[0], sample.expected(), atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 2, 4, 5), (1, 2, 4, 5), (3, 1, 4, 5), (1, 1, 4, 5)])
def test_batch_and_heads_of_an_attention_bias_broadcast(shape):
    sample = Sample(b=3, s=4, t=5)
    bias = sample.draw(*shape)
    for keys in ({}, {"key": sample.heads_first(sample.key), "value": sample.heads_first(sample.value)}):
        inputs = sample.inputs(attention_bias=bias, **keys)
        found = assert_body_is_kernel("MultiHeadAttention", inputs, num_heads=2)
        np.testing.assert_allclose(found[0], sample.expected(bias), atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 1, 1, 5), (3, 2, 4, 1), (4, 5), (1, 4, 5), (2, 2, 4, 5)])
def test_queries_and_keys_of_an_attention_bias_do_not_broadcast(shape):
    sample = Sample(b=3, s=4, t=5)
    with pytest.raises(Exception, match="attention_bias"):
        kernel("MultiHeadAttention", sample.inputs(attention_bias=sample.draw(*shape)), num_heads=2)


@pytest.mark.parametrize("form", MASKS)
@pytest.mark.parametrize("filtered", [None, -1e9, float(LOWEST), -np.inf])
def test_masks_of_multi_head_attention(form, filtered):
    attributes = {} if filtered is None else {"mask_filter_value": filtered}
    for unidirectional, biased, T in ((0, False, 5), (0, True, 4), (1, False, 4), (1, True, 5)):
        sample = Sample(b=3, s=4, t=T)
        inputs = sample.inputs(key_padding_mask=sample.mask(form), attention_bias=sample.draw(1, 2, 4, T) if biased else None)
        kwargs = {"num_heads": 2, "unidirectional": unidirectional, "tolerance": 2e-3} | attributes
        assert_body_is_kernel("MultiHeadAttention", inputs, **kwargs)


@pytest.mark.parametrize("value", [-1e4, float(LOWEST), -np.inf])
def test_a_wholly_masked_row_is_the_softmax_of_what_was_added(value):
    """A mask, the same value in an attention_bias and Softmax agree: shifted scores, uniform, NaN."""
    sample = Sample(b=2, s=3, t=4)
    mask = np.array([[1, 1, 0, 0], [0, 0, 0, 0]], np.int32)
    added = np.where(mask, 0, value).astype(np.float32)[:, None, None]
    by_mask = kernel("MultiHeadAttention", sample.inputs(key_padding_mask=mask), num_heads=2, mask_filter_value=value)[0]
    bias = np.broadcast_to(added, (2, 1, 3, 4))
    by_bias = kernel("MultiHeadAttention", sample.inputs(attention_bias=bias), num_heads=2)[0]
    np.testing.assert_array_equal(by_mask, by_bias)
    if value == -np.inf:
        assert np.isnan(by_bias[1]).all()
        assert not np.isnan(by_bias[0]).any()
        return
    np.testing.assert_allclose(by_bias, sample.expected(added), atol=2e-3)
    uniform = np.broadcast_to(sample.value[1].mean(0), (3, 8))
    assert np.allclose(by_bias[1], uniform, atol=1e-5) == (value < -1e4)


def test_a_mask_keeps_what_is_positive_and_adds_to_the_attention_bias():
    sample = Sample(b=2)
    mask = np.array([[3, 1, 0, -1], [1, 0, 2, 1]], np.int32)
    bias = sample.draw(2, 2, 3, 4)
    found = kernel("MultiHeadAttention", sample.inputs(key_padding_mask=mask, attention_bias=bias), num_heads=2)[0]
    np.testing.assert_allclose(found, sample.expected(bias + np.where(mask > 0, 0, -1e4)[:, None, None]), atol=1e-5)


@pytest.mark.parametrize(("shape", "dtype"), [((1, 4), "int32"), ((2, 1, 1, 4), "int32"), ((2, 4), "int64"), ((2, 4), "bool")])
def test_masks_that_the_kernel_refuses(shape, dtype):
    with pytest.raises(Exception, match=r"key_padding_mask|Type 'tensor"):
        kernel("MultiHeadAttention", Sample().inputs(key_padding_mask=np.ones(shape, dtype)), num_heads=2)


@pytest.mark.parametrize(("s", "t", "causal"), [(4, 4, True), (5, 3, True), (1, 1, True), (3, 5, False), (1, 4, False)])
def test_unidirectional_is_causal_only_where_queries_are_as_many_as_keys(s, t, causal):
    """It leaves the last query unmasked, so that with more keys than queries the result agrees with no alignment."""
    sample = Sample(s=s, t=t)
    found = assert_body_is_kernel("MultiHeadAttention", sample.inputs(), num_heads=2, unidirectional=1)[0]

    def agrees(offset):
        return np.allclose(found, sample.expected(np.where(np.tri(s, t, offset) > 0, 0, LOWEST)), atol=1e-5)

    assert agrees(0) == causal
    if s == 3:
        assert not agrees(t - s)


def test_a_past_needs_its_present_outputs():
    sample = Sample(t=3)
    past = {"past_key": sample.draw(2, 2, 5, 4), "past_value": sample.draw(2, 2, 5, 4)}
    inputs = sample.inputs(**past, attention_bias=sample.draw(1, 2, 3, 8))
    found = assert_body_is_kernel("MultiHeadAttention", inputs, (3, 4, 4), num_heads=2, unidirectional=1)
    assert found[1].shape == (2, 2, 8, 4)
    assert not np.allclose(kernel("MultiHeadAttention", inputs, num_heads=2, unidirectional=1)[0], found[0], atol=1e-3)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_any_combination_of_inputs_and_attributes(data):
    draw = data.draw
    B, S, T, N = (draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 3)))
    four = draw(st.booleans())
    sample = Sample(
        B, S, T, N, draw(st.sampled_from([2, 4])), None if four else draw(st.sampled_from([2, 6])), draw(st.integers(0, 9))
    )
    more = {"key": sample.heads_first(sample.key), "value": sample.heads_first(sample.value)} if four else {}
    if draw(st.booleans()):
        more["attention_bias"] = sample.draw(draw(st.sampled_from([1, B])), draw(st.sampled_from([1, N])), S, T)
    if draw(st.booleans()):
        more["bias"] = sample.draw(N * (2 * sample.H + sample.V))
    if draw(st.booleans()):
        more["key_padding_mask"] = sample.mask(draw(st.sampled_from(MASKS)))
    attributes = {name: value for name, value in (("scale", 0.7), ("unidirectional", 1)) if draw(st.booleans())}
    opset = draw(st.sampled_from(OPSETS))
    ranks = draw(st.sampled_from([(3,), (3, 4, 4)]))
    assert_body_is_kernel("MultiHeadAttention", sample.inputs(**more), ranks, 2e-3, num_heads=N, opset=opset, **attributes)


def test_empty_values_pass_through_the_bodies():
    for B, S, T in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        assert_body_is_kernel("MultiHeadAttention", Sample(B, S, T).inputs(), num_heads=2)


def attention_inputs(sample, width=5, sizes=None, **more):
    total = sum(sizes or [sample.N * sample.H] * 3)
    names = ("input", "weights", "bias", "mask_index", "past", "attention_bias")
    given = {
        "input": sample.draw(sample.B, sample.S, width),
        "weights": sample.draw(width, total),
        "bias": sample.draw(total),
    } | more
    return {name: given.get(name) for name in names}


@pytest.mark.parametrize("opset", OPSETS)
def test_attention_with_equal_and_with_given_sizes(opset):
    sample = Sample(s=4, t=4)
    assert_body_is_kernel("Attention", attention_inputs(sample), (3, 5), num_heads=2, opset=opset)
    for sizes in ([8, 8, 12], [8, 8, 8]):
        inputs = attention_inputs(sample, sizes=sizes)
        found = assert_body_is_kernel("Attention", inputs, num_heads=2, opset=opset, qkv_hidden_sizes=sizes, scale=0.3)
        assert found[0].shape == (2, 4, sizes[2])


def test_attention_needs_equal_sizes_of_query_and_key():
    inputs = attention_inputs(Sample(s=4, t=4), sizes=[8, 12, 8])
    with pytest.raises(Exception, match="qkv_hidden_sizes first element should be same as the second"):
        kernel("Attention", inputs, num_heads=2, qkv_hidden_sizes=[8, 12, 8])


@pytest.mark.parametrize("form", ["ends and starts", *MASKS])
@pytest.mark.parametrize("filtered", [None, float(LOWEST), -np.inf])
def test_masks_of_attention(form, filtered):
    attributes = {} if filtered is None else {"mask_filter_value": filtered}
    for unidirectional, biased in ((0, False), (0, True), (1, False), (1, True)):
        sample = Sample(b=3, s=4, t=4)
        bias = sample.draw(3, 1, 4, 4) if biased else None
        inputs = attention_inputs(sample, mask_index=sample.mask(form), attention_bias=bias)
        kwargs = {"num_heads": 2, "unidirectional": unidirectional, "tolerance": 2e-3} | attributes
        assert_body_is_kernel("Attention", inputs, **kwargs)


@pytest.mark.parametrize("unidirectional", [0, 1])
def test_attention_with_a_past(unidirectional):
    sample = Sample(s=3, t=5)
    inputs = attention_inputs(sample, past=sample.draw(2, 2, 2, 2, 4), mask_index=np.int32([[1] * 5, [0, 1, 1, 1, 1]]))
    assert_body_is_kernel("Attention", inputs, (3, 5), num_heads=2, unidirectional=unidirectional)


@pytest.mark.parametrize(
    ("op", "names", "expected"),
    [
        ("MultiHeadAttention", ("query", "key3", "value3"), ["B", "S", 12]),
        ("MultiHeadAttention", ("query", "key4", "value4"), ["B", "S", 8]),
        ("Attention", ("query", "weights", "bias"), ["B", "S", 8]),
    ],
)
def test_shape_inference_sees_through_the_bodies(op, names, expected):
    shapes = {
        "query": ["B", "S", 8],
        "key3": ["B", "T", 8],
        "value3": ["B", "T", 12],
        "key4": ["B", 2, "T", 4],
        "value4": ["B", 2, "T", 4],
        "weights": [8, 24],
        "bias": [24],
    }
    proto = one_node(op, {name: np.zeros([1] * len(shapes[name]), np.float32) for name in names}, (3,), num_heads=2)
    for value in proto.graph.input:
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, 1, shapes[value.name]))
    inferred = onnx.shape_inference.infer_shapes(lower(load(proto), every=True).proto, data_prop=True)
    dims = inferred.graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == expected


def test_packed_operands_and_options_of_other_targets_are_left_as_they_are():
    packed = {"query": np.zeros((1, 3, 2, 3, 4), np.float32)}
    assert lower(model := load(one_node("MultiHeadAttention", packed, (3,), num_heads=2)), every=True) is model
    rotary = attention_inputs(Sample(s=4, t=4))
    assert lower(model := load(one_node("Attention", rotary, (3,), num_heads=2, do_rotary=1)), every=True) is model
    assert lowered("Attention", rotary, num_heads=2, do_rotary=0)
