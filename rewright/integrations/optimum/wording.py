"""The sentences that say of an option what the chain alone does not show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

WITHOUT_CLEANUPS: Final = (
    "the general cleanups are left out, all but the last dead-code; without them fewer fusions may be found."
)
LEVEL_2_IS_LEVEL_1: Final = (
    "levels 1 and 2 give the same chain, which has the fusions for transformers. What else ONNX Runtime fuses from level 2 on,"
    " a Conv with its activation, it fuses itself when it loads the model."
)
NO_LAYOUTS: Final = (
    "the chain is that of levels 1 and 2. The layouts of level 99 suit one machine, and ONNX Runtime chooses them when it loads"
    " the model; to have them in the file, run ort-session{level=all} as the last pass."
)
LAYOUTS: Final = "the layouts that ONNX Runtime chooses suit this machine's processor; use the result on machines like it."
NOT_FOR_TRANSFORMERS: Final = "it changes nothing while enable_transformers_specific_optimizations is False, as in Optimum."

EMBEDDINGS_AND_QUANTIZATION: Final = (
    "leave this fusion out before quantization, which in ONNX Runtime does not take the op with position ids."
)
OTHER_NAME: Final = "Optimum's own class refuses this name; it is taken for disable_embed_layer_norm_fusion, and written as that."
NO_GEMM_FAST_GELU: Final = (
    "no target has a kernel for GemmFastGelu (the only one was for ROCm), so that gemm-fast-gelu declines every site. ONNX"
    " Runtime's own fusion emits the op all the same, and the model does not load."
)
SHAPES_OF_THE_MODEL: Final = (
    "it concerns the attention passes only. The others prove their sites by shapes; an op that shape inference does not know"
    " leaves that place unknown, and stops nothing."
)

MASKS: Final[Mapping[str, str]] = {
    "none": (
        "it declares that nothing is padded, and padding masks of attention are dropped. The report says so, and the comparison"
        " with the original, whose inputs are padded, undoes it where it is not so."
    ),
    "raw": "the mask itself is what the attention passes give anyway, where it is proven to be one.",
    "index": (
        "it declares that padding is on the right only, and attention gets lengths. The report says so, and the comparison with"
        " the original, with inputs padded on either side, undoes it where that matters. use_raw_attention_mask suits both."
    ),
}

NO_CUDA: Final = (
    "this machine's ONNX Runtime has no CUDA provider. The ops are chosen by what CUDA has kernels for, and those without a CPU"
    " kernel are checked through their definitions; no CUDA kernel is run."
)
SESSION_IS_FOR_CPU: Final = (
    "ort-session lets ONNX Runtime optimize for its CPU provider; what is for the device only it leaves out."
)
FLOAT16_ON_CPU: Final = (
    "ONNX Runtime's CPU provider casts around most ops of a float16 model, which is slower than float32; optimize_for_gpu sets"
    " the target that float16 is for."
)

UNKNOWN_ATTRIBUTE: Final = "this version of rewright does not know the attribute, so that it changes nothing."
QUANTIZATION: Final = (
    "options for quantization are not carried out here; `rewright quantize -c` and huggingface.quantize carry both parts out."
)
EXTERNAL_DATA: Final = (
    "in a directory, weights go to a file beside the model; those of a single file stay where they were, unless it would exceed"
    " 2 GiB."
)
OPSET: Final = "an opset is for exporting. The model keeps its own; only a pass that needs a higher one raises it."
ONE_FILE: Final = "weights that lie beside the model are written into one file, not into one for each."

INTEGER_OPS_OF_STATIC: Final = (
    "it changes nothing where ranges are measured before: format says what is written, integer ops or pairs around the ops."
)
QDQ_OF_DYNAMIC: Final = (
    "it changes nothing: what is quantized at run time is written as integer ops, in Optimum too, which does not say so."
)
TYPE_AT_RUN_TIME: Final = "it changes nothing: at run time activations become uint8, as ONNX Runtime's kernels have it."
RANGE_AT_RUN_TIME: Final = (
    "it changes nothing: at run time the zero point follows from the range, as ONNX Runtime's kernels have it."
)
PACKED_PROJECTIONS: Final = (
    "projections that the level packs into Attention are Attention's, and stay in float; name Attention too to quantize them."
)
NO_PAIRS: Final = (
    "it changes nothing: there are pairs of QuantizeLinear and DequantizeLinear only with is_static=True and format=QDQ."
)
CHANNEL_AXES: Final = (
    "it changes nothing: with per_channel, a weight has a scale for each column of the product (of a Conv, for each output"
    " channel), which is what the kernels take."
)
NEEDS_DATA: Final = (
    "ranges of activations are measured on data, which is given where the model is quantized: calibration=PATH or an iterable of"
    " inputs."
)
NO_AVERAGE: Final = "it changes nothing without moving_average."
DATASET_BY_NAME: Final = "they only name the data, which is given where the model is quantized; nothing is downloaded."


def outranked(by: str) -> str:
    return f"it changes nothing beside {by}, which goes before it, as in Optimum."


def without_passes(names: str, reason: str) -> str:
    return f"it changes nothing: {names} would follow it, and {reason}."


def missing_pass(what: str, *, is_wanted: bool, is_diffusion: bool) -> str:
    if is_wanted and is_diffusion:
        return f"no pass {what}: those nodes of the diffusion model stay as they are."
    if is_wanted:
        return f"no pass {what}, so that it changes nothing. Optimum ignores it without saying so."
    return f"no pass {what}, so that there is nothing to switch off."


def without_backend(names: str) -> str:
    return f"rewright carries these passes out itself, for they have no such backend: {names}."


def other_operators(names: str, by: str) -> str:
    return f"{by} does not quantize {names}: those nodes stay as they are."


def names_after(level: str) -> str:
    return (
        f"names are looked up after {level}, which may have fused a node into another; level='O0' quantizes the model as it is."
    )


def of_another_method(methods: str) -> str:
    return f"it changes nothing: it is for {methods}."


def own_bins(count: int) -> str:
    return f"the histogram has {count} bins of its own, which are merged as the range grows."
