"""Reading and writing ``ort_config.json``, and reading objects that are like Optimum's."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from rewright import ModelError, UsageError
from rewright.integrations.optimum import AutoOptimizationConfig, OptimizationConfig, compile, save_ort_config


def written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    config = AutoOptimizationConfig.O3(disable_gelu_fusion=True, use_mask_index=True)
    path = save_ort_config(tmp_path, config, compile(config))
    assert path == tmp_path / "ort_config.json"
    for read in (OptimizationConfig.from_file(path), OptimizationConfig.from_pretrained(tmp_path)):
        assert read.chosen() == config.chosen()
        assert compile(read).chain == compile(config).chain


def test_the_file_has_optimums_keys_and_what_was_done(tmp_path: Path) -> None:
    config = AutoOptimizationConfig.O2(use_multi_head_attention=True, fp16=True)
    compiled = compile(config)
    save_ort_config(tmp_path, config, compiled, use_external_data_format=True, details={"verdict": "passed"})
    content = json.loads((tmp_path / "ort_config.json").read_text())
    assert list(content) == ["opset", "use_external_data_format", "one_external_file", "optimization", "quantization", "rewright"]
    assert content["use_external_data_format"] is True
    assert content["optimization"]["use_multi_head_attention"] is True
    assert content["rewright"]["chain"] == compiled.chain.text
    assert content["rewright"]["target"] == "cpu"
    assert content["rewright"]["verdict"] == "passed"
    assert {"python", "onnx", "onnxruntime"} <= content["rewright"]["versions"].keys()
    assert [message["option"] for message in content["rewright"]["messages"]] == ["optimization_level", "fp16"]
    assert list(tmp_path.iterdir()) == [tmp_path / "ort_config.json"]


def test_optimums_class_would_accept_what_is_written():
    """It refuses the name that only its documentation has."""
    options = OptimizationConfig(disable_embed_layer_norm=False).to_ort_config()["optimization"]
    assert "disable_embed_layer_norm" not in options
    assert options["disable_embed_layer_norm_fusion"] is False


def test_a_chain_without_options_is_written_as_no_options(tmp_path: Path) -> None:
    save_ort_config(tmp_path, None, details={"chain": "gelu"})
    content = json.loads((tmp_path / "ort_config.json").read_text())
    assert content["optimization"] == {}
    assert content["rewright"]["chain"] == "gelu"
    with pytest.raises(UsageError, match="no options for optimization"):
        OptimizationConfig.from_pretrained(tmp_path)


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "ort_config.json").mkdir()
    with pytest.raises(ModelError, match=r"cannot write .*ort_config\.json") as caught:
        save_ort_config(tmp_path, OptimizationConfig())
    assert "permissions" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["ort_config.json"]


def test_a_file_of_bare_attributes_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "options.json", {"optimization_level": 2, "disable_gelu_fusion": True})
    assert OptimizationConfig.from_file(path).chosen() == {"optimization_level": 2, "disable_gelu_fusion": True}


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ("{", "is not JSON", '"optimization"'),
        ("[" * 100_000, "is not JSON", '"optimization"'),
        ([1], "holds a list", '"optimization"'),
        ({}, "no options for optimization", "-O2"),
        ({"optimization": {}, "quantization": {"is_static": False}}, "only options for quantization", "-O2"),
        ({"optimization": {"disable_gelu_fuson": True}}, "no attribute 'disable_gelu_fuson'", "Did you mean disable_gelu_fusion"),
        ({"optimization": {"optimization_level": 4}}, "optimization_level is 4", "0, 1, 2 or 99"),
        ({"optimization": "O2"}, "a str holds no options", "OptimizationConfig"),
        ({"hidden_size": 768, "model_type": "bert"}, "no attribute 'hidden_size'", "The attributes"),
    ],
    ids=["broken", "deep", "list", "empty", "quantization", "misspelled", "level", "text", "another-file"],
)
def test_a_faulty_file_is_named_with_its_fault(tmp_path: Path, content: Any, message: str, hint: str) -> None:
    path = written(tmp_path / "ort_config.json", content)
    with pytest.raises(UsageError, match=message) as caught:
        OptimizationConfig.from_file(path)
    assert "ort_config.json" in caught.value.message
    assert hint in caught.value.hint


def test_a_file_that_is_not_there_or_is_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ort_config\.json cannot be read"):
        OptimizationConfig.from_pretrained(tmp_path)
    (tmp_path / "ort_config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UsageError, match="is not JSON"):
        OptimizationConfig.from_pretrained(tmp_path)


def test_what_stands_beside_the_options_is_spoken_of(tmp_path: Path) -> None:
    content = {
        "optimization": {"optimization_level": 1},
        "quantization": {"is_static": False},
        "opset": 14,
        "one_external_file": False,
        "optimum_version": "2.1.0",
    }
    config = OptimizationConfig.from_file(written(tmp_path / "ort_config.json", content))
    told = {message.option: message.kind for message in compile(config).messages}
    assert told == {"quantization": "warning", "opset": "note", "one_external_file": "note"}


@dataclasses.dataclass
class OptimumOfTomorrow:
    """What no installed version can be: a class with an attribute that this version does not know."""

    optimization_level: int = 1
    disable_gelu_fusion: bool = False
    disable_wonder_fusion: bool = False


def test_an_attribute_of_a_newer_optimum_is_passed_over_with_a_message_if_it_is_used():
    config = OptimizationConfig.from_optimum(OptimumOfTomorrow(disable_gelu_fusion=True))
    assert config.chosen() == {"disable_gelu_fusion": True}
    assert compile(config).messages == ()
    (told,) = compile(OptimizationConfig.from_optimum(OptimumOfTomorrow(disable_wonder_fusion=True))).messages
    assert (told.option, told.value, told.kind) == ("disable_wonder_fusion", True, "warning")
    assert "does not know the attribute" in told.text


def test_an_attribute_that_is_only_set_on_the_object_is_a_mistake():
    config = OptimumOfTomorrow()
    config.disable_gelu = True  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="no attribute 'disable_gelu'"):
        OptimizationConfig.from_optimum(config)


def test_options_are_copied_with_what_is_said_of_them(tmp_path: Path) -> None:
    content = {"optimization": {"disable_gelu_fusion": True}, "opset": 14}
    first = OptimizationConfig.from_file(written(tmp_path / "ort_config.json", content))
    second = OptimizationConfig.from_optimum(first)
    second.disable_gelu_fusion = False
    assert first.disable_gelu_fusion
    assert second.remarks == first.remarks != ()


@pytest.mark.parametrize("source", [None, "O2", 2, OptimizationConfig, OptimumOfTomorrow])
def test_what_holds_no_options_is_refused(source: Any) -> None:
    with pytest.raises(UsageError, match="holds no options of Optimum's") as caught:
        OptimizationConfig.from_optimum(source)
    assert "OptimizationConfig" in caught.value.hint
    with pytest.raises(UsageError, match="holds no options of Optimum's"):
        compile(source)
