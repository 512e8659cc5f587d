"""`rewright reproduce`: status 1 while it fails, 0 once it is mended."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import onnx
import pytest

BERT = Path(__file__).parents[1] / "zoo" / "bert.ts17.sdpa.onnx"

WRONG = """
from rewright import PatternPass

class Tanh(PatternPass):
    \"\"\"Erf(x) -> Tanh(x).\"\"\"

    name = "odd-tanh"

    def pattern(self, op, x):
        return op.Erf(x)

    def rewrite(self, op, x):
        return op.Tanh(x)
"""
MENDED = (
    WRONG
    + """
    def check(self, match, x):
        match.require(False, "Tanh is not Erf", match.root)
"""
)


@pytest.fixture
def reproducer(tmp_path, process) -> Path:
    """What a wrong pass of the plugin module odd_passes left."""
    (tmp_path / "odd_passes.py").write_text(WRONG)
    options = ["--plugin", "odd_passes:Tanh", "-p", "odd-tanh", "--json"]
    outcome = process("optimize", BERT, "-o", tmp_path / "out.onnx", *options, path=tmp_path)
    (record,) = json.loads(outcome.out)["passes"]
    return Path(record["reproducer"])


def test_it_fails_again_until_the_pass_is_mended(reproducer, process, tmp_path):
    outcome = process("reproduce", reproducer, "--plugin", "odd_passes:Tanh", path=tmp_path)
    assert re.search("it still fails: parity: output '.*Erf_output_0'", outcome.assert_one_error(status=1))
    assert "odd-tanh rolled back" in outcome.out
    model = onnx.load(reproducer / "before.onnx", load_external_data=False)
    assert [node.op_type for node in model.graph.node] == ["Erf"]
    assert [path.name for path in (reproducer / "inputs").iterdir()] == ["0.npz"]
    command = shlex.split((reproducer / "COMMAND").read_text())
    assert command[1:] == ["reproduce", "--plugin", "odd_passes:Tanh", str(reproducer)]

    (tmp_path / "odd_passes.py").write_text(MENDED)
    outcome = process("reproduce", reproducer, "--plugin", "odd_passes:Tanh", "--json", path=tmp_path)
    assert outcome.status == 0, outcome.err
    assert outcome.err.startswith("mended; it failed because of: parity: output 'logits'")
    assert json.loads(outcome.out)["verdict"] == "passed"


SQUARES = """
from rewright import PatternPass

class Squares(PatternPass):
    \"\"\"Pow(x, n) -> Mul(x, x).\"\"\"

    name = "squares"
    exactness = "reassociating"

    def pattern(self, op, x, exponent):
        return op.Pow(x, exponent)

    def rewrite(self, op, x):
        return op.Mul(x, x)
"""
READS_THE_EXPONENT = SQUARES.replace("(self, op, x, exponent)", "(self, op, x)").replace("Pow(x, exponent)", "Pow(x, 2)")
CUBE_IN_THE_DISTANCE = """<ir_version: 10, opset_import: ["": 17]> g (float[N, 4] x) => (float[N, 4] y)
    <float two = {2}, float three = {3}, float one = {1}> {
        a = Pow(x, two)  b = Add(a, one)  c = Log(b)  d = Sigmoid(x)
        e = Pow(d, two)  h = Pow(c, three)  i = Add(e, h)  y = Tanh(i)
    }"""


def test_one_wrong_site_among_right_ones(process, tmp_path):
    (tmp_path / "odd_passes.py").write_text(SQUARES)
    onnx.save(onnx.parser.parse_model(CUBE_IN_THE_DISTANCE), tmp_path / "model.onnx")
    options = ["--plugin", "odd_passes:Squares", "-p", "squares", "--verify", "sites", "--json"]
    outcome = process("optimize", tmp_path / "model.onnx", "-o", tmp_path / "out.onnx", *options, path=tmp_path)
    (record,) = json.loads(outcome.out)["passes"]
    assert (record["status"], len(record["undone"])) == ("applied", 1)
    model = onnx.load(Path(record["reproducer"]) / "before.onnx")
    assert [list(node.output) for node in model.graph.node] == [["h"]]

    again = process("reproduce", record["reproducer"], "--plugin", "odd_passes:Squares", path=tmp_path)
    assert "it still fails: sites: squares#0: value 'h'" in again.assert_one_error(status=1)
    (tmp_path / "odd_passes.py").write_text(READS_THE_EXPONENT)
    assert process("reproduce", record["reproducer"], "--plugin", "odd_passes:Squares", path=tmp_path).status == 0


def test_a_folder_that_is_no_reproducer(command_line, tmp_path):
    assert "is not a folder" in command_line("reproduce", tmp_path / "absent").assert_one_error()
    assert "not a complete reproducer" in command_line("reproduce", tmp_path).assert_one_error()


def test_a_pass_that_is_not_installed_here(reproducer, process):
    assert "there is no pass 'odd-tanh'" in process("reproduce", reproducer).assert_one_error()
