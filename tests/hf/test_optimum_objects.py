"""The real Optimum's objects and files: read, compiled, written, and read by Optimum again."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from rewright import Chain, UsageError
from rewright.integrations.optimum import AutoOptimizationConfig, OptimizationConfig, compile, save_ort_config
from rewright.integrations.optimum.compiling import SWITCHED_OFF
from rewright.integrations.optimum.table import other_values

configuration = pytest.importorskip("optimum.onnxruntime.configuration")
THEIRS = configuration.OptimizationConfig
SETTINGS = [
    (name, value)
    for name, field in OptimizationConfig.model_fields.items()
    for value in other_values(field)
    if name != "disable_embed_layer_norm"
]
IDS = [f"{name}={value}" for name, value in SETTINGS]
# The formats of onnxruntime.transformers.fusion_options.AttentionMaskFormat
MASK_FORMATS = {0: "index", 2: "raw", 3: "none"}


def test_the_attributes_and_their_defaults_are_those_of_the_installed_version():
    theirs = {field.name: field.default for field in dataclasses.fields(THEIRS)}
    ours = {name: field.default for name, field in OptimizationConfig.model_fields.items()}
    assert ours.pop("disable_embed_layer_norm") is None
    assert ours == theirs
    with pytest.raises(TypeError):
        THEIRS(disable_embed_layer_norm=True)


@pytest.mark.parametrize("for_gpu", [False, True])
@pytest.mark.parametrize("preset", ["O1", "O2", "O3", "O4"])
def test_the_presets_set_what_theirs_set(preset: str, for_gpu: bool) -> None:
    is_for_gpu = for_gpu or preset == "O4"
    theirs = getattr(configuration.AutoOptimizationConfig, preset)(for_gpu=is_for_gpu)
    ours = getattr(AutoOptimizationConfig, preset)(for_gpu=is_for_gpu)
    assert OptimizationConfig.from_optimum(theirs).chosen() == ours.chosen()
    assert compile(theirs).chain == compile(ours).chain
    assert compile(theirs).messages == compile(ours).messages


@pytest.mark.parametrize(("name", "value"), SETTINGS, ids=IDS)
def test_an_attribute_is_read_from_an_object_and_from_a_file(name: str, value: Any, tmp_path: Path) -> None:
    theirs = THEIRS(**{name: value})
    whole = configuration.ORTConfig(optimization=theirs)
    whole.save_pretrained(tmp_path)
    expected = OptimizationConfig(**{name: value})
    for read in (
        OptimizationConfig.from_optimum(theirs),
        OptimizationConfig.from_optimum(whole),
        OptimizationConfig.from_optimum(whole.to_dict()),
        OptimizationConfig.from_optimum(dataclasses.asdict(theirs)),
        OptimizationConfig.from_pretrained(tmp_path),
        OptimizationConfig.from_file(tmp_path / "ort_config.json"),
    ):
        assert read.chosen() == expected.chosen() == {name: value}
        assert compile(read).chain == compile(expected).chain


@pytest.mark.parametrize(("name", "value"), SETTINGS, ids=IDS)
def test_what_is_written_is_read_by_optimum(name: str, value: Any, tmp_path: Path) -> None:
    ours = AutoOptimizationConfig.O2(**{name: value})
    save_ort_config(tmp_path, ours, compile(ours), use_external_data_format=True)
    read = configuration.ORTConfig.from_pretrained(tmp_path)
    assert read.use_external_data_format is True
    assert read.one_external_file is True
    assert read.quantization is None
    assert dataclasses.asdict(read.optimization) == ours.to_ort_config()["optimization"]
    assert getattr(read.optimization, name) == value


def test_the_documented_name_is_written_as_the_one_that_optimum_accepts(tmp_path: Path) -> None:
    save_ort_config(tmp_path, OptimizationConfig(disable_embed_layer_norm=False))
    assert configuration.ORTConfig.from_pretrained(tmp_path).optimization.disable_embed_layer_norm_fusion is False


def test_optimum_reads_a_file_of_a_chain_without_options(tmp_path: Path) -> None:
    save_ort_config(tmp_path, None, details={"chain": Chain("gelu").text})
    assert configuration.ORTConfig.from_pretrained(tmp_path).optimization is None
    assert json.loads((tmp_path / "ort_config.json").read_text())["rewright"]["chain"] == "gelu"


def test_options_for_quantization_are_spoken_of_and_are_no_options_for_optimization():
    quantization = configuration.AutoQuantizationConfig.avx2(is_static=False)
    both = configuration.ORTConfig(optimization=configuration.AutoOptimizationConfig.O1(), quantization=quantization)
    assert "quantization" in [message.option for message in compile(both).messages]
    with pytest.raises(UsageError, match="only options for quantization"):
        OptimizationConfig.from_optimum(configuration.ORTConfig(quantization=quantization))
    with pytest.raises(UsageError, match="no options for optimization"):
        OptimizationConfig.from_optimum(configuration.ORTConfig())


def test_an_attribute_that_optimum_would_ignore_is_an_error():
    theirs = THEIRS()
    theirs.disable_gelu_fuson = True
    assert theirs.create_fusion_options("bert").enable_gelu
    with pytest.raises(UsageError, match="no attribute 'disable_gelu_fuson'"):
        compile(theirs)


# What onnxruntime.transformers calls the fusions that the attributes are about.
FLAGS = {
    "disable_gelu_fusion": "enable_gelu",
    "disable_layer_norm_fusion": "enable_layer_norm",
    "disable_attention_fusion": "enable_attention",
    "disable_rotary_embeddings": "enable_rotary_embeddings",
    "disable_skip_layer_norm_fusion": "enable_skip_layer_norm",
    "disable_bias_skip_layer_norm_fusion": "enable_bias_skip_layer_norm",
    "disable_bias_gelu_fusion": "enable_bias_gelu",
}


@pytest.mark.parametrize("option", SWITCHED_OFF)
def test_a_fusion_is_in_the_chain_where_optimum_enables_it(option: str) -> None:
    for value in (False, True):
        theirs = THEIRS(**{option: value})
        enabled = getattr(theirs.create_fusion_options("bert"), FLAGS[option])
        held = {step.name for step in compile(theirs).chain}
        assert [name in held for name in SWITCHED_OFF[option]] == [enabled] * len(SWITCHED_OFF[option])


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=3)), ids=str)
def test_of_several_masks_the_one_counts_that_counts_in_optimum(flags: tuple[bool, ...]) -> None:
    theirs = THEIRS(**dict(zip(("use_mask_index", "use_raw_attention_mask", "no_attention_mask"), flags, strict=True)))
    # of the types whose default is the mask itself, as it is here
    chosen = MASK_FORMATS[theirs.create_fusion_options("gpt2").attention_mask_format]
    attention = next(step for step in compile(theirs).chain if step.name == "attention")
    assert attention.mask == (chosen if any(flags) else "auto")
