"""``quantize-dynamic`` on products of two activations, which it leaves alone unless it is told to."""

from __future__ import annotations

import numpy as np
import pytest
from integer_models import covered, errors, graph, ops, quantize, reasons, weights

from rewright.model.errors import UsageError

SCORES = """(float[b, h, s, 8] q, float[b, h, t, 8] k) => (float[b, h, s, t] y) {
    kt = Transpose<perm=[0, 1, 3, 2]>(k)
    [scores] y = MatMul(q, kt)
}"""
FEEDS = {"q": weights(2, 3, 5, 8), "k": weights(2, 3, 7, 8, seed=1) + np.float32(0.2)}


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("cpu", {"Transpose": 1, "DynamicQuantizeLinear": 2, "com.microsoft::MatMulIntegerToFloat": 1}),
        ("portable", {"Transpose": 1, "DynamicQuantizeLinear": 2, "MatMulInteger": 1, "Cast": 1, "Mul": 2}),
    ],
)
def test_both_are_quantized_at_run_time(target, wanted):
    model = graph(SCORES)
    result = quantize(model, "activations=true", target=target)
    assert result.report.verdict == "passed"
    assert ops(result) == wanted
    assert covered(result)["scores"].became == "uint8 x uint8, both at run time"
    assert max(errors(model, result, FEEDS)) < 0.03
    assert quantize(result.model, "activations=true", target=target).report.passes[-1].status == "unchanged"


def test_not_unless_it_is_asked_for():
    result = quantize(graph(SCORES), verify="off")
    assert "activations are not multiplied by activations" in reasons(result)["scores"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(float16[2, 8] q, float16[8, 3] k) => (float16 y) { [scores] y = MatMul(q, k) }", "not float32"),
        ("(float[8] q, float[8, 3] k) => (float y) { [scores] y = MatMul(q, k) }", "fewer than two dimensions"),
    ],
)
def test_what_kernels_do_not_take_is_missed_with_the_reason(text, said):
    assert said in reasons(quantize(graph(text), "activations=true", verify="off"))["scores"]


def test_a_weight_is_one_all_the_same():
    model = graph("(float[b, 4, 16] x) => (float y) { [product] y = MatMul(x, w) }", w=weights(16, 24))
    assert ops(quantize(model, "activations=true")) == {"com.microsoft::DynamicQuantizeMatMul": 1}


def test_onnx_runtime_is_not_asked_to():
    with pytest.raises(UsageError, match="leaves products of activations alone"):
        quantize(graph(SCORES), "activations=true, backend=ort")
    assert quantize(graph(SCORES), "activations=true, backend=auto").report.verdict == "passed"
