"""From the factors of the products up to where queries, keys and values are taken up."""

import numpy as np
import pytest
from attention_graph import BOOL, FLOAT, Basic, Graph, assert_fused, assert_refused, count, fuse
from onnx import TensorProto

from rewright.passes.fusion.attention import Attention

HALF = TensorProto.FLOAT16
TURN = [0, 1, 3, 2]


def attended(g, q, k, v, turn=TURN):
    return g("MatMul", g("Softmax", g("MatMul", q, g("Transpose", k, perm=turn)), axis=-1), v)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_one_operand_that_was_shorter_is_taken_after_its_cast(name):
    g = Graph()
    operands = []
    for role in "qkv":
        x = g.input(role, "B", "S", 8, elem_type=HALF if role == name else FLOAT)
        operands.append(g.heads(g("Cast", x, to=FLOAT) if role == name else x, 2, 4))
    g.output(g.merged(attended(g, *operands), 8), 3)
    assert_fused(g.model())


def test_a_projection_of_a_value_in_another_type():
    g = Graph()
    x = g.input("x", "B", "S", 8, elem_type=HALF)
    flat = g("Cast", g("Reshape", x, g.ints(-1, 8)), to=FLOAT)
    shape = g("Concat", g.dim("x", 0), g.dim("x", 1), g.ints(2, 4), axis=0)
    rows = [g("Reshape", g("Gemm", flat, g.weight(8, 8), g.weight(8)), shape) for _ in range(3)]
    g.output(g.merged(attended(g, *(g("Transpose", row, perm=[0, 2, 1, 3]) for row in rows)), 8), 3)
    assert_refused(g.model(), "not projected by constant weights", Attention())
    assert_fused(g.model())


@pytest.mark.parametrize("training", [True, False])
def test_a_dropout_that_drops(training):
    g = Basic()
    probabilities = g("Dropout", g("Softmax", g.scores(), axis=-1), g.array(0.5), g.array(training, bool))
    g.attend(probabilities)
    if training:
        assert_refused(g.model(), "goes into Dropout")
    else:
        assert_fused(g.model())


def test_a_dropout_whose_mask_is_used():
    g = Basic()
    context, mask = g("Dropout", g("MatMul", g("Softmax", g.scores(), axis=-1), g.v), outputs=2)
    g.output(g.merged(context, 8), 3)
    g.output(mask, 4, BOOL)
    assert_fused(g.model())


@pytest.mark.parametrize("shared", ["q", "k", "v"])
def test_an_operand_of_batch_1_is_repeated(shared):
    g = Graph()
    q, k, v = (g.heads(g.input(role, 1 if role == shared else "B", "S" if role == "q" else "T", 8), 2, 4) for role in "qkv")
    g.output(g.merged(attended(g, q, k, v), 8), 3)
    assert_fused(g.model())


@pytest.mark.parametrize("perm", [[0, 2, 1, 3], [0, 1, 2, 3], [0, 3, 1, 2], [0, 3, 2, 1], [0, 1, 3, 2], [0, 2, 3, 1]])
@pytest.mark.parametrize("back", [[0, 2, 1, 3], [0, 1, 2, 3], [0, 2, 3, 1]])
def test_axes_of_equal_length_are_told_apart(perm, back):
    """Batch aside, every length is 4: nothing but the order tells heads, positions and places in a head apart."""
    g = Graph()
    operands = (g("Transpose", g("Reshape", g.input(role, "B", 4, 16), g.ints(0, 4, 4, 4)), perm=perm) for role in "qkv")
    context = g("Transpose", attended(g, *operands), perm=back)
    g.output(g("Reshape", context, g.ints(0, 4, 16)), 3)
    assert_fused(g.model())


@pytest.mark.parametrize("wrong", ["query", "value", "result"])
def test_a_head_mixed_into_positions(wrong):
    g = Graph()
    q, k, v = (g.input(role, 2, 4, 8) for role in "qkv")
    straight = {name: g.ints(2, 2, 4, 4) for name in ("query", "value")}
    q = g("Reshape", q, straight["query"]) if wrong == "query" else g.heads(q, 2, 4)
    v = g("Reshape", v, straight["value"]) if wrong == "value" else g.heads(v, 2, 4)
    context = attended(g, q, g.heads(k, 2, 4), v)
    g.output(g("Reshape", context, g.ints(2, 4, 8)) if wrong == "result" else g.merged(context, 8), 3)
    _, after = fuse(g.model())
    assert_fused(g.model(), expected=count(after))  # either is right, if the numbers are


def test_scores_and_values_on_the_other_side():
    g = Basic()
    scores = g("Transpose", g("MatMul", g.k, g("Transpose", g.q, perm=TURN)), perm=TURN)
    turned = g("Transpose", g("Softmax", scores, axis=-1), perm=TURN)
    context = g("MatMul", g("Transpose", g.v, perm=TURN), turned)
    g.output(g("Reshape", g("Transpose", context, perm=[0, 3, 1, 2]), g.ints(0, 0, 8)), 3)
    assert_fused(g.model())


def test_probabilities_summed_over_the_queries():
    g = Basic(keys="S")
    g.attend(g("Transpose", g("Softmax", g.scores(), axis=-1), perm=TURN))
    assert_refused(g.model(), "not summed over the axis of the softmax")


def test_the_softmax_runs_over_the_queries():
    """S == T: the keys times the queries, without a Transpose of the scores. The roles are exchanged, not the numbers."""
    g = Basic(keys="S")
    assert_fused(g.finish(g("MatMul", g.k, g("Transpose", g.q, perm=TURN))))


@pytest.mark.parametrize(
    ("first", "second", "result"),
    [
        ("bsnh,btnh->bnst", "bnst,btnh->bsnh", None),
        ("btnh,bsnh->sbnt", "btnh,sbnt->bshn", [0, 1, 3, 2]),
        ("ZYXW,ZVXW->XZYV", "XZYV,ZVXW->ZYXW", None),
    ],
)
def test_einsum(first, second, result):
    g = Graph()
    q, k, v = (g("Reshape", g.input(role, "B", "S" if role == "q" else "T", 8), g.ints(0, 0, 2, 4)) for role in "qkv")
    left = (k, q) if first.startswith("bt") else (q, k)
    probabilities = g("Softmax", g("Einsum", *left, equation=first), axis=-1)
    right = (v, probabilities) if second.startswith("bt") else (probabilities, v)
    context = g("Einsum", *right, equation=second)
    if result:
        g.output(context, 4)
    else:
        g.output(g("Reshape", context, g.ints(0, 0, 8)), 3)
    assert_fused(g.model())


@pytest.mark.parametrize("role", ["k", "v"])
def test_constant_keys_and_values(role):
    g = Basic(keys=3, batch=1)
    constant = g.weight(1, 2, 3, 4)
    q, k, v = g.q, constant if role == "k" else g.k, constant if role == "v" else g.v
    g.output(g.merged(attended(g, q, k, v), 8), 3)
    assert_refused(g.model(), f"the {'keys' if role == 'k' else 'values'} are constant")


def test_keys_and_values_of_two_unknown_head_sizes():
    g = Graph()
    q, k = (g.input(role, "B", 2, "S" if role == "q" else "T", "H") for role in "qk")
    v = g.input("v", "B", 2, "T", "W")
    g.output(attended(g, q, k, v), 4)
    model = g.model()
    _, after = fuse(model)
    assert_fused(model, expected=count(after), H=4, W=3)


def test_windows_of_an_image():
    """Batch and windows are one axis, of which the mask has a part."""
    g = Graph()
    parts = g("Reshape", g.input("x", "B", 4, 4, 8), g.ints(-1, 2, 2, 2, 2, 8))
    x = g("Reshape", g("Transpose", parts, perm=[0, 1, 3, 2, 4, 5]), g.ints(-1, 4, 8))
    q, k, v = (g.heads(g("Add", g("MatMul", x, g.weight(8, 8)), g.weight(8)), 2, 4) for _ in range(3))
    scores = g("Add", g("MatMul", q, g("Transpose", k, perm=TURN)), g.weight(2, 4, 4))
    masked = g("Add", g("Reshape", scores, g.ints(-1, 4, 2, 4, 4)), g.weight(1, 4, 1, 4, 4))
    probabilities = g("Softmax", g("Reshape", masked, g.ints(-1, 2, 4, 4)), axis=-1)
    g.output(g.merged(g("MatMul", probabilities, v), 8), 3)
    assert_fused(g.model())
    assert_fused(g.model(), Attention())


def test_heads_folded_into_the_batch():
    g = Graph()
    folded = []
    for role in "qkv":
        heads = g.heads(g.input(role, "B", "S", 8), 2, 4)
        folded.append(g("Reshape", heads, g("Concat", g("Mul", g.dim(role, 0), g.ints(2)), g.ints(-1, 4), axis=0)))
    bias = g("Reshape", g.input("alibi", "B", 2, 1, "S"), g("Concat", g("Mul", g.dim("q", 0), g.ints(2)), g.ints(1, -1), axis=0))
    scores = g("Add", g("MatMul", folded[0], g("Transpose", folded[1], perm=[0, 2, 1])), bias)
    context = g("MatMul", g("Softmax", scores, axis=-1), folded[2])
    shape = g("Concat", g.dim("q", 0), g.ints(2), g.dim("q", 1), g.ints(4), axis=0)
    g.output(g.merged(g("Reshape", context, shape), 8), 3)
    assert_fused(g.model())


def test_a_step_multiplies_each_column():
    g = Graph()
    x = g.input("x", "B", "S", 8)
    factor = g.array(np.linspace(-1, 1, 8))
    rows = [g("Mul", g("Add", g("MatMul", x, g.weight(8, 8)), g.weight(8)), factor) for _ in range(3)]
    g.output(g.merged(attended(g, *(g.heads(row, 2, 4) for row in rows)), 8), 3)
    assert_fused(g.model())
    assert_fused(g.model(), Attention())
