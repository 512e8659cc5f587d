"""GroupQueryAttention without a cache: the body against the CPU kernel, and what the kernel does that passes rely on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from one_node import assert_body_is_kernel, feeds, kernel, one_node

from rewright.model.load import load
from rewright.ops.lowering import lower

OP = "GroupQueryAttention"
NAMES = (
    *("query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length"),
    *("cos_cache", "sin_cache", "position_ids", "attention_bias"),
)
LOWEST = np.finfo(np.float32).min


class Sample:
    """Operands: batch 2, ``length`` positions, ``heads`` query heads and ``groups`` key heads of ``size``."""

    def __init__(self, length=5, heads=4, groups=2, size=16, seed=0):
        self.rng = np.random.default_rng(seed)
        self.length, self.heads, self.groups, self.size = length, heads, groups, size
        self.query = self.draw(2, length, heads * size)
        self.key, self.value = self.draw(2, length, groups * size), self.draw(2, length, groups * size)
        self.attributes = {"num_heads": heads, "kv_num_heads": groups}

    def draw(self, *shape):
        return self.rng.standard_normal(shape).astype(np.float32)

    def inputs(self, **more):
        counts = {"seqlens_k": np.full(2, self.length - 1, np.int32), "total_sequence_length": np.array(self.length, np.int32)}
        given = {"query": self.query, "key": self.key, "value": self.value} | counts | more
        return {name: given.get(name) for name in NAMES}

    def expected(self, added, softcap=0.0, positions=None, cos=None, sin=None):
        """In float64; query head n uses key head n // (heads / groups)."""

        def split(value, heads):
            return np.float64(value).reshape(2, -1, heads, self.size).transpose(0, 2, 1, 3)

        def turn(value):
            left, right = np.split(value, 2, -1)
            c, s = cos[positions][:, None], sin[positions][:, None]
            return np.concatenate([left * c - right * s, left * s + right * c], -1)

        query, key, value = split(self.query, self.heads), split(self.key, self.groups), split(self.value, self.groups)
        if positions is not None:
            query, key = turn(query), turn(key)
        key, value = (np.repeat(item, self.heads // self.groups, 1) for item in (key, value))
        scores = query @ key.transpose(0, 1, 3, 2) * self.size**-0.5
        scores = (softcap * np.tanh(scores / softcap) if softcap else scores) + added
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return ((weights / weights.sum(-1, keepdims=True)) @ value).transpose(0, 2, 1, 3).reshape(self.query.shape)


CAUSAL = np.where(np.tri(5) > 0, 0, -np.inf)


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 23])
def test_it_is_causal_unless_told_otherwise(opset):
    sample = Sample()
    found = assert_body_is_kernel(OP, sample.inputs(), (3, 4, 4), opset=opset, **sample.attributes)
    np.testing.assert_allclose(found[0], sample.expected(CAUSAL), atol=1e-5)
    found = assert_body_is_kernel(OP, sample.inputs(), opset=opset, causal=0, **sample.attributes)
    np.testing.assert_allclose(found[0], sample.expected(0), atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 4, 5, 5), (1, 4, 5, 5), (2, 1, 5, 5), (1, 1, 5, 5)])
@pytest.mark.parametrize("causal", [0, 1])
def test_attention_bias_is_added_after_the_softcap(shape, causal):
    sample = Sample()
    bias = sample.draw(*shape)
    inputs = sample.inputs(attention_bias=bias)
    found = assert_body_is_kernel(OP, inputs, causal=causal, softcap=2.0, **sample.attributes)
    added = bias + (CAUSAL if causal else 0)
    np.testing.assert_allclose(found[0], sample.expected(added, softcap=2.0), atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 1, 1, 5), (5, 5), (3, 4, 5, 5)])
def test_queries_of_an_attention_bias_do_not_broadcast(shape):
    sample = Sample()
    with pytest.raises(Exception, match="attention_bias"):
        kernel(OP, sample.inputs(attention_bias=sample.draw(*shape)), **sample.attributes)


def test_a_row_that_the_bias_masks_wholly_is_uniform_over_its_causal_part_only():
    """So an additive mask that contains the causal one keeps its meaning with causal=0 alone."""
    sample = Sample()
    keeps = (np.arange(5) >= 2) & (np.tri(5) > 0)  # left padding of two: rows 0 and 1 keep nothing
    bias = np.broadcast_to(np.where(keeps, 0, LOWEST).astype(np.float32), (2, 1, 5, 5))
    whole = assert_body_is_kernel(OP, sample.inputs(attention_bias=bias), causal=0, **sample.attributes)[0]
    np.testing.assert_allclose(whole, sample.expected(np.float64(bias)), atol=1e-5)
    part = assert_body_is_kernel(OP, sample.inputs(attention_bias=bias), **sample.attributes)[0]
    np.testing.assert_allclose(part[:, 2:], whole[:, 2:], atol=1e-5)
    assert np.abs(part[:, :2] - whole[:, :2]).max() > 0.1
    np.testing.assert_allclose(part[:, 0, :16], sample.value[:, 0, :16], atol=1e-5)


@pytest.mark.parametrize("window", [1, 2, 4, 9])
def test_a_window_counts_the_query_itself(window):
    sample = Sample()
    found = assert_body_is_kernel(OP, sample.inputs(), local_window_size=window, **sample.attributes)[0]
    inside = np.arange(5)[None] > np.arange(5)[:, None] - window
    np.testing.assert_allclose(found, sample.expected(np.where(inside, CAUSAL, -np.inf)), atol=1e-5)


@pytest.mark.parametrize("causal", [0, 1])
def test_lengths_cut_the_keys_on_the_right(causal):
    sample = Sample()
    inputs = sample.inputs(seqlens_k=np.array([2, 4], np.int32))
    found = assert_body_is_kernel(OP, inputs, causal=causal, **sample.attributes)[0]
    kept = np.where(np.arange(5) <= np.array([[2], [4]]), 0, -np.inf)[:, None, None]
    np.testing.assert_allclose(found, sample.expected(kept + (CAUSAL if causal else 0)), atol=1e-5)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_counts_from_the_first_position_of_the_first_sequence(interleaved):
    sample = Sample()
    cos, sin = sample.draw(20, 8), sample.draw(20, 8)
    options = sample.attributes | {"do_rotary": 1, "rotary_interleaved": interleaved}
    caches = {"cos_cache": cos, "sin_cache": sin}
    plain = assert_body_is_kernel(OP, sample.inputs(**caches), (3, 4, 4), **options)[0]
    positions = np.array([[3, 0, 1, 2, 4], [6, 7, 8, 9, 10]])
    found = assert_body_is_kernel(OP, sample.inputs(**caches, position_ids=positions), (3, 4, 4), **options)[0]
    if not interleaved:
        counted = np.broadcast_to(np.arange(5), (2, 5))
        np.testing.assert_allclose(plain, sample.expected(CAUSAL, positions=counted, cos=cos, sin=sin), atol=1e-5)
        np.testing.assert_allclose(found, sample.expected(CAUSAL, positions=counted + 3, cos=cos, sin=sin), atol=1e-5)


@pytest.mark.parametrize(
    ("size", "width", "rows", "reason"),
    [(12, 0, 0, "multiple of 8"), (8, 4, 9, "multiple of 16"), (16, 4, 9, "multiple of 8"), (16, 8, 3, "total_sequence_length")],
)
def test_head_sizes_and_caches_that_the_kernel_refuses(size, width, rows, reason):
    sample = Sample(size=size)
    more = {"cos_cache": sample.draw(rows, width), "sin_cache": sample.draw(rows, width)} if rows else {}
    with pytest.raises(Exception, match=reason):
        kernel(OP, sample.inputs(**more), do_rotary=int(bool(rows)), **sample.attributes)


def test_keys_are_as_many_as_queries_and_values_as_wide_as_keys():
    sample = Sample()
    longer = {"key": sample.draw(2, 7, 32), "value": sample.draw(2, 7, 32), "seqlens_k": np.array([6, 6], np.int32)}
    with pytest.raises(Exception, match="must have the same sequence length"):
        kernel(OP, sample.inputs(**longer, total_sequence_length=np.array(7, np.int32)), causal=0, **sample.attributes)
    with pytest.raises(Exception, match="same hidden size"):
        kernel(OP, sample.inputs(value=sample.draw(2, 5, 16)), **sample.attributes)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.data())
def test_any_combination_of_inputs_and_attributes(data):
    draw = data.draw
    groups, repeat = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2]))
    sample = Sample(draw(st.integers(1, 4)), groups * repeat, groups, 16, draw(st.integers(0, 9)))
    length, options, more = sample.length, dict(sample.attributes), {}
    if draw(st.booleans()):
        packed = np.concatenate([sample.query, sample.key, sample.value], -1)
        more |= {"query": packed, "key": None, "value": None}
    if draw(st.booleans()):
        heads = draw(st.sampled_from([1, sample.heads]))
        more["attention_bias"] = sample.draw(draw(st.sampled_from([1, 2])), heads, length, length)
    if draw(st.booleans()):
        more |= {"cos_cache": sample.draw(6, 8), "sin_cache": sample.draw(6, 8)}
        options |= {"do_rotary": 1, "rotary_interleaved": draw(st.integers(0, 1))}
    options |= {name: value for name, value in (("scale", 0.7), ("softcap", 3.0)) if draw(st.booleans())}
    options |= draw(st.sampled_from([{}, {"causal": 0}, {"local_window_size": 2}]))
    ranks = draw(st.sampled_from([(3,), (3, 4, 4)]))
    assert_body_is_kernel(OP, sample.inputs(**more), ranks, opset=draw(st.sampled_from([13, 17, 18, 23])), **options)


def test_float16_has_a_kernel():
    sample = Sample()
    inputs = {
        name: value.astype(np.float16) if value.dtype == np.float32 else value for name, value in feeds(sample.inputs()).items()
    }
    assert_body_is_kernel(OP, {name: inputs.get(name) for name in NAMES}, tolerance=5e-3, **sample.attributes)


def test_caches_and_sinks_are_left_as_they_are():
    sample = Sample()
    past = {"past_key": sample.draw(2, 2, 3, 16), "past_value": sample.draw(2, 2, 3, 16)}
    for more, options in ((past, {}), ({}, {"smooth_softmax": 1}), ({}, {"sliding_window_cache": 1})):
        model = load(one_node(OP, sample.inputs(**more), (3, 4, 4), **sample.attributes, **options))
        assert lower(model, every=True) is model
