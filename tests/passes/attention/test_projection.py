"""Queries, keys and values as columns of packed weights, in every order in which models keep them."""

from itertools import permutations

import numpy as np
import pytest
from attention_graph import Basic, Graph, assert_fused, assert_refused, count, fuse
from onnx import numpy_helper

from rewright.passes.fusion.attention import Attention

HEADS, SIZE, WIDTH = 2, 4, 6
PARTS = {"three": 3, "heads": HEADS, "size": SIZE}
TURN = [0, 1, 3, 2]


def attended(g, q, k, v, scale=0.5):
    scores = g("Mul", g("MatMul", q, g("Transpose", k, perm=TURN)), g.array(scale))
    g.output(g.merged(g("MatMul", g("Softmax", scores, axis=-1), v), HEADS * SIZE), 3)
    return g.model()


def packed(g, order=("three", "heads", "size"), bias=True):
    """x times all weights as (B, S, *order), and the axes' names."""
    x = g.input("x", "B", "S", WIDTH)
    product = g("MatMul", x, g.weight(WIDTH, 3 * HEADS * SIZE))
    product = g("Add", product, g.weight(3 * HEADS * SIZE)) if bias else product
    return g("Reshape", product, g.ints(0, 0, *(PARTS[name] for name in order))), ["batch", "sequence", *order]


def taken(g, value, axis, form):
    """The three parts along an axis of length 3."""
    if form == "gather":
        return [g("Gather", value, g.array(index, np.int64), axis=axis) for index in range(3)]
    if form == "split":
        return [g.squeeze(part, axis) for part in g.split(value, axis, 1, 1, 1)]
    slices = [g("Slice", value, g.ints(index), g.ints(index + 1), g.ints(axis)) for index in range(3)]
    return [g.squeeze(part, axis) for part in slices]


def packs(after):
    """One Attention, and nothing left of what took the weights apart."""
    return [node.op_type for node in after.proto.graph.node] == ["Attention"]


@pytest.mark.parametrize("form", ["gather", "split", "slice"])
@pytest.mark.parametrize("order", list(permutations(PARTS)), ids="-".join)
def test_interleavings(order, form):
    g = Graph()
    value, names = packed(g, order)
    axis = names.index("three")
    left = [name for name in names if name != "three"]
    perm = [left.index(name) for name in ("batch", "heads", "sequence", "size")]
    model = attended(g, *(g("Transpose", part, perm=perm) for part in taken(g, value, axis, form)))
    assert packs(assert_fused(model, Attention()))


@pytest.mark.parametrize("form", ["gather", "split", "slice"])
@pytest.mark.parametrize("order", list(permutations(PARTS)), ids="-".join)
def test_transposed_before_it_is_taken_apart(order, form):
    g = Graph()
    value, names = packed(g, order, bias=False)
    perm = [names.index(name) for name in ("three", "batch", "heads", "sequence", "size")]
    model = attended(g, *taken(g, g("Transpose", value, perm=perm), 0, form))
    assert packs(assert_fused(model, Attention()))
    assert_fused(model)


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("form", ["split", "slice", "negative slice"])
def test_taken_apart_before_the_heads(opset, form):
    g = Graph(opset)
    x, width = g.input("x", "B", "S", WIDTH), HEADS * SIZE
    product = g("Add", g("MatMul", x, g.weight(WIDTH, 3 * width)), g.weight(3 * width))
    if form == "split":
        parts = g.split(product, -1, width, width, width)
    elif form == "slice":
        ends = (width, 2 * width, 2**62)
        parts = [g("Slice", product, g.ints(i * width), g.ints(ends[i]), g.ints(2), g.ints(1)) for i in range(3)]
    else:
        ends = (-2 * width, -width, 2**62)
        parts = [g("Slice", product, g.ints((i - 3) * width), g.ints(ends[i]), g.ints(-1)) for i in range(3)]
    model = attended(g, *(g.heads(part, HEADS, SIZE) for part in parts))
    assert packs(assert_fused(model, Attention()))
    assert_fused(model)


def test_heads_outside_of_the_three():
    """(N, 3 x H) is split within each head."""
    g = Graph()
    x = g.input("x", "B", "S", WIDTH)
    product = g("MatMul", x, g.weight(WIDTH, 3 * HEADS * SIZE))
    rows = g("Transpose", g("Reshape", product, g.ints(0, 0, HEADS, 3 * SIZE)), perm=[0, 2, 1, 3])
    model = attended(g, *g.split(rows, 3, SIZE, SIZE, SIZE))
    assert packs(assert_fused(model, Attention()))
    assert_fused(model)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_parts_in_another_order(order):
    g = Graph()
    value, _ = packed(g)
    parts = taken(g, g("Transpose", value, perm=[2, 0, 3, 1, 4]), 0, "gather")
    assert packs(assert_fused(attended(g, *(parts[index] for index in order)), Attention()))


def test_one_part_twice():
    g = Graph()
    value, _ = packed(g)
    parts = taken(g, g("Transpose", value, perm=[2, 0, 3, 1, 4]), 0, "gather")
    assert_fused(attended(g, parts[0], parts[0], parts[2]), Attention())


@pytest.mark.parametrize("biases", ["", "q", "qv", "k", "qkv"])
@pytest.mark.parametrize("op", ["MatMul", "Gemm", "transposed Gemm"])
def test_separate_projections(op, biases):
    g = Graph()
    x, width = g.input("x", "B", "S", WIDTH), HEADS * SIZE
    shape = g("Concat", g.dim("x", 0), g.dim("x", 1), g.ints(HEADS, SIZE), axis=0)
    flat, operands = g("Reshape", x, g.ints(-1, WIDTH)), []
    for role in "qkv":
        bias = [g.weight(width)] if role in biases else []
        if op == "MatMul":
            rows = g("MatMul", x, g.weight(WIDTH, width))
            rows = g("Add", bias[0], rows) if bias else rows
        elif op == "Gemm":
            rows = g("Gemm", flat, g.weight(WIDTH, width), *bias)
        else:
            rows = g("Gemm", flat, g.weight(width, WIDTH), *bias, transB=1)
        operands.append(g("Transpose", g("Reshape", rows, shape), perm=[0, 2, 1, 3]))
    model = attended(g, *operands)
    assert_fused(model, Attention())
    assert_fused(model)


@pytest.mark.parametrize("change", ["transA", "alpha", "beta"])
def test_a_gemm_that_does_more(change):
    g = Graph()
    x = g.input("x", 6, 6)
    more = {"transA": {"transA": 1}, "alpha": {"alpha": 0.5}, "beta": {"beta": 2.0}}[change]
    operands = []
    for _ in range(3):
        rows = g("Gemm", x, g.weight(6, HEADS * SIZE), g.weight(HEADS * SIZE), **more)
        operands.append(g("Transpose", g("Reshape", rows, g.ints(1, 6, HEADS, SIZE)), perm=[0, 2, 1, 3]))
    model = attended(g, *operands)
    _, after = fuse(model, Attention())
    assert_fused(model, Attention(), expected=count(after))  # either is right, if the numbers are
    assert_fused(model)


def test_values_of_another_size():
    g = Graph()
    x = g.input("x", "B", "S", WIDTH)
    q, k = (g.heads(g("MatMul", x, g.weight(WIDTH, HEADS * SIZE)), HEADS, SIZE) for _ in range(2))
    v = g.heads(g("MatMul", x, g.weight(WIDTH, HEADS * 3)), HEADS, 3)
    probabilities = g("Softmax", g("MatMul", q, g("Transpose", k, perm=TURN)), axis=-1)
    g.output(g.merged(g("MatMul", probabilities, v), HEADS * 3), 3)
    assert packs(assert_fused(g.model(), Attention()))
    assert_fused(g.model())


@pytest.mark.parametrize("scaled", ["q", "k", "v"])
def test_a_scale_on_one_projection(scaled):
    g = Graph()
    x, operands = g.input("x", "B", "S", WIDTH), []
    for role in "qkv":
        rows = g("Add", g("MatMul", x, g.weight(WIDTH, HEADS * SIZE)), g.weight(HEADS * SIZE))
        rows = g("Div", rows, g.array(3.0)) if role == scaled else rows
        operands.append(g.heads(rows, HEADS, SIZE))
    model = attended(g, *operands)
    if scaled == "v":
        assert_refused(model, "the values are scaled", Attention())
    else:
        assert packs(assert_fused(model, Attention()))
    assert_fused(model)


@pytest.mark.parametrize("role", ["q", "k", "v"])
def test_another_source(role):
    """Of the same shape, but another value."""
    g = Graph()
    g.input("x", "B", "S", WIDTH)
    g.input("z", "B", "S", WIDTH)
    operands = (g.heads(g("MatMul", "z" if r == role else "x", g.weight(WIDTH, HEADS * SIZE)), HEADS, SIZE) for r in "qkv")
    model = attended(g, *operands)
    assert_refused(model, "projected from different values", Attention())
    assert_fused(model)


def test_weights_that_are_not_constant():
    g = Graph()
    x = g.input("x", "B", "S", WIDTH)
    weights = [g.input(f"w{role}", WIDTH, HEADS * SIZE) for role in "qkv"]
    model = attended(g, *(g.heads(g("MatMul", x, weight), HEADS, SIZE) for weight in weights))
    assert_refused(model, "not projected by constant weights", Attention())
    assert_fused(model)


def test_packed_weights_that_are_in_order_are_not_copied():
    g = Graph()
    value, _ = packed(g)
    model = attended(g, *taken(g, g("Transpose", value, perm=[2, 0, 3, 1, 4]), 0, "gather"))
    after = assert_fused(model, Attention())
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.proto.graph.initializer}
    assert weights.keys() >= {"c0"}


def test_keys_that_heads_share():
    """(N + 2) x H columns: one head of keys and values for all queries."""
    g = Graph()
    x = g.input("x", "B", "S", WIDTH)
    product = g("MatMul", x, g.weight(WIDTH, (HEADS + 2) * SIZE))
    rows, k, v = g.split(product, 2, HEADS * SIZE, SIZE, SIZE)
    model = attended(g, g.heads(rows, HEADS, SIZE), g.unsqueeze(k, 1), g.unsqueeze(v, 1))
    assert_refused(model, "not projected by constant weights", Attention())
    assert_fused(model)


def test_one_value_is_all_three():
    g = Basic(keys="S")
    g.output(g.merged(g("MatMul", g("Softmax", g("MatMul", g.q, g("Transpose", g.q, perm=TURN)), axis=-1), g.q), 8), 3)
    assert_fused(g.model())
