"""The plugin that holds rewright's own passes and levels. It has no privilege over a third party's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from rewright.registry.hookspecs import hookimpl

if TYPE_CHECKING:
    from rewright.passes.contract import Pass

PASSES: tuple[tuple[str, str], ...] = (
    ("rewright.passes.cleanup.inline_functions", "InlineFunctions"),
    ("rewright.passes.cleanup.constant_folding", "ConstantFolding"),
    ("rewright.passes.cleanup.inline_conditionals", "InlineConditionals"),
    ("rewright.passes.cleanup.identity_elimination", "IdentityElimination"),
    ("rewright.passes.cleanup.common_subexpression", "CommonSubexpression"),
    ("rewright.passes.cleanup.shape_simplification", "ShapeSimplification"),
    ("rewright.passes.cleanup.dead_code", "DeadCode"),
    ("rewright.passes.fusion.layer_norm", "LayerNorm"),
    ("rewright.passes.fusion.rms_norm", "RmsNorm"),
    ("rewright.passes.fusion.rotary_embedding", "RotaryEmbedding"),
    ("rewright.passes.fusion.gelu", "Gelu"),
    ("rewright.passes.fusion.fast_gelu", "FastGelu"),
    ("rewright.passes.fusion.quick_gelu", "QuickGelu"),
    ("rewright.passes.fusion.skip_layer_norm", "SkipLayerNorm"),
    ("rewright.passes.fusion.skip_rms_norm", "SkipRmsNorm"),
    ("rewright.passes.fusion.bias_skip_layer_norm", "BiasSkipLayerNorm"),
    ("rewright.passes.fusion.embed_layer_norm", "EmbedLayerNorm"),
    ("rewright.passes.fusion.bias_gelu", "BiasGelu"),
    ("rewright.passes.fusion.gelu_approximation", "GeluApproximation"),
    ("rewright.passes.fusion.gemm_fast_gelu", "GemmFastGelu"),
    ("rewright.passes.fusion.attention", "Attention"),
    ("rewright.passes.fusion.group_query_attention", "GroupQueryAttention"),
    ("rewright.passes.fusion.multi_head_attention", "MultiHeadAttention"),
    ("rewright.quant.quantize_dynamic", "QuantizeDynamic"),
    ("rewright.quant.smooth_quant", "SmoothQuant"),
    ("rewright.quant.quantize_static", "QuantizeStatic"),
    ("rewright.quant.quantize_weights", "QuantizeWeights"),
    ("rewright.passes.precision.float16", "Float16"),
    ("rewright.passes.precision.bfloat16", "BFloat16"),
    ("rewright.passes.ort.session", "OrtSession"),
    ("rewright.passes.ort.transformers", "OrtTransformers"),
)
"""(module, pass class). Named by text, so that a hook call and not an import of this module pays for loading them."""

# Simplified shapes leave new constants, identities and equal values behind, so what clears those away comes after; what is
# stranded then, and by the fusions, dead-code takes away last. A level that runs again on its own result changes nothing.
LEVELS: Mapping[str, str] = {
    "O0": "",
    "O1": (
        "inline-functions, constant-folding, inline-conditionals, identity-elimination, shape-simplification, constant-folding,"
        " identity-elimination, common-subexpression, dead-code"
    ),
    "O2": (
        "O1, layer-norm, rms-norm, rotary-embedding, attention, group-query-attention, multi-head-attention, gelu, fast-gelu,"
        " quick-gelu, skip-layer-norm, skip-rms-norm, bias-skip-layer-norm, bias-gelu, shape-simplification,"
        " constant-folding, identity-elimination, common-subexpression, dead-code"
    ),
    "O3": "O2, gelu-approximation, dead-code",
    "O4": "O3, float16, identity-elimination",  # what a body passed on is cast to what it gave
}


@hookimpl
def rewright_passes() -> Iterable[type[Pass]]:
    return [getattr(import_module(module), class_name) for module, class_name in PASSES]


@hookimpl
def rewright_levels() -> Mapping[str, str]:
    return LEVELS
