"""``quantize-dynamic`` on weights that several operands share, on embeddings, in bodies, and in LSTM."""

from __future__ import annotations

import numpy as np
import pytest
from integer_models import covered, errors, graph, ops, outputs, proto_of, quantize, reasons, stored, weights
from onnx import helper

FUSED = "com.microsoft::DynamicQuantizeMatMul"
X = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
IDS = np.asarray([[3, 1, 0], [19, 2, 2]])


def integers(result):
    return [shape for kind, shape in stored(result).values() if kind in ("int8", "uint8")]


def test_two_gemms_that_share_a_weight_keep_their_meaning():
    weight = weights(8, 8)
    text = "(float[5, 8] x) => (float[5, 8] y) { h = Gemm<transB = 1>(x, w)  y = Gemm<transB = 1>(h, w) }"
    model = graph(text, w=weight)
    result = quantize(model)
    assert result.report.verdict == "passed"
    assert ops(result) == {FUSED: 2}
    assert integers(result) == [(8, 8)]
    assert max(errors(model, result, {"x": X})) < 0.02
    first, second = covered(result).values()
    assert (first.bytes_before, second.bytes_before) == (256, 0)


@pytest.mark.parametrize("options", ["", "weight=uint8", "per_channel=false"])
def test_nothing_is_stored_that_nothing_reads(options):
    text = """(int64[2] ids, float[5, 8] x) => (float[2, 8] e, float[5, 64] y) {
        e = Gather(w, ids)  t = Transpose(w)  h = MatMul(x, v)  y = MatMul(h, t) }"""
    made = proto_of(quantize(graph(text, w=weights(64, 8), v=weights(8, 8, seed=1)), options))
    assert {tensor.name for tensor in made.graph.initializer} <= {name for node in made.graph.node for name in node.input}


def test_a_weight_that_is_used_both_ways_has_the_columns_of_each():
    weight = weights(8, 8)
    weight[:, 2] *= 30
    text = "(float[5, 8] x) => (float[5, 8] y, float[5, 8] z) { y = MatMul(x, w)  t = Transpose(w)  z = MatMul(x, t) }"
    model = graph(text, w=weight)
    result = quantize(model)
    assert integers(result) == [(8, 8)] * 2
    assert max(errors(model, result, {"x": X})) < 0.02


LAST = {
    "MatMul": "t = Transpose<perm = [1, 0]>(e)  y = MatMul(r, t)",
    "Gemm": "flat = Constant<value_ints = [-1, 8]>()  f = Reshape(r, flat)  y = Gemm<transB = 1>(f, e)",
}


@pytest.mark.parametrize("last", LAST)
@pytest.mark.parametrize("options", ["", "weight=uint8, symmetric=false", "weight=uint8", "per_channel=false"])
def test_tied_embeddings_are_stored_once(last, options):
    rows = "N, T" if last == "MatMul" else "M"
    text = f"(int64[N, T] ids) => (float[{rows}, 20] y) {{ g = Gather(e, ids)  r = Tanh(g)  {LAST[last]} }}"
    model = graph(text, e=weights(20, 8) * 3)
    result = quantize(model, options)
    assert result.report.verdict == "passed"
    assert {entry.outcome for entry in covered(result).values()} == {"quantized"}
    assert integers(result).count((20, 8)) == 1
    assert (8, 20) not in integers(result)
    assert "e" not in stored(result)
    assert max(errors(model, result, {"ids": IDS})) < 0.03


@pytest.mark.parametrize("options", ["", "weight=uint8", "symmetric=false", "per_channel=false, weight=uint8"])
@pytest.mark.parametrize("ids", [IDS, np.asarray(7), np.zeros((0, 3), np.int64), np.asarray([-1, 5])])
def test_rows_of_a_table_keep_their_values(options, ids):
    table = weights(20, 16)
    table[7] *= 100
    dims = ", ".join("NT"[axis] for axis in range(ids.ndim))
    ids_type, out = (f"int64[{dims}]", f"{dims}, 16") if dims else ("int64", "16")
    model = graph(f"({ids_type} ids) => (float[{out}] y) {{ y = Gather(e, ids) }}", e=table)
    result = quantize(model, options, verify="structure")
    assert covered(result)["y"].outcome == "quantized"
    wanted, found = (outputs(each, {"ids": ids})[0] for each in (model, proto_of(result)))
    assert wanted.shape == found.shape
    if "per_channel" not in options:
        bound = np.abs(wanted).max(axis=-1, keepdims=True, initial=0.0) / 127
        assert (np.abs(found - wanted) <= bound * 0.51).all()


TABLES = {
    "y = Gather<axis = 1>(e, ids)": ((20, 16), "columns"),
    "y = Gather(e, ids)": ((2, 16), "2 x 16 has nothing to gain"),
    "y = Gather(e, ids) ": ((20, 16, 2), "3 dimensions"),
}


@pytest.mark.parametrize("text", TABLES)
def test_tables_that_stay_are_told(text):
    shape, said = TABLES[text]
    result = quantize(
        graph(f"(int64[2] ids) => (float[{'A, B, C'[: 3 * len(shape) - 2]}] y) {{ {text} }}", e=weights(*shape)), verify="off"
    )
    assert said in reasons(result)["y"]


def test_a_dimension_that_is_gathered_is_no_table():
    text = "(float[N, 8] x) => (int64[K] y) { s = Shape(x)  i = Constant<value_ints = [0]>()  y = Gather(s, i) }"
    assert not covered(quantize(graph(text)))


def test_bodies_are_processed_and_share_what_lies_outside():
    text = """(float[5, 8] x, bool c) => (float[5, 8] y) {
        t = Transpose(v)
        y = If(c) <
            then_branch = a () => (float[5, 8] p) { p = MatMul(x, w) },
            else_branch = b () => (float[5, 8] q) { n = Neg(x)  m = MatMul(n, w)  q = MatMul(m, t) }>
    }"""
    model = graph(text, w=weights(8, 8), v=weights(8, 8, seed=1))
    result = quantize(model)
    assert result.report.verdict == "passed"
    assert ops(result) == {"If": 1, "Neg": 1, FUSED: 3}
    assert integers(result) == [(8, 8)] * 2  # of the model itself
    branches = [attribute.g for attribute in proto_of(result).graph.node[0].attribute]
    assert all(not branch.initializer for branch in branches)
    for chosen in (True, False):
        assert max(errors(model, result, {"x": X, "c": np.asarray(chosen)})) < 0.03


def test_a_loop_is_processed():
    text = (
        """(float[5, 8] x, int64 n) => (float[5, 8] y) {
        y = Loop(n, , x) <body = b (int64 i, bool k, float[5, 8] h) => (bool k2, float[5, 8] z) <float[8, 8] w = {"""
        + (",".join(f"{value:.4f}" for value in weights(8, 8).reshape(-1)))
        + """}> { k2 = Identity(k)  m = MatMul(h, w)  z = Tanh(m) }> }"""
    )
    model = graph(text)
    result = quantize(model, verify="structure")
    assert ops(result)[FUSED] == 1
    assert max(errors(model, result, {"x": X, "n": np.asarray(3)})) < 0.05


def lstm(direction="forward", hidden=6, outputs_of=("Y", "Y_h", "Y_c"), **attributes):
    count = 2 if direction == "bidirectional" else 1
    sizes = {"W": (count, 4 * hidden, 8), "R": (count, 4 * hidden, hidden), "B": (count, 8 * hidden)}
    node = helper.make_node(
        "LSTM", ["x", "W", "R", "B"], list(outputs_of), name="lstm", direction=direction, hidden_size=hidden, **attributes
    )
    model = graph(
        "(float[T, N, 8] x) => (float[A, B, C] Y_h) { Y_h = Identity(x) }",
        **{name: weights(*shape, seed=place) * 5 for place, (name, shape) in enumerate(sizes.items())},
    )
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.append(node)
    model.graph.output.extend(
        helper.make_tensor_value_info(name, 1, [None] * (4 if name == "Y" else 3)) for name in outputs_of if name
    )
    return model


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("options", ["", "weight=uint8", "per_channel=false"])
def test_lstm(direction, options):
    model = lstm(direction, outputs_of=("Y", "", "Y_c") if direction == "reverse" else ("Y", "Y_h", "Y_c"))
    result = quantize(model, options, verify="structure" if "per_channel" in options else "model")
    assert result.report.verdict == ("unverified" if "per_channel" in options else "passed")
    assert ops(result) == {"com.microsoft::DynamicQuantizeLSTM": 1}
    entry = covered(result)["lstm"]
    assert (entry.outcome, entry.weight) == ("quantized", "W, R")
    assert entry.bytes_after < entry.bytes_before / 2
    x = np.random.default_rng(3).standard_normal((4, 2, 8)).astype(np.float32)
    assert max(errors(model, result, {"x": x})) < 0.05


def test_lstm_with_the_batch_first_is_missed():
    assert "layout 1" in reasons(quantize(lstm(layout=1), verify="off"))["lstm"]
