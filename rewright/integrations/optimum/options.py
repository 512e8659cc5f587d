"""Optimum's options for optimization, with its names, defaults and presets."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from rewright.integrations.optimum.attributes import Attributes
from rewright.model.errors import UsageError
from rewright.registry.catalog import did_you_mean


class OptimizationConfig(Attributes):
    """What to optimize, in the attributes of Optimum's class of this name; ``compile`` makes a chain of it.

    Every attribute can be set in the constructor or afterwards, as in Optimum. One that does not exist, or a value that
    it cannot have, is a UsageError.

    Sources: optimum-onnx 0.1, optimum.onnxruntime.configuration; ONNX Runtime 1.32, onnxruntime.transformers.fusion_options.
    """

    what_values_are = "The attributes are True or False; optimization_level is 0, 1, 2 or 99."
    section = "optimization"
    told_by = "optimization_level"

    optimization_level: Literal[0, 1, 2, 99] = Field(
        default=1,
        description="ONNX Runtime's general optimizations: 0 none, 1 basic, 2 with fusions, 99 with layouts of this machine.",
    )
    enable_transformers_specific_optimizations: bool = Field(
        default=True, description="The fusions for transformers, which all attributes below the first four are about."
    )
    optimize_for_gpu: bool = Field(default=False, description="The result will run on a CUDA device.")
    fp16: bool = Field(default=False, description="Compute in float16; inputs and outputs stay float32.")

    disable_gelu_fusion: bool = Field(default=False, description="Leave Gelu decomposed, its approximations and SiLU too.")
    disable_attention_fusion: bool = Field(default=False, description="Leave attention decomposed.")
    disable_bias_gelu_fusion: bool = Field(default=False, description="Leave the bias before a Gelu a node of its own.")
    disable_layer_norm_fusion: bool = Field(
        default=False, description="Leave layer and root-mean-square normalisation decomposed."
    )
    disable_rotary_embeddings: bool = Field(default=False, description="Leave rotary position embedding decomposed.")
    disable_skip_layer_norm_fusion: bool = Field(
        default=False, description="Leave the residual sum before a normalisation a node of its own."
    )
    disable_bias_skip_layer_norm_fusion: bool = Field(
        default=False, description="Leave the bias before a residual sum a node of its own."
    )
    disable_skip_group_norm_fusion: bool = Field(
        default=False, description="Leave the sum before a GroupNorm a node (diffusion models)."
    )
    disable_bias_splitgelu_fusion: bool = Field(default=False, description="Leave the gated Gelu of diffusion models decomposed.")
    disable_bias_add_fusion: bool = Field(default=False, description="Leave bias and residual sum apart (diffusion models).")
    disable_group_norm_fusion: bool = Field(default=True, description="Leave GroupNorm decomposed (diffusion models).")
    disable_embed_layer_norm_fusion: bool = Field(
        default=True, description="Leave embeddings and their normalisation apart; quantization needs them so."
    )
    disable_embed_layer_norm: bool | None = Field(
        default=None,
        description="Another name of disable_embed_layer_norm_fusion, which Optimum documents and does not accept.",
    )
    enable_gemm_fast_gelu_fusion: bool = Field(default=False, description="Fuse MatMul, bias and FastGelu.")
    enable_gelu_approximation: bool = Field(
        default=False, description="Replace exact Gelu by its tanh approximation, which changes numbers slightly."
    )

    use_mask_index: bool = Field(
        default=False, description="Give the attention op lengths instead of the mask. Right only where padding is on the right."
    )
    use_raw_attention_mask: bool = Field(default=False, description="Give the attention op the mask itself.")
    no_attention_mask: bool = Field(default=False, description="Drop the padding mask. Right only where nothing is padded.")
    use_multi_head_attention: bool = Field(
        default=False, description="MultiHeadAttention in place of Attention, whose projections are packed."
    )
    disable_shape_inference: bool = Field(default=False, description="Rely on the shapes that the model itself states.")
    use_group_norm_channels_first: bool = Field(default=False, description="GroupNorm in the layout NCHW (diffusion models).")
    disable_packed_kv: bool = Field(
        default=True, description="Leave keys and values of cross attention apart (diffusion models)."
    )
    disable_packed_qkv: bool = Field(default=False, description="Leave the operands of self attention apart (diffusion models).")
    disable_nhwc_conv: bool = Field(default=False, description="Leave Conv in the layout NCHW (diffusion models).")

    @property
    def fuses_embed_layer_norm(self) -> bool:
        """What the two names of one option, ``disable_embed_layer_norm`` and ``disable_embed_layer_norm_fusion``, say together.

        Raises:
            UsageError: they were both set, and contradict each other.
        """
        first, second = self.disable_embed_layer_norm_fusion, self.disable_embed_layer_norm
        if second is None:
            return not first
        if "disable_embed_layer_norm_fusion" in self.model_fields_set and first != second:
            raise UsageError(
                f"disable_embed_layer_norm is {second}, and disable_embed_layer_norm_fusion is {first}.",
                "They are two names of one option; set disable_embed_layer_norm_fusion only.",
            )
        return not second

    def to_ort_config(self, *, use_external_data_format: bool = False, one_external_file: bool = True) -> dict[str, Any]:
        """The dictionary that Optimum's ORTConfig is made of, and that ``ort_config.json`` holds; JSON can say all of it."""
        options = self.model_dump(exclude={"disable_embed_layer_norm"})
        options["disable_embed_layer_norm_fusion"] = not self.fuses_embed_layer_norm
        return {
            "opset": None,
            "use_external_data_format": use_external_data_format,
            "one_external_file": one_external_file,
            "optimization": options,
            "quantization": {},
        }


class AutoOptimizationConfig:
    """Optimum's presets. Keywords set further attributes, and outrank what the preset says."""

    _LEVELS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "O1": {"optimization_level": 1, "enable_transformers_specific_optimizations": False},
        "O2": {"optimization_level": 2},
        "O3": {"optimization_level": 2, "enable_gelu_approximation": True},
        "O4": {"optimization_level": 2, "enable_gelu_approximation": True, "fp16": True},
    }

    @classmethod
    def with_optimization_level(cls, optimization_level: str, for_gpu: bool | None = None, **options: Any) -> OptimizationConfig:
        """The options of a preset.

        Args:
            optimization_level: "O1", basic optimizations; "O2", with fusions; "O3", with the approximation of Gelu; "O4", with
                float16.
            for_gpu: whether the result will run on a CUDA device; None means for O4 only. O4 is always for one: False is answered
                with a warning, as in Optimum.
            options: attributes of ``OptimizationConfig``.

        Raises:
            UsageError: there is no such preset, no such attribute, or it cannot have that value.
        """
        return cls._preset(optimization_level, for_gpu, options)

    @classmethod
    def O1(cls, for_gpu: bool = False, **options: Any) -> OptimizationConfig:  # noqa: N802  (Optimum's names)
        """Basic optimizations: the cleanups. See ``with_optimization_level``."""
        return cls._preset("O1", for_gpu, options)

    @classmethod
    def O2(cls, for_gpu: bool = False, **options: Any) -> OptimizationConfig:  # noqa: N802
        """The cleanups and the fusions. See ``with_optimization_level``."""
        return cls._preset("O2", for_gpu, options)

    @classmethod
    def O3(cls, for_gpu: bool = False, **options: Any) -> OptimizationConfig:  # noqa: N802
        """As O2, and exact Gelu becomes its approximation. See ``with_optimization_level``."""
        return cls._preset("O3", for_gpu, options)

    @classmethod
    def O4(cls, for_gpu: bool = True, **options: Any) -> OptimizationConfig:  # noqa: N802
        """As O3, in float16, for a CUDA device. See ``with_optimization_level``."""
        return cls._preset("O4", for_gpu, options)

    @classmethod
    def _preset(cls, name: str, for_gpu: bool | None, options: Mapping[str, Any]) -> OptimizationConfig:
        if name not in cls._LEVELS:
            near = did_you_mean(str(name), cls._LEVELS)
            raise UsageError(f"optimization_level is '{name}'.", f"{near} It is one of {', '.join(cls._LEVELS)}.".lstrip())
        if name == "O4" and for_gpu is False:
            warnings.warn("O4 computes in float16, which is for GPUs: for_gpu=False is not followed.", stacklevel=3)
        return OptimizationConfig(**{"optimize_for_gpu": bool(for_gpu) or name == "O4", **cls._LEVELS[name], **options})
