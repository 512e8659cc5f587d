"""What is slower when it is quantized stays in float: really measured, on products that lose and gain by factors."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, numpy_helper, parser

from rewright.model.load import load
from rewright.tuning.quantize import quantize
from rewright.tuning.request import QuantizationRequest
from rewright.tuning.speed import keep_what_is_faster

# Where there are as many columns as rows of the weight, both small, quantizing the activations takes longer than the product.
LOSES = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 16] x) => (float[1, 16] y) {
    [tall] a = MatMul(x, narrow)
    y = ReduceMean<axes=[0]>(a)
}"""
BOTH = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 16] x, float[M, 512] z) => (float[1, 16] y, float[M, 1024] w) {
    [tall] a = MatMul(x, narrow)
    y = ReduceMean<axes=[0]>(a)
    [wide] w = MatMul(z, large)
}"""
RNG = np.random.default_rng(0)
X = RNG.standard_normal((20_000, 16), dtype=np.float32)
Z = RNG.standard_normal((128, 512), dtype=np.float32)
STEP = QuantizationRequest(level="O0", preset="arm64").step()


def model(text: str, **shapes: tuple[int, int]) -> ModelProto:
    made = parser.parse_model(text)
    for name, shape in shapes.items():
        made.graph.initializer.append(numpy_helper.from_array(RNG.standard_normal(shape, dtype=np.float32) / 8, name))
    return made


def test_a_group_that_loses_stays_in_float() -> None:
    original = load(model(BOTH, narrow=(16, 16), large=(512, 1024)))
    found = keep_what_is_faster(original, STEP, inputs={"x": X, "z": Z}, threads=1, rounds=5)
    assert set(found.groups) == {"MatMul 16x16", "MatMul 512x1024"}
    assert found.groups["MatMul 16x16"].low > 1.02
    assert found.groups["MatMul 512x1024"].high < 1
    assert set(found.excluded) == {"tall"}
    assert found.excluded["tall"].startswith("kept in float: the model is 1.")
    assert found.excluded["tall"].endswith("times as fast with MatMul 16x16 in float")
    assert found.measured.models[1].speedup.low > 1


def test_a_model_that_is_slower_still_stays_in_float() -> None:
    result = quantize(model(LOSES, narrow=(16, 16)), level="O0", preset="arm64", inputs={"x": X}, no_slower=True, threads=1)
    assert "times as fast as the float model" in result.kept_in_float["tall"]
    (missed,) = result.report.quantization.missed
    assert missed.reason == result.kept_in_float["tall"]
    assert result.report.passes[-1].status == "unchanged"
    assert result.speed.models[1].speedup.high < 1


def test_a_model_without_anything_to_quantize_is_not_measured() -> None:
    found = keep_what_is_faster(
        load(
            parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }""")
        ),
        STEP,
        inputs={"x": X[:, :4]},
    )
    assert (found.excluded, found.measured) == ({}, None)
