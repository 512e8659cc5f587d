"""Models that another library has loaded: the files that they were loaded from, and the directory around these.

Optimum's classes are stood in for by objects with the attributes that are read; tests/hf has the real ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from directories import BERT, CONFIGURATION, ENCODER, contents, make_directory

from rewright import UsageError
from rewright.integrations.huggingface import optimize


class Configuration:
    """Writes itself as the configurations of transformers do."""

    def __init__(self, name: str, **content: Any) -> None:
        self.name, self.content = name, content

    def save_pretrained(self, save_directory: str | Path) -> None:
        (Path(save_directory) / self.name).write_text(json.dumps(self.content))


def test_a_model_of_one_part(tmp_path: Path) -> None:
    source = make_directory(tmp_path / "exported", model=BERT, model_quantized=BERT)
    result = optimize(SimpleNamespace(path=source / "model.onnx"), tmp_path / "optimized", chain="gelu")
    assert list(result.files) == ["model.onnx"]
    assert result.messages == ["not asked for, and not carried over: model_quantized.onnx."]
    assert contents(tmp_path / "optimized").keys() == {*CONFIGURATION, "model.onnx", "ort_config.json"}


def test_a_model_of_several_parts(tmp_path: Path) -> None:
    source = make_directory(tmp_path / "exported", encoder_model=ENCODER, decoder_model=BERT, decoder_with_past_model=BERT)
    parts = [SimpleNamespace(path=source / f"{name}.onnx") for name in ("encoder_model", "decoder_model")]
    result = optimize(SimpleNamespace(parts=parts), tmp_path / "optimized", chain="gelu")
    assert list(result.files) == ["decoder_model.onnx", "encoder_model.onnx"]
    only = optimize(SimpleNamespace(parts=parts), tmp_path / "only", chain="gelu", file_names="encoder_model.onnx")
    assert list(only.files) == ["encoder_model.onnx"]
    with pytest.raises(UsageError, match=r"holds no file 'decoder_with_past_model\.onnx'"):
        optimize(SimpleNamespace(parts=parts), tmp_path / "other", chain="gelu", file_names="decoder_with_past_model.onnx")


def test_a_model_in_a_folder_of_its_own_has_its_configuration_above(tmp_path: Path) -> None:
    source = make_directory(tmp_path / "exported")
    (source / "onnx").mkdir()
    (source / "onnx" / "model.onnx").write_bytes(BERT.read_bytes())
    session = SimpleNamespace(_model_path=str(source / "onnx" / "model.onnx"))
    result = optimize(SimpleNamespace(session=session), tmp_path / "optimized", chain="gelu")
    assert result.messages == []
    assert contents(tmp_path / "optimized").keys() == {*CONFIGURATION, "onnx/model.onnx", "ort_config.json"}


def test_the_parts_of_a_pipeline_lie_in_folders_of_one_directory(tmp_path: Path) -> None:
    source = tmp_path / "exported"
    for part in ("text_encoder", "unet"):
        make_directory(source / part, model=BERT)
    (source / "model_index.json").write_text("{}")
    parts = [SimpleNamespace(path=source / part / "model.onnx") for part in ("unet", "text_encoder")]
    result = optimize(SimpleNamespace(parts=parts), tmp_path / "optimized", chain="gelu")
    assert list(result.files) == ["text_encoder/model.onnx", "unet/model.onnx"]
    assert result.messages == []
    assert (tmp_path / "optimized" / "unet" / "config.json").is_file()


def test_configurations_that_have_no_file_are_those_of_the_loaded_model(tmp_path: Path) -> None:
    source = make_directory(tmp_path / "exported", model=BERT)
    (source / "config.json").unlink()
    model = SimpleNamespace(
        path=source / "model.onnx",
        config=Configuration("config.json", model_type="bert"),
        generation_config=Configuration("generation_config.json", max_length=7),
    )
    result = optimize(model, tmp_path / "optimized", chain="gelu")
    assert result.messages == []
    assert json.loads((tmp_path / "optimized" / "config.json").read_text()) == {"model_type": "bert"}
    assert (tmp_path / "optimized" / "generation_config.json").read_text() == CONFIGURATION["generation_config.json"]
    assert "config.json" in result.report.carried


def test_it_cannot_be_written_over_the_files_it_was_loaded_from(tmp_path: Path) -> None:
    source = make_directory(tmp_path / "exported", model=BERT)
    before = contents(source)
    with pytest.raises(UsageError, match="is the source directory, which is never modified"):
        optimize(SimpleNamespace(path=source / "model.onnx"), source, chain="gelu")
    assert contents(source) == before
