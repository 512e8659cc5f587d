"""Hugging Face directories: every model is optimized and verified, the rest is carried over, and the result loads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from directories import (
    BERT,
    CONFIGURATION,
    ENCODER,
    contents,
    make_directory,
    merged_decoder,
    ops,
    outputs_of,
    token_feeds,
)

import rewright
from rewright import Match, PatternPass
from rewright.integrations.huggingface import optimize
from rewright.integrations.optimum import AutoOptimizationConfig, OptimizationConfig, compile, save_ort_config
from rewright.model import save as saving

CHAIN = "layer-norm, gelu, skip-layer-norm"


def test_a_directory_with_one_model(tmp_path: Path) -> None:
    source = make_directory(tmp_path / "exported", model=BERT)
    before = contents(source)
    result = optimize(source, tmp_path / "optimized")
    saved = contents(tmp_path / "optimized")
    assert result.verdict == "passed"
    assert list(result.files) == ["model.onnx"]
    assert ops(tmp_path / "optimized" / "model.onnx").count("Attention") == 2
    assert saved.keys() == {*CONFIGURATION, "model.onnx", "ort_config.json"}
    assert {name: saved[name] for name in CONFIGURATION} == {name: before[name] for name in CONFIGURATION}
    assert contents(source) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "optimized"], "nothing else stays behind"
    assert sorted(result.report.carried) == sorted(CONFIGURATION)
    assert result.messages == []
    wanted = outputs_of(source / "model.onnx", token_feeds())
    (got,) = outputs_of(tmp_path / "optimized" / "model.onnx", token_feeds())
    np.testing.assert_allclose(got, wanted[0], rtol=1e-4, atol=1e-5)


def test_an_encoder_a_decoder_and_a_merged_decoder_each_have_their_verdict(tmp_path: Path) -> None:
    source = make_directory(tmp_path / "exported", encoder_model=ENCODER, decoder_model_merged=merged_decoder())
    result = optimize(source, tmp_path / "optimized", chain=CHAIN)
    assert result.verdict == "passed"
    assert {name: run.report.verdict for name, run in result.files.items()} == {
        "decoder_model_merged.onnx": "passed",
        "encoder_model.onnx": "passed",
    }
    merged = ops(tmp_path / "optimized" / "decoder_model_merged.onnx")
    assert (merged.count("Gelu"), merged.count("Erf")) == (2, 0), "one in each branch of the If"
    assert "SkipLayerNormalization" in ops(tmp_path / "optimized" / "encoder_model.onnx")


def test_the_merged_decoder_computes_what_it_did_in_both_branches(tmp_path: Path) -> None:
    source = make_directory(tmp_path / "exported", decoder_model_merged=merged_decoder())
    optimize(source, tmp_path / "optimized", chain=CHAIN)
    random = np.random.default_rng(1)
    for is_cached, past in ((False, 0), (True, 4)):
        feeds = {
            "input_ids": random.integers(0, 20, (2, 3)),
            "attention_mask": np.ones((2, past + 3), dtype=np.int64),
            "past_key_values.0.key": random.standard_normal((2, past, 8)).astype(np.float32),
            "use_cache_branch": np.array([is_cached]),
        }
        for wanted, got in zip(
            outputs_of(source / "decoder_model_merged.onnx", feeds),
            outputs_of(tmp_path / "optimized" / "decoder_model_merged.onnx", feeds),
            strict=True,
        ):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


class WrongInOneBranch(PatternPass):
    """Softmax(x) -> Sigmoid(x) in one branch of a merged decoder."""

    name = "wrong-in-one-branch"
    branch: str

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Softmax(x)

    def check(self, match: Match, x: Any) -> None:
        match.require(match.root.outputs[0].name.startswith(self.branch), "it is the other branch", x)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Sigmoid(x)


@pytest.mark.parametrize("branch", ["first", "following"])
@pytest.mark.parametrize("mask", ["past_sequence_length + sequence_length", "past_sequence_length + 1", "mask_length"])
def test_each_branch_of_a_merged_decoder_is_compared_however_its_mask_is_named(branch: str, mask: str, tmp_path: Path) -> None:
    source = make_directory(tmp_path / "exported", decoder_model_merged=merged_decoder(mask))
    chain = rewright.Chain([WrongInOneBranch(branch=branch), "gelu"])
    report = optimize(source, tmp_path / "optimized", chain=chain).files["decoder_model_merged.onnx"].report
    wrong, gelu = report.passes
    assert (wrong.status, len(wrong.sites)) == ("rolled-back", 1)
    assert (gelu.status, len(gelu.sites)) == ("applied", 2)
    assert report.parity is not None
    assert report.parity.dropped == []


@pytest.mark.parametrize("layout", ["one", "many"])
def test_external_data_is_written_where_the_source_had_it_under_the_name_that_optimum_knows(layout: str, tmp_path: Path) -> None:
    source = make_directory(tmp_path / "exported")
    model = onnx.load(BERT)
    onnx.save(
        model,
        source / "model.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=layout == "one",
        location="weights.bin",
        size_threshold=1024,
    )
    before = contents(source)
    data = before.keys() - CONFIGURATION.keys() - {"model.onnx"}
    assert len(data) == 1 if layout == "one" else len(data) > 10
    optimize(source, tmp_path / "optimized", chain=CHAIN)
    assert contents(source) == before, "Optimum deletes the data of its source"
    saved = contents(tmp_path / "optimized")
    assert saved.keys() == {*CONFIGURATION, "model.onnx", "model.onnx_data", "ort_config.json"}
    record = json.loads((tmp_path / "optimized" / "ort_config.json").read_text())
    assert record["use_external_data_format"] is True
    assert record["rewright"]["files"]["model.onnx"]["external_data"] == "model.onnx_data"
    (wanted,), (got,) = (outputs_of(path / "model.onnx", token_feeds()) for path in (source, tmp_path / "optimized"))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_model_that_one_file_cannot_hold_gets_a_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "INLINE_LIMIT", 50_000)  # 2 GiB, but for the time that takes
    source = make_directory(tmp_path / "exported", model=BERT, decoder_model=merged_decoder())
    optimize(source, tmp_path / "optimized", chain="gelu")
    saved = contents(tmp_path / "optimized")
    assert {name for name in saved if ".onnx" in name} == {"model.onnx", "model.onnx_data", "decoder_model.onnx"}
    (wanted,), (got,) = (outputs_of(path / "model.onnx", token_feeds()) for path in (source, tmp_path / "optimized"))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_models_in_a_subfolder_stay_there(tmp_path: Path) -> None:
    source = make_directory(tmp_path / "exported")
    make_directory(source / "onnx", model=BERT)
    result = optimize(source, tmp_path / "optimized", chain=CHAIN)
    assert list(result.files) == ["onnx/model.onnx"]
    saved = contents(tmp_path / "optimized")
    assert saved.keys() == contents(source).keys() | {"ort_config.json"}
    assert "SkipLayerNormalization" in ops(tmp_path / "optimized" / "onnx" / "model.onnx")


def test_what_other_libraries_load_is_left_out_and_said(tmp_path: Path) -> None:
    source = make_directory(tmp_path / "exported", model=BERT)
    for name in ("model.safetensors", "pytorch_model.bin", "2_Dense/model.safetensors", "openvino/openvino_model.bin"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(bytes(1500))
    (source / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]))
    (source / ".git").mkdir()
    (source / ".git" / "model.onnx").write_bytes(b"")
    result = optimize(source, tmp_path / "optimized", chain=CHAIN)
    assert list(result.files) == ["model.onnx"]
    (message,) = result.messages
    assert message.startswith("weights in other forms than ONNX (4.5 kB) are not carried over: model.safetensors, ")
    assert "pytorch_model.bin" in message
    assert "2_Dense" not in message, "sentence-transformers runs it after the model"
    added = {"modules.json", "2_Dense/model.safetensors"}
    assert contents(tmp_path / "optimized").keys() == {*CONFIGURATION, "model.onnx", "ort_config.json", *added}


def test_only_the_files_that_are_asked_for(tmp_path: Path) -> None:
    source = make_directory(tmp_path / "exported", model=BERT, model_quantized=BERT)
    make_directory(source / "onnx", model=ENCODER)
    (source / "model_quantized.onnx_data").write_bytes(b"of a model that is not read")
    result = optimize(source, tmp_path / "optimized", chain="gelu", file_names="onnx/model.onnx")
    assert list(result.files) == ["onnx/model.onnx"]
    (message,) = result.messages
    assert message == "not asked for, and not carried over: model.onnx, model_quantized.onnx, model_quantized.onnx_data."
    assert "model_quantized.onnx_data" not in contents(tmp_path / "optimized")
    both = optimize(source, tmp_path / "both", chain="gelu", file_names=["model.onnx"])
    assert list(both.files) == ["model.onnx"], "the exact path comes before the name"


def test_files_beside_a_model_that_it_does_not_read(tmp_path: Path) -> None:
    """Left behind by an earlier export, where the new weights might go; and a configuration that is named after its model."""
    source = make_directory(tmp_path / "exported")
    onnx.save(onnx.load(BERT), source / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=1024)
    (source / "model.onnx_data").write_bytes(b"old")
    (source / "model.onnx.json").write_text("{}")
    result = optimize(source, tmp_path / "optimized", chain=CHAIN)
    assert result.messages == ["named like weights, read by no model, and not carried over: model.onnx_data."]
    assert (tmp_path / "optimized" / "model.onnx.json").read_text() == "{}"
    (wanted,), (got,) = (outputs_of(path / "model.onnx", token_feeds()) for path in (source, tmp_path / "optimized"))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_the_record_says_what_was_done(tmp_path: Path) -> None:
    source = make_directory(tmp_path / "exported", model=BERT)
    (source / "ort_config.json").write_text('{"optimization": {"fp16": true}, "quantization": {"is_static": false}}')
    optimize(source, tmp_path / "optimized", level="O1")
    record = json.loads((tmp_path / "optimized" / "ort_config.json").read_text())
    assert record["optimization"]["optimization_level"] == 1
    assert record["optimization"]["fp16"] is False, "what the source says of an earlier run is gone"
    assert record["quantization"] == {"is_static": False}, "which is true still"
    told = record["rewright"]
    assert told["level"] == "O1"
    assert told["chain"] == str(rewright.Chain.at_level("O1"))
    assert told["versions"]["onnx"] == onnx.__version__
    assert told["files"]["model.onnx"]["verdict"] == told["verdict"] == "passed"
    assert told["files"]["model.onnx"]["nodes_after"] < told["files"]["model.onnx"]["nodes_before"]


def test_links_are_followed_to_files_and_not_to_folders(tmp_path: Path) -> None:
    """As in the cache of the Hub, where every file is a link."""
    blobs = make_directory(tmp_path / "blobs", model=BERT)
    source = tmp_path / "snapshot"
    source.mkdir()
    for name in (*CONFIGURATION, "model.onnx"):
        (source / name).symlink_to(os.path.relpath(blobs / name, source))
    (source / "elsewhere").symlink_to(blobs, target_is_directory=True)
    result = optimize(source, tmp_path / "optimized", chain=CHAIN)
    assert result.messages == ["links to folders are not followed: elsewhere."]
    saved = [path for path in (tmp_path / "optimized").iterdir() if path.name != "ort_config.json"]
    assert {path.name for path in saved} == {*CONFIGURATION, "model.onnx"}
    assert not any(path.is_symlink() for path in saved)


def test_a_snapshot_of_the_hub_with_external_data(tmp_path: Path) -> None:
    source = make_directory(tmp_path / "snapshot")
    (tmp_path / "blobs").mkdir()
    onnx.save(onnx.load(BERT), source / "model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=1024)
    for name in (*CONFIGURATION, "model.onnx", "model.onnx_data"):
        (source / name).rename(tmp_path / "blobs" / name[::-1])
        (source / name).symlink_to(Path("..", "blobs", name[::-1]))
    before = contents(tmp_path)
    result = optimize(source, tmp_path / "optimized", chain=CHAIN)
    assert result.verdict == "passed"
    saved = contents(tmp_path / "optimized")
    assert saved.keys() == {*CONFIGURATION, "model.onnx", "model.onnx_data", "ort_config.json"}
    assert saved["model.onnx_data"] != before["snapshot/model.onnx_data"]
    assert {name: digest for name, digest in contents(tmp_path).items() if not name.startswith("optimized")} == before


def test_progress_counts_all_files(tmp_path: Path) -> None:
    source = make_directory(tmp_path / "exported", encoder_model=ENCODER, model=BERT)
    told: list[tuple[str, int, int]] = []
    optimize(source, tmp_path / "optimized", chain="gelu, layer-norm", progress=lambda *step: told.append(step))
    assert told == [
        ("encoder_model.onnx: gelu", 0, 4),
        ("encoder_model.onnx: layer-norm", 1, 4),
        ("encoder_model.onnx: final checks", 2, 4),
        ("model.onnx: gelu", 2, 4),
        ("model.onnx: layer-norm", 3, 4),
        ("model.onnx: final checks", 4, 4),
    ]


@pytest.mark.parametrize(("target", "preset"), [("cpu", {"optimize_for_gpu": False}), ("cuda", {})])
def test_the_record_of_a_level_with_float16_is_that_level_again(target: Any, preset: dict[str, Any], tmp_path: Path) -> None:
    source = make_directory(tmp_path / "exported", model=BERT)
    optimize(source, tmp_path / "optimized", "O4", target=target)
    read = OptimizationConfig.from_pretrained(tmp_path / "optimized")
    wanted = AutoOptimizationConfig.O4()
    for name, value in preset.items():
        setattr(wanted, name, value)
    assert read.chosen() == wanted.chosen()
    assert compile(read).chain == rewright.Chain("O4")
    assert compile(read).target == target


def test_weights_go_beside_the_model_where_an_ort_config_asks_for_it(tmp_path: Path) -> None:
    source = make_directory(tmp_path / "exported", model=BERT)
    save_ort_config(tmp_path, AutoOptimizationConfig.O1(), use_external_data_format=True)
    config = OptimizationConfig.from_pretrained(tmp_path)
    optimize(source, tmp_path / "optimized", config)
    assert (tmp_path / "optimized" / "model.onnx_data").stat().st_size > 0.5 * BERT.stat().st_size
    wanted, got = (outputs_of(folder / "model.onnx", token_feeds()) for folder in (source, tmp_path / "optimized"))
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-4, atol=1e-5)
