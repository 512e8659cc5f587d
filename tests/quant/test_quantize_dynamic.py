"""``quantize-dynamic`` on products: what becomes integers, what is missed and why, and that the numbers stay."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from integer_models import covered, errors, graph, ops, outputs, proto_of, quantize, reasons, stored, weights
from onnx import TensorProto, helper

import rewright

X = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
FUSED = "com.microsoft::DynamicQuantizeMatMul"
W, V, B = weights(8, 6), weights(6, 8, seed=1), weights(6, seed=2)

SPELLINGS = {
    "an initializer": "y = MatMul(x, w)",
    "Identity": "i = Identity(w)  y = MatMul(x, i)",
    "Transpose": "t = Transpose<perm = [1, 0]>(v)  y = MatMul(x, t)",
    "two Transposes": "s = Transpose(w)  t = Transpose(s)  y = MatMul(x, t)",
    "Reshape": "shape = Constant<value_ints = [8, -1]>()  r = Reshape(flat, shape)  y = MatMul(x, r)",
    "Cast": "c = Cast<to = 1>(half)  y = MatMul(x, c)",
    "Gemm": "y = Gemm(x, w)",
    "Gemm, B transposed": "y = Gemm<transB = 1>(x, v, b)",
    "Gemm of a Transpose": "t = Transpose(v)  y = Gemm(x, t, b)",
    "Gemm, A transposed": "t = Transpose(x)  y = Gemm<transA = 1>(t, w)",
    "Gemm with factors": "y = Gemm<alpha = -0.5, beta = 2.0>(x, w, b)",
    "Gemm with a scalar": "y = Gemm<beta = 3.0>(x, w, one)",
    "Gemm with a row": "y = Gemm(x, w, row)",
    "Gemm with a column": "y = Gemm<beta = 0.5>(x, w, column)",
    "Gemm with a computed C": "c = Relu(b)  y = Gemm<beta = -1.0>(x, w, c)",
    "FusedMatMul": "y = com.microsoft.FusedMatMul<alpha = 0.25, transB = 1>(x, v)",
    "a sum after it": "m = MatMul(x, w)  y = Add(b, m)",
    "a sum with a row": "m = MatMul(x, w)  y = Add(m, row)",
    "a sum with a column": "m = MatMul(x, w)  y = Add(m, column)",
}
CONSTANTS = {
    "w": W,
    "v": V,
    "b": B,
    "flat": W.reshape(-1),
    "half": W.astype(np.float16),
    "one": np.asarray(0.5, np.float32),
    "row": B.reshape(1, 6),
    "column": weights(5, 1, seed=3),
}
WITH_A_SUM_LEFT = {"Gemm with a column", "Gemm with a computed C", "a sum with a column"}


def model_of(spelling, **constants):
    used = {name: array for name, array in CONSTANTS.items() if f"{name})" in spelling or f"{name}," in spelling}
    return graph(f"(float[5, 8] x) => (float[5, 6] y) {{ {spelling} }}", **used, **constants)


@pytest.mark.parametrize("name", SPELLINGS)
def test_each_spelling_of_a_product_becomes_one_integer_product(name):
    model = model_of(SPELLINGS[name])
    result = quantize(model)
    assert result.report.verdict == "passed"
    assert {entry.outcome for entry in covered(result).values()} == {"quantized"}
    assert ops(result)[FUSED] == 1
    assert ops(result)["Add"] == (name in WITH_A_SUM_LEFT)
    assert not {"MatMul", "Gemm", "com.microsoft::FusedMatMul"} & set(ops(result))
    kinds = {kind for kind, shape in stored(result).values() if shape in ((8, 6), (6, 8))}
    assert kinds == {"int8"}
    assert max(errors(model, result, {"x": X})) < 0.02
    again = rewright.Chain("quantize-dynamic").run(proto_of(result))
    assert again.report.passes[0].status == "unchanged"


VARIANTS = ["", "weight=uint8", "symmetric=false", "weight=uint8, symmetric=false", "per_channel=false", "reduce_range=true"]


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_each_kind_of_levels_for_each_target(options, target):
    model = model_of("m = MatMul(x, w)  y = Add(m, b)")
    result = quantize(model, options, target=target)
    found = ops(result)
    assert (found[FUSED], found["MatMulInteger"]) == ((1, 0) if target == "cpu" else (0, 1))
    assert found["Add"] == (0 if target == "cpu" else 1)
    assert max(errors(model, result, {"x": X})) < (0.03 if "reduce" in options else 0.02)
    levels = next(tensor for tensor in proto_of(result).graph.initializer if list(tensor.dims) == [8, 6])
    assert levels.data_type == (TensorProto.UINT8 if "uint8" in options else TensorProto.INT8)


def test_a_target_without_integer_kernels_is_told():
    assert reasons(quantize(model_of("y = MatMul(x, w)"), target="cuda")) == {
        "y": "the target 'cuda' has no kernel for com.microsoft.DynamicQuantizeMatMul"
    }


BATCHES = {"matrices": (2, 8, 6), "one matrix of three dimensions": (1, 8, 6), "four dimensions": (3, 1, 8, 6)}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("options", ["", "per_channel=false", "weight=uint8, symmetric=false"])
def test_weights_of_more_dimensions_have_scales_for_the_columns_of_each_matrix(name, options):
    weight = weights(*BATCHES[name])
    weight[..., 2] *= 50
    model = graph("(float[N, 2, 5, 8] x) => (float[A, C, 5, 6] y) { y = MatMul(x, w) }", w=weight)
    result = quantize(model, options)
    assert ops(result) == {FUSED: 1}
    assert max(errors(model, result, {"x": np.stack([X, 2 * X])[None]})) < 0.025


MISSES = {
    "y = MatMul(x, z)": "no operand is constant",
    "t = Transpose(x)  u = MatMul(v, t)  y = Transpose(u)": "the left operand",
    "y = MatMul(x, bad)": "'bad' holds values that are not finite",
    "h = Cast<to = 10>(x)  m = MatMul(h, half)  y = Cast<to = 1>(m)": "float16",
    "d = Cast<to = 11>(x)  m = MatMul(d, double)  y = Cast<to = 1>(m)": "float64",
    "y = Gemm<alpha = 0.0>(x, w)": "alpha is 0.0",
}


@pytest.mark.parametrize("spelling", MISSES)
def test_what_cannot_be_is_missed_with_the_reason(spelling):
    bad = W.copy()
    bad[3, 3] = np.inf
    constants = {**CONSTANTS, "bad": bad, "double": W.astype(np.float64)}
    used = {name: array for name, array in constants.items() if f"{name})" in spelling or f"({name}," in spelling}
    text = "(float[5, 8] x, float[8, 6] z) => (float[A, C] y) {" + spelling + "}"
    result = quantize(graph(text, **used), verify="structure")
    (reason,) = reasons(result).values()
    assert MISSES[spelling] in reason
    assert result.report.passes[-1].status == "unchanged"


def test_a_vector_is_no_matrix():
    result = quantize(graph("(float[5, 8] x) => (float[5] y) { y = MatMul(x, w) }", w=W[:, 0]))
    assert reasons(result) == {"y": "the weight is a vector"}


@pytest.mark.parametrize("shape", [(0, 8), (1, 8), (8,)])
def test_activations_of_any_shape(shape):
    rows = "N, " if len(shape) > 1 else ""
    model = graph(f"(float[{rows}8] x) => (float[{rows}6] y) {{ m = MatMul(x, w)  y = Add(m, b) }}", w=W, b=B)
    result = quantize(model)
    assert ops(result) == {FUSED: 1}
    x = X.reshape(-1)[: int(np.prod(shape))].reshape(shape)
    wanted, found = (outputs(each, {"x": x})[0] for each in (model, proto_of(result)))
    assert wanted.shape == found.shape
    np.testing.assert_allclose(found, wanted, atol=0.02 * float(np.abs(wanted).max(initial=1.0)))


FOLLOWERS = {
    "BiasGelu": ("y = com.microsoft.BiasGelu(m, b)", {FUSED: 1, "com.microsoft::Gelu": 1}),
    "FastGelu": ("y = com.microsoft.FastGelu(m, b)", {FUSED: 1, "com.microsoft::FastGelu": 1}),
    "SkipLayerNormalization": (
        "s = Relu(z)  y = com.microsoft.SkipLayerNormalization<epsilon = 0.01>(s, m, gamma, beta, b)",
        {"Relu": 1, FUSED: 1, "Sum": 1, "LayerNormalization": 1},
    ),
}


@pytest.mark.parametrize("name", FOLLOWERS)
def test_the_product_takes_the_bias_of_the_fused_op_after_it(name):
    follower, wanted = FOLLOWERS[name]
    norm = {"gamma": weights(6, seed=7), "beta": weights(6, seed=8)} if "Skip" in name else {}
    text = f"(float[N, 5, 8] x, float[N, 5, 6] z) => (float[N, 5, 6] y) {{ m = MatMul(x, w)  {follower} }}"
    model = graph(text, w=W, b=B * 10, **norm)
    result = quantize(model)
    assert ops(result) == wanted
    node = next(node for node in proto_of(result).graph.node if node.op_type in ("Gelu", "FastGelu", "LayerNormalization"))
    assert "b" not in node.input
    if norm:
        assert helper.get_node_attr_value(node, "epsilon") == pytest.approx(0.01)
    assert max(errors(model, result, {"x": X[None], "z": np.ones((1, 5, 6), np.float32)})) < 0.02


NORM = "com.microsoft.SkipLayerNormalization(m, s, gamma, beta, b)"


@pytest.mark.parametrize(
    ("outputs_of_norm", "opset", "split"),
    [("y", 17, True), ("y, , , z", 17, True), ("y, , , z", 16, False), ("y, z", 17, False)],
)
def test_the_norm_after_a_product_is_what_the_cpu_computes_fastest(outputs_of_norm, opset, split, tmp_path):
    last = "z = Relu(y)" if "z" not in outputs_of_norm else ""
    text = f"""(float[N, 5, 8] x, float[N, 5, 6] s) => (float[N, 5, 6] y, float z) {{
        m = MatMul(x, w)  {outputs_of_norm} = {NORM}  {last} }}"""
    model = graph(text, opset, w=W, b=B * 10, gamma=weights(6, seed=7), beta=weights(6, seed=8))
    model.graph.output[1].type.tensor_type.shape.Clear()
    result = quantize(model, verify="off")  # the statistics are nowhere computed on the CPU
    kept = {"com.microsoft::SkipLayerNormalization": 1}
    assert ops(result) == {FUSED: 1, **({"Sum": 1, "LayerNormalization": 1} if split else kept), **({"Relu": 1} if last else {})}
    if outputs_of_norm != "y, z":
        assert max(errors(model, result, {"x": X[None], "s": np.ones((1, 5, 6), np.float32)})) < 0.02
    if split:
        assert "SkipLayerNormalization" not in loaded_ops(result, tmp_path)


def loaded_ops(result, folder):
    """What ONNX Runtime makes of the model when it loads it."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "loaded.onnx")
    ort.InferenceSession(proto_of(result).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(folder / "loaded.onnx").graph.node}


def test_a_sum_that_is_needed_elsewhere_stays():
    text = "(float[5, 8] x) => (float[5, 6] y, float[5, 6] m) { m = MatMul(x, w)  y = Add(m, b) }"
    assert ops(quantize(graph(text, w=W, b=B))) == {FUSED: 1, "Add": 1}
    text = "(float[5, 8] x) => (float[5, 6] y, float[5, 6] z) { m = MatMul(x, w)  y = Add(m, b)  z = Relu(m) }"
    assert ops(quantize(graph(text, w=W, b=B))) == {FUSED: 1, "Add": 1, "Relu": 1}
    wide = "(float[5, 8] x) => (float[2, 5, 6] y) { m = MatMul(x, w)  y = Add(m, b) }"
    assert ops(quantize(graph(wide, w=W, b=weights(2, 1, 6)))) == {FUSED: 1, "Add": 1}


def test_the_float_weight_stays_where_something_else_reads_it():
    text = "(float[5, 8] x) => (float[5, 6] y, float[8, 6] z) { y = MatMul(x, w)  z = Relu(w) }"
    assert stored(quantize(graph(text, w=W)))["w"] == ("float32", (8, 6))
    assert "w" not in stored(quantize(model_of("y = MatMul(x, w)")))


def test_a_column_that_is_much_larger_costs_the_others_nothing():
    weight = weights(8, 6)
    weight[:, 3] *= 200
    model = graph("(float[5, 8] x) => (float[5, 6] y) { y = MatMul(x, w) }", w=weight)
    results = {options: quantize(model, options, verify="off") for options in ("", "per_channel=false")}
    worst = {}
    for options, result in results.items():
        wanted, found = outputs(model, {"x": X})[0], outputs(proto_of(result), {"x": X})[0]
        columns = np.linalg.norm(found - wanted, axis=0) / np.linalg.norm(wanted, axis=0)
        worst[options] = columns.max()
    assert worst[""] < 0.02
    assert worst["per_channel=false"] > 0.5
    entry = covered(results["per_channel=false"])["y"]
    assert covered(results[""])["y"].worst_error < 0.01
    assert entry.error is not None


def test_sums_that_can_saturate_are_told_from_the_weights_alone():
    calm, wild = np.zeros((8, 2), np.float32), np.zeros((8, 2), np.float32)
    calm[::2, :] = [[1.0, 2.0]]  # each pair has one weight at most
    wild[:2, 1] = [1.0, 0.5]
    wild[3, 0] = 1.0
    text = "(float[5, 8] x) => (float[5, 2] y, float[5, 2] z) { y = MatMul(x, calm)  z = MatMul(x, wild) }"
    model = graph(text, calm=calm, wild=wild)
    (note,) = quantize(model, verify="off").report.passes[0].notes
    assert "in 1 of 2 weights (the worst is 'wild', 1 of 2 columns): reduce_range=true" in note
    assert [quantize(model, verify="off").report.passes[0].notes for _ in range(2)] == [[note]] * 2
    for options in ("reduce_range=true", "weight=uint8"):
        assert not quantize(model, options, verify="off").report.passes[0].notes
    assert not quantize(graph(text, calm=calm, wild=calm), verify="off").report.passes[0].notes
