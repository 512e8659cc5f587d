"""``quantize-static`` by ``onnxruntime.quantization``, with our ranges."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, numpy_helper, parser

from rewright.api import Chain
from rewright.model.errors import UsageError
from rewright.quant.deferred_static import quantize_static
from rewright.quant.quantize_static import QuantizeStatic
from rewright.run import RunResult

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
PRODUCTS = """ g (float[N, 8] x, bool c) => (float[N, 12] y, float[N, 8] z) {
    [q] h = MatMul(x, wq)  t = Transpose<perm = [1, 0]>(wt)  [k] k = MatMul(x, t)  s = Mul(h, k)
    r = Relu(s)  [g] y = Gemm<transB = 1>(r, wg, b)  [act] a = Gemm<transB = 1>(x, x)
    z = If(c) <then_branch = one () => (float[N, 8] p) { [inner] p = MatMul(a, x) },
               else_branch = other () => (float[N, 8] o) { o = Identity(x) }> }"""


def model_of(text: str, **shapes: tuple[int, ...]) -> ModelProto:
    random = np.random.default_rng(7)
    made = parser.parse_model(HEAD + text)
    for name, shape in shapes.items():
        made.graph.initializer.append(numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name))
    return made


def run(model: ModelProto, tmp_path: Path, *shape: int, options: str = "", **more: Any) -> RunResult:
    random = np.random.default_rng(3)
    sets = [{"x": random.standard_normal(shape).astype(np.float32), **more} for _ in range(4)]
    for number, each in enumerate(sets):
        np.savez(tmp_path / f"{number}.npz", **each)
    return Chain(f'quantize-static{{backend=ort, calibration="{tmp_path}"{options}}}').run(model, inputs=sets, budget="sqnr=15")


def kernels(result: RunResult, tmp_path: Path) -> Counter[str]:
    result.save(tmp_path / "out.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "kernels.onnx")
    ort.InferenceSession(str(tmp_path / "out.onnx"), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(tmp_path / "kernels.onnx").graph.node)


def session(model: bytes | str) -> Any:
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"])


def outcomes(result: RunResult) -> dict[str, tuple[str, str]]:
    return {entry.node: (entry.outcome, entry.reason) for entry in result.report.passes[-1].coverage}


@pytest.mark.parametrize("options", ["", ",per_channel=false,weight=uint8", ",method=percentile"])
def test_products_are_quantized_in_place(options: str, tmp_path: Path) -> None:
    model = model_of(PRODUCTS, wq=(8, 12), wt=(12, 8), wg=(12, 12), b=(12,))
    result = run(model, tmp_path, 8, 8, options=options, c=np.array(True))
    assert (result.report.verdict, result.report.passes[0].status) == ("passed", "applied")
    found = outcomes(result)
    assert [found[name][0] for name in ("q", "k", "g", "act", "inner")] == ["quantized"] * 3 + ["missed"] * 2
    assert "does not see" in found["inner"][1]
    assert any("3 by onnxruntime.quantization" in note for note in result.report.passes[0].notes)
    ops = kernels(result, tmp_path)
    assert (ops["MatMulIntegerToFloat"], ops["QGemm"]) == (2, 1)
    sizes = [
        (entry.bytes_before, entry.bytes_after) for entry in result.report.passes[0].coverage if entry.outcome == "quantized"
    ]
    assert all(before > after > 0 for before, after in sizes)


def test_convolutions_are_quantized_in_place(tmp_path: Path) -> None:
    text = " g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) { [c] y = Conv(x, w, b) }"
    result = run(model_of(text, w=(4, 3, 3, 3), b=(4,)), tmp_path, 2, 3, 8, 8)
    assert (result.report.verdict, outcomes(result)) == ("passed", {"c": ("quantized", "")})
    assert kernels(result, tmp_path)["QLinearConv"] == 1


def test_a_bias_that_is_an_input_with_a_default_stays_one(tmp_path: Path) -> None:
    text = " g (float[N, 8] x, float[12] b, float[3] unused) => (float[N, 12] y) { [g] y = Gemm(x, w, b) }"
    result = run(model_of(text, w=(8, 12), b=(12,), unused=(3,)), tmp_path, 16, 8)
    assert (result.report.verdict, outcomes(result)) == ("passed", {"g": ("quantized", "")})
    result.save(tmp_path / "out.onnx")
    feeds = {"x": np.zeros((1, 8), np.float32), "b": np.full(12, 7, np.float32)}
    assert session(str(tmp_path / "out.onnx")).run(None, feeds)[0].tolist() == [[7.0] * 12]


def test_our_own_form_costs_about_the_same(tmp_path: Path) -> None:
    model = model_of(PRODUCTS, wq=(8, 12), wt=(12, 8), wg=(12, 12), b=(12,))
    ratios = []
    for backend in ("ort", "standalone"):
        run(model, tmp_path, 8, 8, c=np.array(True))
        result = Chain(f'quantize-static{{backend={backend}, calibration="{tmp_path}"}}').run(
            model, inputs=tmp_path, budget="sqnr=15"
        )
        assert result.report.parity is not None
        ratios.append(result.report.parity.outputs[0].sqnr_db or 0.0)
    assert ratios[1] == pytest.approx(ratios[0], abs=3.0)


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    model = model_of(PRODUCTS, wq=(8, 12), wt=(12, 8), wg=(12, 12), b=(12,))
    once = run(model, tmp_path, 8, 8, c=np.array(True))
    once.save(tmp_path / "out.onnx")
    again = run(onnx.load(tmp_path / "out.onnx"), tmp_path, 8, 8, c=np.array(True))
    assert again.report.passes[0].status == "unchanged"


def test_what_is_not_chosen_reads_what_it_did(tmp_path: Path) -> None:
    """The quantizer would give the rounded weight and the rounded operand to everyone who reads them."""
    text = """ g (float[N, 8] x, bool c) => (float[N, 8] y, float[N, 8] z, float[N, 8] r, float[N, 8] u) {
        [chosen] y = MatMul(x, w)  [left] z = MatMul(x, w)  [sum] r = Add(x, x)
        u = If(c) <then_branch = one () => (float[N, 8] p) { [inner] p = MatMul(x, w) },
                   else_branch = other () => (float[N, 8] o) { o = Identity(x) }> }"""
    model = model_of(text, w=(8, 8))
    result = run(model, tmp_path, 8, 8, options=", exclude=[left]", c=np.array(True))
    assert outcomes(result)["chosen"] == ("quantized", "")
    assert outcomes(result)["left"] == ("excluded", "excluded by 'left'")
    assert result.report.parity is not None
    found = {each.name: (each.max_abs, each.sqnr_db) for each in result.report.parity.outputs}
    assert found["y"][0] > 0
    assert [found[name][0] for name in "zru"] == [0, 0, 0]


def test_a_weight_that_is_used_as_it_is_and_transposed(tmp_path: Path) -> None:
    text = """ g (float[N, 8] x) => (float[N, 8] y, float[N, 8] z, float[N, 8] k) {
        [a] y = Gemm(x, w, b)  [b] z = Gemm<transB = 1>(x, w, b)  k = Add(x, b) }"""
    model = model_of(text, w=(8, 8), b=(8,))
    result = run(model, tmp_path, 8, 8)
    assert (result.report.verdict, set(outcomes(result).values())) == ("passed", {("quantized", "")})
    assert kernels(result, tmp_path)["QGemm"] == 2
    assert result.report.parity is not None
    assert {each.name: each.max_abs for each in result.report.parity.outputs}["k"] == 0


@pytest.mark.parametrize(
    ("attributes", "bias", "reason"),
    [
        ("beta = 0.5", (12,), "loses what the bias is multiplied by"),
        ("transB = 0", (1, 12), "takes each bias for a vector"),
        ("transB = 0", (1,), "takes each bias for a vector"),
        ("alpha = 0.5", (12,), ""),
        ("transB = 0", (12,), ""),
    ],
)
@pytest.mark.parametrize("quantize_bias", [True, False])
def test_gemm_keeps_what_its_attributes_say(
    attributes: str, bias: tuple[int, ...], reason: str, quantize_bias: bool, tmp_path: Path
) -> None:
    model = model_of(f" g (float[N, 8] x) => (float[N, 12] y) {{ [g] y = Gemm<{attributes}>(x, w, b) }}", w=(8, 12), b=bias)
    result = run(model, tmp_path, 16, 8, options=f", quantize_bias={str(quantize_bias).lower()}")
    outcome, said = outcomes(result)["g"]
    assert result.report.verdict == "passed"
    assert (outcome, reason in said) == ("missed" if reason else "quantized", True)
    kernels(result, tmp_path)
    x = np.random.default_rng(5).standard_normal((64, 8)).astype(np.float32)
    wanted, got = (session(each).run(None, {"x": x})[0] for each in (model.SerializeToString(), str(tmp_path / "out.onnx")))
    assert np.abs(wanted - got).max() < 0.05 * np.abs(wanted).max()  # with all of ONNX Runtime's optimizations


@pytest.mark.parametrize("options", ["", ",symmetric=false", ",weight=uint8", ",per_channel=false,symmetric=false"])
def test_convolutions_run_with_all_optimizations(options: str, tmp_path: Path) -> None:
    text = " g (float[N, 3, 8, 8] x) => (float[N, 4, 4, 4] y) { [c] h = Conv(x, v, b)  r = Relu(h)  [d] y = Conv(r, w) }"
    model = model_of(text, v=(4, 3, 3, 3), b=(4,), w=(4, 4, 3, 3))
    result = run(model, tmp_path, 2, 3, 8, 8, options=options)
    kernels(result, tmp_path)
    x = np.random.default_rng(5).standard_normal((2, 3, 8, 8)).astype(np.float32)
    wanted, got = (session(each).run(None, {"x": x})[0] for each in (model.SerializeToString(), str(tmp_path / "out.onnx")))
    assert np.abs(wanted - got).max() < 0.1 * np.abs(wanted).max()


def test_sums_are_quantized_where_they_are_asked_for(tmp_path: Path) -> None:
    text = " g (float[N, 8] x) => (float[N, 8] y) { h = Tanh(x)  [a] s = Add(x, h)  [m] y = Mul(s, h)  }"
    result = run(model_of(text), tmp_path, 16, 8, options=", operators=[Add, Mul]")
    assert outcomes(result) == {"a": ("quantized", ""), "m": ("quantized", "")}
    found = kernels(result, tmp_path)
    assert (found["QLinearAdd"], found["QLinearMul"]) == (1, 1)


def test_what_the_quantizer_does_not_do_is_told(tmp_path: Path) -> None:
    text = """ g (float[2, 4, 8] x) => (float[2, 4, 8] y) {
        [f] h = com.microsoft.FusedMatMul<alpha = 0.5>(x, w)  [b] y = MatMul(h, v) }"""
    model = model_of(text, w=(8, 8), v=(2, 8, 8))
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    found = outcomes(run(model, tmp_path, 2, 4, 8))
    assert found["f"] == ("missed", "ONNX Runtime's static quantizer does not do FusedMatMul")
    assert found["b"] == ("missed", "the weight has more than two dimensions")


def test_auto_leaves_to_the_quantizer_what_our_own_conversion_left(tmp_path: Path) -> None:
    model = model_of(PRODUCTS, wq=(8, 12), wt=(12, 8), wg=(12, 12), b=(12,))
    run(model, tmp_path, 8, 8, c=np.array(True))
    result = Chain(f'quantize-static{{backend=auto, calibration="{tmp_path}"}}').run(model, inputs=tmp_path, budget="sqnr=15")
    assert [(record.backend, record.status) for record in result.report.passes] == [
        ("standalone", "applied"),
        ("ort", "unchanged"),
    ]
    assert result.report.quantization is not None
    assert result.report.quantization.coverage["MatMul"].quantized == 2


@pytest.mark.parametrize("options", [",activation=uint16", ",weight=int4", ",weight=int16"])
def test_other_widths(options: str, tmp_path: Path) -> None:
    model = model_of(" g (float[N, 8] x) => (float[N, 12] y) { y = MatMul(x, w) }", w=(8, 12))
    result = run(model, tmp_path, 16, 8, options=options)
    assert (result.report.verdict, outcomes(result)["y"]) == ("passed", ("quantized", ""))
    kernels(result, tmp_path)


def test_the_other_format_is_refused() -> None:
    with pytest.raises(UsageError, match="format=qdq only"):
        Chain("quantize-static{backend=ort, format=qoperator}")


def test_names_that_the_quantizer_would_make_may_be_there_already(tmp_path: Path) -> None:
    """It writes constants, values and nodes called x_scale, x_QuantizeLinear and so on, whoever else is called so."""
    text = """ g (float[N, 8] x) => (float[N, 8] z, float[N, 8] y) {
        [x_QuantizeLinear] x_QuantizeLinear_Output = Mul(x, x_scale)  [s] s = Add(x, x_QuantizeLinear_Output)
        [a] s_DequantizeLinear_Output = MatMul(s, w)  [b] w_DequantizeLinear_Output = MatMul(x, w_quantized)
        y = Add(s_DequantizeLinear_Output, x_scale)  z = Mul(w_DequantizeLinear_Output, y) }"""
    model = model_of(text, w=(8, 8), w_quantized=(8, 8), x_scale=(8,))
    result = run(model, tmp_path, 8, 8, options=", operators=[MatMul, Add], exclude=[y]")
    assert result.report.verdict == "passed"
    assert [outcomes(result)[name] for name in "sab"] == [("quantized", "")] * 3
    again = run(result.model.proto, tmp_path, 8, 8, options=", operators=[MatMul, Add, Mul], exclude=[y]")
    assert (again.report.verdict, again.report.passes[0].status) == ("passed", "applied")
    assert outcomes(again)["z"] == ("quantized", "")


def test_nodes_with_bodies_keep_their_domain(tmp_path: Path) -> None:
    """The quantizer makes them anew when it drops initializers that nobody reads, and forgets it."""
    text = """<ir_version: 8, opset_import: ["" : 17, "org.example" : 1]>
        g (float[2, 8] x, bool c) => (float[2, 8] y, float[2, 8] z) {
        y = MatMul(x, w)  z = org.example.Odd(c) <body = b () => (float[2, 8] p) { p = Identity(x) }> }"""
    model = parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(np.eye(8, dtype=np.float32), "w"))
    options = QuantizeStatic(use_run_inputs=True).model_dump()
    arguments = {"folder": str(tmp_path), "root": "/", "outputs": ["y"], "ops": ["MatMul"], "ranges": {"x": [-1, 1]}}
    path = quantize_static(model.SerializeToString(), {**options, **arguments, "contrib_ops": False})
    found = Counter((node.domain, node.op_type) for node in onnx.load(path).graph.node)
    assert found == {("", "MatMul"): 1, ("org.example", "Odd"): 1, ("", "QuantizeLinear"): 1, ("", "DequantizeLinear"): 2}
