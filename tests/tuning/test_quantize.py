"""Quantizing as a whole: budgets that hold with fewer nodes, measured speed, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

import rewright
from rewright.tuning.quantize import quantize

BERT = Path(__file__).parents[1] / "zoo" / "bert.ts17.sdpa.onnx"
GRAPH = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 64] x) => (float[N, 64] y) {
    [first] a = MatMul(x, easy)
    [second] b = MatMul(a, hard)
    [third] y = MatMul(b, plain)
}"""


def model() -> onnx.ModelProto:
    """Three products, of which the second has a row so large that the activations before it have to be exact."""
    rng = np.random.default_rng(0)
    made = parser.parse_model(GRAPH)
    for name in ("easy", "hard", "plain"):
        weight = rng.standard_normal((64, 64), dtype=np.float32) / 8
        if name == "hard":
            weight[0, :] = 40.0
        made.graph.initializer.append(numpy_helper.from_array(weight, name))
    return made


FEEDS = {"x": np.random.default_rng(1).standard_normal((16, 64), dtype=np.float32)}
HOW = {"preset": "arm64", "level": "O0", "inputs": FEEDS, "jobs": 1}


def quantized_nodes(report: rewright.Report) -> set[str]:
    return {entry.node for entry in report.passes[-1].coverage if entry.outcome == "quantized"}


def test_a_chain_that_is_run_and_named(tmp_path) -> None:
    result = quantize(model(), tmp_path / "out.onnx", **HOW)
    assert result.chain == "O0, quantize-dynamic"
    assert result.report.verdict == "passed"
    assert quantized_nodes(result.report) == {"first", "second", "third"}
    assert (tmp_path / "out.onnx").stat().st_size < 0.5 * len(model().SerializeToString())
    assert rewright.quantize is quantize


def test_the_worst_stay_in_float_until_the_budget_holds() -> None:
    easy = quantize(model(), budget="sqnr=20", auto_exclude=True, **HOW)
    assert easy.kept_in_float == {}
    whole = easy.report.parity.outputs[0].sqnr_db
    wanted = whole + 1.0
    strict = quantize(model(), budget=f"sqnr={wanted}", auto_exclude=True, **HOW)
    assert strict.report.verdict == "passed"
    assert strict.report.parity.outputs[0].sqnr_db >= wanted
    kept = set(strict.kept_in_float)
    assert kept
    assert quantized_nodes(strict.report) == {"first", "second", "third"} - kept
    assert quantized_nodes(strict.report)  # no more than it takes
    reasons = {entry.node: entry.reason for entry in strict.report.quantization.missed}
    assert reasons == strict.kept_in_float
    assert all("kept in float for the budget" in reason and "quantized alone it leaves" in reason for reason in reasons.values())
    assert f'exclude=["{sorted(kept)[0]}"' in strict.chain or f"exclude=[{sorted(kept)[0]}" in strict.chain


def test_what_the_end_of_a_run_asks_for_is_held_too() -> None:
    """One text of a batch may move the others by no more than the budget, and a run undoes the whole pass where it does."""
    encoder = BERT.with_name("bart_enc.dyn20.eager.onnx")
    loss = quantize(encoder, preset="avx2", budget="sqnr=10", jobs=1).report.parity.outputs[0].sqnr_db
    result = quantize(encoder, preset="avx2", budget=f"sqnr={loss + 0.4}", auto_exclude=True, jobs=1)
    assert result.report.verdict == "passed"
    assert result.kept_in_float
    assert quantized_nodes(result.report)


def test_a_budget_that_nothing_holds_quantizes_nothing_and_says_so() -> None:
    result = quantize(model(), budget="sqnr=190", auto_exclude=True, **HOW)
    assert quantized_nodes(result.report) == set()
    assert len(result.kept_in_float) == 3
    assert result.report.verdict == "passed"


def test_real_measurements() -> None:
    result = quantize(model(), no_slower=True, **HOW)
    assert [timing.name for timing in result.speed.models] == ["float", "quantized"]
    assert result.speed.models[1].speedup is not None
    assert quantized_nodes(result.report) == {"first", "second", "third"} - set(result.kept_in_float)
    assert any(note.startswith("measured: float") for note in result.report.passes[-1].notes)


def test_the_command_prints_the_chain_that_it_runs(command_line, tmp_path) -> None:
    out, same = tmp_path / "out.onnx", tmp_path / "same.onnx"
    outcome = command_line("quantize", BERT, "-o", out, "--preset", "avx2", "--exclude", "*/pooler/*", "--budget", "sqnr=18")
    assert outcome.status == 0, outcome.err
    assert "preset avx2: it was asked for" in outcome.err
    chain = next(line.removeprefix("chain: ") for line in outcome.err.splitlines() if line.startswith("chain: "))
    assert chain.startswith("O2, quantize-dynamic{")
    assert "Quantized" in outcome.out
    assert "excluded by '*/pooler/*'" in outcome.out
    assert command_line("optimize", BERT, "-o", same, "-p", chain, "--quiet", "--budget", "sqnr=18").status == 0
    assert onnx.load(out).graph.node == onnx.load(same).graph.node


def test_the_command_as_json_and_what_it_refuses(command_line, tmp_path) -> None:
    command = ("quantize", BERT, "-o", tmp_path / "out.onnx")
    report = json.loads(
        command_line(*command, "--mode", "weight-only", "-O", "0", "--json", "--budget", "sqnr=0, cosine=0.5").out
    )
    assert report["quantization"]["coverage"]["MatMul"]["quantized"] > 0
    assert "there is no preset 'sse'" in command_line(*command, "--preset", "sse").assert_one_error()
    assert "has no mode 'dynamic'" in command_line(*command, "--preset", "tensorrt").assert_one_error()
    assert "fits no node" in command_line(*command, "--exclude", "/none/*").assert_one_error()
    assert "has no option 'colour'" in command_line(*command, "--set", "colour=3").assert_one_error()
    assert "is of another pass" in command_line(*command, "--set", "gelu.backend=ort").assert_one_error()


def test_a_directory_is_quantized_file_by_file(command_line, tmp_path) -> None:
    exported, quantized = tmp_path / "exported", tmp_path / "quantized"
    exported.mkdir()
    (exported / "config.json").write_text('{"model_type": "bert"}')
    (exported / "model.onnx").write_bytes(BERT.read_bytes())
    outcome = command_line("quantize", exported, "-o", quantized, "--preset", "arm64", "--json")
    assert outcome.status == 0, outcome.err
    found = json.loads(outcome.out)["files"]["model.onnx"]
    assert found["quantization"]["coverage"]["MatMul"]["quantized"] == 6
    assert {path.name for path in quantized.iterdir()} == {"config.json", "model.onnx", "ort_config.json"}
    assert (quantized / "model.onnx").stat().st_size < 0.6 * BERT.stat().st_size
