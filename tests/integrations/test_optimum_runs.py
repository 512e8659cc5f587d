"""What Optimum's options do to real exports: the ops that they are about stay or go, and every result is compared."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto

import rewright
from rewright.integrations.optimum import AutoOptimizationConfig, OptimizationConfig, compile

ZOO = Path(__file__).parents[1] / "zoo"
BERT, LLAMA = ZOO / "bert.ts17.sdpa.onnx", ZOO / "llama.ts17.eager.onnx"


def optimized(path: Path, **options: Any) -> tuple[rewright.RunResult, Counter[str]]:
    compiled = compile(AutoOptimizationConfig.O2(**options))
    result = rewright.optimize(path, chain=compiled.chain, target=compiled.target)
    return result, Counter(node.op_type for node in result.model.proto.graph.node)


def identify(value: Any) -> str | None:
    """By model and options; what is expected says nothing that those do not."""
    if isinstance(value, Path):
        return value.name.partition(".")[0]
    return None if any(name[0].isupper() for name in value) else ",".join(value) or "O2"


@pytest.mark.parametrize(
    ("path", "options", "expected"),
    [
        (BERT, {}, {"Attention": 2, "BiasGelu": 2, "SkipLayerNormalization": 5, "Softmax": 0, "Erf": 0}),
        (BERT, {"disable_gelu_fusion": True, "disable_bias_gelu_fusion": True}, {"Erf": 2, "Gelu": 0, "BiasGelu": 0}),
        (BERT, {"disable_bias_gelu_fusion": True}, {"Gelu": 2, "BiasGelu": 0}),
        (BERT, {"disable_skip_layer_norm_fusion": True}, {"SkipLayerNormalization": 0, "LayerNormalization": 5}),
        (BERT, {"disable_embed_layer_norm": False}, {"EmbedLayerNormalization": 1, "Gather": 1}),
        (BERT, {"use_multi_head_attention": True}, {"MultiHeadAttention": 2, "Attention": 0, "Softmax": 0}),
        (BERT, {"enable_gelu_approximation": True}, {"FastGelu": 2, "BiasGelu": 0}),
        (LLAMA, {"disable_attention_fusion": True}, {"Softmax": 2, "GroupQueryAttention": 0, "RotaryEmbedding": 4}),
        (LLAMA, {"disable_rotary_embeddings": True}, {"RotaryEmbedding": 0, "Softmax": 0}),
        (LLAMA, {"disable_layer_norm_fusion": True}, {"SimplifiedLayerNormalization": 0, "ReduceMean": 5}),
    ],
    ids=identify,
)
def test_an_option_keeps_or_makes_the_ops_that_it_is_about(path: Path, options: dict[str, Any], expected: dict[str, int]) -> None:
    result, ops = optimized(path, **options)
    assert result.report.verdict == "passed"
    assert {op: ops[op] for op in expected} == expected


@pytest.mark.parametrize(("option", "declared"), [("use_mask_index", "right"), ("no_attention_mask", "pads nothing")])
def test_a_declaration_about_padding_that_is_not_so_is_undone(option: str, declared: str) -> None:
    """The inputs that are made from the model are padded, on the left too."""
    result, ops = optimized(BERT, **{option: True})
    assert result.report.verdict == "passed-with-rollbacks"
    attention = next(record for record in result.report.passes if record.name == "attention")
    assert attention.status == "rolled-back"
    assert any(declared in note for note in attention.notes)
    assert ops["Softmax"] == 2


def test_without_the_fusions_for_transformers_onnxruntimes_own_are_checked_site_by_site():
    config = OptimizationConfig(optimization_level=2, enable_transformers_specific_optimizations=False)
    result = rewright.optimize(BERT, chain=compile(config).chain)
    assert result.report.verdict == "passed"
    record = result.report.passes[-1]
    assert (record.name, record.status, record.backend) == ("ort-session", "applied", "ort")


def test_o4_computes_the_fused_ops_in_float16():
    compiled = compile(AutoOptimizationConfig.O4())
    result = rewright.optimize(BERT, chain=compiled.chain, target=compiled.target)
    assert result.report.verdict == "passed"
    ops = Counter(node.op_type for node in result.model.proto.graph.node)
    assert (ops["FastGelu"], ops["Attention"]) == (2, 2)
    kinds = {tensor.data_type for tensor in result.model.proto.graph.initializer if len(tensor.dims) == 2}
    assert kinds - {TensorProto.INT64} == {TensorProto.FLOAT16}  # positions are counted in int64
