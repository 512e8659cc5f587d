"""``quantize-dynamic`` on com.microsoft.Attention: QAttention where that means the same, else products in front of attention."""

from __future__ import annotations

import pytest
from attention_nodes import WIDTH, attention
from integer_models import covered, errors, ops, quantize, reasons, stored
from onnx import helper

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
