"""A budget on the command line, and what reports tell of a quantized model."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rounding_weights import RoundingWeights

from rewright.api import Chain
from rewright.registry.catalog import default_catalog
from rewright.report.files import page
from rewright.report.model import Report

BERT = Path(__file__).parents[1] / "zoo" / "bert.ts17.sdpa.onnx"
PASS = ("--plugin", "rounding_weights:RoundingWeights")


def run(text: str, **how: object) -> Report:
    catalog = default_catalog().extended(RoundingWeights)
    return Chain(text, catalog=catalog).run(BERT, **how).report  # type: ignore[arg-type]


def shown(report: Report, width: int = 160) -> str:
    file = io.StringIO()
    report.show(Console(file=file, width=width, highlight=False))
    return " ".join(file.getvalue().split())


@pytest.fixture(scope="module")
def quantized() -> Report:
    return run("rounding-weights", budget="sqnr=25, top1=0.9")


def test_outputs_are_measured_against_the_budget(quantized: Report) -> None:
    assert quantized.verdict == "passed"
    (output,) = quantized.parity.outputs
    assert 25 < output.sqnr_db < 40
    assert 0.99 < output.cosine < 1
    text = shown(quantized)
    assert f"logits: SQNR {output.sqnr_db:.1f} dB, cosine {output.cosine:.5f}, max error" in text
    assert "top-1 100 %" in text
    assert "budget sqnr=25, cosine=0.99, top1=0.9" in text


def test_coverage_misses_bytes_and_the_worst_weights(quantized: Report) -> None:
    found = quantized.quantization
    assert (found.coverage["MatMul"].quantized, found.coverage["MatMul"].total) == (12, 16)
    assert found.bytes_after < 0.26 * found.bytes_before
    text = shown(quantized)
    assert "MatMul 12 of 16 75.0 %" in text
    assert "weights 65.5 kB -> 16.4 kB, 25.1 %" in text
    assert "4x MatMul: '/bert/encoder/layer.0/attention/self/Mul_1_output_0' is not known before run time" in text
    worst = found.worst[0]
    assert (
        f"{worst.node} int8 of 8 bits {100 * worst.error:.2g} % {100 * worst.worst_error:.2g} % in {worst.worst_channel}" in text
    )


def test_the_page_tells_the_same(quantized: Report) -> None:
    text = page(quantized)
    (output,) = quantized.parity.outputs
    for expected in (
        "SQNR dB",
        f"{output.sqnr_db:.1f}</td>",
        "12 of 16",
        "4 MatMul not quantized: &#39;/bert/encoder/layer.0/attention/self/Mul_1_output_0&#39; is not known before run time",
        "Weights that lost most",
        "Budget: sqnr=25",
    ):
        assert expected in text


def test_inputs_that_were_made_up_are_warned_of(quantized: Report) -> None:
    assert any("representative ones (--inputs)" in warning for warning in quantized.warnings)
    tokens = np.array([[5, 6, 7, 8, 9]], np.int64)
    feeds = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}
    given = run("rounding-weights", inputs=feeds)
    assert given.verdict == "passed"
    assert not any("representative" in warning for warning in given.warnings)
    assert not any("representative" in warning for warning in run("O1").warnings)


def test_a_pass_that_quantizes_nothing_has_changed_nothing() -> None:
    report = run('rounding-weights{exclude=["*"]}')
    assert report.passes[0].status == "unchanged"
    assert shown(report).endswith("Nothing was quantized: 16 MatMul: excluded by '*'.")
    assert "Nothing was quantized: 16 MatMul: excluded by" in page(report)


def test_the_budget_can_fail_and_what_is_undone_is_missed() -> None:
    report = run("rounding-weights{bits=3}")
    assert report.passes[0].status == "rolled-back"
    assert report.quantization.coverage["MatMul"].quantized == 0
    assert "Nothing was quantized: 12 MatMul: undone: parity: output 'logits'" in shown(report)


def test_optimize_takes_a_budget(command_line, tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    command = ("optimize", BERT, "-o", tmp_path / "out.onnx", "-p", "rounding-weights", *PASS, "--json", "--budget")
    kept = json.loads(command_line(*command, "sqnr=20").out)
    assert kept["quantization"]["coverage"] == {"MatMul": {"quantized": 12, "total": 16}}
    assert kept["quantization"]["budget"].startswith("sqnr=20, ")
    undone = json.loads(command_line(*command, "sqnr=60").out)
    assert undone["quantization"]["coverage"]["MatMul"]["quantized"] == 0
    assert "Did you mean sqnr?" in command_line(*command, "sqrn=60").assert_one_error()


def test_verify_and_bisect_take_one_too(command_line, tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    made = tmp_path / "out.onnx"
    assert command_line("optimize", BERT, "-o", made, "-p", "rounding-weights", *PASS, "--quiet").status == 0
    assert command_line("verify", BERT, made, "--quiet", "--no-divergence").status == 1
    agrees = command_line("verify", BERT, made, "--budget", "sqnr=25")
    assert agrees.status == 0, agrees.err
    assert "SQNR 27" in agrees.out
    assert "rtol" not in agrees.out
    assert "the inputs were made up" in agrees.err
    differs = command_line("verify", BERT, made, "--budget", "sqnr=60", "--no-divergence")
    assert "the budget asks for 60.0 dB" in differs.assert_one_error(status=1)
    assert "two answers" in command_line("verify", BERT, made, "--budget", "sqnr=25", "--rtol", "1").assert_one_error()
    bisected = ("bisect", BERT, "-p", "rounding-weights", *PASS, "--budget")
    assert command_line(*bisected, "sqnr=25").status == 0
    assert "the pass 'rounding-weights' is wrong" in command_line(*bisected, "sqnr=60").assert_one_error(status=1)


def test_fewer_bits_may_lose_more_where_nobody_says() -> None:
    def usual(text: str) -> str:
        return Chain(text).run(BERT, verify="off").report.quantization.budget

    assert usual("quantize-weights").startswith("sqnr=10, cosine=0.95")
    assert usual("quantize-weights{bits=8}").startswith("sqnr=20, cosine=0.99")
    assert usual("quantize-dynamic, quantize-weights").startswith("sqnr=10")
    assert Chain("O2, quantize-weights").run(BERT).report.passes[-1].status == "applied"


def test_a_lax_budget_does_not_make_the_original_hold_what_it_does_not() -> None:
    report = run("rounding-weights", budget="sqnr=-20, cosine=-1")
    assert report.passes[0].status == "applied"
    assert "not-held" in {probe.status for probe in report.probes if probe.name == "padding"}
