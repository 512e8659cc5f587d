"""`rewright verify`: status 0 equal, 1 different, 2 not comparable."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import parser

HEADER = '<ir_version: 10, opset_import: ["": 17]>'
MODELS = {
    "relu": "g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }",
    "max": "g (float[N, 4] x) => (float[N, 4] y) <float zero = {0}> { y = Max(x, zero) }",
    "scaled": "g (float[N, 4] x) => (float[N, 4] y) <float s = {1.001}> { r = Relu(x)  y = Mul(r, s) }",
    "renamed": "g (float[N, 4] x) => (float[N, 4] z) { z = Relu(x) }",
    "exponential": "g (float[N, 4] x) => (float[N, 4] y) { h = Neg(x)  k = Exp(h)  y = Tanh(k) }",
    "cosine": "g (float[N, 4] x) => (float[N, 4] y) { h = Neg(x)  k = Cos(h)  y = Tanh(k) }",
    "constant": "g (float[N, 4] x) => (float[N, 4] y) <float zero = {0}> { y = Mul(x, zero) }",
    "missing_kernel": "g (float[N, 4] x) => (float[N, 4] y) { y = Frobnicate(x) }",
}


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    paths = {}
    for name, text in MODELS.items():
        paths[name] = tmp_path / f"{name}.onnx"
        paths[name].write_bytes(parser.parse_model(HEADER + text).SerializeToString())
    return paths


def test_equal_models(command_line, models):
    outcome = command_line("verify", models["relu"], models["max"])
    assert (outcome.status, outcome.err) == (0, "")
    assert "The models agree." in outcome.out


def test_different_numbers(command_line, models):
    outcome = command_line("verify", models["relu"], models["scaled"])
    message = outcome.assert_one_error(status=1)
    assert "output 'y'" in message
    assert "--rtol" in message
    assert "1e-03" in outcome.out  # the tolerance that would have passed


def test_a_tolerance_of_ones_own(command_line, models):
    assert command_line("verify", models["relu"], models["scaled"], "--rtol", "2e-3").status == 0
    assert command_line("verify", models["relu"], models["scaled"], "--rtol", "0", "--atol", "0").status == 1


def test_different_interfaces(command_line, models):
    outcome = command_line("verify", models["relu"], models["renamed"])
    assert "output 'y' is gone" in outcome.assert_one_error(status=1)
    assert "interface: output 'z' is new" in outcome.out


def test_a_candidate_that_does_not_load(command_line, models):
    assert "Frobnicate" in command_line("verify", models["relu"], models["missing_kernel"]).assert_one_error(status=1)


def test_a_reference_that_does_not_run(command_line, models):
    outcome = command_line("verify", models["missing_kernel"], models["missing_kernel"])
    assert "cannot be compared" in outcome.assert_one_error(status=2)


def test_a_comparison_that_proves_nothing(command_line, models):
    outcome = command_line("verify", models["constant"], models["constant"])
    assert "proves nothing" in outcome.assert_one_error(status=2)


def test_inputs_of_ones_own(command_line, models, tmp_path):
    np.savez(tmp_path / "negative.npz", x=-np.arange(1, 9, dtype=np.float32).reshape(2, 4))
    np.savez(tmp_path / "mixed.npz", x=np.arange(-3, 5, dtype=np.float32).reshape(2, 4))
    assert command_line("verify", models["relu"], models["scaled"], "--inputs", tmp_path / "negative.npz").status == 2
    assert command_line("verify", models["relu"], models["scaled"], "--inputs", tmp_path / "mixed.npz").status == 1


def test_json(command_line, models):
    outcome = command_line("verify", models["relu"], models["scaled"], "--json")
    found = json.loads(outcome.out)
    assert found["equal"] is False
    assert found["interface"]["status"] == "passed"
    assert found["parity"]["outputs"][0]["needed_rtol"] == pytest.approx(1e-3, rel=0.1)
    assert command_line("verify", models["relu"], models["scaled"], "--quiet").out == ""


def test_names_that_stand_for_others(command_line, models, tmp_path):
    assert command_line("verify", models["relu"], models["renamed"], "--map", "y=z").status == 0
    assert command_line("verify", models["relu"], models["renamed"], "--by-position").status == 0
    (tmp_path / "names.yaml").write_text("outputs: {y: z}\n")
    assert command_line("verify", models["relu"], models["renamed"], "--map", tmp_path / "names.yaml").status == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--map", "y=a"], "the candidate has no output 'a'"),
        (["--map", "b=z"], "the reference has no input or output 'b'"),
        (["--map", "y=z", "--map", "y=x"], "'y' the names 'z' and 'x'"),
        (["--map", "names.yaml"], "names.yaml"),
        (["--map", "y=z", "--map", "names.yaml"], "names.yaml and more"),
        (["--map", "y=z", "--by-position"], "two answers"),
    ],
)
def test_a_mapping_that_does_not_fit(command_line, models, options, message):
    assert message in command_line("verify", models["relu"], models["renamed"], *options).assert_one_error()


def test_the_first_divergence(command_line, models):
    outcome = command_line("verify", models["exponential"], models["cosine"])
    assert outcome.status == 1
    shown = [line.strip() for line in outcome.out.split("first divergence")[1].splitlines()[1:]]
    assert shown[0].split() == ["agrees", "h"]
    assert shown[1:3] == ["made by Neg", "max error 0"]
    assert shown[3].split() == ["differs", "k"]
    assert shown[4] == "made by Exp, in the candidate Cos"
    found = json.loads(command_line("verify", models["exponential"], models["cosine"], "--json").out)["divergence"]
    assert (found["first"]["reference"]["name"], found["last_agreeing"]["reference"]["name"]) == ("k", "h")
    assert found["first"]["evidence"]["max_abs"] > 0.1


def test_no_divergence_is_looked_for(command_line, models):
    outcome = command_line("verify", models["exponential"], models["cosine"], "--no-divergence")
    assert outcome.status == 1
    assert "first divergence" not in outcome.out
    assert (
        json.loads(command_line("verify", models["exponential"], models["cosine"], "--no-divergence", "--json").out)["divergence"]
        is None
    )
