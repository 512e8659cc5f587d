"""A kernel that crashes its process costs the sites that it serves, and the run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from dying_workers import HEADER, LOOKS_AT_PROC, MODEL, EmptyBatch, assert_costs_one_pass, chain, nothing_left

from rewright.passes.fusion.gelu import Gelu

pytestmark = LOOKS_AT_PROC


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path) -> Iterator[None]:
    with nothing_left(tmp_path / "scratch"):
        yield


@pytest.mark.parametrize("verify", ["model", "sites"])
def test_a_kernel_that_crashes_costs_the_site_that_it_serves(verify: Any) -> None:
    result = chain(EmptyBatch(), Gelu()).run(onnx.parser.parse_model(MODEL), verify=verify)
    crashing, gelu = result.report.passes
    assert (crashing.status, gelu.status) == ("applied", "applied")
    assert [(site.removed, site.status) for site in crashing.sites] == [(["r"], "kept"), (["t"], "rolled-back")]
    assert "1 of 2 sites were undone" in crashing.reason
    assert "died of SIGFPE" in crashing.reason
    assert result.report.verdict == "passed-with-rollbacks"


def test_a_pass_that_crashes_at_every_site_costs_itself() -> None:
    assert_costs_one_pass(
        chain(EmptyBatch(everywhere=True), Gelu()).run(onnx.parser.parse_model(MODEL)), "ONNX Runtime's process died of SIGFPE"
    )


def test_an_original_that_crashes_is_rewritten_but_not_verified() -> None:
    crashing = chain(EmptyBatch(everywhere=True)).run(onnx.parser.parse_model(MODEL), verify="off").model
    sets = [{"x": np.ones((batch, 3, 16), np.float32)} for batch in (1, 2)]
    report = chain(Gelu()).run(crashing, verify="model", inputs=sets).report
    assert report.verdict == "unverified"
    assert "the original cannot be run on any input set; inputs-0" in report.reason
    assert "died of SIGFPE" in report.reason
    assert [record.status for record in report.passes] == ["applied"]


def test_an_input_set_that_crashes_the_original_is_left_out_and_told() -> None:
    text = f"""{HEADER} g (float[B, S, 16] x, int32[B] lengths) => (float[B, S, 16] y) <int32 total = {{4}}, float[16] w = {{{
        ",".join(["2"] * 16)
    }}}> {{
        r = Relu(x)
        a = com.microsoft.GroupQueryAttention<num_heads = 2, kv_num_heads = 2>(r, r, r, "", "", lengths, total)  y = Mul(a, w)
    }}"""
    sets = [
        {"x": np.random.default_rng(batch).standard_normal((batch, 4, 16), np.float32), "lengths": np.full(batch, 3, np.int32)}
        for batch in (2, 0, 1)
    ]
    report = chain(EmptyBatch()).run(onnx.parser.parse_model(text), inputs=sets).report
    assert report.parity is not None
    assert report.parity.input_sets == ["inputs-0", "inputs-2"]
    assert "died of SIGFPE" in report.parity.dropped[0]
    assert "inputs-1" in report.parity.dropped[0]


@pytest.mark.parametrize(("policy", "status"), [("rollback", 0), ("raise", 1)])
def test_the_exit_status_is_the_policys(policy: str, status: int, process: Any, tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(MODEL), tmp_path / "model.onnx")
    options = ["--plugin", "dying_workers:EmptyBatch", "-p", "empty-batch, gelu", "--on-failure", policy, "--quiet"]
    outcome = process("optimize", tmp_path / "model.onnx", "-o", tmp_path / "out.onnx", *options, path=Path(__file__).parent)
    assert outcome.status == status, outcome.err
    assert (tmp_path / "out.onnx").is_file() == (status == 0)
    if status:
        assert "died of SIGFPE" in outcome.assert_one_error(status)
    folder = tmp_path / "out.onnx.reproducers" / "00-empty-batch"
    ops = [node.op_type for node in onnx.load(folder / "before.onnx").graph.node]
    assert ops == ["Relu"]
