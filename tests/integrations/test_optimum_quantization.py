"""Optimum's options for quantization and calibration, compiled to chains: nothing that is set stays without effect in silence."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantizationMode, QuantType

from rewright import Chain, UsageError
from rewright.integrations.optimum import (
    AutoCalibrationConfig,
    AutoOptimizationConfig,
    AutoQuantizationConfig,
    CalibrationConfig,
    CompiledQuantization,
    OptimizationConfig,
    QuantizationConfig,
    compile,
    compile_quantization,
    save_ort_config,
)
from rewright.integrations.optimum.quantization import default_operators
from rewright.integrations.optimum.quantizing import config_of
from rewright.integrations.optimum.table import BASES, SAMPLES, quantization_effect, values_of
from rewright.quant.presets import PRESETS
from rewright.tuning.request import QuantizationRequest

NAMED_IN_OPTIMUM = {
    "is_static", "format", "mode", "activations_dtype", "activations_symmetric", "weights_dtype", "weights_symmetric",
    "per_channel", "reduce_range", "nodes_to_quantize", "nodes_to_exclude", "operators_to_quantize", "qdq_add_pair_to_weight",
    "qdq_dedicated_pair", "qdq_op_type_per_channel_support_to_axis",
}  # fmt: skip
NAMED_FOR_CALIBRATION = {
    "dataset_name", "dataset_config_name", "dataset_split", "dataset_num_samples", "method", "num_bins", "num_quantized_bins",
    "percentile", "moving_average", "averaging_constant",
}  # fmt: skip
SETTINGS = [(mode, name, value) for mode, base in BASES.items() for name, value in values_of(QuantizationConfig)]
SETTINGS = [(mode, name, value) for mode, name, value in SETTINGS if BASES[mode].get(name) != value]
CPUS = ("arm64", "avx2", "avx512", "avx512_vnni", "ppc64le")
STATIC = QuantizationConfig(**BASES["static"])


def of(mode: str, /, **options: Any) -> QuantizationConfig:
    return QuantizationConfig(**{**BASES[mode], **options})


def compiled_or_refused(mode: str, name: str, value: Any) -> CompiledQuantization | str:
    """The chain, or the error that says what there is not."""
    try:
        return compile_quantization(of(mode, **{name: value}))
    except UsageError as error:
        return str(error)


def becomes_of(made: CompiledQuantization, without: CompiledQuantization, option: str) -> str:
    """What setting an option did: "chain", "told", or "nothing"."""
    if made.chain != without.chain or made.target != without.target:
        return "chain"
    said = [message for message in made.messages if option in message.option.split(", ")]
    return "told" if said else "nothing"


def test_every_attribute_is_there():
    assert set(QuantizationConfig.model_fields) == NAMED_IN_OPTIMUM
    assert set(CalibrationConfig.model_fields) == NAMED_FOR_CALIBRATION


@pytest.mark.parametrize(("mode", "name", "value"), SETTINGS, ids=str)
def test_an_attribute_changes_the_chain_or_says_why_not(mode: str, name: str, value: Any) -> None:
    made = compiled_or_refused(mode, name, value)
    if isinstance(made, str):
        assert f"{name} is {value!r}" in made
        return
    assert becomes_of(made, compile_quantization(of(mode)), name) != "nothing"


def test_what_changes_the_chain_is_not_only_spoken_of():
    """The walk above would pass if everything were answered with a message."""
    static = {name for mode, name, value in SETTINGS if mode == "static" and quantization_effect(mode, name, value)[:4] == "Sets"}
    assert static == NAMED_IN_OPTIMUM - {"is_static", "mode", "qdq_op_type_per_channel_support_to_axis"}


@pytest.mark.parametrize("method", ["MinMax", "Entropy", "Percentile", "Distribution"])
def test_an_attribute_of_calibration_changes_the_pass_or_says_why_not(method: Any) -> None:
    without = compile_quantization(STATIC, CalibrationConfig(method=method))
    assert without.step.method == method.lower()  # type: ignore[attr-defined]
    changed = set()
    for name, value in values_of(CalibrationConfig):
        made = compile_quantization(STATIC, CalibrationConfig(**{"method": method, name: value}))
        if value is False:  # says what None says
            assert made.chain == without.chain
            continue
        found = becomes_of(made, without, name)
        assert found != "nothing" or (name, value) == ("method", method)
        if found == "chain":
            changed.add(name)
    of_method = {"MinMax": {"moving_average"}, "Entropy": {"num_quantized_bins"}, "Percentile": {"percentile"}}
    assert changed == {"method"} | of_method.get(method, set())


def test_a_new_attribute_that_nothing_follows_would_be_noticed():
    class Newer(QuantizationConfig):
        wonder: bool = False

    made, without = compile_quantization(Newer(**BASES["dynamic"], wonder=True)), compile_quantization(Newer(**BASES["dynamic"]))
    assert becomes_of(made, without, "wonder") == "nothing"


@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize("name", CPUS)
def test_the_presets_are_the_presets(name: str, is_static: bool) -> None:
    config = getattr(AutoQuantizationConfig, name)(is_static=is_static)
    compiled = compile_quantization(config)
    mode: Any = "static" if is_static else "dynamic"
    options = {"use_run_inputs": True} if is_static else {}
    wanted = QuantizationRequest(mode=mode, preset=name, options=options).step()
    assert compiled.step == type(wanted)(**{key: getattr(wanted, key) for key in wanted.model_fields_set - options.keys()})
    assert compiled.chain == Chain([*Chain("O2"), compiled.step])
    assert str(compiled) == compiled.chain.text
    assert compiled.target == "cpu"
    assert [message.option for message in compiled.messages] == (["is_static"] if is_static else [])
    assert config.use_symmetric_calibration is False


def test_the_preset_for_tensorrt_is_symmetric_in_pairs_and_without_ops_of_onnxruntime():
    compiled = compile_quantization(AutoQuantizationConfig.tensorrt())
    wanted = {**PRESETS["tensorrt"].of("static")}
    assert {name: getattr(compiled.step, name) for name in wanted} == wanted
    assert compiled.target == "portable"
    assert compiled.config.use_symmetric_calibration is True


def test_arguments_of_a_preset_are_attributes():
    config = AutoQuantizationConfig.avx512(True, True, False, False, True, ["a"], ["b"], ["MatMul"])
    compiled = compile_quantization(config, level="O0")
    assert compiled.chain == Chain(
        "quantize-static{activation_symmetric=true, symmetric=false, per_channel=false, reduce_range=true, nodes=[a],"
        " exclude=[b], operators=[MatMul, FusedMatMul]}"
    )
    assert compiled.level == "O0"


def test_enumerations_of_onnxruntime_are_taken():
    class Op(enum.Enum):
        FullyConnected = "MatMul"

    config = QuantizationConfig(
        is_static=True,
        format=QuantFormat.QDQ,
        mode=QuantizationMode.QLinearOps,
        activations_dtype=QuantType.QUInt16,
        weights_dtype=QuantType.QInt4,
        operators_to_quantize=[Op.FullyConnected],
    )
    assert (config.format, config.mode, config.activations_dtype, config.weights_dtype) == (
        "QDQ",
        "QLinearOps",
        "QUInt16",
        "QInt4",
    )
    assert config.operators_to_quantize == ["MatMul"]
    how = CalibrationConfig(method=CalibrationMethod.Distribution)
    text = compile_quantization(config, how, level="O0").chain.text
    assert "activation=uint16" in text
    assert "weight=int4" in text
    assert "method=distribution" in text


@pytest.mark.parametrize("mode", BASES)
def test_the_default_list_of_ops_is_no_choice_and_any_other_is(mode: str) -> None:
    base = of(mode)
    everything = default_operators(base.is_static, base.format, base.mode)
    assert compile_quantization(of(mode, operators_to_quantize=everything)).chain == compile_quantization(base).chain
    chosen = compile_quantization(of(mode, operators_to_quantize=["Gemm", "Softmax"]))
    assert chosen.step.operators == ("Gemm",)  # type: ignore[attr-defined]
    (said,) = [message for message in chosen.messages if message.option == "operators_to_quantize"]
    assert "does not quantize Softmax" in said.text
    with pytest.raises(UsageError, match="names only Softmax"):
        compile_quantization(of(mode, operators_to_quantize=["Softmax"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"is_static": False, "format": "QOperator"}, "is_static is False, and mode is 'QLinearOps'"),
        ({**BASES["dynamic"], "activations_dtype": "QInt8"}, "is_static is False, and activations_dtype is 'QInt8'"),
        ({**BASES["static"], "activations_dtype": "QInt8", "weights_dtype": "QUInt8"}, "No kernel multiplies these"),
        ({"format": "QDQ"}, "is_static has to be given"),
        ({**BASES["static"], "weight_dtype": "QInt8"}, "Did you mean weights_dtype"),
        ({**BASES["static"], "weights_dtype": "int8"}, "weights_dtype is 'int8'"),
        ({**BASES["static"], "per_channel": "yes"}, "per_channel is 'yes'"),
        ({**BASES["static"], "nodes_to_exclude": "a"}, "nodes_to_exclude is 'a'"),
    ],
)
def test_what_optimum_refuses_and_what_it_does_not_know_is_one_clear_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        QuantizationConfig(**options)
    assert message in str(caught.value)


def test_a_contradiction_that_is_set_afterwards_is_told_when_it_is_compiled():
    config = AutoQuantizationConfig.avx2(is_static=True)
    config.activations_dtype = "QInt8"
    with pytest.raises(UsageError, match="No kernel multiplies these"):
        compile_quantization(config)
    with pytest.raises(UsageError, match="no attribute 'weight_dtype'"):
        config.weight_dtype = "QInt8"  # type: ignore[attr-defined]


def test_calibration_is_refused_where_nothing_is_calibrated(tmp_path: Path) -> None:
    for given in ({"calibration_config": AutoCalibrationConfig.minmax()}, {"calibration": tmp_path}):
        with pytest.raises(UsageError, match="measures activations at run time"):
            compile_quantization(AutoQuantizationConfig.avx2(is_static=False), **given)


def test_the_presets_of_calibration() -> None:
    class Info:
        builder_name, config_name = "glue", "sst2"

    class Dataset:
        info, split, num_rows = Info(), "train", 40

    found = AutoCalibrationConfig.percentiles(Dataset(), percentile=99)
    assert (found.dataset_name, found.dataset_config_name, found.dataset_split, found.dataset_num_samples) == (
        "glue", "sst2", "train", 40,
    )  # fmt: skip
    made = {
        "percentile=99": found,
        "method=entropy, quantized_bins=64": AutoCalibrationConfig.entropy(num_quantized_bins=64),
        "moving_average=true, averaging=0.1": AutoCalibrationConfig.minmax(moving_average=True, averaging_constant=0.1),
        "method=distribution": AutoCalibrationConfig.distributions([{}]),
    }
    for text, config in made.items():
        assert text in compile_quantization(STATIC, config).chain.text
    with pytest.raises(UsageError, match="percentile is 101"):
        AutoCalibrationConfig.percentiles(percentile=101)


def test_data_makes_the_chain_complete(tmp_path: Path) -> None:
    np.savez(tmp_path / "sample.npz", x=np.zeros(2))
    compiled = compile_quantization(AutoQuantizationConfig.arm64(is_static=True, nodes_to_exclude=["a"]), calibration=tmp_path)
    assert "is_static" not in {message.option for message in compiled.messages}
    request = compiled.request()
    assert request.step() == compiled.step
    assert request.chain() == compiled.chain
    assert (request.calibration, request.exclude) == (str(tmp_path), ["a"])
    with pytest.raises(UsageError, match="needs data"):
        compile_quantization(AutoQuantizationConfig.arm64(is_static=True)).request()
    (tmp_path / "ranges.json").write_text('{"format": "rewright-ranges", "version": 1, "values": {}}')
    bare = compile_quantization(AutoQuantizationConfig.arm64(is_static=True))
    assert bare.request(tmp_path / "ranges.json").step().ranges == str(tmp_path / "ranges.json")  # type: ignore[attr-defined]


def test_what_optimization_asks_for_is_done_before(tmp_path: Path) -> None:
    quantization = AutoQuantizationConfig.avx2(is_static=False)
    save_ort_config(tmp_path, AutoOptimizationConfig.O3(), quantization=quantization.to_section())
    read = QuantizationConfig.from_pretrained(tmp_path)
    compiled = compile_quantization(read)
    assert compiled.level == "O3"
    assert compiled.chain == Chain("O3, quantize-dynamic{weight=uint8}")
    with pytest.raises(UsageError, match="each say what is done before"):
        compile_quantization(read, level="O2")
    options = AutoOptimizationConfig.O2(for_gpu=True, disable_gelu_fusion=True)
    save_ort_config(tmp_path, options, quantization=quantization.to_section())
    compiled = compile_quantization(QuantizationConfig.from_pretrained(tmp_path))
    assert compiled.target == "cuda"
    assert compiled.chain.passes[:-1] == compile(options).chain.passes
    save_ort_config(tmp_path, OptimizationConfig(fp16=True), quantization=quantization.to_section())
    with pytest.raises(UsageError, match="ask for float16"):
        compile_quantization(QuantizationConfig.from_pretrained(tmp_path))


@pytest.mark.parametrize("mode", BASES)
def test_what_is_written_is_read_again(mode: str, tmp_path: Path) -> None:
    for name, value in values_of(QuantizationConfig):
        if name in BASES[mode] or name.endswith("_dtype"):
            continue
        config = of(mode, **{name: value})
        save_ort_config(tmp_path, None, compile_quantization(config), quantization=config.to_section())
        read = QuantizationConfig.from_pretrained(tmp_path)
        assert compile_quantization(read).chain == compile_quantization(config).chain
        assert read.to_section() == config.to_section() == config.to_ort_config()["quantization"]
        assert json.loads((tmp_path / "ort_config.json").read_text())["rewright"]["target"] == "cpu"


@pytest.mark.parametrize(("mode", "name", "value"), SETTINGS, ids=str)
def test_a_pass_is_described_by_the_attributes_that_make_it(mode: str, name: str, value: Any) -> None:
    made = compiled_or_refused(mode, name, value)
    if isinstance(made, str):
        return
    described = config_of(made.step)
    assert described is not None
    assert compile_quantization(described).step == made.step


def test_a_pass_without_words_of_optimum_is_not_described():
    assert config_of(QuantizationRequest(mode="weight-only").step()) is None


def test_options_of_the_pass_are_set_anew_and_the_attributes_follow():
    compiled = compile_quantization(AutoQuantizationConfig.avx2(is_static=False)).with_options(
        {"weight": "int8", "exclude": ["a"]}
    )
    assert (compiled.config.weights_dtype, compiled.config.nodes_to_exclude) == ("QInt8", ["a"])
    assert compiled.chain == Chain("O2, quantize-dynamic{exclude=[a]}")


def test_a_backend_is_who_quantizes():
    compiled = compile_quantization(AutoQuantizationConfig.arm64(is_static=False), backend="ort")
    assert compiled.step.backend == "ort"
    assert {step.backend for step in compiled.chain.passes[:-1]} == {"standalone"}
    assert compiled.request().backend == "ort"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"optimization": {"optimization_level": 2}}, "only options for optimization. `rewright optimize -c`"),
        ({"optimization": {}, "quantization": {}}, "no options for quantization. Give a mode and a preset"),
        ({"quantization": {"is_static": False, "format": "QOperator", "mode": "IntegerOp"}}, "mode is 'IntegerOp'"),
        ({"quantization": "avx2"}, "a str holds no options"),
    ],
)
def test_a_faulty_file_is_named_with_its_fault(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "ort_config.json").write_text(json.dumps(content))
    with pytest.raises(UsageError) as caught:
        QuantizationConfig.from_file(tmp_path / "ort_config.json")
    assert "ort_config.json" in caught.value.message
    assert message in str(caught.value)


def test_what_stands_beside_the_options_is_spoken_of(tmp_path: Path) -> None:
    content = {"quantization": BASES["dynamic"], "opset": 14, "use_external_data_format": True, "one_external_file": False}
    (tmp_path / "ort_config.json").write_text(json.dumps(content))
    config = QuantizationConfig.from_pretrained(tmp_path)
    assert config.external_data
    told = {message.option: message.kind for message in compile_quantization(config).messages}
    assert told == {"opset": "note", "use_external_data_format": "note", "one_external_file": "note"}
    assert QuantizationConfig.from_optimum(config).remarks == config.remarks


def test_there_is_a_sample_for_every_attribute_that_cannot_be_listed():
    for kind in (QuantizationConfig, CalibrationConfig):
        named = {name for name, _ in values_of(kind)}
        assert named == set(kind.model_fields)
        assert not {name for name in SAMPLES if name in kind.model_fields and kind.model_fields[name].annotation is bool}
