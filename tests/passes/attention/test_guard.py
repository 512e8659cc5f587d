"""Rows without any key: NaN stays NaN, and where the model makes zeros of it, so does the fused form."""

import numpy as np
import pytest
from attention_graph import BOOL, INF, LOWEST, Basic, assert_fused, assert_refused, assert_same, feeds_for, fuse


def guarded(g, probabilities, zero=0.0):
    return g("Where", g("IsNaN", probabilities), g.array(zero), probabilities)


@pytest.mark.parametrize("opset", [10, 11, 13, 18, 20])
@pytest.mark.parametrize("form", ["add", "select"])
def test_rows_of_nan_become_zeros(opset, form):
    g = Basic(opset)
    if form == "add":
        scores = g("Add", g.scores(), g("Where", g.kept(), g.array(0.0), g.array(-INF)))
    else:
        scores = g("Where", g.kept(), g.scores(), g.array(-INF))
    g.attend(guarded(g, g("Softmax", scores, axis=3)))
    assert_fused(g.model())


def test_rows_of_nan_stay():
    g = Basic()
    model = g.finish(g("Where", g.kept(), g.scores(), g.array(-INF)))
    after = assert_fused(model)
    feeds = feeds_for(model, B=2, S=3, T=4)
    feeds["mask"][:] = [[1, 1, 0, 0], [0, 0, 0, 0]]
    assert_same(model, after, feeds)


@pytest.mark.parametrize("kind", ["none", "finite"])
def test_a_guard_that_guards_nothing(kind):
    g = Basic()
    scores = g.scores() if kind == "none" else g("Where", g.kept(), g.scores(), g.array(LOWEST))
    g.attend(guarded(g, g("Softmax", scores, axis=-1)))
    after = assert_fused(g.model())
    assert "IsNaN" not in [node.op_type for node in after.proto.graph.node]


def test_a_bias_that_may_hold_infinities():
    g = Basic()
    scores = g("Add", g.scores(), g.input("bias", "B", 1, "S", "T"))
    g.attend(guarded(g, g("Softmax", scores, axis=-1)))
    model = g.model()
    after = assert_fused(model)
    feeds = feeds_for(model, B=2, S=3, T=4)
    feeds["bias"][0, 0, 1] = feeds["bias"][1, 0, 0, :2] = -INF
    assert_same(model, after, feeds)


@pytest.mark.parametrize("by_rows", [True, False])
def test_causal_and_left_padding(by_rows):
    g = Basic(keys="S")
    scores = g("Add", g.scores(), g("Where", g.kept(), g.array(0.0), g.array(-INF)))
    triangle = g.input("triangle", "S", "S", elem_type=BOOL)
    scores = g("Where", triangle, scores, g.array(-INF)) if by_rows else scores
    g.attend(guarded(g, g("Softmax", scores, axis=-1)))
    model = g.model()
    after = assert_fused(model)
    feeds = feeds_for(model, B=2, S=4)
    feeds["mask"][:] = [[0, 0, 1, 1], [1, 1, 1, 1]]
    if by_rows:
        feeds["triangle"] = np.tril(np.ones((4, 4), bool))
    assert_same(model, after, feeds)


def test_a_mask_by_head():
    g = Basic()
    kept = g.input("kept", "B", 2, "S", "T", elem_type=BOOL)
    g.attend(guarded(g, g("Softmax", g("Where", kept, g.scores(), g.array(-INF)), axis=-1)))
    assert_refused(g.model(), "rows of NaN become zeros, and the mask may differ from head to head")


@pytest.mark.parametrize("zero", [1.0, -1e-3])
def test_a_guard_with_another_number(zero):
    g = Basic()
    g.attend(guarded(g, g("Softmax", g.scores(), axis=-1), zero))
    assert_refused(g.model(), "are used elsewhere too")


def test_a_guard_that_adds_an_axis():
    g = Basic()
    g.output(g("MatMul", guarded(g, g("Softmax", g.scores(), axis=-1), np.zeros((1, 1, 1, 1, 1))), g.v), 5)
    assert_refused(g.model(), "with more axes")


def test_the_opposite_of_a_guard():
    g = Basic()
    probabilities = g("Softmax", g.scores(), axis=-1)
    g.attend(g("Where", g("IsNaN", probabilities), probabilities, g.array(0.0)))
    model = g.model()
    assert_refused(model, "are used elsewhere too")
    assert fuse(model)[1].fingerprint() == fuse(fuse(model)[1].proto)[1].fingerprint()
