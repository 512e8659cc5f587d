"""Graphs that ONNX Runtime is known to rewrite wrongly, each with one of the same kind that it rewrites rightly."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from deferral_table import graph
from onnx import ModelProto, TensorProto, helper
from onnxruntime.transformers.fusion_biasgelu import FusionBiasGelu
from onnxruntime.transformers.fusion_constant_fold import FusionConstantFold
from onnxruntime.transformers.fusion_embedlayer import FusionEmbedLayerNormalization
from onnxruntime.transformers.fusion_fastgelu import FusionFastGelu
from onnxruntime.transformers.fusion_gelu import FusionGelu
from onnxruntime.transformers.fusion_gemmfastgelu import FusionGemmFastGelu
from onnxruntime.transformers.fusion_layernorm import FusionLayerNormalization
from onnxruntime.transformers.fusion_quickgelu import FusionQuickGelu
from onnxruntime.transformers.fusion_simplified_layernorm import FusionSimplifiedLayerNormalization
from onnxruntime.transformers.fusion_skiplayernorm import FusionSkipLayerNormalization
from ort_directly import Work, by_class, by_session
from side_by_side import side_by_side
from test_activation_tables import CONSTANTS, CUBE, NUMBERS, TORCH
from test_normalization_tables import NUMBERS as NORM_NUMBERS
from test_normalization_tables import SLICED, embedded, layer_norm, rms_norm

DRIVER = "ort-transformers{model_type=bert, level=none}"


@dataclass(frozen=True)
class WrongRewrite:
    """Two graphs that go through ONNX Runtime side by side.

    Attributes:
        wrong, right: what it gets wrong, and what it gets right.
        directly: ONNX Runtime alone.
        becomes: "wrong", or what its result does as a whole, as ``ort_directly.outcome`` has it.
        chains: through which rewright hands the graphs to ONNX Runtime.
        fates: what becomes of the wrong one then, for each chain: its sites are "undone", it is "left" as it was, or, where
            something else of ONNX Runtime's takes it first, it is rewritten after all and is "right".
        kept: ops of which the right graph has to have one afterwards; empty where nodes have to have gone.
        gone: ops that the right graph must not have any more.
    """

    wrong: ModelProto
    right: ModelProto
    directly: Work
    becomes: str
    chains: tuple[str, ...]
    kept: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    fates: tuple[str, ...] = ("undone", "undone")

    @cached_property
    def model(self) -> ModelProto:
        return side_by_side({"wrong": self.wrong, "right": self.right})


def norm(body, **given):
    return graph(body, NORM_NUMBERS, **given)


def five_tokens(positions):
    """Embeddings whose shapes are stated: onnx does not infer that of the positions."""
    model = embedded(positions, inputs="int64[N, 5] ids, int64[N, 5] type_ids", outputs="float[N, 5, 8] y")
    model.graph.value_info.append(helper.make_tensor_value_info("place_ids", TensorProto.INT64, [1, 5]))
    return model


CUBES = {"inputs": "float[2, 8, 8] x", "outputs": "float[2, 8, 8] y"}
SQUARES = {"inputs": "float[8, 8] x", "outputs": "float[8, 8] y"}
FLAT = {"inputs": "float[N, 8] x", "outputs": "float[N, 8] y"}
TWO = "float[N, S, 8] y, float[N, S, 8] z"
LAYER_NORM = ("LayerNormalization",)
RESIDUAL = {"inputs": "float[N, S, 8] x, float[N, S, 8] skip"}


def skip_norm(fused="LayerNormalization<epsilon = 1e-5>(s, g, b)"):
    return norm(f"a = Relu(x) s = Add(a, skip) y = {fused}", **RESIDUAL)


SKIP_NORM = ("com.microsoft::SkipLayerNormalization",)
BY_SKIP_NORM = by_class(FusionSkipLayerNormalization)
BY_RMS = by_class(FusionSimplifiedLayerNormalization)
RMS = ("SimplifiedLayerNormalization",)
RMS_CHAINS = ("rms-norm{backend=ort}", DRIVER)

NORMALIZATIONS = {
    "A1": WrongRewrite(
        norm(layer_norm("axes = [1]"), **CUBES),
        norm(layer_norm()),
        by_class(FusionLayerNormalization),
        "wrong",
        ("layer-norm{backend=ort}", DRIVER),
        LAYER_NORM,
    ),
    "A2": WrongRewrite(
        skip_norm("LayerNormalization(s, g, b)"),
        skip_norm(),
        BY_SKIP_NORM,
        "wrong",
        ("skip-layer-norm{backend=ort}", DRIVER),
        SKIP_NORM,
        fates=("right", "undone"),
    ),
    "A3": WrongRewrite(
        skip_norm("LayerNormalization<epsilon = 1e-5>(s, g)"),
        skip_norm(),
        BY_SKIP_NORM,
        "raises IndexError",
        ("skip-layer-norm{backend=ort}", DRIVER),
        SKIP_NORM,
        fates=("right", "left"),
    ),
    "A4-axis": WrongRewrite(
        norm(rms_norm(mean="axes = [1], keepdims = 1"), **CUBES), norm(rms_norm()), BY_RMS, "wrong", RMS_CHAINS, RMS
    ),
    "A4-product": WrongRewrite(
        norm(rms_norm("Mul(x, x)")), norm(rms_norm()), BY_RMS, "raises TypeError", RMS_CHAINS, RMS, fates=("left", "left")
    ),
    "A4-output": WrongRewrite(
        norm(rms_norm(inverse="z = Div(one, r) q = Mul(x, z)"), outputs="float[N, S, 8] y, float[N, S, 1] z"),
        norm(rms_norm()),
        BY_RMS,
        "does not load",
        RMS_CHAINS,
        RMS,
    ),
    # Positions that a table gives in another order.
    "E1": WrongRewrite(
        five_tokens(SLICED.replace("every", "backwards")),
        five_tokens(SLICED),
        by_class(FusionEmbedLayerNormalization),
        "wrong",
        ("embed-layer-norm{backend=ort}",),
        ("com.microsoft::EmbedLayerNormalization",),
    ),
    # By the session optimizers: dimensions that are not kept, and a gamma that widens the result.
    "T8-axes-dropped": WrongRewrite(
        norm(layer_norm("axes = [-1], keepdims = 0"), **SQUARES),
        norm(layer_norm()),
        by_session("LayerNormFusionL1", "LayerNormFusionL2"),
        "wrong",
        ("layer-norm{backend=ort}", DRIVER),
        LAYER_NORM,
    ),
    "T8-widening": WrongRewrite(
        norm(rms_norm(inverse="q = Div(x, r)"), inputs="float[1, 1] x", outputs="float[1, 8] y"),
        norm(rms_norm(inverse="q = Div(x, r)")),
        by_session("SimplifiedLayerNormFusion"),
        "does not run",
        RMS_CHAINS,
        RMS,
    ),
}

ALPHA = "float alpha = {1.702}"
CLIP = graph("m = Mul(x, alpha) s = Sigmoid(m) y = Mul(x, s)", ALPHA)
WITH_Z = "float[N, S, 8] x, float[N, S, 8] z"
BY_QUICK_GELU = by_class(FusionQuickGelu)
QUICK_GELU = ("com.microsoft::QuickGelu",)
QUICK_CHAINS = ("quick-gelu{backend=ort}", DRIVER)
ERF_GELU = graph(TORCH, NUMBERS)
GELU = ("Gelu", "com.microsoft::Gelu")
BRANCHES = (
    "z = If(flag) <then_branch = t () => (float[N, S, 8] p) { p = Neg(g) },"
    "else_branch = f () => (float[N, S, 8] q) { q = Abs(g) }>"
)
SQUARE = "float[8, 8] w = {" + ", ".join(str(((5 * n) % 9 - 4) / 4) for n in range(64)) + "}"
BIAS = "float[8] b = {0.5, -1.0, 2.0, 0.0, 0.25, -0.5, 1.5, -2.0}"
WITH_W = "float[N, S, 8] x, float[8, 8] w"

ACTIVATIONS = {
    "A5": WrongRewrite(
        graph(TORCH.replace("e = ", "z = ").replace("(e,", "(z,"), NUMBERS, outputs=TWO),
        ERF_GELU,
        by_class(FusionGelu),
        "does not load",
        ("gelu{backend=ort}", DRIVER),
        GELU,
        fates=("left", "left"),
    ),
    "A6-factor": WrongRewrite(
        graph("m = Mul(x, z) s = Sigmoid(m) y = Mul(x, s)", inputs=WITH_Z),
        CLIP,
        BY_QUICK_GELU,
        "raises AttributeError",
        QUICK_CHAINS,
        QUICK_GELU,
        fates=("left", "left"),
    ),
    "A6-shared": WrongRewrite(
        graph("m = Mul(x, alpha) s = Sigmoid(m) y = Mul(x, s) z = Neg(s)", ALPHA, outputs=TWO),
        CLIP,
        BY_QUICK_GELU,
        "raises RuntimeError",
        QUICK_CHAINS,
        QUICK_GELU,
    ),
    "A18": WrongRewrite(
        graph(
            CUBE + "m = Mul(x, a) y = Mul(m, half)",
            CONSTANTS.replace("0.044715", "0.054").replace("0.7978845608028654", "0.807"),
        ),
        graph(CUBE + "m = Mul(x, a) y = Mul(m, half)", CONSTANTS),
        by_class(FusionFastGelu),
        "wrong",
        ("fast-gelu{backend=ort}", DRIVER),
        ("com.microsoft::FastGelu",),
    ),
    "A19": WrongRewrite(
        graph(
            "t = MatMul(w, x) y = com.microsoft.FastGelu(t)",
            SQUARE,
            inputs="float[8, 8] x",
            outputs="float[8, 8] y",
        ),
        ERF_GELU,
        by_class(FusionGemmFastGelu),
        "does not load",
        ("ort-transformers{model_type=bert, also=[gemm_fast_gelu]}",),
        GELU,
    ),
    "A20": WrongRewrite(
        graph(
            f"{TORCH.replace('y =', 'g =')} {BRANCHES} y = Neg(z)",
            NUMBERS,
            inputs="float[N, S, 8] x, bool flag",
        ),
        ERF_GELU,
        by_class(FusionGelu),
        "is not in order",
        ("gelu{backend=ort}", DRIVER),
        GELU,
        fates=("right", "right"),
    ),
    "A24": WrongRewrite(
        graph('t = MatMul(x, w) s = Add(t, b) y = Gelu<approximate = "tanh">(s)', BIAS, inputs=WITH_W, opset=20),
        graph("t = MatMul(x, w) s = Add(t, b) y = Gelu(s)", BIAS, inputs=WITH_W, opset=20),
        by_class(lambda model: FusionBiasGelu(model, is_fastgelu=False)),
        "wrong",
        ("bias-gelu{backend=ort}", DRIVER),
        ("com.microsoft::BiasGelu",),
        fates=("right", "undone"),
    ),
}

TURNED = {"inputs": "float[4, 4, 4] x", "outputs": "float[4, 4, 4] y"}
BY_FOLD = by_class(FusionConstantFold)
FOLD_CHAINS = ("constant-folding{backend=ort}", DRIVER)
TRANSPOSES = {
    "A7": WrongRewrite(
        graph(
            "a = Transpose<perm = [1, 2, 0]>(x) c = Transpose<perm = [1, 2, 0]>(a) y = Neg(c)",
            inputs="float[4, 4, 4] x",
            outputs="float[4, 4, 4] y",
        ),
        graph(
            "a = Transpose<perm = [2, 1, 0]>(x) c = Transpose<perm = [2, 1, 0]>(a) y = Neg(c)",
            inputs="float[4, 4, 4] x",
            outputs="float[4, 4, 4] y",
        ),
        BY_FOLD,
        "wrong",
        ("identity-elimination{backend=ort}", DRIVER),
        fates=("left", "undone"),
    ),
    "A8": WrongRewrite(
        graph("t = Transpose<perm = [1, 0]>(w) k = MatMul(x, t) r = Transpose<perm = [1, 0]>(w) y = MatMul(k, r)", SQUARE),
        graph("t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t)", SQUARE),
        BY_FOLD,
        "wrong",
        FOLD_CHAINS,
        gone=("Transpose",),
        fates=("right", "undone"),
    ),
    "A9": WrongRewrite(
        graph("t = Transpose<perm = [1, 0]>(w) y = Gemm<transB = 1>(x, t, b)", f"{SQUARE}, {BIAS}", **FLAT),
        graph("t = Transpose<perm = [1, 0]>(w) y = Gemm(x, t, b)", f"{SQUARE}, {BIAS}", **FLAT),
        BY_FOLD,
        "wrong",
        FOLD_CHAINS,
        gone=("Transpose",),
        fates=("right", "undone"),
    ),
}
