"""The model types of ``onnxruntime.transformers``, and the switches of their drivers.

Facts about ONNX Runtime 1.31 and 1.32, checked against the installed version by a test.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

ModelType = Literal[
    "bart",
    "bert",
    "bert_keras",
    "bert_tf",
    "clip",
    "conformer",
    "gpt2",
    "gpt2_tf",
    "gpt_neox",
    "mmdit",
    "phi",
    "qwen3",
    "sam2",
    "swin",
    "t5",
    "tnlr",
    "unet",
    "vae",
    "vit",
]

MODEL_TYPES: Final[tuple[str, ...]] = get_args(ModelType)

SWITCHES: Final = (
    "attention",
    "bias_gelu",
    "bias_skip_layer_norm",
    "disable_multi_head_attention_bias",
    "embed_layer_norm",
    "gelu",
    "gelu_approximation",
    "gemm_fast_gelu",
    "group_norm_channels_last",
    "layer_norm",
    "qordered_matmul",
    "rotary_embeddings",
    "skip_layer_norm",
    "use_multi_head_attention",
)
"""Of every model type."""

IMAGE_SWITCHES: Final = (
    "bias_add",
    "bias_splitgelu",
    "group_norm",
    "nhwc_conv",
    "packed_kv",
    "packed_qkv",
    "skip_group_norm",
)
"""Of the model types clip, unet and vae besides."""


def switches_of(model_type: str) -> tuple[str, ...]:
    """The names of the switches that a model type has."""
    return (*SWITCHES, *IMAGE_SWITCHES) if model_type in ("clip", "unet", "vae") else SWITCHES
