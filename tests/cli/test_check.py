"""`rewright check`: what it prints, its JSON form, its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rewright.model.load import load
from rewright.verify.inputs import make_input_sets

ZOO = Path(__file__).parents[1] / "zoo"
BERT = ZOO / "bert.ts14.eager.onnx"
VIT = ZOO / "vit.ts17.sdpa.onnx"


def test_a_model_with_nothing_wrong(command_line):
    outcome = command_line("check", BERT)
    assert (outcome.status, outcome.err) == (0, "")
    said = " ".join(outcome.out.split())
    assert "assumed: input_ids from 0 to 99, an index of Gather" in said
    assert "Nothing is certainly wrong (target cpu). 118 of 121 values have proven bounds." in said


def test_a_narrower_type_that_does_not_do(command_line):
    outcome = command_line("check", BERT, "--precision", "float16")
    assert "the constant 1e-12 becomes zero" in outcome.assert_one_error(status=1)
    said = " ".join(outcome.out.split())
    assert "the mask value -3.403e+38 becomes -inf" in said
    assert "more; --all lists them" in said
    assert "computes Add in float32" not in said
    assert "computes Add in float32" in " ".join(command_line("check", BERT, "--precision", "float16", "--all").out.split())
    assert command_line("check", BERT, "--precision", "float16", "--quiet").out == ""


def test_json_has_all_of_it(command_line):
    evidence = json.loads(command_line("check", BERT, "--precision", "float16", "--measure", "--ranges", "--json").out)
    assert evidence["status"] == "failed"
    assert evidence["input_sets"] == ["set-0", "set-1", "set-2", "set-3"]
    assert {"/bert/Mul", "/bert/embeddings/LayerNorm/Add"} <= set(evidence["keep"])
    assert len(evidence["ranges"]) == evidence["values"] == 121
    first = evidence["ranges"][0]
    assert first["low"] < first["measured_low"] < first["measured_high"] < first["high"]


def test_ranges_with_bounds_of_inputs(command_line, tmp_path):
    free = command_line("check", VIT, "--ranges").out
    assert "value\n" in free.splitlines()[0] + "\n"
    bounded = command_line("check", VIT, "--bound", "pixel_values=-3:3").out
    assert "assumed: pixel_values from -3 to 3, given" in bounded
    assert "78 of 78 values" in " ".join(bounded.split())
    assert "69 of 78 values" in " ".join(free.split())

    np.savez(tmp_path / "inputs.npz", **make_input_sets(load(VIT))[0].arrays)
    measured = command_line("check", VIT, "--inputs", tmp_path / "inputs.npz", "--json")
    assert json.loads(measured.out)["input_sets"] == ["inputs"]


def test_a_target_that_lacks_an_op(command_line, tmp_path):
    fused = tmp_path / "fused.onnx"
    assert command_line("optimize", BERT, "-o", fused, "--quiet", "--verify", "off").status == 0
    assert command_line("check", fused).status == 0
    assert "the target 'portable' has no kernel for com.microsoft." in command_line(
        "check", fused, "--target", "portable"
    ).assert_one_error(status=1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--precision", "int8"], "precision is 'int8'"),
        (["--target", "gpu"], "target is 'gpu'"),
        (["--bound", "input_ids"], "is no bound"),
        (["--bound", "x=0:1"], "the model has no input 'x'"),
        (["--bound", "input_ids=2:1"], "Give the lower one first"),
        (["--inputs", "nowhere.npz"], "nowhere.npz"),
    ],
)
def test_wrong_usage(arguments, said, command_line):
    assert said in command_line("check", BERT, *arguments).assert_one_error()


def test_a_model_that_cannot_be_read(command_line, tmp_path):
    command_line("check", tmp_path / "none.onnx").assert_one_error()
