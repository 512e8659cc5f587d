"""The pass ``smooth-quant``: the same function, with outliers in the weights."""

from __future__ import annotations

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

Array = np.ndarray[Any, Any]
HEAD = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'
OUTLIER = 3


def model_of(text: str, **shapes: tuple[int, ...]) -> ModelProto:
    """Weights are random, scales of normalisations near 1 but for one channel, which is 60 times as large."""
    random = np.random.default_rng(7)
    made = parser.parse_model(HEAD + text)
    for name, shape in shapes.items():
        values = random.standard_normal(shape) if name != "gamma" else 1 + random.random(shape) / 4
        if name == "gamma":
            values[OUTLIER] = 60.0
        made.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return made


def inputs(names: tuple[str, ...] = ("x",)) -> list[dict[str, Array]]:
    random = np.random.default_rng(3)
    return [{name: random.standard_normal((2, 5, 8)).astype(np.float32) for name in names} for _ in range(4)]


def smoothed(model: ModelProto, folder: Path, options: str = "", then: str = "", names: tuple[str, ...] = ("x",)) -> RunResult:
    for number, each in enumerate(inputs(names)):
        np.savez(folder / f"{number}.npz", **each)  # type: ignore[arg-type]
    return Chain(f'smooth-quant{{calibration="{folder}"{options}}}{then}').run(
        model, inputs=inputs(names), budget="sqnr=1, cosine=0"
    )


def outputs(model: ModelProto, names: tuple[str, ...] = ("x",)) -> list[Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [array for each in inputs(names) for array in session.run(None, each)]


def whole(result: RunResult, folder: Path) -> ModelProto:
    result.save(folder / "out.onnx")
    return onnx.load(folder / "out.onnx")


NORMALISED = """ g (float[2, 5, 8] x) => (float[2, 5, 12] q, float[2, 5, 12] k) {
    n = LayerNormalization(x, gamma, beta)  [q] q = MatMul(n, wq)  t = Transpose<perm = [1, 0]>(wk)  [k] k = MatMul(n, t) }"""
SHAPES: dict[str, tuple[int, ...]] = {"gamma": (8,), "beta": (8,), "wq": (8, 12), "wk": (12, 8)}


def test_the_normalisation_takes_the_factors_and_nothing_is_rounded(tmp_path: Path) -> None:
    model = model_of(NORMALISED, **SHAPES)
    result = smoothed(model, tmp_path)
    assert (result.report.verdict, result.report.passes[0].status) == ("passed", "applied")
    assert [node.op_type for node in result.model.proto.graph.node] == ["LayerNormalization", "MatMul", "MatMul"]
    for old, new in zip(outputs(model), outputs(whole(result, tmp_path)), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_factors_are_what_the_paper_says_to_the_next_power_of_two(tmp_path: Path) -> None:
    model = model_of(NORMALISED, **SHAPES)
    held = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    model_n = parser.parse_model(HEAD + NORMALISED.replace("float[2, 5, 12] q,", "float[2, 5, 8] n, float[2, 5, 12] q,"))
    model_n.graph.initializer.extend(model.graph.initializer)
    largest = np.max([np.abs(array).max((0, 1)) for array in outputs(model_n)[::3]], axis=0)
    weights = np.maximum(np.abs(held["wq"]).max(1), np.abs(held["wk"]).max(0))
    for alpha in (0.5, 0.8):
        result = smoothed(model, tmp_path, f", alpha={alpha}")
        graph = whole(result, tmp_path).graph
        gamma = next(numpy_helper.to_array(each) for each in graph.initializer if each.name.startswith("gamma"))
        factors = held["gamma"] / gamma
        np.testing.assert_allclose(np.log2(factors), np.rint(np.log2(largest**alpha / weights ** (1 - alpha))))
    assert factors[OUTLIER] >= 8


def test_quantization_loses_less_afterwards(tmp_path: Path) -> None:
    model = model_of(NORMALISED, **SHAPES)
    then = f', quantize-static{{calibration="{tmp_path}", per_channel=false}}'
    found = []
    for chain in (smoothed(model, tmp_path, then=then), Chain(then[2:]).run(model, inputs=inputs(), budget="sqnr=1, cosine=0")):
        parity = chain.report.parity
        assert chain.report.passes[-1].status == "applied"
        assert parity is not None
        found.append(min(each.sqnr_db or 0 for each in parity.outputs))
    assert found[0] > found[1]


@pytest.mark.parametrize(
    ("text", "shapes", "ops"),
    [
        (
            " g (float[2, 5, 8] x) => (float[2, 5, 8] y) { n = LayerNormalization(x, gamma)  m = MatMul(n, w)  y = Add(m, n) }",
            {"gamma": (8,), "w": (8, 8)},
            ["LayerNormalization", "Mul", "MatMul", "Add"],
        ),
        (
            """ g (float[2, 5, 8] x) => (float[10, 4] y) {
                s = Mul(x, gamma)  r = Reshape(s, shape)  y = Gemm<transB = 1>(r, w, b) }""",
            {"gamma": (8,), "w": (4, 8), "b": (4,)},
            ["Mul", "Reshape", "Mul", "Gemm"],
        ),
        (
            """ g (float[2, 5, 8] x) => (float[2, 5, 8] y, float[2, 5, 8] s) {
                n, m, v, s = com.microsoft.SkipLayerNormalization(x, x, gamma, beta)
                y = com.microsoft.Attention<num_heads = 2>(n, w, b) }""",
            {"gamma": (8,), "beta": (8,), "w": (8, 24), "b": (24,)},
            ["SkipLayerNormalization", "Attention"],
        ),
    ],
)
def test_other_readers_other_makers_and_attention(
    text: str, shapes: dict[str, tuple[int, ...]], ops: list[str], tmp_path: Path
) -> None:
    model = model_of(text, **shapes)
    if "shape" in text:
        model.graph.initializer.append(numpy_helper.from_array(np.array([10, 8]), "shape"))
    result = smoothed(model, tmp_path)
    assert (result.report.verdict, result.report.passes[0].status) == ("passed", "applied")
    assert [node.op_type for node in result.model.proto.graph.node] == ops
    for old, new in zip(outputs(model), outputs(whole(result, tmp_path)), strict=True):
        np.testing.assert_allclose(old, new, rtol=1e-5, atol=1e-5)


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    once = smoothed(model_of(NORMALISED, **SHAPES), tmp_path)
    again = smoothed(whole(once, tmp_path), tmp_path)
    assert again.report.passes[0].status == "unchanged"
    assert {each.reason for each in again.report.passes[0].rejections} == {"its channels are even already"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("n = LayerNormalization(x, gamma)  y = MatMul(n, w)  z = MatMul(x, w)", "read by another node too"),
        ("n = LayerNormalization(x, gamma)  y = MatMul(n, w)  z = Identity(w)", "read by another node too"),
        ("n = LayerNormalization(x, gamma)  t = Transpose(n)  y = MatMul(n, t)  z = Add(n, n)", "activations are not multiplied"),
    ],
)
def test_what_is_left_alone_is_told_with_the_reason(text: str, said: str, tmp_path: Path) -> None:
    made = parser.parse_model(HEAD + f" g (float[8, 8] x) => (float[A, B] y, float[C, D] z) {{ {text} }}")
    source = model_of(" g (float[8, 8] x) => (float[8, 8] y) { y = Identity(x) }", gamma=(8,), w=(8, 8))
    used = {name for node in made.graph.node for name in node.input}
    made.graph.initializer.extend(each for each in source.graph.initializer if each.name in used)
    np.savez(tmp_path / "0.npz", x=np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32))
    result = Chain(f'smooth-quant{{calibration="{tmp_path}"}}').run(made)
    assert result.report.passes[0].status == "unchanged"
    assert any(said in each.reason for each in result.report.passes[0].rejections)


def test_only_into_normalisations_where_that_is_asked_for(tmp_path: Path) -> None:
    model = model_of(" g (float[2, 5, 8] x) => (float[2, 5, 8] y) { s = Mul(x, gamma)  y = MatMul(s, w) }", gamma=(8,), w=(8, 8))
    assert smoothed(model, tmp_path).report.passes[0].status == "applied"
    result = smoothed(model, tmp_path, ", fold_only=true")
    assert result.report.passes[0].status == "unchanged"
    assert "fold_only" in result.report.passes[0].rejections[0].reason


def test_without_data_the_run_ends_with_one_clear_error() -> None:
    with pytest.raises(UsageError, match="needs calibration data") as caught:
        Chain("smooth-quant").run(model_of(NORMALISED, **SHAPES))
    assert "calibration=PATH" in caught.value.hint
