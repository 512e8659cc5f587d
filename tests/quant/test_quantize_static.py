"""The pass ``quantize-static``: which kernels ONNX Runtime makes of it, what it costs, and what it leaves alone."""

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
from rewright.calibration import calibrate
from rewright.model.errors import UsageError
from rewright.passes.contract import Target
from rewright.run import RunResult

Array = np.ndarray[Any, Any]
HEAD = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'


def model_of(text: str, opset: int = 17, **shapes: tuple[int, ...]) -> ModelProto:
    """A model in text with random float32 weights of the given shapes."""
    random = np.random.default_rng(7)
    made = parser.parse_model(HEAD.replace("17", str(opset)) + text)
    for name, shape in shapes.items():
        made.graph.initializer.append(numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name))
    return made


def inputs_of(*shape: int, count: int = 4, names: tuple[str, ...] = ("x",)) -> list[dict[str, Array]]:
    random = np.random.default_rng(3)
    return [{name: random.standard_normal(shape).astype(np.float32) for name in names} for _ in range(count)]


def quantized(model: ModelProto, sets: list[dict[str, Array]], tmp_path: Path, options: str = "", **how: Any) -> RunResult:
    folder = tmp_path / "data"
    folder.mkdir(exist_ok=True)
    for number, each in enumerate(sets):
        np.savez(folder / f"{number}.npz", **each)  # type: ignore[arg-type]
    return Chain(f'quantize-static{{calibration="{folder}"{options}}}').run(model, inputs=sets, **how)


def kernels(result: RunResult, tmp_path: Path) -> Counter[str]:
    """The ops that ONNX Runtime runs."""
    result.save(tmp_path / "out.onnx")
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=False)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "kernels.onnx")
    ort.InferenceSession(str(tmp_path / "out.onnx"), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(tmp_path / "kernels.onnx").graph.node)


def outcomes(result: RunResult) -> list[tuple[str, str, str]]:
    return [(entry.node, entry.outcome, entry.reason) for entry in result.report.passes[-1].coverage]


SHARED = """ g (float[B, 5, 8] x) => (float[B, 5, 12] q, float[B, 5, 12] k) {
    [q] q0 = MatMul(x, wq)  q = Add(q0, b)  [k] k = MatMul(x, wk) }"""


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ("", {"QuantizeLinear": 1, "MatMulIntegerToFloat": 2, "Add": 1}),
        (",format=qoperator", {"QuantizeLinear": 1, "MatMulIntegerToFloat": 2}),
        (",weight=uint8,symmetric=false", {"QuantizeLinear": 1, "MatMulIntegerToFloat": 2, "Add": 1}),
        (",per_channel=false", {"QuantizeLinear": 1, "MatMulIntegerToFloat": 2, "Add": 1}),
        (",format=qoperator,activation=int8,activation_symmetric=true", {"QuantizeLinear": 1, "MatMulIntegerToFloat": 2}),
    ],
)
def test_products_become_integer_kernels_and_share_their_operand(options: str, wanted: dict[str, int], tmp_path: Path) -> None:
    model = model_of(SHARED, wq=(8, 12), wk=(8, 12), b=(12,))
    result = quantized(model, inputs_of(3, 5, 8), tmp_path, options)
    assert result.report.verdict == "passed"
    assert result.report.passes[0].status == "applied"
    assert kernels(result, tmp_path) == wanted
    assert outcomes(result) == [("q", "quantized", ""), ("k", "quantized", "")]
    assert result.report.parity is not None
    assert all(each.sqnr_db is not None and each.sqnr_db > 30 for each in result.report.parity.outputs)


GEMM = " g (float[N, 8] x) => (float[N, 12] y) { [g] y = Gemm<ATTRIBUTES>(x, w, b) }"


@pytest.mark.parametrize(
    ("attributes", "bias", "wanted"),
    [
        ("transB = 1", (12,), {"QuantizeLinear": 1, "QGemm": 1}),
        ("transB = 1, alpha = 0.5, beta = 2.0", (12,), {"QuantizeLinear": 1, "QGemm": 1}),
        ("transB = 1, beta = 0.0", (12,), {"QuantizeLinear": 1, "QGemm": 1}),
        ("transB = 1, beta = 0.5", (1, 12), {"QuantizeLinear": 1, "QGemm": 1}),
    ],
)
@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_gemm_keeps_what_its_attributes_say(
    attributes: str, bias: tuple[int, ...], wanted: dict[str, int], form: str, tmp_path: Path
) -> None:
    result = quantized(
        model_of(GEMM.replace("ATTRIBUTES", attributes), w=(12, 8), b=bias), inputs_of(4, 8), tmp_path, f",format={form}"
    )
    assert result.report.verdict == "passed"
    if form == "qdq":
        assert kernels(result, tmp_path) == wanted
    else:
        assert kernels(result, tmp_path) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}


def test_gemm_of_a_transposed_operand_and_a_bias_that_is_no_row(tmp_path: Path) -> None:
    model = model_of(" g (float[8, 4] x) => (float[4, 12] y) { [g] y = Gemm<transA = 1>(x, w, b) }", w=(8, 12), b=(4, 1))
    for form in ("qdq", "qoperator"):
        result = quantized(model, inputs_of(8, 4), tmp_path, f",format={form}")
        assert (result.report.verdict, outcomes(result)) == ("passed", [("g", "quantized", "")])


CONV = """ g (float[N, 3, 8, 8] x) => (float[N, 6, 3, 3] y) {
    [c] h = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(x, v, b)  r = Relu(h)  [d] y = Conv(r, w) }"""


@pytest.mark.parametrize("options", ["", ",format=qoperator", ",weight=uint8", ",activation=int8", ",per_channel=false"])
def test_convolutions_and_the_relu_between_stay_in_integers(options: str, tmp_path: Path) -> None:
    result = quantized(model_of(CONV, v=(4, 3, 3, 3), b=(4,), w=(6, 4, 2, 2)), inputs_of(2, 3, 8, 8), tmp_path, options)
    assert result.report.verdict == "passed"
    assert outcomes(result) == [("c", "quantized", ""), ("d", "quantized", "")]
    found = kernels(result, tmp_path)
    assert (found["QLinearConv"], found["Conv"], found["QuantizeLinear"], found["DequantizeLinear"]) == (2, 0, 1, 1)
    assert found["Relu"] == 0


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("backend", ["standalone", "ort"])
@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_a_model_loads_with_int8_in_front_of_what_only_moves(opset: int, backend: str, target: Target, tmp_path: Path) -> None:
    """ONNX Runtime 1.31 and 1.32 move DequantizeLinear behind Transpose, from opset 21 on with a zero point of another type."""
    text = """ g (float[N, 3, 8, 8] x) => (float[N, 6, 7, 7] y, float[N, 8, 8, 3] z) {
        [c] h = Conv(x, v)  y = Transpose<perm = [0, 1, 3, 2]>(h)  t = Tanh(x)  n = Sigmoid(x)
        [a] s = Add(t, n)  z = Transpose<perm = [0, 2, 3, 1]>(s) }"""
    result = quantized(
        model_of(text, opset, v=(6, 3, 2, 2)),
        inputs_of(2, 3, 8, 8),
        tmp_path,
        f",activation=int8,backend={backend},operators=[Conv, Add]",
        target=target,
    )
    found = {node: (outcome, reason) for node, outcome, reason in outcomes(result)}
    is_left = (opset, target) == (21, "portable")
    assert result.report.verdict == "passed"
    assert found["a"][0] == ("missed" if is_left else "quantized")
    assert found["c"][0] == ("missed" if is_left and backend == "ort" else "quantized")
    ops = kernels(result, tmp_path)
    assert (ops["QLinearConv"], ops["QLinearAdd"]) == ((0, 0) if is_left else (1, 1))


def test_the_bias_of_a_convolution_that_does_not_fit_stays_as_it_is(tmp_path: Path) -> None:
    model = model_of(CONV, v=(4, 3, 3, 3), w=(6, 4, 2, 2))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1e9, 0, 0, 0], np.float32), "b"))
    result = quantized(model, inputs_of(2, 3, 8, 8), tmp_path, ",format=qoperator", budget="sqnr=-200, cosine=-1")
    held = {each.name: numpy_helper.to_array(each) for each in result.model.proto.graph.initializer if "bias" in each.name}
    assert result.report.passes[0].status == "applied"
    assert [each.dtype for each in held.values()] == [np.float32]


def test_sums_and_products_only_where_they_are_asked_for(tmp_path: Path) -> None:
    text = " g (float[N, 8] x, float[N, 8] z) => (float[N, 8] y) { [a] s = Add(x, z)  [m] y = Mul(s, z)  [c] o = Add(s, k) }"
    model = model_of(text, k=(8,))
    sets = inputs_of(16, 8, names=("x", "z"))
    assert outcomes(quantized(model, sets, tmp_path)) == []
    result = quantized(model, sets, tmp_path, ",operators=[Add, Mul]", budget="sqnr=15")
    assert outcomes(result) == [("a", "quantized", ""), ("m", "quantized", ""), ("c", "missed", "an operand is constant")]
    found = kernels(result, tmp_path)
    assert (found["QLinearAdd"], found["QLinearMul"]) == (1, 1)


@pytest.mark.parametrize("options", [",activation=uint16", ",activation=int16", ",weight=int16", ",weight=int4", ",weight=uint4"])
@pytest.mark.parametrize("opset", [17, 21])
def test_types_of_other_widths_load_and_run(options: str, opset: int, tmp_path: Path) -> None:
    model = model_of(SHARED, opset, wq=(8, 12), wk=(8, 12), b=(12,))
    result = quantized(model, inputs_of(3, 5, 8), tmp_path, options, budget="sqnr=12, cosine=0.9")
    assert (result.report.verdict, [each[1] for each in outcomes(result)]) == ("passed", ["quantized"] * 2)
    domains = {node.domain for node in result.model.proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    assert ("com.microsoft" in domains) == (opset == 17)
    kernels(result, tmp_path)


def test_sixteen_bits_of_activations_lose_less_than_eight(tmp_path: Path) -> None:
    model = model_of(SHARED, wq=(8, 12), wk=(8, 12), b=(12,))
    found = []
    for options in (",weight=int16", ",weight=int16,activation=uint16"):
        parity = quantized(model, inputs_of(3, 5, 8), tmp_path, options).report.parity
        assert parity is not None
        found.append(min(each.sqnr_db or 0 for each in parity.outputs))
    assert found[1] > found[0] + 20


@pytest.mark.parametrize("opset", [11, 12])
def test_older_models_are_raised_to_scales_by_channel(opset: int, tmp_path: Path) -> None:
    model = model_of(SHARED, opset, wq=(8, 12), wk=(8, 12), b=(12,))
    result = quantized(model, inputs_of(3, 5, 8), tmp_path)
    assert (result.report.verdict, [each[1] for each in outcomes(result)]) == ("passed", ["quantized"] * 2)
    assert result.model.proto.opset_import[0].version == 13
    blocked = model_of(SHARED.replace("k = MatMul(x, wk)", "k0 = MatMul(x, wk)  k = Softmax<axis = 1>(k0)"), opset,
                       wq=(8, 12), wk=(8, 12), b=(12,))  # fmt: skip
    other = quantized(blocked, inputs_of(3, 5, 8), tmp_path)
    assert [each[1] for each in outcomes(other)] == ["quantized"] * 2
    assert other.model.proto.opset_import[0].version == opset
    assert kernels(other, tmp_path)["QuantizeLinear"] == 1


def test_tied_and_transposed_weights_are_stored_once(tmp_path: Path) -> None:
    text = """ g (float[N, 8] x) => (float[N, 8] y) {
        [a] a = MatMul(x, w)  [b] b = Gemm(a, w)  t = Transpose<perm = [1, 0]>(w)  [c] y = MatMul(b, t) }"""
    result = quantized(model_of(text, w=(8, 8)), inputs_of(6, 8), tmp_path, budget="sqnr=15")
    assert [each[1] for each in outcomes(result)] == ["quantized"] * 3
    bytes_after = [entry.bytes_after for entry in result.report.passes[0].coverage]
    assert bytes_after[0] > 0
    assert bytes_after[1] == 0
    stored = [each for each in result.model.proto.graph.initializer if len(each.dims) == 2]
    assert len(stored) == 2  # the transposed one has its scales along the other axis


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_attention_multiplies_integers(form: str, tmp_path: Path) -> None:
    text = """ g (float[B, 5, 8] x) => (float[B, 5, 8] y) { [att] y = com.microsoft.Attention<num_heads = 2>(x, w, b) }"""
    result = quantized(model_of(text, w=(8, 24), b=(24,)), inputs_of(2, 5, 8), tmp_path, f",format={form}")
    assert (result.report.verdict, outcomes(result)) == ("passed", [("att", "quantized", "")])
    assert kernels(result, tmp_path) == {"QuantizeLinear": 1, "QAttention": 1}


def test_what_cannot_be_quantized_is_told_with_the_reason(tmp_path: Path) -> None:
    text = """ g (float[4, 4] x, bool c) => (float[4, 4] y, float[4, 4] z) {
        [act] a = MatMul(x, x)  [left] l = MatMul(w, x)  [good] s = MatMul(a, w)
        y = If(c) <then_branch = t () => (float[4, 4] p) { [inner] p = MatMul(x, w) },
                   else_branch = e () => (float[4, 4] q) { q = Identity(x) }>
        z = Add(s, l) }"""
    sets = [{**each, "c": np.array(True)} for each in inputs_of(4, 4)]
    result = quantized(model_of(text, w=(4, 4)), sets, tmp_path, budget="sqnr=15")
    found = {node: (outcome, reason) for node, outcome, reason in outcomes(result)}
    assert found["good"] == ("quantized", "")
    assert found["act"][0] == found["left"][0] == found["inner"][0] == "missed"
    assert "activations are not multiplied by activations" in found["act"][1]
    assert "left operand" in found["left"][1]
    assert "whose values calibration does not see" in found["inner"][1]


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    for form in ("qdq", "qoperator"):
        once = quantized(
            model_of(CONV, v=(4, 3, 3, 3), b=(4,), w=(6, 4, 2, 2)), inputs_of(2, 3, 8, 8), tmp_path, f",format={form}"
        )
        again = quantized(once.model.proto, inputs_of(2, 3, 8, 8), tmp_path, f",format={form}")
        assert again.report.passes[0].status == "unchanged"
        if form == "qdq":
            assert outcomes(again) == [(name, "missed", "it is quantized already") for name in ("c/Conv", "d/Conv")]
    once = quantized(model_of(SHARED, wq=(8, 12), wk=(8, 12), b=(12,)), inputs_of(3, 5, 8), tmp_path)
    assert quantized(once.model.proto, inputs_of(3, 5, 8), tmp_path).report.passes[0].status == "unchanged"


def test_sums_that_are_quantized_are_left_alone(tmp_path: Path) -> None:
    model = model_of(" g (float[N, 8] x) => (float[N, 8] z) { t = Tanh(x)  [a] s = Add(x, t)  [m] y = Mul(s, t)  z = Relu(y) }")
    for backend in ("standalone", "ort"):
        options = f",operators=[Add, Mul],backend={backend}"
        once = quantized(model, inputs_of(16, 8), tmp_path, options, budget="sqnr=15")
        assert [each[1] for each in outcomes(once)] == ["quantized"] * 2
        again = quantized(once.model.proto, inputs_of(16, 8), tmp_path, options, budget="sqnr=15")
        assert again.report.passes[0].status == "unchanged"
        assert {each[1:] for each in outcomes(again)} == {("missed", "it is quantized already")}


def test_what_no_input_takes_is_told(tmp_path: Path) -> None:
    sets = inputs_of(3, 5, 8)
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "more.npz", **sets[0], label=np.zeros(3), __made_by__=np.zeros(1))  # type: ignore[arg-type]
    result = quantized(model_of(SHARED, wq=(8, 12), wk=(8, 12), b=(12,)), sets, tmp_path)
    wanted = "calibration data has 'label', which no input of the model takes: left out"
    assert result.report.passes[0].notes == [wanted, "1 ranges by minmax on 5 input sets"]


def test_ranges_of_a_file_are_used_as_they_are(tmp_path: Path) -> None:
    model = model_of(SHARED, wq=(8, 12), wk=(8, 12), b=(12,))
    sets = inputs_of(3, 5, 8)
    calibrate(model, sets, "percentile").save(tmp_path / "ranges.json")
    measured = Chain(f'quantize-static{{ranges="{tmp_path / "ranges.json"}"}}').run(model, inputs=sets)
    directly = quantized(model, sets, tmp_path, ",method=percentile")
    assert measured.model.fingerprint() == directly.model.fingerprint()
    other = model_of(SHARED.replace("x", "other"), wq=(8, 12), wk=(8, 12), b=(12,))
    missed = Chain(f'quantize-static{{ranges="{tmp_path / "ranges.json"}"}}').run(other, verify="structure")
    assert {reason for _, _, reason in outcomes(missed)} == {"no range is known for 'other'"}


def test_without_data_the_run_ends_with_one_clear_error() -> None:
    model = model_of(SHARED, wq=(8, 12), wk=(8, 12), b=(12,))
    with pytest.raises(UsageError, match="needs calibration data") as caught:
        Chain("quantize-static").run(model)
    assert "calibration=PATH" in caught.value.hint
    made_up = Chain("quantize-static{use_run_inputs=true}").run(model, inputs=inputs_of(3, 5, 8))
    assert made_up.report.passes[0].status == "applied"
    assert any("made up" in note for note in made_up.report.passes[0].notes)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ('calibration="/no/such"', "neither an .npz file nor a folder"),
        ('ranges="/no/such.json"', "cannot be read"),
        ("use_run_inputs=true, method=entropy", "gives extremes only"),
        ("format=qoperator, weight=int4", "8 bits only"),
        ("format=qoperator, activation=int8, weight=uint8", "no kernel multiplies"),
    ],
)
def test_options_that_cannot_be_are_refused_before_the_run(options: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Chain(f"quantize-static{{{options}}}")


def test_a_portable_model_has_standard_ops_only(tmp_path: Path) -> None:
    model = model_of(SHARED, wq=(8, 12), wk=(8, 12), b=(12,))
    for form in ("qdq", "qoperator"):
        result = quantized(model, inputs_of(3, 5, 8), tmp_path, f",format={form}", target="portable")
        assert (result.report.verdict, [each[1] for each in outcomes(result)]) == ("passed", ["quantized"] * 2)
        assert {node.domain for node in result.model.proto.graph.node} == {""}
