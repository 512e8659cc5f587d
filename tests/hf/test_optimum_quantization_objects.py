"""The real Optimum's objects and files for quantization: read, compiled, written, and read by Optimum again."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rewright import UsageError
from rewright.integrations import optimum as ours
from rewright.integrations.huggingface import quantize
from rewright.integrations.optimum.table import BASES, values_of

configuration = pytest.importorskip("optimum.onnxruntime.configuration")
PRESETS = ("arm64", "avx2", "avx512", "avx512_vnni", "ppc64le", "tensorrt")
SETTINGS = [
    (mode, name, value)
    for mode, base in BASES.items()
    for name, value in values_of(ours.QuantizationConfig)
    if name not in base and (name, value) != ("activations_dtype", "QInt8")
]
"""Optimum refuses dynamic quantization with int8 activations."""


def theirs_of(mode: str, **options: Any) -> Any:
    return configuration.QuantizationConfig(**{**BASES[mode], **options})


def preset_of(factory: Any, name: str, is_static: bool) -> Any:
    return getattr(factory, name)() if name == "tensorrt" else getattr(factory, name)(is_static=is_static)


@pytest.mark.parametrize("kind", ["QuantizationConfig", "CalibrationConfig"])
def test_the_attributes_and_their_defaults_are_those_of_the_installed_version(kind: str) -> None:
    theirs = {field.name: field for field in dataclasses.fields(getattr(configuration, kind))}
    mine = getattr(ours, kind).model_fields
    assert list(mine) == list(theirs)
    for name, field in theirs.items():
        if field.default is not dataclasses.MISSING:
            assert mine[name].default == getattr(field.default, "name", field.default), name
        elif field.default_factory is not dataclasses.MISSING:
            assert mine[name].get_default(call_default_factory=True) == field.default_factory(), name


@pytest.mark.parametrize("name", PRESETS)
def test_the_presets_have_the_arguments_of_theirs(name: str) -> None:
    theirs, mine = (inspect.signature(getattr(each.AutoQuantizationConfig, name)) for each in (configuration, ours))
    assert [(each.name, each.default) for each in mine.parameters.values()] == [
        (each.name, each.default) for each in theirs.parameters.values()
    ]


@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize("name", PRESETS)
def test_the_presets_set_what_theirs_set(name: str, is_static: bool) -> None:
    theirs, mine = (preset_of(each.AutoQuantizationConfig, name, is_static) for each in (configuration, ours))
    assert ours.QuantizationConfig.from_optimum(theirs).to_section() == mine.to_section()
    assert ours.compile_quantization(theirs).chain == ours.compile_quantization(mine).chain
    assert ours.compile_quantization(theirs).messages == ours.compile_quantization(mine).messages
    assert theirs.use_symmetric_calibration is mine.use_symmetric_calibration


@pytest.mark.parametrize(("mode", "name", "value"), SETTINGS, ids=str)
def test_an_attribute_is_read_from_an_object_and_from_a_file_and_written_for_optimum(
    mode: str, name: str, value: Any, tmp_path: Path
) -> None:
    theirs = theirs_of(mode, **{name: value})
    whole = configuration.ORTConfig(quantization=theirs, optimization=configuration.AutoOptimizationConfig.O3())
    whole.save_pretrained(tmp_path)
    expected = ours.QuantizationConfig(**{**BASES[mode], name: value})
    for source in (theirs, whole, whole.to_dict(), tmp_path):
        read = (ours.QuantizationConfig.from_pretrained if source is tmp_path else ours.QuantizationConfig.from_optimum)(source)
        assert read.to_section() == expected.to_section()
        assert (read.optimization is None) == (source is theirs)
    ours.save_ort_config(tmp_path, ours.AutoOptimizationConfig.O1(), quantization=expected.to_section())
    again = configuration.ORTConfig.from_pretrained(tmp_path)
    assert again.optimization.enable_transformers_specific_optimizations is False
    wanted = {**dataclasses.asdict(theirs), "operators_to_quantize": expected.to_section()["operators_to_quantize"]}
    assert dataclasses.asdict(again.quantization) == wanted


@pytest.mark.parametrize(
    "options",
    [
        {"is_static": False, "format": "QOperator"},
        {**BASES["dynamic"], "activations_dtype": "QInt8"},
        {**BASES["static"], "activations_dtype": "QInt8", "weights_dtype": "QUInt8"},
    ],
)
def test_what_theirs_refuses_is_refused(options: dict[str, Any]) -> None:
    enums = {
        "format": configuration.QuantFormat,
        "mode": configuration.QuantizationMode,
        "activations_dtype": configuration.QuantType,
        "weights_dtype": configuration.QuantType,
    }
    real = {name: enums[name][value] if name in enums else value for name, value in options.items()}
    with pytest.raises(ValueError, match="Invalid combination"):
        configuration.QuantizationConfig(**real)
    with pytest.raises(UsageError):
        ours.QuantizationConfig(**real)


def test_options_of_calibration_are_read() -> None:
    theirs = configuration.CalibrationConfig(
        "glue", "sst2", "train", 40, configuration.CalibrationMethod.Percentile, num_bins=512, percentile=99.9
    )
    read = ours.CalibrationConfig.from_optimum(theirs)
    assert read.chosen() == {
        "dataset_name": "glue",
        "dataset_config_name": "sst2",
        "dataset_split": "train",
        "dataset_num_samples": 40,
        "method": "Percentile",
        "num_bins": 512,
        "percentile": 99.9,
    }
    config = configuration.AutoQuantizationConfig.arm64(is_static=True)
    assert ours.compile_quantization(config, theirs).chain == ours.compile_quantization(config, read).chain


def test_a_real_operator_of_theirs_is_a_name() -> None:
    from optimum.onnxruntime import ORTQuantizableOperator

    operators = [ORTQuantizableOperator.MatMul, ORTQuantizableOperator.EmbedLayerNormalizationQuant]
    theirs = configuration.AutoQuantizationConfig.avx2(is_static=False, operators_to_quantize=operators)
    assert ours.QuantizationConfig.from_optimum(theirs).operators_to_quantize == ["MatMul", "EmbedLayerNormalization"]


def test_what_is_recorded_is_what_optimum_reads(exported: Callable[[str], Path], tmp_path: Path) -> None:
    config = configuration.AutoQuantizationConfig.avx512(is_static=False, reduce_range=True)
    quantize(exported("bert-classes"), tmp_path / "out", config, budget="sqnr=5, cosine=0.9")
    record = configuration.ORTConfig.from_pretrained(tmp_path / "out")
    assert record.quantization == config
    assert record.optimization.optimization_level == 2
    assert ours.QuantizationConfig.from_optimum(record).optimization is not None
