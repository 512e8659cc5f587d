"""``quantize-dynamic`` carried out by onnxruntime.quantization: its defects do not get through, and what it did is recorded."""

from __future__ import annotations

import numpy as np
import pytest
from integer_models import ZOO, covered, errors, graph, ops, proto_of, quantize, reasons, stored, weights
from test_integer_attention import attention

X = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
ORT = "backend=ort"


def test_two_gemms_that_share_a_weight_keep_their_meaning():
    text = "(float[5, 8] x) => (float[5, 8] y) { h = Gemm<transB = 1>(x, w, b)  y = Gemm<transB = 1>(h, w) }"
    model = graph(text, w=weights(8, 8), b=weights(8))
    result = quantize(model, ORT)
    assert result.report.verdict == "passed"
    assert [entry.outcome for entry in covered(result).values()] == ["quantized"] * 2
    assert ops(result)["MatMulInteger"] == 2
    assert [kind for kind, _ in stored(result).values()].count("int8") == 1
    assert max(errors(model, result, {"x": X})) < 0.03


def test_a_gemm_that_is_left_out_stays_as_it_is():
    text = "(float[5, 8] x) => (float[5, 8] y) { h = Gemm<transB = 1>(x, w, b)  y = Gemm<transB = 1>(h, w) }"
    model = graph(text, w=weights(8, 8), b=weights(8))
    for node, name in zip(model.graph.node, ("first", "second"), strict=True):
        node.name = name
    result = quantize(model, f"{ORT}, exclude=[first]")
    assert (ops(result)["Gemm"], ops(result)["MatMulInteger"]) == (1, 1)
    assert {name: entry.outcome for name, entry in covered(result).items()} == {"first": "excluded", "second": "quantized"}
    assert stored(result)["w"] == ("float32", (8, 8))
    assert max(errors(model, result, {"x": X})) < 0.03


@pytest.mark.parametrize("options", ["", "per_channel=false", "weight=uint8, symmetric=false", "reduce_range=true"])
def test_embeddings_tied_to_the_last_product_keep_their_meaning(options):
    text = "(int64[N, T] ids) => (float[M, 20] y) { g = Gather(e, ids)  s = Constant<value_ints = [-1, 8]>()  f = Reshape(g, s)\
        y = Gemm<transB = 1>(f, e) }"
    model = graph(text, e=weights(20, 8) * 3)
    result = quantize(model, f"{ORT}, {options}" if options else ORT)
    assert result.report.verdict == "passed"
    assert {entry.outcome for entry in covered(result).values()} == {"quantized"}
    assert max(errors(model, result, {"ids": np.asarray([[3, 1, 0], [19, 2, 2]])})) < 0.04


def test_a_weight_behind_steps_is_handed_over_as_an_initializer():
    text = "(float[5, 8] x) => (float[5, 6] y) { i = Identity(v)  t = Transpose<perm = [1, 0]>(i)  y = MatMul(x, t) }"
    model = graph(text, v=weights(6, 8))
    result = quantize(model, ORT)
    entry = covered(result)["y"]
    assert entry.outcome == "quantized"
    assert 0 < entry.error < 0.01
    assert (entry.bytes_before, entry.bytes_after) == (192, 48 + 5 * 6)
    assert max(errors(model, result, {"x": X})) < 0.03


def test_an_attention_bias_is_not_dropped():
    model, feeds = attention(scores=True)
    alone = quantize(model, ORT)
    assert reasons(alone) == {"att": "ONNX Runtime's quantizer drops the attention_bias"}
    assert ops(alone) == {"com.microsoft::Attention": 1}
    both = quantize(model, "backend=auto")
    assert ops(both)["com.microsoft::MultiHeadAttention"] == 1
    assert max(errors(model, both, feeds)) < 0.04
    packed, feeds = attention(mask="raw")
    result = quantize(packed, ORT, verify="off")
    assert ops(result)["com.microsoft::QAttention"] == 1
    assert max(errors(packed, result, feeds)) < 0.04


def test_activations_are_not_multiplied_as_integers():
    model = graph("(float[5, 8] x, float[8, 4] z) => (float[5, 4] y) { y = MatMul(x, z) }")
    assert "no operand is constant" in reasons(quantize(model, ORT))["y"]


def test_bodies_are_processed():
    text = """(float[5, 8] x, bool c) => (float[5, 8] y) { y = If(c) <
        then_branch = a () => (float[5, 8] p) { p = MatMul(x, w) },
        else_branch = b () => (float[5, 8] q) { n = Neg(x)  q = MatMul(n, w) }> }"""
    model = graph(text, w=weights(8, 8))
    result = quantize(model, ORT)
    assert [entry.outcome for entry in covered(result).values()] == ["quantized"] * 2
    assert "w" not in stored(result)
    for chosen in (True, False):
        assert max(errors(model, result, {"x": X, "c": np.asarray(chosen)})) < 0.03


@pytest.mark.parametrize("level", ["", "O2"])
def test_an_exported_model(level):
    result = quantize(ZOO / "bert.ts17.sdpa.onnx", ORT, chain=level)
    assert result.report.verdict == "passed"
    counts = {op: (each.quantized, each.total) for op, each in result.report.quantization.coverage.items()}
    assert counts["Gemm"] == (2, 2)
    assert counts["MatMul"] == ((6, 6) if level else (12, 16))
    again = quantize(proto_of(result), ORT, verify="off")
    assert again.report.passes[0].status == "unchanged"


@pytest.mark.parametrize("verify", ["off", "model"])
def test_with_auto_onnx_runtime_gets_what_is_left(verify):
    model = graph("(float[5, 8] x) => (float[5, 6] y) { y = MatMul(x, w) }", w=weights(8, 6))
    result = quantize(model, "backend=auto", verify=verify)
    assert ops(result) == {"com.microsoft::DynamicQuantizeMatMul": 1}
    assert [(record.backend, record.status) for record in result.report.passes] == [
        ("standalone", "applied"),
        ("ort", "unchanged"),
    ]
    assert result.report.quantization.coverage["MatMul"].quantized == 1
