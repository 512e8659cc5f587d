"""Attentions and image blocks that ONNX Runtime is known to rewrite wrongly, each with one that it rewrites rightly."""

from __future__ import annotations

import numpy as np
from blocks import LOWEST, Block, Graph
from onnx import ModelProto, TensorProto
from onnxruntime.transformers.fusion_attention_vae import FusionAttentionVae
from onnxruntime.transformers.fusion_group_norm import FusionGroupNorm
from onnxruntime.transformers.fusion_layernorm import FusionLayerNormalizationNCHW
from onnxruntime.transformers.fusion_options import AttentionMaskFormat
from onnxruntime.transformers.fusion_skiplayernorm import FusionSkipLayerNormalization
from ort_directly import by_attention, by_class, in_turn
from test_normalization_tables import VECTOR
from wrong_rewrites import DRIVER, ERF_GELU, GELU, LAYER_NORM, WrongRewrite, norm

ATTENTION = ("com.microsoft::Attention",)
ATTENTION_CHAINS = ("attention{backend=ort}", DRIVER)
MASKED = Block(mask="additive").model
RAW, INDEX = AttentionMaskFormat.AttentionMask, AttentionMaskFormat.MaskIndexEnd


def bert(becomes="wrong", directly=None, right=MASKED, chains=ATTENTION_CHAINS, fates=("undone", "undone"), **knobs):
    work = directly or by_attention(mask=RAW)
    return WrongRewrite(Block(**knobs).model, right, work, becomes, chains, ATTENTION, fates=fates)


def bart(mask: bool) -> ModelProto:
    """BART's encoder as TorchScript writes it: the query scaled before the heads are split, a key without bias."""
    made = Graph(17)
    x = made(
        "LayerNormalization", made.input("x", "batch", "sequence", 8), made.weight("g", 8), made.weight("h", 8), epsilon=1e-5
    )

    def heads(value: str, perm: list[int]) -> str:
        return made("Transpose", made("Reshape", value, made.const([0, 0, 2, 4], np.int64)), perm=perm)

    query = made("Mul", made("Add", made.weight("bq", 8), made("MatMul", x, made.weight("wq", 8, 8))), made.const(0.5))
    key = made("MatMul", x, made.weight("wk", 8, 8))
    value = made("Add", made.weight("bv", 8), made("MatMul", x, made.weight("wv", 8, 8)))
    scores = made("MatMul", heads(query, [0, 2, 1, 3]), heads(key, [0, 2, 3, 1]))
    if mask:
        wide = made.unsqueeze(made.input("mask", "batch", "sequence", elem_type=TensorProto.INT64), 1, 2)
        masked = made("Equal", wide, made.const(0, np.int64))
        scores = made("Add", scores, made("Where", masked, made.const(LOWEST), made.const(0.0)))
    context = made("MatMul", made("Softmax", scores, axis=-1), heads(value, [0, 2, 1, 3]))
    merged = made("Reshape", made("Transpose", context, perm=[0, 2, 1, 3]), made.const([0, 0, 8], np.int64))
    added = made("Add", x, made("Add", made.weight("bo", 8), made("MatMul", merged, made.weight("wo", 8, 8))))
    made("LayerNormalization", added, made.weight("k", 8), made.weight("l", 8), out="y", epsilon=1e-5)
    return made.model({"y": (TensorProto.FLOAT, 3)})


def vae(biases: bool) -> ModelProto:
    """Attention over the six pixels of (batch, 8, 2, 3) with one head, as a VAE's decoder has it."""
    made = Graph(17)
    x = made.input("x", "batch", 8, 2, 3)
    rows = made("Transpose", made("Reshape", x, made.const([0, 8, -1], np.int64)), perm=[0, 2, 1])

    def heads(name: str) -> str:
        bias = made.weight(f"b{name}", 8, spread=1.0 if biases else 0.0)
        projected = made("Add", bias, made("MatMul", rows, made.weight(f"w{name}", 8, 8)))
        split = made("Transpose", made("Reshape", projected, made.const([0, -1, 1, 8], np.int64)), perm=[0, 2, 1, 3])
        return made("Reshape", split, made.const([-1, 6, 8], np.int64))

    query, key, value = (heads(name) for name in "qkv")
    scores = made("Mul", made("MatMul", query, made("Transpose", key, perm=[0, 2, 1])), made.const(8**-0.5))
    context = made("MatMul", made("Softmax", made("Add", scores, made.const(0.0)), axis=-1), value)
    split = made("Transpose", made("Reshape", context, made.const([-1, 1, 6, 8], np.int64)), perm=[0, 2, 1, 3])
    merged = made("Reshape", split, made.const([0, -1, 8], np.int64))
    out = made("Add", made("MatMul", merged, made.weight("wo", 8, 8)), made.weight("bo", 8))
    back = made("Reshape", made("Transpose", out, perm=[0, 2, 1]), made.const([-1, 8, 2, 3], np.int64))
    made("Add", back, x, out="y")
    return made.model({"y": (TensorProto.FLOAT, 4)})


def causal() -> ModelProto:
    """A block that sees no later positions: (1, 1, S, S) of GreaterOrEqual, expanded, as Transformers 5 exports it."""
    model = ModelProto()
    model.CopyFrom(Block(causal="q>=k", fill=LOWEST).model)
    made = Graph(17)
    length = made("Gather", made("Shape", "x"), made.const(1, np.int64))
    row = made("Range", made.const(0, np.int64), length, made.const(1, np.int64))
    wide = made.unsqueeze(made.unsqueeze(row, 0), 0)
    seen = made("GreaterOrEqual", made.unsqueeze(wide, 3), made.unsqueeze(wide, 2))
    made("Expand", seen, made.const([1, 1, 1, 1], np.int64), out="seen")
    _prefix(made, "seen/", kept=("x", "seen"))
    for node in model.graph.node:
        if node.op_type == "Where":
            node.input[0] = "seen"
    nodes = [node for node in model.graph.node if node.op_type not in ("GreaterOrEqual", "Range", "Squeeze")]
    place = next(number for number, node in enumerate(nodes) if node.op_type == "Where")
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:place], *made.nodes, *nodes[place:]])
    model.graph.initializer.extend(made.initializers)
    used = {name for node in model.graph.node for name in node.input}
    for unused in [node for node in model.graph.node if not used & set(node.output) and "y" not in node.output]:
        model.graph.node.remove(unused)
    return model


def _prefix(made: Graph, prefix: str, kept: tuple[str, ...]) -> None:
    for node in made.nodes:
        for names in (node.input, node.output):
            names[:] = [name if name in kept else prefix + name for name in names]
        node.name = prefix + node.name
    for tensor in made.initializers:
        tensor.name = prefix + tensor.name


ATTENTIONS = {
    "A10-times-1": bert(scale=1.0, mask="additive"),
    "A10-by-8": bert(scale=1 / 8),
    "A10-over-heads": bert(softmax_axis=1),
    "A11": bert(
        directly=by_attention(),
        right=Block().model,
        chains=("attention{backend=ort, mask=index}", f"{DRIVER[:-1]}, mask=index}}"),
        mask="additive",
    ),
    # A fused op beside what makes the probabilities is left out.
    "A12": bert("raises RuntimeError", fates=("left", "undone"), mask="additive", outputs=("probabilities",)),
    "A13": bert(
        directly=by_attention(heads=1, mask=RAW),
        chains=(
            "attention{backend=ort, heads=1, hidden_size=8}",
            f"{DRIVER[:-1]}, heads=1, hidden_size=8}}",
        ),
        split="heads",
        mask="additive",
    ),
    "A14": WrongRewrite(
        bart(True),
        bart(False),
        in_turn(by_class(FusionSkipLayerNormalization), by_attention(heads=2, bart=True)),
        "wrong",
        (
            "attention{backend=ort}",
            "ort-transformers{model_type=bart, level=none, heads=2, hidden_size=8}",
        ),
        ATTENTION,
    ),
    "A15": WrongRewrite(
        vae(True),
        vae(False),
        by_class(lambda model: FusionAttentionVae(model, 8, 1)),
        "wrong",
        ("ort-transformers{model_type=vae, level=none, heads=1, hidden_size=8}",),
        ATTENTION,
    ),
    "T3": WrongRewrite(causal(), MASKED, by_attention(mask=RAW), "wrong", ATTENTION_CHAINS, ATTENTION),
}


def channels(bias: str) -> ModelProto:
    """A normalisation over the channels of (2, 8, 2, 3)."""
    return norm(
        "m = ReduceMean<axes = [1]>(x) d = Sub(x, m) p = Pow(d, two) k = ReduceMean<axes = [1]>(p) e = Add(k, small) r = Sqrt(e) "
        f"q = Div(d, r) w4 = Constant<value = float[8, 1, 1] {VECTOR}>() b4 = Constant<value = float[8, 1, 1] {bias}>() "
        "n = Mul(q, w4) y = Add(n, b4)",
        inputs="float[N, 8, 2, 3] x",
        outputs="float[N, 8, 2, 3] y",
    )


def group_norm(convolved: bool) -> ModelProto:
    """GroupNorm in four groups of (batch, 8, 4, 4), a convolution or none, and x * sigmoid(x)."""
    made = Graph(17)
    x = made.input("x", "batch", 8, 4, 4)
    grouped = made("Reshape", x, made.const([0, 4, -1], np.int64))
    normed = made("InstanceNormalization", grouped, made.const(np.ones(4)), made.const(np.zeros(4)), epsilon=1e-5)
    scaled = made("Mul", made("Reshape", normed, made("Shape", x)), made.weight("g", 8, 1, 1))
    value = made("Add", scaled, made.weight("h", 8, 1, 1))
    if convolved:
        value = made("Conv", value, made.weight("w", 8, 8, 3, 3), pads=[1, 1, 1, 1])
    made("Mul", value, made("Sigmoid", value), out="y")
    return made.model({"y": (TensorProto.FLOAT, 4)})


IMAGES = {
    # The op that takes its place has no kernel for CPUs, right or wrong; what it does to the convolution is looked at by itself.
    "A17": WrongRewrite(
        group_norm(convolved=True),
        ERF_GELU,
        by_class(FusionGroupNorm),
        "does not load",
        ("ort-transformers{model_type=unet, level=none, also=[group_norm]}",),
        GELU,
    ),
    "A16": WrongRewrite(
        channels("{0.1, -0.2, 0.3, 0.0, -0.1, 0.2, 0.5, -0.4}"),
        channels(VECTOR),
        by_class(FusionLayerNormalizationNCHW),
        "wrong",
        ("ort-transformers{model_type=sam2, level=none}",),
        LAYER_NORM,
    ),
}
