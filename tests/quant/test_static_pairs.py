"""``quantize-static`` for runtimes that want QuantizeLinear and DequantizeLinear in pairs, such as TensorRT."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from test_quantize_static import CONV, SHARED, inputs_of, kernels, model_of, outcomes, quantized

from rewright.api import Chain
from rewright.model.errors import UsageError
from rewright.tuning.quantize import quantize

MIXED = """ g (float[N, 8] x) => (float[N, 12] y, float[N, 12] z, float[N, 8] r) {
    [a] y = Gemm<transB = 1, alpha = 0.5>(x, v, b)  t = Transpose<perm = [1, 0]>(v)  [b] h = MatMul(x, t)  z = Add(h, b)
    r = Relu(x) }"""
BACKENDS = pytest.mark.parametrize("backend", ["standalone", "ort"])


def makers(model: ModelProto) -> dict[str, NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def constants(model: ModelProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def pairs(model: ModelProto) -> list[tuple[NodeProto, NodeProto]]:
    """Every DequantizeLinear with the QuantizeLinear before it; one that has none fails."""
    made = makers(model)
    found = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    return [(made[node.input[0]], node) for node in found]


@BACKENDS
def test_weights_stay_floats_and_are_rounded_when_the_model_is_loaded(backend: str, tmp_path: Path) -> None:
    model = model_of(MIXED, v=(12, 8), b=(12,))
    plain, paired = (
        quantized(model, inputs_of(16, 8), tmp_path, f", backend={backend}, quantize_bias=false, weight_pairs={flag}")
        for flag in ("false", "true")
    )
    assert paired.report.verdict == "passed"
    assert outcomes(paired) == outcomes(plain) == [("a", "quantized", ""), ("b", "quantized", "")]
    proto = paired.model.proto
    assert all(
        first.op_type == "QuantizeLinear" and list(first.input[1:]) == list(last.input[1:]) for first, last in pairs(proto)
    )
    assert not [tensor for tensor in constants(proto).values() if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 2]
    assert paired.report.parity is not None
    assert plain.report.parity is not None
    for left, right in zip(paired.report.parity.outputs, plain.report.parity.outputs, strict=True):
        assert (left.sqnr_db or 99) == pytest.approx(right.sqnr_db or 99, abs=0.5)
    entry = paired.report.passes[0].coverage[0]
    assert entry.bytes_after > entry.bytes_before > 0


@BACKENDS
def test_each_reader_has_a_pair_of_its_own(backend: str, tmp_path: Path) -> None:
    model = model_of(SHARED, wq=(8, 12), wk=(8, 12), b=(12,))
    for options, wanted in (("", 1), (", dedicated_pairs=true", 2)):
        result = quantized(model, inputs_of(3, 5, 8), tmp_path, f", backend={backend}{options}")
        assert result.report.verdict == "passed"
        proto = result.model.proto
        read = Counter(name for node in proto.graph.node for name in node.input)
        of_x = [node for node in proto.graph.node if node.op_type == "QuantizeLinear"]
        assert len(of_x) == wanted
        if wanted == 2:
            assert {read[node.output[0]] for node in proto.graph.node if node.op_type.endswith("uantizeLinear")} <= {1}
        assert kernels(result, tmp_path)["MatMulIntegerToFloat"] == 2


def test_convolutions_in_pairs_run_with_all_optimizations(tmp_path: Path) -> None:
    model = model_of(CONV, v=(4, 3, 3, 3), b=(4,), w=(6, 4, 2, 2))
    result = quantized(
        model, inputs_of(2, 3, 8, 8), tmp_path, ", weight_pairs=true, dedicated_pairs=true, quantize_bias=false, activation=int8"
    )
    assert (result.report.verdict, {each[1] for each in outcomes(result)}) == ("passed", {"quantized"})
    assert {first.op_type for first, _ in pairs(result.model.proto)} == {"QuantizeLinear"}
    kernels(result, tmp_path)


def test_the_preset_gives_tensorrt_what_it_takes(tmp_path: Path) -> None:
    """Zero points of 0 in int8, pairs everywhere, floats in biases, and no op that is not in the standard.

    What it takes is in NVIDIA's TensorRT documentation, Explicit Quantization. It refuses a DequantizeLinear of an int32 bias,
    and before version 10 weights without QuantizeLinear: microsoft/onnxruntime#14229.
    """
    text = """ g (float[N, 5, 8] x) => (float[N, 5, 8] y) {
        h = MatMul(x, w)  s = Add(h, b)  r = Relu(s)  k = MatMul(r, v)  y = Add(k, x) }"""
    model = model_of(text, w=(8, 16), b=(16,), v=(16, 8))
    for number, each in enumerate(inputs_of(4, 5, 8)):
        np.savez(tmp_path / f"{number}.npz", **each)  # type: ignore[arg-type]
    result = quantize(model, mode="static", preset="tensorrt", calibration=tmp_path, inputs=tmp_path, target="portable")
    proto = result.model.proto
    assert result.report.verdict == "passed"
    assert {node.domain for node in proto.graph.node} == {""}
    held = constants(proto)
    found = pairs(proto)
    assert len(found) == 4
    zeros = [numpy_helper.to_array(held[node.input[2]]) for pair in found for node in pair]
    assert {zero.dtype for zero in zeros} == {np.dtype(np.int8)}
    assert not any(zero.any() for zero in zeros)
    assert TensorProto.INT32 not in {tensor.data_type for tensor in held.values()}
    assert sorted(len(held[last.input[1]].dims) for _, last in found) == [0, 0, 1, 1]


@pytest.mark.parametrize("options", [", weight_pairs=true", ", dedicated_pairs=true"])
def test_pairs_are_for_qdq(options: str) -> None:
    with pytest.raises(UsageError, match="use format=qdq"):
        Chain(f"quantize-static{{use_run_inputs=true, format=qoperator{options}}}")


def test_attention_that_holds_integers_is_left_alone_in_pairs(tmp_path: Path) -> None:
    text = " g (float[B, 5, 8] x) => (float[B, 5, 8] y) { [att] y = com.microsoft.Attention<num_heads = 2>(x, w, b) }"
    result = quantized(model_of(text, w=(8, 24), b=(24,)), inputs_of(2, 5, 8), tmp_path, ", weight_pairs=true")
    assert outcomes(result) == [("att", "missed", "QAttention holds integers, and weight_pairs asks for floats")]
    assert any(note.startswith("1 Attention of com.microsoft") for note in result.report.passes[0].notes)


MATRICES = """ g (float[N, 8] x) => (float[N, 12] y, float[N, 12] z) {
    [a] h = MatMul(x, w)  y = Add(b, h)  [b] k = MatMul(x, v)  z = Add(k, y) }"""


def test_products_of_matrices_and_what_is_added_become_one_integer_kernel(tmp_path: Path) -> None:
    """ONNX Runtime makes a Gemm of MatMul and Add before it looks for integers, and a float bias then stops it."""
    model = model_of(MATRICES, w=(8, 12), v=(8, 12), b=(12,))
    result = quantized(model, inputs_of(16, 8), tmp_path)
    assert (result.report.verdict, outcomes(result)) == ("passed", [("a", "quantized", ""), ("b", "quantized", "")])
    assert kernels(result, tmp_path) == {"QuantizeLinear": 1, "QGemm": 2, "Add": 1}


def test_products_of_known_sizes_keep_their_integer_kernel(tmp_path: Path) -> None:
    """ONNX Runtime makes Reshape, a Gemm in floats and Reshape of MatMul and Add where it knows all sizes."""
    model = model_of(SHARED.replace("float[B,", "float[3,"), wq=(8, 12), wk=(8, 12), b=(12,))
    result = quantized(model, inputs_of(3, 5, 8), tmp_path)
    assert (result.report.verdict, outcomes(result)) == ("passed", [("q", "quantized", ""), ("k", "quantized", "")])
    assert kernels(result, tmp_path) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 2, "Sum": 1}


@pytest.mark.parametrize(("shape", "wanted"), [((), "QGemm"), ((1, 1), "QGemm"), ((16, 1), "Add"), ((16, 12), "Add")])
def test_an_addend_of_any_shape_is_no_sum_that_a_second_run_finds(shape: tuple[int, ...], wanted: str, tmp_path: Path) -> None:
    model = model_of(" g (float[16, 8] x) => (float[16, 12] y) { [g] y = Gemm<beta = 0.5>(x, w, c) }", w=(8, 12))
    model.graph.initializer.append(numpy_helper.from_array(np.full(shape, 3.0, np.float32), "c"))
    options = ", operators=[Gemm, Add, Mul]"
    once = quantized(model, inputs_of(16, 8), tmp_path, options)
    assert (once.report.verdict, outcomes(once)) == ("passed", [("g", "quantized", "")])
    assert kernels(once, tmp_path) == Counter({"QuantizeLinear": 1, "QGemm": 1}) + Counter({wanted: int(wanted == "Add")})
    again = quantized(once.model.proto, inputs_of(16, 8), tmp_path, options)
    assert again.report.passes[0].status == "unchanged"


def test_an_addend_that_is_no_constant_stays_with_the_gemm(tmp_path: Path) -> None:
    text = " g (float[N, 8] x) => (float[N, 12] y) { c = MatMul(x, v)  [g] y = Gemm<beta = 0.5>(x, w, c) }"
    options = ", operators=[Gemm, Add, Mul]"
    once = quantized(model_of(text, w=(8, 12), v=(8, 12)), inputs_of(16, 8), tmp_path, options)
    assert (once.report.verdict, outcomes(once)) == ("passed", [("g", "quantized", "")])
    assert quantized(once.model.proto, inputs_of(16, 8), tmp_path, options).report.passes[0].status == "unchanged"


def test_an_add_that_became_a_bias_is_told_so(tmp_path: Path) -> None:
    model = model_of(MATRICES, w=(8, 12), v=(8, 12), b=(12,))
    found = {node: (outcome, reason) for node, outcome, reason in outcomes(
        quantized(model, inputs_of(16, 8), tmp_path, ", operators=[MatMul, Add]", budget="sqnr=15"))}  # fmt: skip
    assert found["y"] == ("missed", "it is the bias of the product before it now")
    assert found["z"] == ("quantized", "")


@pytest.mark.parametrize("form", ["Gemm<transA = 1, alpha = 0.5>(x, w, c)", "Gemm<transA = 1, alpha = 0.5, beta = 0.0>(x, w, c)"])
def test_a_gemm_of_opset_10_always_has_an_addend(form: str, tmp_path: Path) -> None:
    text = f" g (float[8, 4] x) => (float[4, 12] z) {{ [a] y = {form}  z = Softmax<axis = 0>(y) }}"
    model = model_of(text, 10, w=(8, 12), c=(4, 1))
    result = quantized(model, inputs_of(8, 4), tmp_path)
    assert (result.report.verdict, [each[1] for each in outcomes(result)]) == ("passed", ["quantized"])
    assert result.model.proto.opset_import[0].version == 10
    kernels(result, tmp_path)
