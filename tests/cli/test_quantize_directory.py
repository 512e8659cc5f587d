"""`rewright quantize` on directories, and with an `ort_config.json`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from rewright.integrations.optimum import AutoOptimizationConfig, AutoQuantizationConfig, save_ort_config

ZOO = Path(__file__).parents[1] / "zoo"
BERT, ENCODER = ZOO / "bert.ts17.sdpa.onnx", ZOO / "bart_enc.dyn20.eager.onnx"
LOOSE = ("--budget", "sqnr=10, cosine=0.9")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A directory with two models."""
    path = tmp_path / "exported"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "bart"}')
    shutil.copyfile(ENCODER, path / "encoder_model.onnx")
    shutil.copyfile(BERT, path / "model.onnx")
    return path


def write_config(path: Path, *, optimization: Any = None, **options: Any) -> Path:
    """An ort_config.json for dynamic quantization."""
    config = AutoQuantizationConfig.avx2(is_static=False, **options)
    return save_ort_config(path, optimization, quantization=config.to_section())


def ids(length: int) -> np.ndarray:
    return np.arange(2 * length, dtype=np.int64).reshape(2, length) % 90 + 5


def test_every_model_has_its_report_and_the_record_says_how(command_line, exported, tmp_path) -> None:
    out = tmp_path / "quantized"
    outcome = command_line("quantize", exported, "-o", out, "--preset", "avx2", *LOOSE)
    assert outcome.status == 0, outcome.err
    assert "preset avx2: it was asked for" in outcome.err
    assert "chain: O2, quantize-dynamic{weight=uint8}" in outcome.err
    assert outcome.out.count("Passed: the result agrees with the original.") == 2
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "encoder_model.onnx", "model.onnx", "ort_config.json"]
    record = json.loads((out / "ort_config.json").read_text())
    assert record["quantization"]["weights_dtype"] == "QUInt8"
    again = command_line("quantize", exported, "-o", tmp_path / "again", "-c", out / "ort_config.json", "-q", *LOOSE)
    assert again.status == 0, again.err
    for name in ("model.onnx", "encoder_model.onnx"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


def test_one_file_of_a_directory_and_what_stays_in_float(command_line, exported, tmp_path) -> None:
    options = ("--preset", "arm64", "--file", "model.onnx", "--budget", "sqnr=30", "--auto-exclude", "--jobs", "1")
    outcome = command_line("quantize", exported, "-o", tmp_path / "out", *options)
    assert outcome.status == 0, outcome.err
    assert "model.onnx: kept in float: " in outcome.err
    assert not (tmp_path / "out" / "encoder_model.onnx").exists()
    kept = json.loads((tmp_path / "out" / "ort_config.json").read_text())["rewright"]["files"]["model.onnx"]["kept_in_float"]
    assert kept
    assert all("for the budget" in reason for reason in kept.values())


def test_what_is_measured_is_shown_for_each_model(command_line, exported, tmp_path) -> None:
    options = ("--preset", "arm64", "--operators", "Attention", "--no-slower")  # one group of nodes each
    outcome = command_line("quantize", exported, "-o", tmp_path / "out", *options, *LOOSE)
    assert outcome.status == 0, outcome.err
    assert "encoder_model.onnx:\n" in outcome.err
    assert outcome.out.count("quantized") >= 2
    assert outcome.out.count("float") >= 2


def test_each_model_is_calibrated_on_its_own_data(command_line, exported, tmp_path) -> None:
    data = tmp_path / "data"
    (data / "model").mkdir(parents=True)
    tokens = {"input_ids": ids(6), "attention_mask": np.ones((2, 6), np.int64)}
    np.savez(data / "encoder_model.npz", **tokens)
    np.savez(data / "model" / "0.npz", **tokens, token_type_ids=np.zeros((2, 6), np.int64))
    command = ("quantize", exported, "-o", tmp_path / "out", "--mode", "static", "--preset", "arm64", *LOOSE, "--json")
    outcome = command_line(*command, "--calibration", data)
    assert outcome.status == 0, outcome.err
    for report in json.loads(outcome.out)["files"].values():
        assert any("ranges by minmax on 1 input sets" in note for note in report["passes"][-1]["notes"])
    (data / "encoder_model.npz").unlink()
    message = command_line(*command, "--calibration", data).assert_one_error()
    assert "no calibration data for encoder_model.onnx" in message


def test_an_ort_config_quantizes_a_file(command_line, tmp_path) -> None:
    config = write_config(tmp_path, optimization=AutoOptimizationConfig.O1(), operators_to_quantize=["MatMul", "Transpose"])
    out = tmp_path / "out.onnx"
    outcome = command_line("quantize", BERT, "-o", out, "-c", config, "--set", "weight=int8", "--exclude", "*pooler*", *LOOSE)
    assert outcome.status == 0, outcome.err
    chain = "O1, quantize-dynamic{operators=[MatMul, FusedMatMul, Gemm], exclude=[*pooler*]}"
    assert f"chain: {chain}" in outcome.err
    assert "does not quantize Transpose" in outcome.err
    same = tmp_path / "same.onnx"
    assert command_line("optimize", BERT, "-o", same, "-p", chain, "-q", *LOOSE).status == 0
    assert onnx.load(out) == onnx.load(same)


def test_what_is_not_for_the_command_is_one_clear_error(command_line, exported, tmp_path) -> None:
    def refused(*options: Any) -> str:
        command = ("quantize", exported, "-o", tmp_path / "out")
        return command_line(*command, "-c", tmp_path / "ort_config.json", *options).assert_one_error()

    write_config(tmp_path)
    assert "-c and --mode each say how to quantize" in refused("--mode", "static")
    assert "-c and --preset each say" in refused("--preset", "avx2")
    assert "-c and --nodes each say" in refused("--nodes", "a")
    assert "reads no calibration data" in refused("--calibration", ENCODER)
    assert "has no option 'colour'" in refused("--set", "colour=3")
    assert "of another pass than quantize-dynamic" in refused("--set", "quantize-static.weight=int8")
    assert "fits no node of encoder_model.onnx, model.onnx" in refused("--exclude", "nowhere")
    write_config(tmp_path, optimization=AutoOptimizationConfig.O1())
    assert "each say what is done before" in refused("-O", "O2")
    write_config(tmp_path, optimization=AutoOptimizationConfig.O4())
    assert "ask for float16" in refused()
    save_ort_config(tmp_path, AutoOptimizationConfig.O2())
    message = refused()
    assert "ort_config.json: it holds only options for optimization" in message
    assert "`rewright optimize -c`" in message
    (tmp_path / "ort_config.json").write_text("- gelu")
    assert "is not JSON" in refused()
    write_config(tmp_path)
    message = command_line("optimize", exported, "-o", tmp_path / "out", "-c", tmp_path / "ort_config.json").assert_one_error()
    assert "`rewright quantize -c`" in message
    assert "--file chooses among" in command_line("quantize", BERT, "-o", tmp_path / "o.onnx", "--file", "a").assert_one_error()
    assert not (tmp_path / "out").exists()
