"""``quantize-weights`` on com.microsoft.Attention: one product in blocks, and MultiHeadAttention behind it."""

from __future__ import annotations

import numpy as np
import pytest
from attention_nodes import WIDTH, attention
from integer_models import weights
from onnx import numpy_helper
from weight_models import coverage, ops, quantized, rounded, run

PARTS = {
    "plain": {},
    "no bias": {"bias": False},
    "raw mask": {"mask": "raw"},
    "causal": {"unidirectional": 1},
    "scale and filter": {"mask": "raw", "scale": 0.9, "mask_filter_value": -3.0},
    "attention_bias and a mask": {"scores": True, "mask": "raw"},
    "narrow values": {"values": 4},
    "wide values and a mask": {"values": 12, "mask": "raw"},
}
OPTIONS = "min_elements=1, block_size=16, accuracy_level=0"


def with_rounded_weights(model, values=WIDTH):
    """What the original computes with weights as the blocks have them."""
    held = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    array = rounded((weights(WIDTH, 2 * WIDTH + values) * 3).T, 8, 16).T
    held.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), "w"))
    return model


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("opset", [11, 17])
def test_the_packed_projections_become_one_product(name, opset):
    model, feeds = attention(**PARTS[name])
    model.opset_import[0].version = opset
    result = quantized(model, f"{OPTIONS}, bits=8")
    assert ops(result) == ["MatMulNBits", "Split", "MultiHeadAttention"]
    assert coverage(result)["att"].outcome == "quantized"
    wanted = run(with_rounded_weights(model, PARTS[name].get("values", WIDTH)), feeds)
    for optimized in (False, True):
        np.testing.assert_allclose(run(result, feeds, optimized=optimized)[0], wanted[0], atol=2e-5)


def test_the_budget_holds_and_a_second_run_changes_nothing():
    model, feeds = attention(mask="raw")
    result = quantized(model, f"{OPTIONS}, bits=8", verify="model", inputs=[feeds])
    assert result.report.verdict == "passed"
    assert quantized(result.model, OPTIONS).report.passes[-1].status == "unchanged"


MISSES = {
    "with a past there is no other way": {"past": True, "unidirectional": 1},
    "the mask's rank is 1": {"mask": "lengths"},
    "the mask's rank is 3": {"mask": "each query"},
}


@pytest.mark.parametrize("said", MISSES)
def test_what_cannot_be_taken_apart_is_missed_with_the_reason(said):
    result = quantized(attention(**MISSES[said])[0], OPTIONS)
    assert said in coverage(result)["att"].reason
    assert ops(result) == ["Attention"]


@pytest.mark.parametrize("spelling", [{"past": True, "unidirectional": 1}, {"mask": "lengths"}])
def test_the_form_qdq_keeps_the_node(spelling):
    model, feeds = attention(**spelling)
    model.opset_import[0].version = 21
    model.ir_version = 10
    result = quantized(model, "min_elements=1, block_size=16, form=qdq, bits=8")
    assert ops(result) == ["DequantizeLinear", "Attention"]
    np.testing.assert_allclose(run(result, feeds)[0], run(with_rounded_weights(model), feeds)[0], atol=2e-5)
