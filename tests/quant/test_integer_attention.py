"""``quantize-dynamic`` on com.microsoft.Attention: QAttention where that means the same, else products in front of attention."""

from __future__ import annotations

import numpy as np
import pytest
from integer_models import covered, errors, ops, quantize, reasons, stored, weights
from onnx import helper, numpy_helper

HEADS, SIZE = 2, 4
WIDTH = HEADS * SIZE
X = np.random.default_rng(1).standard_normal((2, 5, WIDTH)).astype(np.float32)
MASKS = {
    "raw": np.asarray([[0, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32),
    "lengths": np.asarray([3, 5], np.int32),
    "ends and starts": np.asarray([3, 5, 1, 0], np.int32),
    "each query": np.tril(np.ones((2, 5, 5), np.int32)),
}
SCORES = np.random.default_rng(2).standard_normal((2, HEADS, 5, 5)).astype(np.float32)
PAST = np.random.default_rng(3).standard_normal((2, 2, HEADS, 3, SIZE)).astype(np.float32)


def attention(*, bias=True, mask=None, scores=False, past=False, values=WIDTH, **attributes):
    """The model and what to feed it."""
    feeds = {"x": X}
    if mask:
        feeds["mask"] = MASKS[mask]
    if past:
        feeds["past"] = PAST
    if scores:
        feeds["scores"] = SCORES
    constants = {"w": weights(WIDTH, 2 * WIDTH + values) * 3}
    if bias:
        constants["b"] = weights(2 * WIDTH + values, seed=1)
    names = ["x", "w", "b" if bias else "", *(name if name in feeds else "" for name in ("mask", "past", "scores"))]
    while not names[-1]:
        names.pop()
    if values != WIDTH:
        attributes["qkv_hidden_sizes"] = [WIDTH, WIDTH, values]
    results = ["y", "present"] if past else ["y"]
    node = helper.make_node("Attention", names, results, name="att", domain="com.microsoft", num_heads=HEADS, **attributes)
    kind = {np.dtype(np.float32): 1, np.dtype(np.int32): 6}
    inputs = [helper.make_tensor_value_info(name, kind[array.dtype], array.shape) for name, array in feeds.items()]
    shapes = [[2, 5, values], [2, 2, HEADS, 8, SIZE]]
    made = [helper.make_tensor_value_info(name, 1, shape) for name, shape in zip(results, shapes, strict=False)]
    graph = helper.make_graph(
        [node], "g", inputs, made, [numpy_helper.from_array(each, name) for name, each in constants.items()]
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8), feeds


PACKED = {
    "plain": {},
    "no bias": {"bias": False},
    "raw mask": {"mask": "raw"},
    "lengths": {"mask": "lengths"},
    "ends and starts": {"mask": "ends and starts"},
    "a mask for each query": {"mask": "each query"},
    "causal": {"unidirectional": 1},
    "scale and filter": {"mask": "raw", "scale": 0.9, "mask_filter_value": -3.0},
    "a past": {"past": True, "unidirectional": 1},
}


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("options", ["", "weight=uint8, symmetric=false", "per_channel=false"])
def test_attention_becomes_qattention(name, options):
    model, feeds = attention(**PACKED[name])
    result = quantize(model, options, verify="structure")
    assert ops(result) == {"DynamicQuantizeLinear": 1, "com.microsoft::QAttention": 1}
    assert covered(result)["att"].outcome == "quantized"
    assert max(errors(model, result, feeds)) < 0.04
    assert "w" not in stored(result)


SPLIT = {
    "attention_bias": {"scores": True},
    "attention_bias and a mask": {"scores": True, "mask": "raw"},
    "attention_bias, causal, scale": {"scores": True, "unidirectional": 1, "scale": 0.9, "bias": False},
    "a filter": {"scores": True, "mask": "raw", "mask_filter_value": -3.0},
    "narrow values": {"values": 4},
    "wide values and a mask": {"values": 12, "mask": "raw"},
}


@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.parametrize("options", ["", "weight=uint8, symmetric=false"])
def test_what_qattention_has_no_place_for_is_kept_by_products_in_front(name, options):
    model, feeds = attention(**SPLIT[name])
    result = quantize(model, options, verify="structure")
    assert ops(result) == {"com.microsoft::DynamicQuantizeMatMul": 3, "com.microsoft::MultiHeadAttention": 1}
    assert covered(result)["att"].outcome == "quantized"
    assert max(errors(model, result, feeds)) < 0.04
    wide = 24 + SPLIT[name].get("values", WIDTH) - WIDTH
    assert sorted(shape[1] for kind, shape in stored(result).values() if kind != "float32") == sorted([8, 8, wide - 16])


def test_the_bias_of_the_scores_is_judged_like_all_else():
    model, _ = attention(scores=True, mask="raw")
    result = quantize(model)
    assert result.report.verdict == "passed"
    assert quantize(attention(mask="lengths")[0], verify="sites").report.verdict == "passed"


MISSES = {
    "with a past there is no other way": {"scores": True, "past": True},
    "the mask's rank is 1": {"scores": True, "mask": "lengths"},
    "the mask's rank is 3": {"scores": True, "mask": "each query"},
}


@pytest.mark.parametrize("said", MISSES)
def test_what_neither_does_is_missed_with_the_reason(said):
    model, _ = attention(**MISSES[said])
    result = quantize(model, verify="off")
    assert said in reasons(result)["att"]
    assert "attention_bias" in reasons(result)["att"]


def test_weights_that_come_at_run_time_are_told():
    model, _ = attention()
    model.graph.input.append(helper.make_tensor_value_info("w2", 1, [WIDTH, 3 * WIDTH]))
    model.graph.node[0].input[1] = "w2"
    assert reasons(quantize(model, verify="off")) == {"att": "the weights are not constant"}
