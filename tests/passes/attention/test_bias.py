"""What is added to the scores, in every extent, and values that sites share."""

import numpy as np
import pytest
from attention_graph import (
    BOOL,
    FLOAT,
    INF,
    INT64,
    Basic,
    Graph,
    assert_equal,
    assert_fused,
    assert_refused,
    assert_same,
    count,
    feeds_for,
    fuse,
)
from onnx import TensorProto, helper

from rewright.passes.fusion.multi_head_attention import MultiHeadAttention

TURN = [0, 1, 3, 2]
EXTENTS = [
    (1, 1, 1, "T"),
    (1, 2, 1, 1),
    (1, 1, "S", 1),
    ("B", 2, 1, "T"),
    ("B", 1, "S", "T"),
    ("B", 1, 1, 1),
    ("B", 2, "S", "T"),
    (2, 1, "T"),
    ("S", "T"),
    ("T",),
    (1,),
    (),
]


@pytest.mark.parametrize("dims", EXTENTS, ids=str)
@pytest.mark.parametrize("op", ["Add", "Sub"])
def test_a_bias_of_any_extent(dims, op):
    g = Basic()
    assert_fused(g.finish(g(op, g.scores(), g.input("bias", *dims))))


@pytest.mark.parametrize("dims", EXTENTS[:4], ids=str)
def test_a_selection_of_any_extent(dims):
    g = Basic()
    assert_fused(g.finish(g("Where", g.input("kept", *dims, elem_type=BOOL), g.scores(), g.array(-INF))))


def test_biases_before_and_after_a_scale():
    g = Basic()
    scores = g("Mul", g("Add", g.scores(), g.input("first", "B", 1, 1, "T")), g.array(0.25))
    assert_fused(g.finish(g("Sub", g("Mul", scores, g.array(3.0)), g.input("second", 2, "S", 1))))


@pytest.mark.parametrize("length", [1, 5])
def test_a_bias_that_may_or_may_not_broadcast(length):
    """The names of its axes are its own: at run time they are those of the scores, or 1."""
    g = Basic(batch=3)
    model = g.finish(g("Add", g.scores(), g.input("bias", 1, 1, "rows", "total")))
    _, after = fuse(model)
    assert_same(model, after, feeds_for(model, S=4, T=5, total=length, rows=1), feeds_for(model, S=5, T=5, total=5, rows=length))


def test_a_bias_that_makes_the_scores_larger():
    """One score for each query and key of batch 1, to which 3 biases are added."""
    g = Basic(batch=1)
    model = g.finish(g("Add", g.scores(), g.input("bias", 3, 1, 1, "T")))
    _, after = fuse(model)
    assert_same(model, after, feeds_for(model, S=4, T=5))


def test_a_bias_in_another_type():
    g = Basic()
    bias = g.input("bias", "B", 1, "S", "T", elem_type=TensorProto.DOUBLE)
    probabilities = g("Softmax", g("Add", g("Cast", g.scores(), to=TensorProto.DOUBLE), bias), axis=-1)
    g.attend(g("Cast", probabilities, to=FLOAT))
    assert_refused(g.model(), "'bias', has another type than queries and keys")


def encoder_and_decoder(mask):
    """Self-attention over T keys, then attention of S queries to them, with one mask."""
    g = Graph()
    x, memory = g.input("x", "B", "S", 8), g.input("memory", "B", "T", 8)
    if mask == "padding":
        kept = g("Cast", g.unsqueeze(g.input("mask", "B", "T", elem_type=INT64), 1, 2), to=FLOAT)
        bias = g("Mul", g("Sub", g.array(1.0), kept), g.array(-1e4))
    else:
        bias = g.input("bias", "B", 1, 1, "T")

    def attended(queries, keys):
        q, k, v = (g.heads(g("MatMul", value, g.weight(8, 8)), 2, 4) for value in (queries, keys, keys))
        scores = g("Add", g("MatMul", q, g("Transpose", k, perm=TURN)), bias)
        return g.merged(g("MatMul", g("Softmax", scores, axis=-1), v), 8)

    encoded = attended(memory, memory)
    g.output(attended(x, encoded), 3)
    return g.model()


@pytest.mark.parametrize("form", ["raw", "bias"])
@pytest.mark.parametrize("mask", ["padding", "bias"])
def test_sites_of_several_lengths_share_a_mask(mask, form):
    model = encoder_and_decoder(mask)
    _, after = fuse(model, MultiHeadAttention(mask=form))
    assert count(after) == 2
    assert_same(model, after, *(feeds_for(model, B=2, S=queries, T=5) for queries in (1, 3, 5)))


def test_sites_in_the_order_of_their_results():
    """The second softmax is summed first: what both share has to stand before either."""
    g = Basic()
    bias = g("Add", g("Mul", g.input("mask", "B", 1, 1, "T"), g.array(-1e4)), g.input("relative", 2, "S", "T"))
    first, second = (g("Softmax", g("Add", g.scores(), bias), axis=-1) for _ in range(2))
    g.attend(second)
    g.attend(first)
    assert_fused(g.model(), expected=2)


def test_sites_whose_batch_is_not_the_same_share_a_mask():
    """The second one has its heads in the batch, and nothing tells them apart from it."""
    g = Graph()
    bias = g.input("bias", "B", 1, 1, "S")
    q, k, v = (g.heads(g.input(role, "B", "S", 8), 2, 4) for role in "qkv")
    scores = g("Add", g("MatMul", q, g("Transpose", k, perm=TURN)), bias)
    g.output(g.merged(g("MatMul", g("Softmax", scores, axis=-1), v), 8), 3)
    folded = []
    for role in ("q2", "k2", "v2"):
        x = g.input(role, "B", 2, "S", 4)
        folded.append(g("Reshape", x, g("Concat", g("Mul", g.dim(x, 0), g.ints(2)), g.dim(x, 2), g.ints(4), axis=0)))
    product = g("MatMul", folded[0], g("Transpose", folded[1], perm=[0, 2, 1]))
    shape = g("Concat", g.dim("q2", 0), g.ints(2), g.dim("q2", 2), g.dim("q2", 2), axis=0)
    scores = g("Reshape", g("Add", g("Reshape", product, shape), bias), g("Shape", product))
    g.output(g("MatMul", g("Softmax", scores, axis=-1), folded[2]), 3)
    assert_fused(g.model(), expected=2)


def test_sites_of_two_types_share_a_mask():
    g = Graph()
    kept = g.input("kept", "B", 1, 1, "T", elem_type=BOOL)
    for name, elem_type, dtype in (("single", FLOAT, np.float32), ("half", TensorProto.FLOAT16, np.float16)):
        lengths = {"q": "S", "k": "T", "v": "T"}
        q, k, v = (g.heads(g.input(f"{name}_{role}", "B", lengths[role], 8, elem_type=elem_type), 2, 4) for role in "qkv")
        scores = g("Where", kept, g("MatMul", q, g("Transpose", k, perm=TURN)), g.array(-INF, dtype))
        g.output(g.merged(g("MatMul", g("Softmax", scores, axis=-1), v), 8), 3, elem_type)
    model = g.model()
    _, after = fuse(model, target="cuda")
    assert count(after) == 2
    assert_same(model, after, feeds_for(model, B=2, S=3, T=4), tolerance=5e-3)


def test_two_softmaxes_of_one_product():
    g = Basic()
    product = g("MatMul", g.q, g("Transpose", g.k, perm=TURN))
    for factor in (0.5, 2.0):
        g.attend(g("Softmax", g("Mul", product, g.array(factor)), axis=-1))
    model = g.model()
    _, after = fuse(model)
    assert_equal(model, after)


def branch(g, name):
    """What ``g`` holds as the body of an If, with constants of names that are its own."""
    renamed = {tensor.name: f"{name}_{tensor.name}" for tensor in g.initializers}
    for tensor in g.initializers:
        tensor.name = renamed[tensor.name]
    for node in g.nodes:
        node.input[:] = [renamed.get(value, value) for value in node.input]
    return helper.make_graph(g.nodes, name, [], g.results, g.initializers)


def test_in_a_body_that_captures():
    """Lengths are read off what the body knows, and the shape of the scores is asked for."""
    inner = Graph()
    q, k, v = (inner.heads(inner("MatMul", "x", inner.weight(8, 8)), 2, 4) for _ in range(3))
    kept = inner("Cast", inner.unsqueeze("mask", 1, 2), to=FLOAT)
    bias = inner("Mul", inner("Sub", inner.array(1.0), kept), inner.array(-1e4))
    scores = inner("Add", inner("MatMul", q, inner("Transpose", k, perm=TURN)), bias)
    length = inner("ReduceMax", inner("Cast", inner("Shape", scores), to=FLOAT), keepdims=0)
    inner.output(inner("Add", inner.merged(inner("MatMul", inner("Softmax", scores, axis=-1), v), 8), length), 3)
    other = Graph()
    other.output("x", 3)
    g = Graph()
    g.input("x", "B", "S", 8)
    g.input("mask", "B", "S", elem_type=INT64)
    condition = g.input("condition", elem_type=BOOL)
    g.output(g("If", condition, then_branch=branch(inner, "inner"), else_branch=branch(other, "other")), 3)
    model = g.model()
    session, after = fuse(model)
    assert len(session.sites) >= 1
    assert not session.rejections
    for taken in (True, False):
        assert_same(model, after, {**feeds_for(model, B=2, S=5), "condition": np.array(taken)})


def test_a_body_asks_for_the_shape_of_the_scores():
    inner, other = Graph(), Graph()
    g = Basic()
    scores = g.scores()
    inner.output(inner("Cast", inner("Shape", scores), to=FLOAT), 1)
    other.output(other("Constant", value_floats=[1.0, 2.0, 3.0, 4.0]), 1)
    condition = g.input("condition", elem_type=BOOL)
    g.output(g("If", condition, then_branch=branch(inner, "inner"), else_branch=branch(other, "other")), 1)
    g.attend(g("Softmax", scores, axis=-1))
    model = g.model()
    _, after = fuse(model)
    for taken in (True, False):
        assert_same(model, after, {**feeds_for(model, B=2, S=5, T=4), "condition": np.array(taken)})
