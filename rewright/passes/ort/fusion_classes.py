"""The fusion classes of ``onnxruntime.transformers``: what each one emits, where it looks, and how it is made.

The steps "FusionUtils:..." are no classes of their own: they take away what stands between the classes and their patterns.

Facts about ONNX Runtime 1.31 and 1.32, checked against the installed version by a test. Importing this module imports neither
onnxruntime nor anything of its transformers package.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

from rewright.passes.ort.fusion_model import transformers_module

MASK_FORMATS: Final[Mapping[str, str]] = MappingProxyType(
    {"raw": "AttentionMask", "index": "MaskIndexEnd", "index-both-ends": "MaskIndexEndAndStart", "none": "NoMask"}
)
"""What an attention node is given of the mask. An index is the length of each row, right for padding on the right only."""


@dataclass(frozen=True)
class ClassOptions:
    """How the classes are made that have a choice.

    Attributes:
        num_heads, hidden_size: 0 takes what the graph says.
        mask_format: one of ``MASK_FORMATS``.
        use_multi_head_attention: emit MultiHeadAttention and not Attention, where a class can do both.
    """

    num_heads: int = 0
    hidden_size: int = 0
    mask_format: str = "raw"
    use_multi_head_attention: bool = False

    def __post_init__(self) -> None:
        if self.mask_format not in MASK_FORMATS:
            raise ValueError(f"the mask format '{self.mask_format}' is none of {', '.join(MASK_FORMATS)}")
        if self.num_heads < 0 or self.hidden_size < 0:
            raise ValueError("num_heads and hidden_size are positive, or 0 to be found out")
        if self.num_heads and self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}")


Making = Literal["alone", "heads", "sizes", "masked", "flagged", "step"]


@dataclass(frozen=True)
class FusionClass:
    """One fusion class.

    Attributes:
        module: the module of ``onnxruntime.transformers`` that has it.
        emits: the ops that it puts in; empty where it only takes away or rewires.
        anchors: the op types at which it looks for its pattern.
        made: what it is made with: the model "alone"; with the number of "heads"; with the "sizes" num_heads and hidden_size;
            with these and a mask ("masked"); so, and with the flag for MultiHeadAttention set afterwards ("flagged"); or a
            "step", whose keyword "method" is called.
        keywords: further arguments, as (name, value).
    """

    module: str
    emits: tuple[str, ...]
    anchors: tuple[str, ...]
    made: Making = "alone"
    keywords: tuple[tuple[str, Any], ...] = ()

    @property
    def clears_first(self) -> tuple[str, ...]:
        """Entries that run before it, since it looks for what they leave; of what they do, only what it fuses is kept."""
        return _BEFORE_ATTENTION if _CLEARED_FOR.intersection(self.emits) else ()

    def make(self, name: str, model: Any, options: ClassOptions) -> Any:
        """The class's object for a model.

        Raises:
            ValueError: the installed onnxruntime lacks the class.
        """
        module = transformers_module(self.module)
        found = getattr(module, name.partition(":")[0], None)
        if found is None:
            version = transformers_module("onnxruntime").__version__
            raise ValueError(f"onnxruntime {version} has no fusion class {name} in onnxruntime.transformers.{self.module}")
        return _MAKERS[self.made](found, model, options, dict(self.keywords))


def _alone(found: Any, model: Any, options: ClassOptions, keywords: dict[str, Any]) -> Any:
    return found(model, **keywords)


def _heads(found: Any, model: Any, options: ClassOptions, keywords: dict[str, Any]) -> Any:
    return found(model, options.num_heads, **keywords)


def _sizes(found: Any, model: Any, options: ClassOptions, keywords: dict[str, Any]) -> Any:
    return found(model, options.hidden_size, options.num_heads, **keywords)


def _masked(found: Any, model: Any, options: ClassOptions, keywords: dict[str, Any]) -> Any:
    return found(model, options.hidden_size, options.num_heads, _mask(model, options), **keywords)


def _flagged(found: Any, model: Any, options: ClassOptions, keywords: dict[str, Any]) -> Any:
    made = _masked(found, model, options, keywords)
    made.use_multi_head_attention = options.use_multi_head_attention
    if options.use_multi_head_attention:
        made.fused_op_type = "MultiHeadAttention"
    return made


def _step(found: Any, model: Any, options: ClassOptions, keywords: dict[str, Any]) -> Any:
    return _Step(getattr(found(model), keywords["method"]))


@dataclass(frozen=True)
class _Step:
    apply: Callable[[], None]


def _mask(model: Any, options: ClassOptions) -> Any:
    mask = transformers_module("fusion_attention").AttentionMask(model)
    formats = transformers_module("fusion_options").AttentionMaskFormat
    mask.set_mask_format(getattr(formats, MASK_FORMATS[options.mask_format]))
    return mask


_MAKERS: Final[Mapping[Making, Callable[..., Any]]] = {
    "alone": _alone,
    "heads": _heads,
    "sizes": _sizes,
    "masked": _masked,
    "flagged": _flagged,
    "step": _step,
}

_MS: Final = "com.microsoft::"
_NORMS: Final = ("SkipLayerNormalization", "LayerNormalization")
_ATTENTION: Final = (f"{_MS}Attention", f"{_MS}MultiHeadAttention")

# As the drivers do; a Cast to the type that is there already hides most attention.
_CLEARED_FOR: Final = frozenset((*_ATTENTION, f"{_MS}EmbedLayerNormalization", f"{_MS}RotaryEmbedding"))
_BEFORE_ATTENTION: Final = (
    "FusionUtils:identities",
    "FusionUtils:casts",
    "FusionReshape",
    "FusionSkipLayerNormalization",
    "FusionSkipSimplifiedLayerNormalization",
)


def _utility(method: str, anchor: str) -> FusionClass:
    return FusionClass("fusion_utils", (), (anchor,), "step", (("method", method),))


FUSION_CLASSES: Final[Mapping[str, FusionClass]] = MappingProxyType(
    {
        # Activations.
        "FusionGelu": FusionClass("fusion_gelu", (f"{_MS}Gelu",), ("Erf",)),
        "FusionFastGelu": FusionClass("fusion_fastgelu", (f"{_MS}FastGelu",), ("Tanh",)),
        "FusionQuickGelu": FusionClass("fusion_quickgelu", (f"{_MS}QuickGelu",), ("Mul",)),
        "FusionGeluApproximation": FusionClass("fusion_gelu_approximation", (f"{_MS}FastGelu",), ("Gelu", "BiasGelu")),
        "FusionBiasGelu": FusionClass("fusion_biasgelu", (f"{_MS}BiasGelu",), ("Gelu",), keywords=(("is_fastgelu", False),)),
        "FusionBiasGelu:fast": FusionClass(
            "fusion_biasgelu", (f"{_MS}FastGelu",), ("FastGelu",), keywords=(("is_fastgelu", True),)
        ),
        "FusionGemmFastGelu": FusionClass("fusion_gemmfastgelu", (f"{_MS}GemmFastGelu",), ("FastGelu",)),
        "FusionBiasSplitGelu": FusionClass("fusion_biassplitgelu", (f"{_MS}BiasSplitGelu",), ("Gelu",)),
        "FusionBiasAdd": FusionClass("fusion_bias_add", (f"{_MS}BiasAdd",), ("Add",)),
        # Normalisation.
        "FusionLayerNormalization": FusionClass("fusion_layernorm", ("LayerNormalization",), ("ReduceMean",)),
        "FusionLayerNormalizationTF": FusionClass("fusion_layernorm", ("LayerNormalization",), ("Add",)),
        "FusionLayerNormalizationNCHW": FusionClass("fusion_layernorm", ("LayerNormalization", "Transpose"), ("ReduceMean",)),
        "FusionSimplifiedLayerNormalization": FusionClass(
            "fusion_simplified_layernorm", ("SimplifiedLayerNormalization",), ("Mul",)
        ),
        "FusionSkipLayerNormalization": FusionClass(
            "fusion_skiplayernorm", (f"{_MS}SkipLayerNormalization",), ("LayerNormalization",)
        ),
        "FusionSkipSimplifiedLayerNormalization": FusionClass(
            "fusion_simplified_layernorm", (f"{_MS}SkipSimplifiedLayerNormalization",), ("SimplifiedLayerNormalization",)
        ),
        "FusionBiasSkipLayerNormalization": FusionClass(
            "fusion_skiplayernorm", (f"{_MS}SkipLayerNormalization",), ("SkipLayerNormalization",)
        ),
        "FusionGroupNorm": FusionClass("fusion_group_norm", (f"{_MS}GroupNorm", "Transpose"), ("Add",)),
        "FusionSkipGroupNorm": FusionClass("fusion_skip_group_norm", (f"{_MS}SkipGroupNorm", "Transpose"), ("GroupNorm",)),
        # Embeddings and positions.
        "FusionEmbedLayerNormalization": FusionClass(
            "fusion_embedlayer", (f"{_MS}EmbedLayerNormalization", "Cast"), ("LayerNormalization", "SkipLayerNormalization")
        ),
        "FusionRotaryEmbeddings": FusionClass(
            "fusion_rotary_attention",
            (f"{_MS}RotaryEmbedding",),
            ("RotaryEmbedding", "RotaryEmbedding.1", "Add"),
        ),
        "FusionRelativePositionBiasBlock": FusionClass("onnx_model_t5", (f"{_MS}RelativePositionBias",), ("Softmax",)),
        # Attention.
        "FusionAttention": FusionClass("fusion_attention", _ATTENTION, _NORMS, "flagged"),
        "FusionBartAttention": FusionClass("fusion_bart_attention", _ATTENTION, _NORMS, "flagged"),
        "FusionConformerAttention": FusionClass("fusion_conformer_attention", _ATTENTION, _NORMS, "flagged"),
        "FusionTnlrAttention": FusionClass("onnx_model_tnlr", _ATTENTION[:1], _NORMS, "masked"),
        "FusionT5Attention": FusionClass("onnx_model_t5", _ATTENTION, ("Softmax",), "masked"),
        "FusionAttentionClip": FusionClass("fusion_attention_clip", _ATTENTION[:1], ("SkipLayerNormalization",), "sizes"),
        "FusionGptAttention": FusionClass(
            "fusion_gpt_attention", _ATTENTION[:1], ("LayerNormalization", "SkipLayerNormalization"), "heads"
        ),
        "FusionGptAttentionNoPast": FusionClass(
            "fusion_gpt_attention_no_past", _ATTENTION[:1], ("LayerNormalization", "SkipLayerNormalization"), "heads"
        ),
        "FusionGptAttentionMegatron": FusionClass(
            "fusion_gpt_attention_megatron", _ATTENTION[:1], ("LayerNormalization", "SkipLayerNormalization"), "heads"
        ),
        "FusionRotaryAttention": FusionClass(
            "fusion_rotary_attention",
            _ATTENTION[1:],
            ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", *_NORMS[::-1], "Add"),
            "sizes",
        ),
        "FusionMultiHeadAttentionMMDit": FusionClass("fusion_mha_mmdit", _ATTENTION[1:], ("Softmax",)),
        "FusionMultiHeadAttentionDiT": FusionClass("fusion_mha_dit", _ATTENTION[1:], ("Softmax",)),
        "FusionMultiHeadAttentionSam2": FusionClass("fusion_attention_sam2", _ATTENTION[1:], ("LayerNormalization",), "sizes"),
        "FusionAttentionUnet": FusionClass(
            "fusion_attention_unet",
            _ATTENTION,
            ("LayerNormalization",),
            "sizes",
            (("is_cross_attention", False), ("enable_packed_qkv", False), ("enable_packed_kv", False)),
        ),
        "FusionAttentionUnet:cross": FusionClass(
            "fusion_attention_unet",
            _ATTENTION,
            ("LayerNormalization",),
            "sizes",
            (("is_cross_attention", True), ("enable_packed_qkv", False), ("enable_packed_kv", False)),
        ),
        "FusionAttentionVae": FusionClass("fusion_attention_vae", _ATTENTION[:1], ("Softmax",), "sizes"),
        # Shapes, layout and constants.
        "FusionShape": FusionClass("fusion_shape", (), ("Concat",)),
        "FusionReshape": FusionClass("fusion_reshape", ("Constant",), ("Reshape",)),
        "FusionBartReshape": FusionClass("onnx_model_bart", ("Constant",), ("Reshape",)),
        "FusionConstantFold": FusionClass("fusion_constant_fold", (), ("Transpose",)),
        "FusionTranspose": FusionClass("fusion_transpose", (), ("Transpose",)),
        "FusionInsertTranspose": FusionClass("fusion_transpose", ("Transpose",), ("GroupNorm",)),
        "FusionNhwcConv": FusionClass("fusion_nhwc_conv", (f"{_MS}NhwcConv", "Transpose"), ("Conv",)),
        "FusionUtils:identities": _utility("remove_identity_nodes", "Identity"),
        "FusionUtils:casts": _utility("remove_useless_cast_nodes", "Cast"),
        "FusionUtils:reshapes": _utility("remove_useless_reshape_nodes", "Reshape"),
        # Quantized models in the column order of NVIDIA's int8 kernels.
        "FusionQOrderedGelu": FusionClass("fusion_qordered_gelu", (f"{_MS}QOrderedGelu",), ("Gelu", "FastGelu")),
        "FusionQOrderedLayerNormalization": FusionClass(
            "fusion_qordered_layernorm", (f"{_MS}QOrderedLayerNormalization",), ("LayerNormalization",)
        ),
        "FusionQOrderedMatMul": FusionClass("fusion_qordered_matmul", (f"{_MS}QOrderedMatMul",), ("MatMul",)),
        "FusionQOrderedAttention": FusionClass(
            "fusion_qordered_attention", (f"{_MS}QOrderedAttention",), ("QOrderedLayerNormalization",), "masked"
        ),
    }
)


def fusion_class(name: str) -> FusionClass:
    """The entry of a class.

    Raises:
        ValueError: there is none of that name; the message has near names.
    """
    known = FUSION_CLASSES.get(name)
    if known is None:
        near = difflib.get_close_matches(name, FUSION_CLASSES, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"the known ones are {', '.join(FUSION_CLASSES)}"
        raise ValueError(f"onnxruntime.transformers has no fusion class '{name}' that runs on its own; {hint}")
    return known
