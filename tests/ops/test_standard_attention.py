"""ai.onnx.Attention (opset 23) on ONNX Runtime's CPU: what it shares with the com.microsoft ops, and where it differs."""

import numpy as np
import pytest
from one_node import kernel

OP = "Attention"
LOWEST = np.finfo(np.float32).min
ROWS, KEYS, SIZE = 3, 4, 4
rng = np.random.default_rng(0)


def draw(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def run(query, key, value, mask=None, opset=23, **attributes):
    inputs = {"Q": query, "K": key, "V": value, "attn_mask": mask}
    return kernel(OP, inputs, (query.ndim,), opset=opset, domain="", **attributes)[0]


def expected(query, key, value, heads, groups, added=0.0, softcap=0.0):
    """In float64, for (B, positions, heads * size)."""
    query, key, value = (
        np.float64(item).reshape(*item.shape[:2], count, -1).transpose(0, 2, 1, 3)
        for item, count in ((query, heads), (key, groups), (value, groups))
    )
    key, value = (np.repeat(item, heads // groups, 1) for item in (key, value))
    scores = query @ key.transpose(0, 1, 3, 2) * query.shape[-1] ** -0.5
    scores = (softcap * np.tanh(scores / softcap) if softcap else scores) + added
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    result = (weights / weights.sum(-1, keepdims=True)) @ value
    return result.transpose(0, 2, 1, 3).reshape(result.shape[0], result.shape[2], -1)


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (4, 1)])
def test_grouped_heads_as_three_and_as_four_dimensions(heads, groups, opset):
    query, key, value = draw(2, ROWS, heads * SIZE), draw(2, KEYS, groups * SIZE), draw(2, KEYS, groups * 6)
    wanted = expected(query, key, value, heads, groups)
    counts = {"q_num_heads": heads, "kv_num_heads": groups}
    np.testing.assert_allclose(run(query, key, value, opset=opset, **counts), wanted, atol=1e-6)
    four = [
        np.ascontiguousarray(item.reshape(2, -1, count, item.shape[-1] // count).transpose(0, 2, 1, 3))
        for item, count in ((query, heads), (key, groups), (value, groups))
    ]
    found = run(*four, opset=opset).transpose(0, 2, 1, 3).reshape(wanted.shape)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    with pytest.raises(Exception, match="q_num_heads"):
        run(query, key, value, opset=opset)


@pytest.mark.parametrize("queries", [1, 3, 6])
def test_is_causal_aligns_the_first_query_with_the_first_key(queries):
    query, key, value = draw(2, queries, 8), draw(2, KEYS, 8), draw(2, KEYS, 8)
    added = np.where(np.tri(queries, KEYS) > 0, 0, -np.inf)
    found = run(query, key, value, q_num_heads=2, kv_num_heads=2, is_causal=1)
    np.testing.assert_allclose(found, expected(query, key, value, 2, 2, added), atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 2, ROWS, KEYS), (1, 2, ROWS, KEYS), (2, 1, ROWS, KEYS), (2, ROWS, KEYS), (ROWS, KEYS)])
def test_masks_broadcast_over_batch_and_heads(shape):
    query, key, value = draw(2, ROWS, 8), draw(2, KEYS, 8), draw(2, KEYS, 8)
    heads = {"q_num_heads": 2, "kv_num_heads": 2}
    mask = draw(*shape)
    found = run(query, key, value, mask, softcap=2.0, **heads)
    np.testing.assert_allclose(found, expected(query, key, value, 2, 2, mask, softcap=2.0), atol=1e-6)
    kept = mask > -0.5
    kept[..., 0] = True
    found = run(query, key, value, kept, **heads)
    np.testing.assert_allclose(found, expected(query, key, value, 2, 2, np.where(kept, 0, -np.inf)), atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 1, 1, KEYS), (1, KEYS), (KEYS,), (2, 2, ROWS, 1), (2, 1, ROWS, KEYS - 1)])
def test_masks_that_the_kernel_refuses(shape):
    with pytest.raises(Exception, match="attn_mask"):
        run(draw(2, ROWS, 8), draw(2, KEYS, 8), draw(2, KEYS, 8), draw(*shape), q_num_heads=2, kv_num_heads=2)


@pytest.mark.parametrize("value", [False, -np.inf, LOWEST])
def test_a_wholly_masked_row_is_zero_and_so_differs_from_softmax(value):
    """Softmax and the com.microsoft ops give NaN for -inf and a uniform row for the lowest value."""
    query, key, values = draw(1, ROWS, 8), draw(1, KEYS, 8), draw(1, KEYS, 8)
    mask = np.zeros((ROWS, KEYS), np.float32) if value is not False else np.ones((ROWS, KEYS), bool)
    mask[1] = value
    found = run(query, key, values, mask, q_num_heads=2, kv_num_heads=2)
    np.testing.assert_array_equal(found[0, 1], 0)
    np.testing.assert_allclose(found[0, [0, 2]], expected(query, key, values, 2, 2)[0, [0, 2]], atol=1e-6)
    mask[1] = -1e30 if value is not False else True
    assert np.abs(run(query, key, values, mask, q_num_heads=2, kv_num_heads=2)[0, 1]).max() > 0.05


def test_empty_batches_and_a_scale_of_zero_are_refused():
    query, key = draw(1, ROWS, 8), draw(1, KEYS, 8)
    heads = {"q_num_heads": 2, "kv_num_heads": 2}
    with pytest.raises(Exception, match="Batch size must be greater than 0"):
        run(query[:0], key[:0], key[:0], **heads)
    with pytest.raises(Exception, match="scale must be greater than 0"):
        run(query, key, key, scale=0.0, **heads)
