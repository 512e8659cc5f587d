"""Optimum's options, compiled to chains: nothing that is set stays without effect in silence."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewright import Chain, UsageError
from rewright.integrations.optimum import AutoOptimizationConfig, OptimizationConfig, compile, table, wording
from rewright.integrations.optimum.compiling import SWITCHED_OFF
from rewright.integrations.optimum.table import other_values
from rewright.registry.catalog import default_catalog

DOCUMENT = Path(__file__).parents[2] / "docs" / "optimum.md"
SETTINGS = [(name, value) for name, field in OptimizationConfig.model_fields.items() for value in other_values(field)]
IDS = [f"{name}={value}" for name, value in SETTINGS]
NAMED_IN_OPTIMUM = {
    "optimization_level",
    "optimize_for_gpu",
    "fp16",
    "enable_transformers_specific_optimizations",
    "disable_gelu_fusion",
    "disable_layer_norm_fusion",
    "disable_attention_fusion",
    "disable_skip_layer_norm_fusion",
    "disable_bias_skip_layer_norm_fusion",
    "disable_bias_gelu_fusion",
    "disable_embed_layer_norm_fusion",
    "disable_embed_layer_norm",
    "enable_gelu_approximation",
    "use_mask_index",
    "no_attention_mask",
    "disable_shape_inference",
    "use_multi_head_attention",
    "enable_gemm_fast_gelu_fusion",
    "use_raw_attention_mask",
    "disable_group_norm_fusion",
    "disable_packed_kv",
    "disable_packed_qkv",
    "disable_nhwc_conv",
    "disable_rotary_embeddings",
    "disable_skip_group_norm_fusion",
    "disable_bias_splitgelu_fusion",
    "disable_bias_add_fusion",
    "use_group_norm_channels_first",
}
TWO_NAMES = {"disable_embed_layer_norm", "disable_embed_layer_norm_fusion"}


def names(chain: Chain) -> list[str]:
    return [step.name for step in chain]


def is_silent(config: OptimizationConfig, beside: OptimizationConfig, option: str) -> bool:
    """Whether setting one option beside others changes neither chain nor target, and is not spoken of."""
    made, without = compile(config), compile(beside)
    if made.chain != without.chain or made.target != without.target:
        return False
    return not any(message.option == option and message.value == getattr(config, option) for message in made.messages)


def test_every_attribute_is_there():
    assert set(OptimizationConfig.model_fields) == NAMED_IN_OPTIMUM


@pytest.mark.parametrize(("name", "value"), SETTINGS, ids=IDS)
def test_an_attribute_changes_the_chain_or_says_why_not(name: str, value: Any) -> None:
    assert not is_silent(OptimizationConfig(**{name: value}), OptimizationConfig(), name)


def test_a_new_attribute_that_nothing_follows_would_be_noticed():
    class Newer(OptimizationConfig):
        disable_wonder_fusion: bool = False

    assert is_silent(Newer(disable_wonder_fusion=True), Newer(), "disable_wonder_fusion")


@pytest.mark.parametrize(("name", "value"), SETTINGS, ids=IDS)
def test_nor_beside_any_other_attribute(name: str, value: Any) -> None:
    silent = []
    for other, its_value in SETTINGS:
        if other == name or {other, name} == TWO_NAMES:
            continue
        config, beside = OptimizationConfig(**{other: its_value, name: value}), OptimizationConfig(**{other: its_value})
        if is_silent(config, beside, name):
            silent.append(f"{other}={its_value}")
    assert silent == []


@pytest.mark.parametrize(
    ("preset", "text", "target"),
    [
        ("O1", "O1", "cpu"),
        ("O2", "O2", "cpu"),
        ("O3", "O3", "cpu"),
        ("O4", "O4", "cuda"),
    ],
)
def test_the_presets_are_the_levels(preset: str, text: str, target: str) -> None:
    compiled = compile(getattr(AutoOptimizationConfig, preset)())
    assert compiled.chain == Chain(text)
    assert compiled.target == target
    assert compile(AutoOptimizationConfig.with_optimization_level(preset)).chain == Chain(text)
    assert str(compiled) == Chain(text).text


@pytest.mark.parametrize("preset", ["O1", "O2", "O3"])
def test_a_preset_for_a_gpu_is_the_same_chain_for_the_target_cuda(preset: str) -> None:
    compiled = compile(getattr(AutoOptimizationConfig, preset)(for_gpu=True))
    assert (compiled.chain, compiled.target) == (Chain(preset), "cuda")


def test_float16_comes_after_the_fusions_and_for_a_cpu_it_is_said_what_it_costs():
    assert names(compile(AutoOptimizationConfig.O4()).chain)[len(Chain("O3"))] == "float16"
    assert not [message for message in compile(AutoOptimizationConfig.O4()).messages if message.option == "fp16"]
    compiled = compile(OptimizationConfig(fp16=True))
    (said,) = [message for message in compiled.messages if message.option == "fp16"]
    assert names(compiled.chain)[len(Chain("O2"))] == "float16"
    assert said.kind == "note"
    assert str(said) == f"fp16=True: {said.text}"


def test_o4_is_for_a_gpu_whatever_is_asked_for():
    with pytest.warns(UserWarning, match="for_gpu=False is not followed"):
        config = AutoOptimizationConfig.O4(for_gpu=False)
    assert config.optimize_for_gpu


def test_keywords_outrank_a_preset():
    config = AutoOptimizationConfig.O3(optimization_level=1, enable_gelu_approximation=False, disable_gelu_fusion=True)
    assert config.chosen() == {"disable_gelu_fusion": True}


def test_the_defaults_are_level_one_with_the_fusions():
    assert OptimizationConfig().chosen() == {}
    assert compile(OptimizationConfig()).chain == Chain("O2")
    assert compile(OptimizationConfig()).messages == ()


@pytest.mark.parametrize(
    ("options", "taken_out"),
    [
        ({"disable_gelu_fusion": True}, {"gelu", "fast-gelu", "quick-gelu"}),
        ({"disable_layer_norm_fusion": True}, {"layer-norm", "rms-norm"}),
        ({"disable_attention_fusion": True}, {"attention", "multi-head-attention", "group-query-attention"}),
        ({"disable_skip_layer_norm_fusion": True}, {"skip-layer-norm", "skip-rms-norm"}),
        ({"disable_bias_skip_layer_norm_fusion": True}, {"bias-skip-layer-norm"}),
        ({"disable_bias_gelu_fusion": True}, {"bias-gelu"}),
        ({"disable_rotary_embeddings": True}, {"rotary-embedding"}),
        ({"disable_gelu_fusion": True, "disable_bias_gelu_fusion": True}, {"gelu", "fast-gelu", "quick-gelu", "bias-gelu"}),
    ],
)
def test_what_is_disabled_is_not_in_the_chain_and_the_rest_keeps_its_order(options: dict[str, bool], taken_out: set[str]) -> None:
    for preset in (AutoOptimizationConfig.O2, AutoOptimizationConfig.O3):
        left = [step for step in compile(preset()).chain if step.name not in taken_out]
        assert compile(preset(**options)).chain == Chain(left)


def test_an_embedding_fusion_stands_before_the_last_cleanups():
    for options in ({"disable_embed_layer_norm_fusion": False}, {"disable_embed_layer_norm": False}):
        made = names(compile(OptimizationConfig(**options)).chain)
        at = made.index("embed-layer-norm")
        assert made[:at] + made[at + 1 :] == names(Chain("O2"))
        assert made[at - 1] == "bias-gelu"
        assert "dead-code" in made[at:]


def test_gemm_fast_gelu_runs_after_what_makes_a_fast_gelu():
    options = {"enable_gemm_fast_gelu_fusion": True, "enable_gelu_approximation": True}
    made = names(compile(OptimizationConfig(**options)).chain)
    assert made[-3:] == ["gelu-approximation", "gemm-fast-gelu", "dead-code"]
    alone = compile(OptimizationConfig(enable_gemm_fast_gelu_fusion=True))
    assert alone.chain.warnings == ()
    assert [message.kind for message in alone.messages] == ["warning"]


@pytest.mark.parametrize(
    ("options", "mask", "moot"),
    [
        ({"use_mask_index": True}, "index", []),
        ({"use_raw_attention_mask": True}, "raw", []),
        ({"no_attention_mask": True}, "none", []),
        ({"use_mask_index": True, "use_raw_attention_mask": True}, "raw", ["use_mask_index"]),
        ({"use_mask_index": True, "no_attention_mask": True}, "none", ["use_mask_index"]),
        (
            {"use_mask_index": True, "use_raw_attention_mask": True, "no_attention_mask": True},
            "none",
            ["use_raw_attention_mask", "use_mask_index"],
        ),
    ],
)
def test_of_several_masks_the_one_counts_that_counts_in_optimum(options: dict[str, bool], mask: str, moot: list[str]) -> None:
    compiled = compile(OptimizationConfig(**options))
    masks = {step.name: step.mask for step in compiled.chain if "mask" in step.option_fields()}
    assert masks == {"attention": mask, "multi-head-attention": mask}
    assert [message.option for message in compiled.messages if message.kind == "warning"] == moot


def test_options_of_attention_are_set_on_its_passes():
    text = compile(OptimizationConfig(use_multi_head_attention=True, disable_shape_inference=True)).chain.text
    assert (
        "attention{shape_inference=false, multi_head=true}" in text or "attention{multi_head=true, shape_inference=false}" in text
    )
    assert "multi-head-attention{shape_inference=false}" in text
    assert "group-query-attention{shape_inference=false}" in text


@pytest.mark.parametrize(
    ("level", "with_fusions", "without"),
    [(1, "O2", "O1"), (2, "O2", "O1, ort-session"), (99, "O2", "O1, ort-session{level=all}")],
)
def test_a_level_with_and_without_the_fusions_for_transformers(level: int, with_fusions: str, without: str) -> None:
    assert compile(OptimizationConfig(optimization_level=level)).chain == Chain(with_fusions)
    config = OptimizationConfig(optimization_level=level, enable_transformers_specific_optimizations=False)
    assert compile(config).chain == Chain(without)


def test_level_zero_is_the_fusions_alone():
    cleanups = set(names(Chain("O1")))
    fusions = [name for name in names(Chain("O2")) if name not in cleanups]
    assert names(compile(OptimizationConfig(optimization_level=0)).chain) == [*fusions, "dead-code"]
    approximated = compile(OptimizationConfig(optimization_level=0, enable_gelu_approximation=True))
    assert names(approximated.chain) == [*fusions, "gelu-approximation", "dead-code"]
    nothing = OptimizationConfig(optimization_level=0, enable_transformers_specific_optimizations=False)
    assert len(compile(nothing).chain) == 0


def test_a_machine_without_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> list[str]:
        return [message.text for message in compile(OptimizationConfig(optimize_for_gpu=True)).messages]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert said() == [wording.NO_CUDA]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert said() == []


def test_for_a_diffusion_model_the_fusions_that_the_defaults_ask_for_are_named():
    assert compile(OptimizationConfig(), model_type="bert").messages == ()
    told = {message.option for message in compile(OptimizationConfig(), model_type="unet").messages}
    # GroupNorm itself, and packed keys and values, are off by default
    assert told == {
        "disable_skip_group_norm_fusion",
        "disable_bias_splitgelu_fusion",
        "disable_bias_add_fusion",
        "disable_packed_qkv",
        "disable_nhwc_conv",
    }


def test_a_backend_is_given_to_the_passes_that_have_it():
    deferred = compile(OptimizationConfig(), backend="ort")
    expected, without = Chain("O2").with_backend("ort")
    assert deferred.chain == expected
    told = [message for message in deferred.messages if message.option == "backend"]
    assert len(told) == (1 if without else 0)
    assert all(message.text.endswith(f"{', '.join(without)}.") for message in told)
    assert all(message.kind == "note" for message in told)


def test_a_chain_is_of_the_catalog_that_was_given():
    catalog = default_catalog().extended()
    assert compile(OptimizationConfig(), catalog=catalog).chain.catalog is catalog


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"disable_gelu": True}, "no attribute 'disable_gelu'", "disable_gelu_fusion"),
        ({"quantum": True}, "no attribute 'quantum'", "The attributes: optimization_level"),
        ({"optimization_level": 3}, "optimization_level is 3", "0, 1, 2 or 99"),
        ({"fp16": "yes"}, "fp16 is 'yes'", "True or False"),
        ({"fp16": 1}, "fp16 is 1", "True or False"),
    ],
)
def test_a_wrong_attribute_or_value_is_an_error_when_made_and_when_set(options: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as made:
        OptimizationConfig(**options)
    assert hint in made.value.hint
    config = OptimizationConfig()
    ((name, value),) = options.items()
    with pytest.raises(UsageError, match=message) as assigned:
        setattr(config, name, value)
    assert hint in assigned.value.hint
    assert config == OptimizationConfig()


def test_a_wrong_preset_is_an_error():
    with pytest.raises(UsageError, match="optimization_level is 'O5'") as caught:
        AutoOptimizationConfig.with_optimization_level("O5")
    assert "one of O1, O2, O3, O4" in caught.value.hint
    with pytest.raises(UsageError, match="no attribute 'gelu'"):
        AutoOptimizationConfig.O2(gelu=True)


def test_two_names_of_one_option_may_agree():
    agreeing = OptimizationConfig(disable_embed_layer_norm=False, disable_embed_layer_norm_fusion=False)
    assert agreeing.fuses_embed_layer_norm
    with pytest.raises(UsageError, match="disable_embed_layer_norm is False, and disable_embed_layer_norm_fusion is True"):
        compile(OptimizationConfig(disable_embed_layer_norm=False, disable_embed_layer_norm_fusion=True))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.sampled_from([field.default, *other_values(field)])
            for name, field in OptimizationConfig.model_fields.items()
            if name != "disable_embed_layer_norm"
        },
    ),
    st.sampled_from(["standalone", "ort", "auto"]),
)
@settings(max_examples=150, deadline=None)
def test_any_combination_compiles_to_a_chain_that_its_text_gives_back(options: dict[str, Any], backend: Any) -> None:
    config = OptimizationConfig(**options)
    compiled = compile(config, backend=backend)
    assert Chain(compiled.chain.text) == compiled.chain
    assert (compiled.chain.warnings, compiled.chain.inserted) == ((), ())
    assert OptimizationConfig.from_optimum(config.to_ort_config()).chosen() == config.chosen()
    assert all(message.option in (*OptimizationConfig.model_fields, "backend") for message in compiled.messages)


def test_the_document_holds_the_table_of_today():
    page = DOCUMENT.read_text(encoding="utf-8")
    assert page == table.renewed(page), "run: python -m rewright.integrations.optimum.table docs/optimum.md"


def test_the_document_has_an_effect_for_every_attribute():
    for name, value in SETTINGS:
        assert table.effect(name, value), name


def test_every_fusion_of_the_level_can_be_switched_off():
    """A new pass in the level fails here, and is to be put under an attribute."""
    fusions = [step.name for step in Chain("O2") if step.name not in names(Chain("O1"))]
    assert sorted(itertools.chain(*SWITCHED_OFF.values())) == sorted(fusions)
