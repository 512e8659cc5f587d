"""`rewright optimize DIR -o SAVE_DIR`: a report for each file, a table of all, one object of JSON, the exit status."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest

ZOO = Path(__file__).parents[1] / "zoo"


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A directory with an encoder and a decoder."""
    path = tmp_path / "exported"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "bart"}')
    shutil.copyfile(ZOO / "bart_enc.dyn20.eager.onnx", path / "encoder_model.onnx")
    shutil.copyfile(ZOO / "gpt2.ts17.eager.onnx", path / "decoder_model.onnx")
    return path


def test_it_writes_a_directory_and_shows_every_report_and_a_table(process, exported, tmp_path):
    outcome = process("optimize", exported, "-o", tmp_path / "optimized", "-O2")
    assert outcome.status == 0, outcome.err
    assert sorted(path.name for path in (tmp_path / "optimized").iterdir()) == [
        "config.json",
        "decoder_model.onnx",
        "encoder_model.onnx",
        "ort_config.json",
    ]
    assert outcome.err == f"wrote {tmp_path}/optimized\n"
    assert outcome.out.count("Passed: the result agrees with the original.") == 2
    table = outcome.out.rpartition("Passed: the result")[2]
    rows = [line.split() for line in table.splitlines() if ".onnx" in line]
    assert [(row[0], row[-1]) for row in rows] == [("decoder_model.onnx", "passed"), ("encoder_model.onnx", "passed")]
    assert table.rstrip().endswith("Passed: all 2 models agree with their originals.")


def test_json_is_one_object_with_a_report_for_each_file(command_line, exported, tmp_path):
    options = ["-p", "layer-norm, gelu", "--json", "--report", tmp_path / "out.json", "--report", tmp_path / "out.html"]
    outcome = command_line("optimize", exported, "-o", tmp_path / "optimized", *options)
    found = json.loads(outcome.out)
    assert json.loads((tmp_path / "out.json").read_text()) == found
    assert found["schema_version"] == 1
    assert (found["verdict"], found["chain"]) == ("passed", "layer-norm, gelu")
    assert (found["directory"], found["save_dir"]) == (str(exported), str(tmp_path / "optimized"))
    assert found["carried"] == ["config.json"]
    assert {name: report["verdict"] for name, report in found["files"].items()} == {
        "decoder_model.onnx": "passed",
        "encoder_model.onnx": "passed",
    }
    assert {"model", "passes", "parity", "environment"} <= found["files"]["encoder_model.onnx"].keys()
    page = (tmp_path / "out.html").read_text()
    assert page.count("<section") == page.count("</section>") == 2
    assert "Passed: all 2 models agree with their originals." in page


def test_an_ort_config_is_a_chain_and_a_target(command_line, exported, tmp_path):
    (tmp_path / "ort_config.json").write_text(
        json.dumps(
            {"optimization": {"optimization_level": 2, "optimize_for_gpu": True, "disable_gelu_fusion": True, "fp16": True}}
        )
    )
    options = ["-c", tmp_path / "ort_config.json", "--file", "encoder_model.onnx", "--json"]
    outcome = command_line("optimize", exported, "-o", tmp_path / "optimized", *options, "--set", "attention.mask=bias")
    assert outcome.status == 0, outcome.err
    found = json.loads(outcome.out)
    (report,) = found["files"].values()
    assert report["target"] == "cuda"
    assert "gelu" not in {record["name"] for record in report["passes"]}
    assert "attention{mask=bias}" in found["chain"]
    assert ", float16" in found["chain"]  # which the target is for, so that nothing is to be said of it
    assert not any(message.startswith("fp16=True: ") for message in found["messages"])
    kinds = {tensor.data_type for tensor in onnx.load(tmp_path / "optimized" / "encoder_model.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    assert "not asked for, and not carried over: decoder_model.onnx." in found["messages"]
    record = json.loads((tmp_path / "optimized" / "ort_config.json").read_text())
    assert record["optimization"]["disable_gelu_fusion"] is True
    assert record["rewright"]["target"] == "cuda"

    outcome = command_line(
        "optimize", exported / "encoder_model.onnx", "-o", tmp_path / "one.onnx", *options[:2], "--target", "cpu"
    )
    assert outcome.status == 0
    assert "target   cpu" in outcome.out
    (tmp_path / "ort_config.json").write_text(
        json.dumps({"optimization": {"optimization_level": 2, "disable_gelu_fusion": True, "fp16": True}})
    )
    printed = command_line("chains", *options[:2])
    assert ", gelu, " not in printed.out
    assert ", bias-gelu, " in printed.out
    assert "fp16=True: ONNX Runtime's CPU provider casts around" in printed.err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["-o", "exported"], "is the source directory, which is never modified"),
        (["-o", "exported/new"], "is inside the source directory"),
        (["-o", "out", "--file", "encodr_model.onnx"], "Did you mean encoder_model.onnx"),
        (["-o", "out", "-c", "exported/config.json"], "OptimizationConfig has no attribute 'model_type'"),
        (["-o", "out", "-O9"], "there is no level '9'"),
    ],
)
def test_what_is_wrong_is_one_clear_error(arguments, reason, command_line, exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = command_line("optimize", "exported", *arguments)
    assert reason in outcome.assert_one_error()
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


def test_a_directory_without_models_and_a_file_with_file(command_line, exported, tmp_path):
    (tmp_path / "empty").mkdir()
    message = command_line("optimize", tmp_path / "empty", "-o", tmp_path / "out").assert_one_error()
    assert "holds no .onnx file" in message
    assert "optimum-cli export onnx" in message
    options = ["-o", tmp_path / "out.onnx", "--file", "encoder_model.onnx"]
    command_line("optimize", exported / "encoder_model.onnx", *options).assert_one_error()


def test_a_pass_that_fails_where_the_policy_is_to_raise(command_line, exported, tmp_path, wrong):
    options = ["--plugin", wrong, "-p", "wrong-softmax, gelu"]
    outcome = command_line("optimize", exported, "-o", tmp_path / "optimized", *options, "--on-failure", "raise", "--json")
    message = outcome.assert_one_error(status=1)
    assert "decoder_model.onnx: the pass 'wrong-softmax' failed" in message
    assert "Nothing was written" in message
    assert list(json.loads(outcome.out)["files"]) == ["decoder_model.onnx"]
    assert not (tmp_path / "optimized").exists()
    outcome = command_line("optimize", exported, "-o", tmp_path / "optimized", *options)
    assert outcome.status == 0
    assert "Passed with rollbacks: all 2 models agree" in outcome.out


def test_what_was_not_asked_for_is_no_failure_and_what_could_not_be_done_is(command_line, exported, tmp_path):
    outcome = command_line("optimize", exported, "-o", tmp_path / "optimized", "-O1", "--verify", "structure", "--quiet")
    assert (outcome.status, outcome.out, outcome.err) == (0, "", "")
    zeros = "g (float[n, 2] x) => (float[n, 2] y) { none = Constant<value = float {0.0}>() y = Mul(x, none) }"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 17]> {zeros}'), exported / "encoder_model.onnx")
    outcome = command_line("optimize", exported, "-o", tmp_path / "optimized", "-p", "dead-code", "--quiet")
    message = outcome.assert_one_error(status=2)
    assert "encoder_model.onnx: parity is vacuous" in message
    assert f"{tmp_path}/optimized was written without that comparison" in message
