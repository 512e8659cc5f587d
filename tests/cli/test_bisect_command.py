"""`rewright bisect`: status 0 nothing diverges, 1 a culprit, 2 unusable."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

BERT = Path(__file__).parents[1] / "zoo" / "bert.ts17.sdpa.onnx"
PLUGIN = '''
from rewright import PatternPass


class Epsilon(PatternPass):
    """Fuses a sum and its normalisation, with an epsilon of 0.1 where the scale's name holds `wrong`."""

    name = "epsilon"
    exactness = "reassociating"

    wrong: str = "layer.1.attention"

    def pattern(self, op, a, b, gamma, beta):
        return op.LayerNormalization(a + b, gamma, beta, axis=-1)

    def rewrite(self, op, a, b, gamma, beta):
        epsilon = 0.1 if self.wrong in gamma.name else 1e-12
        return op.SkipLayerNormalization(a, b, gamma, beta, epsilon=epsilon, domain="com.microsoft")


class Crash(PatternPass):
    """Crashes at every Erf."""

    name = "crash"

    def pattern(self, op, x):
        return op.Erf(x)

    def rewrite(self, op, x):
        raise IndexError("no node 7")
'''
PASSES = "layer-norm, epsilon, gelu, bias-gelu"


@pytest.fixture
def plugin(tmp_path, monkeypatch) -> tuple[str, ...]:
    """The options that load passes which are wrong at one site, and which crash."""
    (tmp_path / "bisected_passes.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "bisected_passes", raising=False)
    return "--plugin", "bisected_passes:Epsilon", "--plugin", "bisected_passes:Crash"


def test_nothing_diverges(command_line):
    outcome = command_line("bisect", BERT, "-O", "1")
    assert (outcome.status, outcome.err) == (0, "")
    assert "Nothing diverges" in outcome.out
    assert command_line("bisect", BERT, "-p", "layer-norm", "--quiet").out == ""


def test_a_culprit_its_site_and_the_first_value(command_line, plugin, tmp_path):
    outcome = command_line("bisect", BERT, "-p", PASSES, *plugin, "-o", tmp_path / "kept")
    message = outcome.assert_one_error(status=1)
    assert "the pass 'epsilon' is wrong: output 'logits'" in message
    assert "rewright verify" in message
    shown = " ".join(outcome.out.split())
    assert "pass 2 of 4: epsilon" in shown
    assert "1 of 5 changes to undo epsilon#3 Add, LayerNormalization -> SkipLayerNormalization" in shown
    assert "made by LayerNormalization" in shown
    assert "The 2 passes after it were not looked at" in shown
    kept = tmp_path / "kept" / "01-epsilon"
    assert command_line("verify", kept / "before.onnx", kept / "after.onnx", "--quiet").status == 1
    assert onnx.load(kept / "after.onnx").graph.node


def test_json(command_line, plugin):
    outcome = command_line("bisect", BERT, "-p", PASSES, *plugin, "--json")
    assert outcome.status == 1
    found = json.loads(outcome.out)
    assert (found["verdict"], found["schema_version"]) == ("found", 1)
    (culprit,) = found["culprits"]
    assert [change["sites"] for change in culprit["undo"]] == [["epsilon#3"]]
    assert "layer.1/attention" in culprit["divergence"]["first"]["reference"]["name"]
    assert culprit["divergence"]["first"]["evidence"]["max_abs"] > 1e-3


def test_all_and_options_of_passes(command_line, plugin):
    outcome = command_line("bisect", BERT, "-p", f"{PASSES}, crash", *plugin, "--all", "--set", "epsilon.wrong=layer.0")
    assert "the pass 'epsilon' is wrong" in outcome.assert_one_error(status=1)  # no Erf is left to crash at
    assert "2 of 5 changes to undo" in outcome.out
    outcome = command_line("bisect", BERT, "-p", "crash, layer-norm, epsilon", *plugin, "--all")
    assert "2 passes are wrong: 'crash', 'epsilon'" in outcome.assert_one_error(status=1)


def test_a_crash(command_line, plugin):
    outcome = command_line("bisect", BERT, "-p", "layer-norm, crash, gelu", *plugin)
    assert "the pass 'crash' is wrong: IndexError: no node 7" in outcome.assert_one_error(status=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("absent.onnx",), "absent.onnx does not exist"),
        ((BERT, "-p", "no-such-pass"), "no-such-pass"),
        ((BERT, "-O", "1", "-p", "gelu"), "each name a chain"),
        ((BERT, "-O", "1", "--target", "moon"), "moon"),
        ((BERT, "-O", "1", "--inputs", "absent.npz"), "absent.npz"),
        ((BERT, "-O", "1", "-o", Path("absent") / "kept"), "does not exist"),
    ],
)
def test_what_cannot_be_used(command_line, arguments, message):
    assert message in command_line("bisect", *arguments).assert_one_error()
