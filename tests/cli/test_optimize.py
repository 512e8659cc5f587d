"""`rewright optimize`: the model, the report in its forms, the streams and the exit status."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

ZOO = Path(__file__).parents[1] / "zoo"
BERT = ZOO / "bert.ts17.sdpa.onnx"


def test_it_writes_a_verified_model_and_shows_the_report(process, tmp_path):
    before = BERT.read_bytes()
    outcome = process("optimize", BERT, "-o", tmp_path / "out.onnx", "--report", tmp_path / "out.html")
    assert outcome.status == 0, outcome.err
    assert BERT.read_bytes() == before
    model = onnx.load(tmp_path / "out.onnx")
    assert "SkipLayerNormalization" in {node.op_type for node in model.graph.node}
    assert "Passed: the result agrees with the original." in outcome.out
    assert "skip-layer-norm" in outcome.out
    assert outcome.err == f"report: {tmp_path}/out.html\nwrote {tmp_path}/out.onnx\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.html", "out.onnx"]


def test_the_json_report_has_the_documented_keys(command_line, tmp_path):
    outcome = command_line("optimize", BERT, "-o", tmp_path / "out.onnx", "--json", "--report", tmp_path / "out.json")
    report = json.loads(outcome.out)
    assert json.loads((tmp_path / "out.json").read_text()) == report
    assert {"verdict", "model", "chain", "environment", "passes", "parity", "quantization"} <= report.keys()
    assert report["schema_version"] == 1
    assert report["verdict"] == "passed"
    assert {"path", "nodes_before", "nodes_after", "ops_before", "ops_after", "bytes_before", "bytes_after"} <= report[
        "model"
    ].keys()
    assert report["model"]["nodes_after"] < report["model"]["nodes_before"]
    assert report["model"]["ops_after"]["com.microsoft::SkipLayerNormalization"] == 5
    assert {"versions", "providers", "cpu", "plugins"} <= report["environment"].keys()
    assert {"name", "distribution", "version"} <= report["environment"]["plugins"][0].keys()
    assert report["chain"].startswith("inline-functions, constant-folding, ")
    applied = [record for record in report["passes"] if record["status"] == "applied"]
    for record in applied:
        assert {"name", "backend", "options", "sites", "rejections", "parity", "rss_peak"} <= record.keys()
        assert record["seconds"].keys() == {"apply", "verify"}
        assert {"id", "status", "removed", "added"} <= record["sites"][0].keys()
    for parity in (report["parity"], applied[-1]["parity"]):
        assert parity["gate"] == "parity"
        assert len(parity["input_sets"]) == 4
        assert {"name", "max_abs", "max_rel", "rtol", "atol", "needed_rtol", "vacuous"} <= parity["outputs"][0].keys()
        assert 0 < parity["outputs"][0]["max_abs"] < 1e-4
    assert report["mutation"]["status"] == "passed"


@pytest.mark.parametrize(
    ("options", "chain"),
    [
        (["-O0"], ""),
        (["-O", "1", "--set", "constant-folding.max_bytes=64"], "constant-folding{max_bytes=64}"),
        (["--level", "O1"], "dead-code"),
        (["-p", "gelu, bias-gelu"], "gelu, bias-gelu"),
    ],
)
def test_the_chain_that_is_run(options, chain, command_line, tmp_path):
    outcome = command_line("optimize", BERT, "-o", tmp_path / "out.onnx", "--verify", "off", "--json", *options)
    assert outcome.status == 0, outcome.err
    run = json.loads(outcome.out)["chain"]
    assert run == chain if not chain or chain.startswith("gelu") else chain in run


def test_a_chain_file(command_line, tmp_path):
    (tmp_path / "chain.yaml").write_text("chain:\n- gelu\n- constant-folding: {max_bytes: 64}\n")
    options = ["-c", tmp_path / "chain.yaml", "--verify", "off", "--json"]
    outcome = command_line("optimize", BERT, "-o", tmp_path / "out.onnx", *options)
    assert json.loads(outcome.out)["chain"] == "gelu, constant-folding{max_bytes=64}"


@pytest.mark.parametrize("backend", ["ort", "auto"])
def test_the_passes_without_the_wanted_backend_are_named(backend, command_line, tmp_path):
    options = ["-p", "dead-code, gelu", "--backend", backend, "--verify", "off"]
    outcome = command_line("optimize", BERT, "-o", tmp_path / "out.onnx", *options)
    assert outcome.status == 0
    assert f"without the backend {backend}: dead-code\n" in outcome.err


def test_a_wrong_pass_is_rolled_back_and_the_rest_applies(command_line, tmp_path, wrong):
    outcome = command_line("optimize", BERT, "-o", tmp_path / "out.onnx", "--plugin", wrong, "-p", "wrong-softmax, O2", "--json")
    assert outcome.status == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["verdict"] == "passed-with-rollbacks"
    failed, *others = report["passes"]
    assert failed["status"] == "rolled-back"
    assert failed["parity"]["status"] == "failed"
    assert failed["parity"]["outputs"][0]["max_abs"] > 1e-3
    assert {site["status"] for site in failed["sites"]} == {"rolled-back"}
    assert "skip-layer-norm" in {record["name"] for record in others if record["status"] == "applied"}
    assert Path(failed["reproducer"]).is_dir()


def test_with_on_failure_raise_nothing_is_written(command_line, tmp_path, wrong):
    options = ["--plugin", wrong, "-p", "wrong-softmax, O1", "--on-failure", "raise", "--report", tmp_path / "out.json"]
    outcome = command_line("optimize", BERT, "-o", tmp_path / "out.onnx", *options)
    message = outcome.assert_one_error(status=1)
    assert "the pass 'wrong-softmax' failed: parity: output 'logits'" in message
    assert "Nothing was written" in message
    assert not (tmp_path / "out.onnx").exists()
    assert json.loads((tmp_path / "out.json").read_text())["verdict"] == "failed"
    assert "wrong-softmax rolled back" in outcome.out


def test_quiet_says_nothing_but_errors(command_line, tmp_path, wrong):
    outcome = command_line("optimize", BERT, "-o", tmp_path / "out.onnx", "-O1", "--quiet", "--report", tmp_path / "out.json")
    assert (outcome.status, outcome.out, outcome.err) == (0, "", "")
    outcome = command_line("optimize", BERT, "-o", tmp_path / "out.onnx", "-O1", "--quiet", "--json")
    assert json.loads(outcome.out)["verdict"] == "passed"
    options = ["--quiet", "--plugin", wrong, "-p", "wrong-softmax", "--on-failure", "raise"]
    command_line("optimize", BERT, "-o", tmp_path / "out.onnx", *options).assert_one_error(status=1)


@pytest.mark.parametrize("mode", ["off", "structure"])
def test_parity_that_was_not_asked_for_is_no_failure(mode, command_line, tmp_path):
    outcome = command_line("optimize", BERT, "-o", tmp_path / "out.onnx", "-O1", "--verify", mode)
    assert outcome.status == 0
    assert "Unverified" in outcome.out
    assert (tmp_path / "out.onnx").is_file()


def test_progress_is_shown_on_a_terminal_only(command_line, monkeypatch, tmp_path):
    monkeypatch.setenv("FORCE_COLOR", "1")
    outcome = command_line("optimize", BERT, "-o", tmp_path / "out.onnx", "-O1", "--json")
    assert "final checks" in outcome.err or "loading" in outcome.err
    assert json.loads(outcome.out)["verdict"] == "passed"
