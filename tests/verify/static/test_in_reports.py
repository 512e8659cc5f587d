"""A strict run records the static checks of its result."""

from __future__ import annotations

import json
from pathlib import Path

from onnx import parser

import rewright

BERT = Path(__file__).parents[2] / "zoo" / "bert.ts17.sdpa.onnx"
WIDE = """<ir_version: 9, opset_import: ["": 17]> g (float[N, 4] x) => (float[N, 4] y)
<float s = {0.01}, int8 z = {0}> { a = Identity(x)  q = QuantizeLinear(a, s, z)  y = DequantizeLinear(q, s, z) }"""


def test_a_strict_run_has_them_and_others_do_not(tmp_path):
    result = rewright.optimize(BERT, level="O1", verify="strict")
    found = result.report.static
    assert found is not None
    assert (found.status, found.target) == ("passed", "cpu")
    assert found.bounded >= 0.95 * found.values > 50
    assert len(found.input_sets) == len(result.report.parity.input_sets)
    result.report.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["static"]["bounded"] == found.bounded
    result.report.save(tmp_path / "report.html")
    assert f"{found.bounded} of {found.values} values have proven bounds" in (tmp_path / "report.html").read_text()
    assert rewright.optimize(BERT, level="O1", verify="structure").report.static is None


def test_what_is_measured_is_in_the_report(capsys):
    report = rewright.Chain("identity-elimination").run(parser.parse_model(WIDE), verify="strict").report
    assert report.verdict == "passed"
    (finding,) = report.static.findings
    assert (finding.kind, finding.certainty) == ("saturation", "measured")
    report.show()
    assert "1 of 1 values have proven bounds" in capsys.readouterr().out
