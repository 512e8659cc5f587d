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
from rewright.run import RunResult

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
PRODUCTS = """ g (float[N, 8] x, bool c) => (float[N, 12] y, float[N, 8] z) {
    [q] h = MatMul(x, wq)  t = Transpose<perm = [1, 0]>(wt)  [k] k = MatMul(x, t)  s = Add(h, k)
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


def outcomes(result: RunResult) -> dict[str, tuple[str, str]]:
    return {entry.node: (entry.outcome, entry.reason) for entry in result.report.passes[-1].coverage}


@pytest.mark.parametrize("options", ["", ",per_channel=false,weight=uint8", ",method=entropy"])
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


def test_the_other_format_is_refused() -> None:
    with pytest.raises(UsageError, match="format=qdq only"):
        Chain("quantize-static{backend=ort, format=qoperator}")
