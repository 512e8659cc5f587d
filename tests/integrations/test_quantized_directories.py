"""Hugging Face directories: every model is quantized and verified, and `ort_config.json` says how."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from directories import BERT, CONFIGURATION, ENCODER, contents, make_directory, merged_decoder, ops, outputs_of, token_feeds

import rewright
from rewright import GateError, UsageError
from rewright.integrations.huggingface import DirectoryGateError, quantize
from rewright.integrations.optimum import (
    AutoCalibrationConfig,
    AutoOptimizationConfig,
    AutoQuantizationConfig,
    OptimizationConfig,
    QuantizationConfig,
    compile_quantization,
    save_ort_config,
)
from rewright.tuning.request import QuantizationRequest

LOOSE = "sqnr=10, cosine=0.9"
"""The models are small and untrained: all of each is to be quantized, whatever it costs."""

DYNAMIC = AutoQuantizationConfig.avx2(is_static=False)
STATIC = AutoQuantizationConfig.arm64(is_static=True)


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return make_directory(tmp_path / "exported", model=BERT)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    return make_directory(tmp_path / "exported", encoder_model=ENCODER, decoder_model_merged=merged_decoder())


def recorded(place: Path) -> Any:
    return json.loads((place / "ort_config.json").read_text())


def samples(count: int = 3) -> Iterator[dict[str, Any]]:
    """What can be gone through once, with a column that no input takes, as data sets have it."""
    for number in range(count):
        yield {**token_feeds(4 + number), "label": number}


def test_a_directory_with_one_model(one: Path, tmp_path: Path) -> None:
    before, out = contents(one), tmp_path / "quantized"
    result = quantize(one, out, DYNAMIC, budget=LOOSE)
    assert result.verdict == "passed"
    assert result.report.chain == "O2, quantize-dynamic{weight=uint8}"
    assert contents(out).keys() == {*CONFIGURATION, "model.onnx", "ort_config.json"}
    assert contents(one) == before
    found = ops(out / "model.onnx")
    assert (found.count("QAttention"), found.count("MatMul")) == (2, 0)
    assert (out / "model.onnx").stat().st_size < 0.6 * BERT.stat().st_size
    wanted, got = outputs_of(one / "model.onnx", token_feeds())[0], outputs_of(out / "model.onnx", token_feeds())[0]
    assert 0 < np.abs(wanted - got).max() < 0.2 * np.abs(wanted).max()


def test_the_record_says_how_and_is_a_config_again(one: Path, tmp_path: Path) -> None:
    quantize(one, tmp_path / "a", DYNAMIC, budget=LOOSE)
    record = recorded(tmp_path / "a")
    assert record["quantization"] == DYNAMIC.to_section()
    assert record["optimization"]["optimization_level"] == 2
    told = record["rewright"]
    assert (told["chain"], told["level"], told["verdict"]) == ("O2, quantize-dynamic{weight=uint8}", "O2", "passed")
    assert told["files"]["model.onnx"]["quantized"]["com.microsoft::Attention"] == [2, 2]
    assert told["files"]["model.onnx"]["kept_in_float"] == {}
    again = quantize(one, tmp_path / "b", QuantizationConfig.from_pretrained(tmp_path / "a"), budget=LOOSE)
    assert again.report.chain == told["chain"]
    assert (tmp_path / "b" / "model.onnx").read_bytes() == (tmp_path / "a" / "model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("config", "how", "chain"),
    [
        ("avx2", {}, "O2, quantize-dynamic{weight=uint8}"),
        ("arm64", {"mode": "weight-only", "level": "O1"}, "O1, quantize-weights"),
        (QuantizationRequest(preset="arm64", level="layer-norm", exclude=["*pooler*"]), {},
         "layer-norm, quantize-dynamic{exclude=[\"*pooler*\"]}"),
        (compile_quantization(DYNAMIC, level="O0"), {}, "O0, quantize-dynamic{weight=uint8}"),
        (DYNAMIC, {"backend": "ort", "level": "O0"}, "O0, quantize-dynamic{backend=ort, weight=uint8}"),
    ],
    ids=["preset", "weight-only", "request", "compiled", "backend"],
)  # fmt: skip
def test_what_can_be_asked_for(config: Any, how: dict[str, Any], chain: str, one: Path, tmp_path: Path) -> None:
    result = quantize(one, tmp_path / "out", config, budget="sqnr=0, cosine=0.5", **how)
    assert result.verdict == "passed"
    assert rewright.Chain(result.report.chain) == rewright.Chain(chain)
    section = recorded(tmp_path / "out")["quantization"]
    assert section == {} if how.get("mode") == "weight-only" else section["is_static"] is False


def test_ranges_are_measured_on_what_is_given(one: Path, tmp_path: Path) -> None:
    how = AutoCalibrationConfig.percentiles(percentile=99.9)
    result = quantize(one, tmp_path / "a", STATIC, calibration=samples(), calibration_config=how, budget=LOOSE)
    assert result.verdict == "passed"
    assert result.report.chain == "O2, quantize-static{method=percentile, percentile=99.9}"
    assert not [message for message in result.messages if message.startswith("is_static")]
    report = result.files["model.onnx"].report
    assert any("ranges by percentile on 3 input sets" in note for note in report.passes[-1].notes)
    assert any("'label'" in warning for warning in report.warnings)
    assert recorded(tmp_path / "a")["rewright"]["calibration"]["method"] == "Percentile"
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "0.npz", **token_feeds())
    again = quantize(one, tmp_path / "b", STATIC, calibration=tmp_path / "data", budget=LOOSE)
    assert str(tmp_path / "data") in again.report.chain
    with pytest.raises(UsageError, match="needs data to calibrate on"):
        quantize(one, tmp_path / "c", STATIC)
    assert not (tmp_path / "c").exists()


def test_each_of_several_models_has_its_data(two: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    encoder = {"input_ids": rng.integers(0, 90, (2, 7)), "attention_mask": np.ones((2, 7), np.int64)}
    decoder = {
        "input_ids": rng.integers(0, 20, (2, 3)),
        "attention_mask": np.ones((2, 5), np.int64),
        "past_key_values.0.key": rng.standard_normal((2, 2, 8), dtype=np.float32),
        "use_cache_branch": np.array([True]),
    }
    data: dict[str, Any] = {"encoder_model.onnx": [encoder], "decoder_model_merged.onnx": decoder}
    result = quantize(two, tmp_path / "a", STATIC, calibration=data, budget=LOOSE)
    assert result.verdict == "passed"
    coverage = result.files["encoder_model.onnx"].report.quantization.coverage
    assert coverage["MatMul"].quantized == coverage["MatMul"].total
    missed = result.files["decoder_model_merged.onnx"].report.quantization.missed
    assert all("body" in entry.reason for entry in missed if entry.op == "MatMul")
    with pytest.raises(UsageError, match=r"no calibration data for decoder_model_merged\.onnx"):
        quantize(two, tmp_path / "b", STATIC, calibration={"encoder_model.onnx": [encoder]})
    with pytest.raises(UsageError, match="do not say which of the models"):
        quantize(two, tmp_path / "b", STATIC, calibration=[encoder])
    folder = tmp_path / "data"
    (folder / "encoder_model").mkdir(parents=True)
    np.savez(folder / "encoder_model" / "0.npz", **encoder)
    np.savez(folder / "decoder_model_merged.npz", **decoder)
    assert quantize(two, tmp_path / "b", STATIC, calibration=folder, budget=LOOSE).verdict == "passed"


def test_weights_that_branches_share_are_stored_once(two: Path, tmp_path: Path) -> None:
    quantize(two, tmp_path / "out", AutoQuantizationConfig.arm64(is_static=False), budget=LOOSE)
    model = onnx.load(tmp_path / "out" / "decoder_model_merged.onnx")
    integers = [
        tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2
    ]
    assert sorted(tuple(tensor.dims) for tensor in integers) == sorted([(20, 8), (8, 64), (64, 8), (8, 20)])
    assert ops(tmp_path / "out" / "decoder_model_merged.onnx").count("DynamicQuantizeMatMul") == 6


def test_names_need_not_be_in_every_model(two: Path, tmp_path: Path) -> None:
    names = [node.name for node in onnx.load(two / "encoder_model.onnx").graph.node if node.op_type == "MatMul"]
    config = AutoQuantizationConfig.avx2(is_static=False, nodes_to_exclude=[names[-1]])
    result = quantize(two, tmp_path / "a", config, budget=LOOSE)
    excluded = {name: [each.node for each in run.report.passes[-1].coverage if each.outcome == "excluded"]
                for name, run in result.files.items()}  # fmt: skip
    assert excluded == {"encoder_model.onnx": [names[-1]], "decoder_model_merged.onnx": []}
    only = AutoQuantizationConfig.avx2(is_static=False, nodes_to_quantize=[names[-1]])
    result = quantize(two, tmp_path / "b", only, budget=LOOSE)
    quantized = {name: [each.node for each in run.report.passes[-1].coverage if each.outcome == "quantized"]
                 for name, run in result.files.items()}  # fmt: skip
    assert quantized == {"encoder_model.onnx": [names[-1]], "decoder_model_merged.onnx": []}
    config.nodes_to_exclude = [names[-1] + "x"]
    with pytest.raises(UsageError, match=r"fits no node of decoder_model_merged\.onnx, encoder_model\.onnx") as caught:
        quantize(two, tmp_path / "c", config)
    assert names[-1] in caught.value.hint


def test_what_costs_most_stays_in_float_in_each_model(tmp_path: Path) -> None:
    source = make_directory(tmp_path / "exported", model=BERT, decoder_model_merged=merged_decoder())
    first = quantize(source, tmp_path / "a", DYNAMIC, budget=LOOSE)
    loss = {name: run.report.parity.outputs[0].sqnr_db for name, run in first.files.items()}
    assert loss["model.onnx"] < 30 < loss["decoder_model_merged.onnx"]
    result = quantize(source, tmp_path / "b", DYNAMIC, budget="sqnr=30", auto_exclude=True, jobs=1)
    assert result.verdict == "passed"
    kept = {name: run.kept_in_float for name, run in result.files.items()}  # type: ignore[attr-defined]
    assert kept["model.onnx"]
    assert kept["decoder_model_merged.onnx"] == {}
    told = recorded(tmp_path / "b")["rewright"]["files"]
    assert {name: each["kept_in_float"] for name, each in told.items()} == kept


def test_a_suffix_as_optimum_writes_it(one: Path, tmp_path: Path) -> None:
    result = quantize(one, tmp_path / "out", DYNAMIC, file_suffix="quantized", budget=LOOSE)
    assert {path.name for path in (tmp_path / "out").glob("*.onnx")} == {"model_quantized.onnx"}
    assert list(result.files) == ["model.onnx"]
    assert list(recorded(tmp_path / "out")["rewright"]["files"]) == ["model_quantized.onnx"]
    with pytest.raises(UsageError, match=r"holds other ONNX files: model_quantized\.onnx"):
        quantize(one, tmp_path / "out", DYNAMIC)


def test_weights_go_beside_the_model_where_an_ort_config_asks_for_it(one: Path, tmp_path: Path) -> None:
    save_ort_config(tmp_path, AutoOptimizationConfig.O1(), quantization=DYNAMIC.to_section(), use_external_data_format=True)
    config = QuantizationConfig.from_pretrained(tmp_path)
    result = quantize(one, tmp_path / "out", config, budget=LOOSE)
    assert result.report.chain == "O1, quantize-dynamic{weight=uint8}"
    assert (tmp_path / "out" / "model.onnx_data").is_file()
    record = recorded(tmp_path / "out")
    assert record["use_external_data_format"] is True
    assert record["optimization"] == OptimizationConfig.from_pretrained(tmp_path).to_ort_config()["optimization"]
    outputs_of(tmp_path / "out" / "model.onnx", token_feeds())


def test_what_was_done_before_stays_on_record(one: Path, tmp_path: Path) -> None:
    save_ort_config(one, AutoOptimizationConfig.O3())
    quantize(one, tmp_path / "a", DYNAMIC, level="O0", budget=LOOSE)
    assert recorded(tmp_path / "a")["optimization"]["enable_gelu_approximation"] is True
    rewright.integrations.huggingface.optimize(tmp_path / "a", tmp_path / "b", level="O1")
    assert recorded(tmp_path / "b")["quantization"] == DYNAMIC.to_section()


@pytest.mark.parametrize(
    ("config", "how", "message"),
    [
        (DYNAMIC, {"mode": "static"}, "the config and the mode 'static' each say how"),
        ("sse", {}, "no preset 'sse'"),
        ("tensorrt", {}, "has no mode 'dynamic'"),
        ("avx2", {"calibration_config": AutoCalibrationConfig.minmax()}, "a calibration config goes with a config"),
        (QuantizationRequest(preset="avx2"), {"level": "O1"}, "says already what level says"),
        (DYNAMIC, {"calibration_config": AutoCalibrationConfig.minmax()}, "measures activations at run time"),
        (DYNAMIC, {"calibration": [{}]}, "reads no calibration data"),
        (3, {}, "a int holds no options"),
        (AutoOptimizationConfig.O2(), {}, "holds no options"),
    ],
)
def test_what_does_not_go_together(config: Any, how: dict[str, Any], message: str, one: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        quantize(one, tmp_path / "out", config, **how)
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


def test_a_budget_that_does_not_hold_where_the_policy_is_to_raise(one: Path, tmp_path: Path) -> None:
    with pytest.raises(DirectoryGateError, match=r"model\.onnx: the pass 'quantize-dynamic'") as caught:
        quantize(one, tmp_path / "out", DYNAMIC, budget="sqnr=190", on_failure="raise")
    assert isinstance(caught.value, GateError)
    assert list(caught.value.directory.files) == ["model.onnx"]
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.reproducers" / "model").is_dir()
