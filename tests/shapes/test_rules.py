"""The dimensions that each op gives, from small models in text."""

from __future__ import annotations

import numpy as np
import pytest
from fact_check import facts_of, violations
from onnx import parser

HEADER = '<ir_version: 9, opset_import: ["" : {opset}, "com.microsoft" : 1]>'


def model(body, inputs="float[b, s, 6] x", constants="", opset=18):
    header = HEADER.format(opset=opset)
    return parser.parse_model(f"{header} g ({inputs}) => (y) {f'<{constants}>' if constants else ''} {{ {body} }}")


IDIOMS = {
    "reshape-copies-and-infers": ("y = Reshape(x, t)", "int64[4] t = {0, 0, 2, -1}", ("b", "s", 2, 3)),
    "reshape-to-one-axis": ("y = Reshape(x, t)", "int64[1] t = {-1}", ("6*b*s",)),
    "flatten": ("y = Flatten<axis = 2>(x)", "", ("b*s", 6)),
    "last-two-of-a-shape": (
        "t = Transpose<perm = [0, 2, 1]>(x) h = Shape(x) d = Slice(h, m2, m1) c = Concat<axis = 0>(m1, d, i6) y = Reshape(t, c)",
        "int64[1] m2 = {-2}, int64[1] m1 = {-1}, int64[1] i6 = {6}",
        ("b", "s", 6),
    ),
    "expand-with-ones-for-minus-one": (
        "h = Shape(x) e = Equal(w, m1) o = ConstantOfShape<value = int64[1] {1}>(r) f = Where(e, o, w) y = Expand(x, f)",
        "int64[3] w = {-1, 1, 6}, int64 m1 = {-1}, int64[1] r = {3}",
        ("b", "s", 6),
    ),
    "exact-division": (
        "h = Shape(x) d = Gather(h, i1) n = Mul(d, k) q = Div(n, k) v = Unsqueeze(q, z) c = Concat<axis = 0>(m1, v) "
        "y = Reshape(x, c)",
        "int64 i1 = {1}, int64 k = {16}, int64[1] z = {0}, int64[1] m1 = {-1}",
        ("6*b", "s"),
    ),
    "floor-division": (
        "h = Shape(x) d = Gather(h, i1) q = Div(d, k) v = Unsqueeze(q, z) y = ConstantOfShape(v)",
        "int64 i1 = {1}, int64 k = {2}, int64[1] z = {0}",
        ("floor(s/2)",),
    ),
    "range-of-a-dimension": (
        "h = Shape(x) d = Gather(h, i1) y = Range(z, d, k)",
        "int64 i1 = {1}, int64 k = {2}, int64 z = {0}",
        ("floor((s + 1)/2)",),
    ),
    "slice-to-the-last-but-one": (
        "y = Slice(x, z, m1, o)",
        "int64[1] z = {0}, int64[1] m1 = {-1}, int64[1] o = {1}",
        ("b", "max(s - 1, 0)", 6),
    ),
    "reversed-slice": (
        "y = Slice(x, m1, e, o, m1)",
        "int64[1] e = {-9223372036854775808}, int64[1] m1 = {-1}, int64[1] o = {1}",
        ("b", "s", 6),
    ),
    "positions": (
        "h = Shape<start = 1, end = 2>(x) p = Slice(w, z, h, o) y = Add(x, p)",
        "int64[1] z = {0}, int64[1] o = {1}, float[1, 4, 1] w = {1, 1, 1, 1}",
        ("b", "s", 6),
    ),
    "attention-scores": ("t = Transpose<perm = [0, 2, 1]>(x) m = MatMul(x, t) y = Softmax(m)", "", ("b", "s", "s")),
    "mean-over-an-axis": ("y = ReduceMean<keepdims = 0>(x, o)", "int64[1] o = {1}", ("b", 6)),
    "padding": ("y = Pad(x, p)", "int64[6] p = {0, 1, 0, 0, 2, 0}", ("b", "s + 3", 6)),
    "even-parts": ("y, z = Split<axis = 2, num_outputs = 2>(x)", "", ("b", "s", 3)),
    "tiles": ("y = Tile(x, p)", "int64[3] p = {1, 2, 1}", ("b", "2*s", 6)),
    "joined": ("y = Concat<axis = 1>(x, x)", "", ("b", "2*s", 6)),
    "joined-shifted": (
        "t = Slice(x, o, e, o) y = Concat<axis = 1>(x, t)",
        "int64[1] o = {1}, int64[1] e = {9223372036854775807}",
        ("b", "max(s - 1, 0) + s", 6),
    ),
    "pooling": ("y = MaxPool<kernel_shape = [3], strides = [2], pads = [1, 1]>(x)", "", ("b", "s", 3)),
    "gathered": ("y = Gather<axis = 2>(x, g)", "int64[2, 2] g = {0, 1, 2, 3}", ("b", "s", 2, 2)),
    "einsum": ('y = Einsum<equation = "bsd,btd->bst">(x, x)', "", ("b", "s", "s")),
    "layer-norm": ("y, m = LayerNormalization(x, w)", "float[6] w = {1, 1, 1, 1, 1, 1}", ("b", "s", 6)),
    "counted-ones": ("n = NonZero(x) y = Transpose(n)", "", ("unk__", 3)),
}


@pytest.mark.parametrize("name", IDIOMS)
def test_dimensions(name):
    body, constants, expected = IDIOMS[name]
    found = facts_of(model(body, constants=constants))["y"]
    assert found is not None
    assert tuple("unk__" if str(dim).startswith("unk__") else dim for dim in found) == expected


MICROSOFT = {
    "Gelu(x)": ("b", "s", 6),
    "BiasGelu(x, w)": ("b", "s", 6),
    "FastGelu(x)": ("b", "s", 6),
    "QuickGelu(x)": ("b", "s", 6),
    "SkipLayerNormalization(x, x, w, w)": ("b", "s", 6),
    "SkipSimplifiedLayerNormalization(x, x, w)": ("b", "s", 6),
    "Attention<num_heads = 2>(x, p, q)": ("b", "s", 6),
    "MultiHeadAttention<num_heads = 2>(x, x, x)": ("b", "s", 6),
    "MultiHeadAttention<num_heads = 2>(x, k, k)": ("b", "s", 6),
    "EmbedLayerNormalization(i, , e, e, , w, w)": ("b", "s", 6),
}


@pytest.mark.parametrize("call", MICROSOFT)
def test_fused_ops(call):
    inputs = "float[b, s, 6] x, float[6] w, float[6, 18] p, float[18] q, float[b, 2, t, 3] k, int32[b, s] i, float[9, 6] e"
    found = facts_of(model(f"y = com.microsoft.{call}", inputs))
    assert found["y"] == MICROSOFT[call]


def test_a_contraction_names_what_had_no_name():
    found = facts_of(model("r = Reshape(x, n) z = MatMul(r, w) y = Relu(r)", "float[b, s, 6] x, int64[2] n, float[6, s] w"))
    assert found["y"] is not None
    assert found["y"][1] == 6
    assert found["z"] == (found["y"][0], "s")


def test_what_two_unknown_sizes_make_has_one_name():
    found = facts_of(model("p = Add(x, z) q = Add(z, x) y = Mul(p, q)", "float[a] x, float[b] z"))
    assert found["p"] == found["q"] == found["y"] == ("broadcast(a, b)",)


def test_a_branch_teaches_nothing_outside():
    body = """
        r = Reshape(x, n)
        y = If(c) <
            then_branch = t () => (float[?, ?] o) { o = MatMul(r, w) },
            else_branch = e () => (float[?, ?] p) { p = Identity(r) }
        >
        z = Relu(r)"""
    found = facts_of(model(body, "float[b, s, 6] x, int64[2] n, float[6, s] w, bool c"))
    assert str(found["z"][1]).startswith("unk__")


def test_the_branch_that_is_always_taken_gives_the_dimensions():
    body = """
        y = If(c) <
            then_branch = t () => (float[?, ?, ?] o) { o = Relu(x) },
            else_branch = e () => (float[?] p) { p = Reshape(x, n) }
        >"""
    assert facts_of(model(body, constants="bool c = {1}, int64[1] n = {-1}"))["y"] == ("b", "s", 6)


def test_a_concat_with_an_empty_input_proves_nothing():
    body = "e = Slice(x, z, z, z) y = Concat<axis = 1>(x, e)"
    before = model(body, constants="int64[1] z = {0}")
    assert violations(before, [{"x": np.ones((2, 3, 6), np.float32)}]) == ([], 1)
