"""Attention outside BERT: a VAE's, heads folded into the batch, exports of other families, the operator of opset 23."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from blocks import LOWEST, Block, Graph
from judging import SHAPES, assert_equal, assert_settled, optimized, row_tests
from onnx import ModelProto, TensorProto

ZOO = Path(__file__).parent.parent / "zoo"

# Each row: a block, and how many attention ops it becomes, or what the reason against it says; None where either is right.
ROWS = {
    # CLIP's and ViT's encoder: norm first, no mask.
    "pre-norm": (Block(norm="pre"), 1),
    "pre-norm-mul": (Block(norm="pre", scale_op="Mul", split="sequence", key_layout="twice"), 1),
    "pre-norm-opset-20": (Block(norm="pre", opset=20, scale_op="Mul", scale_at="both"), 1),
    # ModernBERT's LayerNormalization has no bias; the specification's epsilon is not that of the fused ops.
    "norm-without-bias-and-epsilon": (Block(norm="post-plain", mask="add-where", fill=LOWEST), 1),
}


test_parity, test_fused, test_a_second_run_changes_nothing = row_tests(ROWS)


def vae_block(biases: bool) -> ModelProto:
    """Single-head attention over the pixels of (B, 8, height, width), residual in the image's layout."""
    graph = Graph(17)
    x = graph.input("x", "batch", 8, "height", "width")
    rows = graph("Transpose", graph("Reshape", x, graph.const([0, 8, -1], np.int64)), perm=[0, 2, 1])
    made = []
    for name in "qkv":
        projected = graph("MatMul", rows, graph.weight(f"w{name}", 8, 8))
        made.append(graph("Add", projected, graph.weight(f"b{name}", 8, spread=1.0)) if biases else projected)
    query, key, value = made
    scores = graph("MatMul", query, graph("Transpose", key, perm=[0, 2, 1]))
    scaled = graph("Mul", scores, graph.const(0.25))
    context = graph("MatMul", graph("Softmax", scaled, axis=-1), value)
    out = graph("Add", graph("MatMul", context, graph.weight("wo", 8, 8)), graph.weight("bo", 8))
    back = graph("Reshape", graph("Transpose", out, perm=[0, 2, 1]), graph("Shape", x))
    graph("Add", back, x, out="y")
    return graph.model({"y": (TensorProto.FLOAT, 4)})


@pytest.mark.parametrize("biases", [True, False])
def test_attention_of_a_vae(biases):
    model, rng = vae_block(biases), np.random.default_rng(3)
    sets = [{"x": rng.normal(size=(batch, 8, *image)).astype(np.float32)} for batch in (1, 3) for image in ((1, 1), (2, 3))]
    result = optimized(model)
    assert_equal(model, result.model, sets)
    assert_settled(result)


def folded_block(heads: int, mask: bool) -> ModelProto:
    """Heads folded into the batch before the products, as OPT and BART were once written: (B * N, S, H)."""
    graph, size = Graph(17), 8 // heads
    x = graph.input("x", "batch", "sequence", 8)

    def fold(name: str) -> str:
        projected = graph("Add", graph("MatMul", x, graph.weight(f"w{name}", 8, 8)), graph.weight(f"b{name}", 8))
        rows = graph("Transpose", graph("Reshape", projected, graph.const([0, 0, heads, size], np.int64)), perm=[0, 2, 1, 3])
        shape = graph("Concat", graph.const([-1], np.int64), graph.size(x, 1), graph.const([size], np.int64), axis=0)
        return graph("Reshape", rows, shape)

    query, key, value = fold("q"), fold("k"), fold("v")
    scores = graph("MatMul", graph("Mul", query, graph.const(0.3)), graph("Transpose", key, perm=[0, 2, 1]))
    length, heads_ = graph.size(x, 1), graph.const([heads], np.int64)
    if mask:
        given = graph.unsqueeze(graph("Cast", graph.input("mask", "batch", "sequence", elem_type=TensorProto.INT64), to=1), 1, 2)
        wide = graph("Reshape", scores, graph("Concat", graph.size(x, 0), heads_, length, length, axis=0))
        added = graph("Add", wide, graph("Mul", graph("Sub", graph.const(1.0), given), graph.const(LOWEST)))
        scores = graph("Reshape", added, graph("Concat", graph.const([-1], np.int64), length, length, axis=0))
    context = graph("MatMul", graph("Softmax", scores, axis=-1), value)
    wide = graph("Reshape", context, graph("Concat", graph.size(x, 0), heads_, length, graph.const([size], np.int64), axis=0))
    merged = graph("Reshape", graph("Transpose", wide, perm=[0, 2, 1, 3]), graph.const([0, -1, 8], np.int64))
    graph("Add", graph("MatMul", merged, graph.weight("wo", 8, 8)), x, out="y")
    return graph.model({"y": (TensorProto.FLOAT, 3)})


@pytest.mark.parametrize(("heads", "mask"), [(2, False), (2, True), (4, True)])
def test_heads_folded_into_the_batch(heads, mask):
    model = folded_block(heads, mask)
    sets = [
        {name: value for name, value in Block(mask="additive").feeds(*shape, padding).items() if mask or name != "mask"}
        for shape in SHAPES
        for padding in ("left", "row")
    ]
    result = optimized(model)
    assert_equal(model, result.model, sets)
    assert_settled(result)


EXPORTS = [
    "modernbert.dyn20.eager",
    "llama.dyn18.sdpa",
    "llama.ts17.eager",
    "gpt2.ts17.eager",
    "bert.ts17.sdpa",
    "bert.dyn23.sdpa",
]


@pytest.mark.parametrize("name", EXPORTS)
def test_exports_with_padding_of_either_side(name):
    model = onnx.load(ZOO / f"{name}.onnx")
    rng, sets = np.random.default_rng(5), []
    for batch, length, padding in ((1, 4, "left"), (3, 6, "left"), (3, 6, "right"), (3, 6, "holes")):
        mask = Block(mask="additive").feeds(batch, length, padding)["mask"]
        ids = rng.integers(3, 90, (batch, length))
        given = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": (np.arange(length) >= 2).astype(np.int64) * np.ones_like(ids),
        }
        sets.append({value.name: given[value.name] for value in model.graph.input})
    result = optimized(model)
    assert_equal(model, result.model, sets)
    assert_settled(result)


# What opset 23's Attention says in its attributes has to be in whatever stands for it.
ATTENTIONS = {
    "4-d": ("float[b,2,s,4] q, float[b,2,t,4] k, float[b,2,t,4] v", "float[b,2,s,4] y", "y = Attention(q, k, v)", (2, 2)),
    "scale": (
        "float[b,2,s,4] q, float[b,2,t,4] k, float[b,2,t,4] v",
        "float[b,2,s,4] y",
        "y = Attention<scale = 0.9>(q, k, v)",
        (2, 2),
    ),
    "causal": (
        "float[b,2,s,4] q, float[b,2,t,4] k, float[b,2,t,4] v",
        "float[b,2,s,4] y",
        "y = Attention<is_causal = 1>(q, k, v)",
        (2, 2),
    ),
    "softcap": (
        "float[b,2,s,4] q, float[b,2,t,4] k, float[b,2,t,4] v",
        "float[b,2,s,4] y",
        "y = Attention<softcap = 0.5>(q, k, v)",
        (2, 2),
    ),
    "grouped": ("float[b,4,s,4] q, float[b,2,t,4] k, float[b,2,t,4] v", "float[b,4,s,4] y", "y = Attention(q, k, v)", (4, 2)),
}


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("keys", ["same", "more"])
def test_attention_of_opset_23_as_input(name, keys):
    inputs, outputs, node, (heads, key_heads) = ATTENTIONS[name]
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 23]> g ({inputs}) => ({outputs}) {{ {node} }}')
    rng, sets = np.random.default_rng(9), []
    for batch, sequence in SHAPES:
        length = sequence if keys == "same" else sequence + 3
        shapes = {"q": (batch, heads, sequence, 4), "k": (batch, key_heads, length, 4), "v": (batch, key_heads, length, 4)}
        sets.append({key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()})
    result = optimized(model)
    assert_equal(model, result.model, sets)
    assert_settled(result)


def test_rms_normalization_of_opset_23_as_input():
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 23]> g (float[b,s,4] x, float[b,s,4] z) => (float[b,s,4] y, float[b,s,4] w)
        <float[4] g = {1.0, 2.0, 0.5, -1.0}> {
            a = Add(x, z) y = RMSNormalization(a, g) c = Add(a, z) w = RMSNormalization<axis = -1, epsilon = 0.001>(c, g)
        }"""
    )
    rng = np.random.default_rng(2)
    sets = [
        {name: (rng.normal(size=(*shape, 4)) * size).astype(np.float32) for name in "xz"}
        for shape in SHAPES
        for size in (1.0, 1e-3)
    ]
    result = optimized(model)
    assert_equal(model, result.model, sets)
    assert_settled(result)
