"""Installed plugins through the command line: a third party's passes, wrong ones, broken ones and clashing ones."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import onnx
import pytest
from onnx import parser

HERE = Path(__file__).parent
BERT = HERE.parent / "zoo" / "bert.ts17.sdpa.onnx"
DOUBLE_NEGATION = """<ir_version: 10, opset_import: ["": 17]>
g (float[N, 4] x) => (float[N, 4] y) { a = Neg(x)  b = Neg(a)  c = Sigmoid(b)  y = Neg(c) }"""


@pytest.fixture
def acme(plugin_site) -> Path:
    return plugin_site("acme-rewright")


def test_a_pass_of_twelve_lines_and_one_entry_point_works_from_optimize(acme, process, tmp_path):
    source = (HERE / "acme-rewright" / "src" / "acme_rewright" / "double_negation.py").read_text()
    assert len([line for line in source.splitlines() if line.strip() and "import" not in line]) <= 12
    model = tmp_path / "model.onnx"
    model.write_bytes(parser.parse_model(DOUBLE_NEGATION).SerializeToString())
    chain = "acme-double-negation, identity-elimination"
    outcome = process("optimize", model, "-o", tmp_path / "out.onnx", "-p", chain, "--json", path=acme)
    assert outcome.status == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["verdict"] == "passed"
    assert [record["status"] for record in report["passes"]] == ["applied", "applied"]
    assert len(report["passes"][0]["sites"]) == 1
    assert {"name": "acme", "distribution": "acme-rewright", "version": "1.2.0"}.items() <= (
        report["environment"]["plugins"][1].items()
    )
    assert [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node] == ["Sigmoid", "Neg"]


def test_a_wrong_pass_is_caught_rolled_back_reported_and_reproduced(acme, process, tmp_path):
    before = hashlib.sha256(BERT.read_bytes()).hexdigest()
    out = tmp_path / "out.onnx"
    reports = ["--report", tmp_path / "report.json", "--report", tmp_path / "report.html"]
    outcome = process("optimize", BERT, "-o", out, "-p", "acme-wrong-gelu, O2", *reports, path=acme)
    assert outcome.status == 0, outcome.err
    said = " ".join(outcome.out.split())
    assert "acme-wrong-gelu rolled back: parity: output 'logits'" in said
    assert "Passed with rollbacks" in said

    report = json.loads((tmp_path / "report.json").read_text())
    wrong, *others = report["passes"]
    assert wrong["status"] == "rolled-back"
    assert wrong["parity"]["outputs"][0]["max_abs"] > 0.01
    assert {"gelu", "skip-layer-norm", "bias-gelu"} <= {record["name"] for record in others if record["status"] == "applied"}
    assert report["model"]["ops_after"]["ai.onnx::Tanh"] == report["model"]["ops_before"]["ai.onnx::Tanh"]
    assert "acme-wrong-gelu: rolled-back" in (tmp_path / "report.html").read_text()
    assert hashlib.sha256(BERT.read_bytes()).hexdigest() == before

    again = process("reproduce", wrong["reproducer"], path=acme)
    assert re.search("it still fails: parity: output '.*Erf_output_0'", again.assert_one_error(status=1))
    assert process("verify", BERT, out, path=acme).status == 0


def test_a_wrong_pass_with_on_failure_raise(acme, process, tmp_path):
    options = ["-p", "acme-wrong-gelu, O2", "--on-failure", "raise", "--quiet"]
    outcome = process("optimize", BERT, "-o", tmp_path / "out.onnx", *options, path=acme)
    assert "the pass 'acme-wrong-gelu' failed" in outcome.assert_one_error(status=1)
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx.reproducers"]


def test_a_plugins_level_and_pages(acme, process):
    expanded = process("chains", "acme", path=acme).out.rstrip().split(", ")
    assert expanded[-1] == "acme-relu-once"
    assert expanded.index("acme-double-negation") < expanded.index("identity-elimination")  # as it asks for
    page = process("passes", "acme-double-negation", path=acme).out
    assert page.startswith("acme-double-negation\nNeg(Neg(x)) -> Identity(x).\n")
    assert "acme-rewright 1.2.0 (plugin acme)" in page


def test_a_broken_plugin_is_reported_and_skipped(plugin_site, process, tmp_path):
    site = plugin_site("acme-rewright", "broken-rewright")
    outcome = process("optimize", BERT, "-o", tmp_path / "out.onnx", "-O1", "--json", path=site)
    assert outcome.status == 0, outcome.err
    assert outcome.err.startswith(
        "warning: broken-rewright 0.3.1 (plugin broken) failed to load and is skipped: RuntimeError: libbroken.so.3 is missing\n"
    )
    (record,) = (p for p in json.loads(outcome.out)["environment"]["plugins"] if p["name"] == "broken")
    assert record["status"] == "failed"
    listed = process("plugins", path=site)
    assert listed.status == 0
    assert "libbroken.so.3 is missing" in " ".join(listed.out.split())


def test_a_chain_that_names_a_pass_of_a_broken_plugin(plugin_site, process, tmp_path):
    site = plugin_site("acme-rewright", "broken-rewright")
    outcome = process("optimize", BERT, "-o", tmp_path / "out.onnx", "-p", "O1, broken-fusion", "--quiet", path=site)
    message = outcome.assert_one_error()
    assert "it may belong to broken-rewright 0.3.1" in message
    assert "libbroken.so.3 is missing" in message
    assert list(tmp_path.iterdir()) == []


def test_two_plugins_with_one_pass_name(plugin_site, process, tmp_path):
    site = plugin_site("acme-rewright", "clash-rewright")
    message = process("optimize", BERT, "-o", tmp_path / "out.onnx", path=site).assert_one_error()
    assert "acme-rewright 1.2.0 (plugin acme)" in message
    assert "clash-rewright 2.0.0 (plugin clash)" in message
    assert "'acme-double-negation'" in message
    # either way out that the message names
    assert process("chains", "acme-double-negation", "--no-plugins", "--plugin", "clash", path=site).status == 0
    switched_off = process("chains", "O1", path=site, REWRIGHT_DISABLE_PLUGIN_AUTOLOAD="1")
    assert switched_off.status == 0
