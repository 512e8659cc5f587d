"""The forms of quantize-weights, the options that it refuses, and the budget that judges it."""

from __future__ import annotations

import numpy as np
import pytest

import rewright
from rewright.api import Chain
from tests.quant.weight_models import FLOATS, RNG, K, N, coverage, model_of, ops, quantized, rounded, run

X = RNG.standard_normal((2, 3, K)).astype(np.float32)
W, WT = FLOATS["w"].astype(np.float32), FLOATS["wt"].astype(np.float32)
ROWS = "(float[R, 48] x) => (float y)"


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", ["true", "false"])
@pytest.mark.parametrize(
    ("node", "wanted"),
    [
        ("MatMul(x, w)", lambda x, w, wt: x @ w),
        ("Gemm<alpha = 0.5, transB = 1, beta = 2.0>(x, wt, c)", lambda x, w, wt: 0.5 * x @ wt.T + 2 * FLOATS["c"]),
    ],
)
def test_the_form_qdq_is_standard_onnx(bits, symmetric, node, wanted):
    model = model_of(f"[m] y = {node}", ROWS, opset=21)
    result = quantized(model, f"form=qdq, bits={bits}, symmetric={symmetric}")
    assert ops(result) == ["DequantizeLinear", node.partition("(")[0].partition("<")[0]]
    rows = [rounded(each, bits, symmetric=symmetric == "true") for each in (W.T, WT)]
    for optimized in (False, True):
        found = run(result, {"x": X[0]}, optimized=optimized)[0]
        atol = 0.2 if optimized else 1e-4  # ONNX Runtime makes MatMulNBits of it, of accuracy level 4
        np.testing.assert_allclose(found, wanted(X[0], rows[0].T, rows[1]), rtol=1e-4, atol=atol)
    assert coverage(result)["m"].bytes_after < 4 * K * N / 2.5


def test_the_form_qdq_needs_the_opset():
    result = quantized(model_of("[m] y = MatMul(x, w)"), "form=qdq")
    assert result.report.passes[0].status == "unchanged"
    assert coverage(result)["m"].reason.startswith("the form qdq needs opset 21: ")


def test_gathers_in_the_form_qdq():
    result = quantized(model_of("[g] y = Gather(odd, i)", "(int64[B, S] i) => (float y)", opset=21), "form=qdq")
    assert ops(result) == ["DequantizeLinear", "Gather"]
    table = rounded(FLOATS["odd"].astype(np.float32))
    np.testing.assert_allclose(run(result, {"i": np.asarray([[3, 60]])})[0], table[[[3, 60]]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("bits=5", "option bits"),
        ("block_size=48", "blocks have 16, 32, 64, 128 or 256 weights"),
        ("accuracy_level=5", "option accuracy_level"),
        ("algorithm=gptq", "set calibration to an .npz file"),
        ('calibration="nowhere"', "'nowhere' is neither an .npz file nor a folder of them"),
        ("backend=ort, form=qdq", "the backend ort has rtn and hqq"),
        ("operators=[Conv]", "does not quantize Conv"),
    ],
)
def test_options_that_cannot_be_are_refused_before_the_run(options, said):
    with pytest.raises(rewright.UsageError, match=said):
        Chain(f"quantize-weights{{{options}}}")


def test_the_run_is_judged_by_the_budget_and_undone_where_it_fails():
    model = model_of("[m] y = MatMul(x, w)", f"(float[2, {K}] x) => (float[2, {N}] y)")
    kept = quantized(model, verify="model", budget="sqnr=15")
    assert kept.report.verdict == "passed"
    undone = quantized(model, verify="model", budget="sqnr=60")
    assert undone.report.passes[0].status == "rolled-back"
    assert undone.report.quantization.coverage["MatMul"].model_dump() == {"quantized": 0, "total": 1}
