"""From Optimum's options to a chain of passes and a target, and what neither of them shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import onnxruntime

from rewright.api import Chain
from rewright.integrations.optimum import wording
from rewright.integrations.optimum.messages import Message
from rewright.integrations.optimum.options import OptimizationConfig
from rewright.passes.contract import Backend, Pass, Target
from rewright.registry.catalog import Catalog, default_catalog
from rewright.registry.options import with_options

SWITCHED_OFF: Final[Mapping[str, tuple[str, ...]]] = {
    "disable_gelu_fusion": ("gelu", "fast-gelu", "quick-gelu"),
    "disable_layer_norm_fusion": ("layer-norm", "rms-norm"),
    "disable_attention_fusion": ("attention", "group-query-attention", "multi-head-attention"),
    "disable_rotary_embeddings": ("rotary-embedding",),
    "disable_skip_layer_norm_fusion": ("skip-layer-norm", "skip-rms-norm"),
    "disable_bias_skip_layer_norm_fusion": ("bias-skip-layer-norm",),
    "disable_bias_gelu_fusion": ("bias-gelu",),
}
"""The passes that each attribute takes out of the chain."""

WITHOUT_A_PASS: Final[Mapping[str, tuple[str, bool]]] = {
    "disable_group_norm_fusion": ("fuses GroupNorm", True),
    "disable_skip_group_norm_fusion": ("fuses a sum with the GroupNorm after it", True),
    "disable_bias_splitgelu_fusion": ("emits BiasSplitGelu", True),
    "disable_bias_add_fusion": ("emits BiasAdd", True),
    "disable_nhwc_conv": ("emits NhwcConv", True),
    "disable_packed_qkv": ("packs the operands of MultiHeadAttention", True),
    "disable_packed_kv": ("packs keys and values of MultiHeadAttention", True),
    "use_group_norm_channels_first": ("emits GroupNorm, in either layout", False),
}
"""The attributes that no pass stands behind: what no pass does, and whether the attribute switches that off."""

_ATTENTION: Final = SWITCHED_OFF["disable_attention_fusion"]
_DIFFUSION: Final = ("unet", "vae")
_MASKS: Final = (("no_attention_mask", "none"), ("use_raw_attention_mask", "raw"), ("use_mask_index", "index"))
"""As in Optimum, the first of them that is set counts."""

_FOR_TRANSFORMERS: Final = (
    *SWITCHED_OFF,
    *WITHOUT_A_PASS,
    *(option for option, _ in _MASKS),
    "disable_embed_layer_norm_fusion",
    "disable_embed_layer_norm",
    "enable_gelu_approximation",
    "enable_gemm_fast_gelu_fusion",
    "use_multi_head_attention",
    "disable_shape_inference",
)


@dataclass(frozen=True)
class CompiledConfig:
    """What the options became.

    Attributes:
        chain: the passes; ``str(compiled.chain)`` is their text.
        target: where the result will run.
        messages: what the chain and the target do not show, for every option that is not at its default.
        config: the options.
    """

    chain: Chain
    target: Target
    messages: tuple[Message, ...]
    config: OptimizationConfig

    def __str__(self) -> str:
        return self.chain.text


def compile(
    config: OptimizationConfig,
    *,
    model_type: str | None = None,
    backend: Backend = "standalone",
    catalog: Catalog | None = None,
) -> CompiledConfig:
    """The chain and the target that stand for Optimum's options.

    Each attribute that is not at its default changes the chain or the target, or a message says why it does not.

    Args:
        config: the options, of this library or of Optimum (see ``OptimizationConfig.from_optimum``).
        model_type: ``model_type`` of the model's config.json. No pass needs it; for a diffusion model ("unet", "vae") the fusions
            that its defaults ask for, and that are missing, are named.
        backend: who carries the passes out, where they have the choice.
        catalog: where the passes are looked up.

    Raises:
        UsageError: two attributes contradict each other, or ``config`` holds no options.
    """
    if not isinstance(config, OptimizationConfig):
        config = OptimizationConfig.from_optimum(config)
    made = _Compilation(config, model_type, catalog if catalog is not None else default_catalog())
    made.choose_base()
    if config.enable_transformers_specific_optimizations:
        made.choose_fusions()
    made.choose_target()
    made.choose_precision()
    return made.finished(backend)


@dataclass
class _Compilation:
    config: OptimizationConfig
    model_type: str | None
    catalog: Catalog
    steps: list[Pass] = field(default_factory=list)
    target: Target = "cpu"
    messages: list[Message] = field(default_factory=list)

    def say(self, option: str, text: str, *, is_note: bool = False) -> None:
        self.messages.append(Message(option, getattr(self.config, option), text, "note" if is_note else "warning"))

    def choose_base(self) -> None:
        """The chain of ``optimization_level`` and ``enable_transformers_specific_optimizations``."""
        level = self.config.optimization_level
        if not self.config.enable_transformers_specific_optimizations:
            self._choose_general(level)
            return
        self.steps = list(self._chain("O3" if self.config.enable_gelu_approximation else "O2"))
        if level == 0:
            cleanups = {step.name for step in self._chain("O1")}
            self.steps = [*(step for step in self.steps if step.name not in cleanups), self.catalog.get("dead-code")()]
            self.say("optimization_level", wording.WITHOUT_CLEANUPS, is_note=True)
        elif level == 2:
            self.say("optimization_level", wording.LEVEL_2_IS_LEVEL_1, is_note=True)
        elif level == 99:
            self.say("optimization_level", wording.NO_LAYOUTS)

    def _choose_general(self, level: int) -> None:
        """What ONNX Runtime does without its fusions for transformers: the cleanups, and from level 2 on what only it has."""
        self.steps = list(self._chain({0: "O0", 1: "O1", 2: "O1, ort-session", 99: "O1, ort-session{level=all}"}[level]))
        for option in self.config.chosen():
            if option in _FOR_TRANSFORMERS:
                self.say(option, wording.NOT_FOR_TRANSFORMERS)
        if level == 99:
            self.say("optimization_level", wording.LAYOUTS, is_note=True)

    def choose_fusions(self) -> None:
        """What the attributes for transformers change in the chain."""
        self._add_asked_for()
        for option, names in SWITCHED_OFF.items():
            if getattr(self.config, option):
                self.steps = [step for step in self.steps if step.name not in names]
        self._choose_attention()
        if self.config.disable_shape_inference:
            self._set("disable_shape_inference", _ATTENTION, "shape_inference", False)
            self.say("disable_shape_inference", wording.SHAPES_OF_THE_MODEL, is_note=True)
        for option, (what, switches_off) in WITHOUT_A_PASS.items():
            self._tell_of_missing_pass(option, what, is_wanted=getattr(self.config, option) != switches_off)

    def _add_asked_for(self) -> None:
        config = self.config
        if config.fuses_embed_layer_norm:
            self._insert("embed-layer-norm", after="bias-gelu")
            self.say("disable_embed_layer_norm_fusion", wording.EMBEDDINGS_AND_QUANTIZATION, is_note=True)
        if config.disable_embed_layer_norm is not None:
            self.say("disable_embed_layer_norm", wording.OTHER_NAME, is_note=True)
        if config.enable_gemm_fast_gelu_fusion:
            self._insert("gemm-fast-gelu", after="gelu-approximation" if config.enable_gelu_approximation else "bias-gelu")
            self.say("enable_gemm_fast_gelu_fusion", wording.NO_GEMM_FAST_GELU)

    def _choose_attention(self) -> None:
        asked = [(option, mask) for option, mask in _MASKS if getattr(self.config, option)]
        for option, mask in asked[:1]:
            self._set(option, ("attention", "multi-head-attention"), "mask", mask)
            self.say(option, wording.MASKS[mask], is_note=True)
        for option, _ in asked[1:]:
            self.say(option, wording.outranked(asked[0][0]))
        if self.config.use_multi_head_attention:
            self._set("use_multi_head_attention", ("attention",), "multi_head", True)

    def _tell_of_missing_pass(self, option: str, what: str, *, is_wanted: bool) -> None:
        is_diffusion = self.model_type in _DIFFUSION
        if option in self.config.chosen() or (is_wanted and is_diffusion):
            text = wording.missing_pass(what, is_wanted=is_wanted, is_diffusion=is_diffusion)
            self.say(option, text, is_note=not is_wanted)

    def choose_target(self) -> None:
        """Where the result will run."""
        if not self.config.optimize_for_gpu:
            return
        self.target = "cuda"
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            self.say("optimize_for_gpu", wording.NO_CUDA, is_note=True)
        if any(step.name == "ort-session" for step in self.steps):
            self.say("optimize_for_gpu", wording.SESSION_IS_FOR_CPU)

    def choose_precision(self) -> None:
        """float16 comes after the fusions, as at the level O4: what is fused by then is converted as it is."""
        if not self.config.fp16:
            return
        self.steps.extend(self._chain("O4").passes[len(self._chain("O3")) :])
        if self.target == "cpu":
            self.say("fp16", wording.FLOAT16_ON_CPU, is_note=True)

    def finished(self, backend: Backend) -> CompiledConfig:
        chain = Chain(self.steps, catalog=self.catalog)
        if backend != "standalone":
            chain, without = chain.with_backend(backend)
            own = dict.fromkeys(step.name for step in chain if step.name in without and step.backend == "standalone")
            if own:
                self.messages.append(Message("backend", backend, wording.without_backend(", ".join(own)), "note"))
        return CompiledConfig(chain, self.target, (*self.config.remarks, *self.messages), self.config)

    def _chain(self, text: str) -> Chain:
        return Chain(text, catalog=self.catalog)

    def _insert(self, name: str, *, after: str) -> None:
        """Puts a pass behind the last step of that name."""
        at = max(index for index, step in enumerate(self.steps) if step.name == after) + 1
        self.steps.insert(at, self.catalog.get(name)())

    def _set(self, option: str, names: tuple[str, ...], name: str, value: object) -> None:
        """Sets an option of those passes, or says that the chain holds none of them."""
        if not any(step.name in names for step in self.steps):
            self.say(option, wording.without_passes(", ".join(names), "disable_attention_fusion takes it out of the chain"))
        self.steps = [with_options(step, {name: value}) if step.name in names else step for step in self.steps]
