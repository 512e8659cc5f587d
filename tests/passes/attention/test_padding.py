"""A mask of keys as the kernels take it, only where its numbers mean the same."""

import numpy as np
import pytest
from attention_graph import BOOL, FLOAT, LOWEST, Basic, assert_same, feeds_for, fuse
from onnx import TensorProto

NUMBERS = np.array([[5, 102, 0, 2**32, 1], [-1, 3, 0, 0, 2**33]])
SMALL = np.array([[5, 102, 0, 1, 0], [100, 3, 0, 0, 2]])
INT64, INT32, UINT8 = TensorProto.INT64, TensorProto.INT32, TensorProto.UINT8


def given(after):
    """How the op gets its mask: "mask", "bias", or None."""
    (node,) = (node for node in after.proto.graph.node if node.op_type == "MultiHeadAttention")
    inputs = [*node.input, "", "", ""]
    return "mask" if inputs[4] else "bias" if inputs[5] else None


def kept(g, mask, form):
    """Booleans (B, T): a function of whether the mask is 0, or not."""
    zero, one = (g.array(number, np.int64) for number in (0, 1))
    if form == "cast":
        return g("Cast", mask, to=BOOL)
    if form == "double negation":
        return g("Not", g("Not", g("Cast", mask, to=BOOL)))
    if form == "equal":
        return g("Not", g("Equal", mask, zero))
    if form == "where":
        return g("Equal", g("Where", g("Cast", mask, to=BOOL), one, zero), one)
    if form == "narrowed":
        return g("Cast", g("Cast", mask, to=INT32), to=BOOL)
    if form == "two ids":
        return g("And", g("Not", g("Equal", mask, zero)), g("Not", g("Equal", mask, g.array(102, np.int64))))
    if form == "shifted":
        return g("Not", g("Cast", g("Sub", one, mask), to=BOOL))
    return g("Greater", mask, zero)


@pytest.mark.parametrize(
    ("form", "expected", "assumed"),
    [
        ("cast", "mask", False),
        ("double negation", "mask", False),
        ("equal", "mask", False),
        ("where", "mask", False),
        ("narrowed", "mask", True),
        ("two ids", "bias", False),
        ("shifted", "mask", True),
        ("positive", "mask", True),
    ],
)
def test_a_mask_by_its_truth(form, expected, assumed):
    g = Basic()
    scores = g("Where", g.unsqueeze(kept(g, g.mask(), form), 1, 2), g.scores(), g.array(LOWEST))
    model = g.finish(scores)
    session, after = fuse(model)
    assert given(after) == expected
    assert ("the mask 'mask' is taken to hold only zeros and ones" in session.notes) == assumed
    feeds = feeds_for(model, B=2, S=3, T=5)
    assert_same(model, after, feeds)
    if not assumed:
        assert_same(model, after, {**feeds, "mask": NUMBERS})


@pytest.mark.parametrize("elem_type", [INT64, INT32, UINT8, BOOL])
def test_types_of_masks(elem_type):
    g = Basic()
    mask = g.input("mask", "B", "T", elem_type=elem_type)
    wide = g.unsqueeze(mask if elem_type == BOOL else g("Cast", mask, to=BOOL), 1, 2)
    model = g.finish(g("Where", wide, g.scores(), g.array(LOWEST)))
    session, after = fuse(model)
    assert given(after) == "mask"
    assert not session.notes
    feeds = feeds_for(model, B=2, S=3, T=5)
    assert_same(model, after, feeds, {**feeds, "mask": SMALL.astype(feeds["mask"].dtype)})


def test_ids_are_no_mask_of_zeros_and_ones():
    """The pad id is 0, and the ids are looked up as well; (ids > 0) could be taken for a mask otherwise."""
    g = Basic()
    ids = g.mask()
    g.output(g("Gather", g.weight(128, 8), ids), 3)
    model = g.finish(g("Where", g.unsqueeze(kept(g, ids, "positive"), 1, 2), g.scores(), g.array(LOWEST)))
    session, after = fuse(model)
    assert given(after) == "bias"
    assert not session.notes
    assert_same(model, after, {**feeds_for(model, B=2, S=3, T=5), "mask": np.where(SMALL == 0, -3, SMALL)})


@pytest.mark.parametrize("fill", [-1e4, -2.0, LOWEST])
def test_an_additive_mask_is_taken_to_hold_zeros_and_ones(fill):
    g = Basic()
    number = g("Cast", g.unsqueeze(g.mask(), 1, 2), to=FLOAT)
    model = g.finish(g("Add", g.scores(), g("Mul", g("Sub", g.array(1.0), number), g.array(fill))))
    session, after = fuse(model)
    assert given(after) == "mask"
    assert "the mask 'mask' is taken to hold only zeros and ones" in session.notes
    assert_same(model, after, *(feeds_for(model, seed, B=3, S=3, T=5) for seed in range(4)))


@pytest.mark.parametrize("fill", [3.0, -np.inf, 0.0])
def test_what_no_mask_says_stays_a_bias(fill):
    g = Basic()
    number = g("Cast", g.unsqueeze(g.mask(), 1, 2), to=FLOAT)
    model = g.finish(g("Add", g.scores(), g("Mul", g("Sub", g.array(1.0), number), g.array(fill))))
    _, after = fuse(model)
    assert given(after) == "bias"
    assert_same(model, after, feeds_for(model, B=3, S=3, T=5))


@pytest.mark.parametrize("axes", [(1, 3), (2, 3)])
def test_a_mask_of_queries_stays_a_bias(axes):
    g = Basic(keys="S")
    axis = (1, 3) if axes == (1, 3) else (1, 2)
    wide = g("Cast", g.unsqueeze(g.mask(), *axis), to=BOOL)
    if axes != (1, 3):
        wide = g("And", wide, g("Transpose", wide, perm=[0, 1, 3, 2]))
    model = g.finish(g("Where", wide, g.scores(), g.array(LOWEST)))
    _, after = fuse(model)
    assert given(after) == "bias"
    assert_same(model, after, *(feeds_for(model, B=3, S=length) for length in (1, 5)))


def test_a_mask_for_all_of_the_batch_stays_a_bias():
    g = Basic()
    mask = g.input("mask", 1, "T", elem_type=INT64)
    model = g.finish(g("Where", g("Cast", g.unsqueeze(mask, 1, 2), to=BOOL), g.scores(), g.array(LOWEST)))
    _, after = fuse(model)
    assert given(after) == "bias"
    assert_same(model, after, feeds_for(model, B=3, S=3, T=5))


def test_two_masks():
    g = Basic()
    first, second = (g("Cast", g.unsqueeze(g.input(name, "B", "T", elem_type=INT64), 1, 2), to=BOOL) for name in ("one", "two"))
    model = g.finish(g("Where", g("And", first, second), g.scores(), g.array(LOWEST)))
    _, after = fuse(model)
    assert given(after) == "bias"
    assert_same(model, after, feeds_for(model, B=3, S=3, T=5))
