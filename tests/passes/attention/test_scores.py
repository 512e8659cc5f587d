"""From the softmax up to the product: what scales, shifts, selects and clamps the scores, and where numbers would change."""

import numpy as np
import pytest
from attention_graph import (
    BOOL,
    FLOAT,
    INF,
    LOWEST,
    Basic,
    Graph,
    assert_fused,
    assert_refused,
    assert_same,
    count,
    feeds_for,
    fuse,
)
from onnx import TensorProto

HALF, DOUBLE = TensorProto.FLOAT16, TensorProto.DOUBLE


def selected(g, scores, name="other", fill=-1e9):
    return g("Where", g.input(name, "B", 1, 1, "T", elem_type=BOOL), scores, g.array(fill))


@pytest.mark.parametrize("fill", [-1e9, -1e30, LOWEST, -INF])
@pytest.mark.parametrize("factor", [2.0, 0.125])
def test_a_selection_may_be_scaled_afterwards(fill, factor):
    g = Basic()
    assert_fused(g.finish(g("Mul", selected(g, g.scores(), fill=fill), g.array(factor))))


def test_a_selection_that_is_scaled_away_does_not_mask():
    g = Basic()
    assert_refused(g.finish(g("Mul", selected(g, g.scores()), g.array(1e-9))), "scaled to -1: that does not mask")


@pytest.mark.parametrize("fill", [-1e9, LOWEST, -INF])
def test_two_selections_of_one_number(fill):
    g = Basic()
    assert_fused(g.finish(selected(g, selected(g, g.scores(), "one", fill), "two", fill)))


def test_a_row_masked_by_two_numbers_is_not_uniform():
    g = Basic()
    assert_refused(g.finish(selected(g, selected(g, g.scores(), "one", -1e9), "two", -2e9)), "elsewhere another number")


@pytest.mark.parametrize("added", [-1e9, LOWEST])
@pytest.mark.parametrize("first", [True, False])
def test_a_weak_selection_beside_an_additive_mask_is_refused(added, first):
    """Key 0 is masked by the padding, the others by the selection: both by -1e9, which no lower number would keep."""
    g = Basic()
    term = g("Where", g.kept(), g.array(0.0), g.array(added))
    scores = g("Add", selected(g, g.scores()), term) if first else selected(g, g("Add", g.scores(), term))
    assert_refused(g.finish(scores), "what else is added to the scores may outweigh")


@pytest.mark.parametrize("added", [-1e4, LOWEST, -INF])
@pytest.mark.parametrize("fill", [-1e30, LOWEST, -INF])
@pytest.mark.parametrize("first", [True, False])
def test_a_number_that_absorbs_scores_is_kept_beside_an_additive_mask(fill, added, first):
    g = Basic()
    term = g("Where", g.kept(), g.array(0.0), g.array(added))
    scores = g("Add", selected(g, g.scores(), fill=fill), term) if first else selected(g, g("Add", g.scores(), term), fill=fill)
    model = g.finish(scores)
    after = assert_fused(model)
    feeds = feeds_for(model, B=2, S=3, T=2)
    feeds["mask"], feeds["other"] = np.array([[0, 1], [1, 0]]), np.array([True, False] * 2).reshape(2, 1, 1, 2)
    assert_same(model, after, feeds)


@pytest.mark.parametrize("fill", [0.0, 1.0, INF, float("nan"), -9.9e3])
def test_a_number_that_masks_nothing_is_refused(fill):
    g = Basic()
    assert_refused(g.finish(selected(g, g.scores(), fill=fill)), "only a large negative constant is sure to mask")


@pytest.mark.parametrize("fill", [-1e4, -9.9e8])
def test_a_number_within_the_reach_of_scores_masks_only_where_each_row_keeps_a_key(fill):
    g = Basic()
    assert_refused(g.finish(selected(g, g.scores(), fill=fill)), "which a score may reach")
    g = Basic(queries=4, keys=4)
    kept = g("Cast", g.array(np.tril(np.ones((4, 4)))), to=BOOL)
    assert_fused(g.finish(g("Where", kept, g.scores(), g.array(fill))))
    g = Basic(queries=4, keys=4)
    kept = g("Cast", g.array(np.tril(np.ones((4, 4)), -1)), to=BOOL)
    assert_refused(g.finish(g("Where", kept, g.scores(), g.array(fill))), "not each row is known to keep a key")


def test_an_unlike_polarity():
    g = Basic()
    masked = g("Not", g.input("other", "B", 1, 1, "T", elem_type=BOOL))
    assert_fused(g.finish(g("Where", masked, g.array(LOWEST), g.scores())))


@pytest.mark.parametrize("fill", [-1e9, LOWEST])
def test_scores_times_a_constant_mask(fill):
    g = Basic(queries=4, keys=4)
    kept = g.array(np.tril(np.ones((4, 4))))
    rest = g("Mul", g("Sub", g.array(1.0), kept), g.array(fill))
    assert_fused(g.finish(g("Add", g("Mul", g.scores(), kept), rest)))


def test_zero_times_infinity_masks_nothing():
    g = Basic(queries=4, keys=4)
    kept = g.array(np.tril(np.ones((4, 4))))
    rest = g("Mul", g("Sub", g.array(1.0), kept), g.array(-INF))
    assert_refused(g.finish(g("Add", g("Mul", g.scores(), kept), rest)), "depends on more than the head")


@pytest.mark.parametrize("least", [LOWEST, -INF])
def test_clamped_from_below_by_the_lowest_number(least):
    g = Basic()
    scores = g("Add", g.scores(), g("Where", g.kept(), g.array(0.0), g.array(-INF)))
    assert_fused(g.finish(g("Max", scores, g.array(least))))


@pytest.mark.parametrize("least", [-1e9, 0.0, float("nan")])
def test_clamped_from_below_by_another_number(least):
    g = Basic()
    assert_refused(g.finish(g("Max", g.scores(), g.array(least))), "not a product of queries and keys")


@pytest.mark.parametrize("opset", [13, 18])
def test_the_highest_score_is_subtracted(opset):
    g = Basic(opset)
    scores = g.scores()
    highest = g("ReduceMax", scores, axes=[-1]) if opset < 18 else g("ReduceMax", scores, g.ints(-1))
    assert_fused(g.finish(g("Sub", scores, highest)))


def test_the_highest_score_of_another_axis_is_subtracted():
    g = Basic()
    turned = g("Transpose", g.scores(), perm=[0, 1, 3, 2])
    shifted = g("Sub", turned, g("ReduceMax", turned, axes=[-1]))
    assert_refused(g.finish(g("Transpose", shifted, perm=[0, 1, 3, 2])), "used elsewhere too")


@pytest.mark.parametrize("shifted", [False, True])
def test_soft_caps_are_refused(shifted):
    g = Basic()
    scores = g.scores()
    if shifted:
        scores = g("Sub", scores, g("ReduceMax", scores, axes=[-1]))
    capped = g("Mul", g("Tanh", g("Div", scores, g.array(30.0))), g.array(30.0))
    assert_refused(g.finish(capped), "something is added to the scores before" if shifted else "the scores have a soft cap (30)")


@pytest.mark.parametrize("at", [("q",), ("k",), ("q", "k"), ("scores",)])
@pytest.mark.parametrize("factor", [1e-30, 1e-3, 7.0])
def test_scales(at, factor):
    """A scale that the attribute cannot hold would be 0, for which the kernels take their own."""
    g = Basic()
    q, k = (g("Mul", x, g.array(factor)) if name in at else x for name, x in (("q", g.q), ("k", g.k)))
    scores = g("MatMul", q, g("Transpose", k, perm=[0, 1, 3, 2]))
    model = g.finish(g("Mul", scores, g.array(factor)) if "scores" in at else scores)
    if len(at) == 2 and factor == 1e-30:
        assert_refused(model, "scaled by 1e-60, which is no number of the op")
    else:
        assert_fused(model)


@pytest.mark.parametrize("factor", [-1.0, 0.0, INF])
def test_a_scale_that_is_not_positive(factor):
    g = Basic()
    assert_refused(g.finish(g("Mul", g.scores(), g.array(factor))), "which is not positive")


def test_a_scale_for_each_head():
    g = Basic()
    assert_fused(g.finish(g("Mul", g.scores(), g.array([[[-1.0]], [[2.0]]]))))


def test_a_scale_for_each_key_is_refused():
    g = Basic(keys=3)
    assert_refused(g.finish(g("Mul", g.scores(), g.array([1.0, 2.0, 3.0]))), "depends on more than the head")


@pytest.mark.parametrize("op", ["Mul", "Div"])
def test_a_scale_that_is_an_input(op):
    g = Basic()
    assert_refused(
        g.finish(g(op, g.scores(), g.input("temperature"))), "by the value 'temperature', which is not a constant number"
    )


def test_a_softmax_in_a_longer_type():
    g = Basic()
    probabilities = g("Softmax", g("Cast", g.scores(), to=DOUBLE), axis=-1)
    g.attend(g("Cast", probabilities, to=FLOAT))
    assert_fused(g.model())


def test_a_softmax_in_a_shorter_type_is_refused():
    """Scores beyond 65504 would be infinite."""
    g = Basic()
    probabilities = g("Softmax", g("Cast", g.scores(), to=HALF), axis=-1)
    g.attend(g("Cast", probabilities, to=FLOAT))
    assert_refused(g.model(), "is computed in float16, and the values are float32")


def half(fill, mask, softmax=HALF):
    """In float16; the scores are masked, and softened, in ``softmax``."""
    g = Graph()
    lengths = {"q": "S", "k": "S", "v": "S"}
    q, k, v = (g.heads(g.input(role, "B", lengths[role], 8, elem_type=HALF), 2, 4) for role in "qkv")
    scores = g("MatMul", q, g("Transpose", k, perm=[0, 1, 3, 2]))
    scores = g("Cast", scores, to=FLOAT) if softmax == FLOAT else scores
    if mask == "causal":
        ones = g("Expand", g.array(1.0), g("Concat", g.dim(scores, 2), g.dim(scores, 3), axis=0))
        kept = g("Cast", g("Trilu", ones, upper=0), to=BOOL)
    else:
        kept = g.input("kept", "B", 1, 1, "S", elem_type=BOOL)
    probabilities = g("Softmax", g("Where", kept, scores, g.array(fill, np.float32 if softmax == FLOAT else np.float16)), axis=-1)
    probabilities = g("Cast", probabilities, to=HALF) if softmax == FLOAT else probabilities
    g.output(g.merged(g("MatMul", probabilities, v), 8), 3, HALF)
    return g.model()


@pytest.mark.parametrize(
    ("fill", "mask", "softmax", "expected"),
    [
        (-INF, "padding", HALF, 1),
        (-65504.0, "causal", HALF, 1),
        (-65504.0, "padding", HALF, 0),
        (-INF, "padding", FLOAT, 1),
        (LOWEST, "padding", FLOAT, 0),
    ],
)
def test_half_precision(fill, mask, softmax, expected):
    """Kernels add in float32, where -65504 absorbs no score: a row that is masked as a whole would not be uniform."""
    model = half(fill, mask, softmax)
    session, after = fuse(model, target="cuda")
    assert count(after) == expected, session.rejections
    assert_same(model, after, *(feeds_for(model, B=2, S=length) for length in (1, 4)), tolerance=5e-3)
    assert expected or "does not mask in float16" in session.rejections[0].reason


@pytest.mark.parametrize("axis", [1, 2, -2])
def test_a_softmax_over_another_axis(axis):
    g = Basic()
    assert_refused(g.finish(g.scores(), axis=axis), f"the softmax runs over axis {axis}, not over the last")


def test_the_default_axis_of_old_softmaxes_is_another():
    for opset, expected in ((12, 0), (13, 1)):
        g = Basic(opset)
        g.attend(g("Softmax", g.scores()))
        assert count(fuse(g.model())[1]) == expected


@pytest.mark.parametrize("what", ["scores", "probabilities"])
@pytest.mark.parametrize("user", ["output", "node"])
def test_inner_values_that_are_used(what, user):
    g = Basic()
    scores = g.scores()
    probabilities = g("Softmax", scores, axis=-1)
    used = scores if what == "scores" else probabilities
    g.output(used if user == "output" else g("Neg", used), 4)
    g.attend(probabilities)
    assert_refused(g.model(), "used elsewhere too")


def test_the_shape_of_a_vanished_value():
    """The second one lies in a body, and no input has the length of a patch sequence."""
    g = Graph()
    patches = g("Transpose", g("Conv", g.input("x", "B", 3, "L"), g.weight(8, 3, 2), strides=[2]), perm=[0, 2, 1])
    q, k, v = (g.heads(g("MatMul", patches, g.weight(8, 8)), 2, 4) for _ in range(3))
    scores = g("MatMul", q, g("Transpose", k, perm=[0, 1, 3, 2]))
    g.output(g("Cast", g("Shape", scores), to=FLOAT), 1)
    g.output(g.merged(g("MatMul", g("Softmax", scores, axis=-1), v), 8), 3)
    assert_fused(g.model(), L=7)
