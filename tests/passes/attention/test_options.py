"""Options: how a mask is given, which op, and hints that change nothing."""

import numpy as np
import pytest
from attention_graph import BOOL, FLOAT, INF, LOWEST, Basic, Graph, assert_fused, assert_same, count, feeds_for, fuse
from pydantic import ValidationError

from rewright.passes.fusion.attention import Attention
from rewright.passes.fusion.multi_head_attention import MultiHeadAttention

TURN = [0, 1, 3, 2]
PASSES = [Attention, MultiHeadAttention]


def model_with(mask="select", dims=("B", "S")):
    """Self-attention over x (B, S, 6) with projections, and a padding mask."""
    g = Graph()
    x = g.input("x", *dims, 6)
    q, k, v = (g.heads(g("MatMul", x, g.weight(6, 8)), 2, 4) for _ in range(3))
    scores = g("MatMul", q, g("Transpose", k, perm=TURN))
    if mask != "none":
        wide = g.unsqueeze(g.input("mask", *dims, elem_type=7), 1, 2)
        if mask == "select":
            scores = g("Where", g("Cast", wide, to=BOOL), scores, g.array(LOWEST))
        else:
            rest = g("Sub", g.array(1.0), g("Cast", wide, to=FLOAT))
            scores = g("Add", scores, g("Mul", rest, g.array(-1e4)))
    g.output(g.merged(g("MatMul", g("Softmax", scores, axis=-1), v), 8), 3)
    return g.model()


def masked(after):
    """Which inputs of the op say what is masked, and the rank of the mask."""
    (node,) = (node for node in after.proto.graph.node if node.op_type in ("Attention", "MultiHeadAttention"))
    keys, bias = {"Attention": (3, 5), "MultiHeadAttention": (4, 5)}[node.op_type]
    inputs = [*node.input, *[""] * 6]
    return bool(inputs[keys]), bool(inputs[bias])


def padded(model, *lengths):
    """Inputs padded on the right: so many positions are kept."""
    feeds = feeds_for(model, B=len(lengths), S=5)
    feeds["mask"] = (np.arange(5) < np.array(lengths)[:, None]).astype(np.int64)
    return feeds


@pytest.mark.parametrize("current", PASSES)
@pytest.mark.parametrize("kind", ["select", "additive"])
@pytest.mark.parametrize(("option", "expected"), [("auto", (True, False)), ("raw", (True, False)), ("bias", (False, True))])
def test_the_form_of_a_mask(current, kind, option, expected):
    model = model_with(kind)
    _, after = fuse(model, current(mask=option))
    assert masked(after) == expected
    assert_fused(model, current(mask=option))


@pytest.mark.parametrize("current", PASSES)
@pytest.mark.parametrize("kind", ["select", "additive"])
def test_lengths_are_declared(current, kind):
    model = model_with(kind)
    session, after = fuse(model, current(mask="index"))
    assert masked(after) == (True, False)
    assert any("pads on the right only" in note for note in session.notes)
    assert_same(model, after, padded(model, 5, 3, 1), padded(model, 2))


@pytest.mark.parametrize("current", PASSES)
def test_lengths_are_wrong_for_other_padding(current):
    """What was declared is not so: the numbers change, which is for parity to find."""
    model = model_with()
    _, after = fuse(model, current(mask="index"))
    feeds = padded(model, 5, 3)
    feeds["mask"] = feeds["mask"][:, ::-1].copy()
    with pytest.raises(AssertionError):
        assert_same(model, after, feeds)


@pytest.mark.parametrize("current", PASSES)
def test_no_padding_is_declared(current):
    model = model_with()
    session, after = fuse(model, current(mask="none"))
    assert masked(after) == (False, False)
    assert any("pads nothing" in note for note in session.notes)
    assert_same(model, after, padded(model, 5, 5))
    with pytest.raises(AssertionError):
        assert_same(model, after, padded(model, 5, 2))


@pytest.mark.parametrize("option", ["index", "none"])
def test_only_padding_is_dropped(option):
    """A bias is no padding, whatever is declared."""
    g = Basic()
    model = g.finish(g("Add", g.scores(), g.input("bias", "B", 1, "S", "T")))
    session, after = fuse(model, MultiHeadAttention(mask=option))
    assert masked(after) == (False, True)
    assert not session.notes
    assert_fused(model, MultiHeadAttention(mask=option))


@pytest.mark.parametrize("option", ["index", "none", "raw"])
def test_rows_without_a_key_keep_their_guard(option):
    g = Basic()
    scores = g("Add", g.scores(), g("Where", g.kept(), g.array(0.0), g.array(-INF)))
    probabilities = g("Softmax", scores, axis=-1)
    g.attend(g("Where", g("IsNaN", probabilities), g.array(0.0), probabilities))
    assert_fused(g.model(), MultiHeadAttention(mask=option))


def test_all_to_multi_head_attention():
    session, after = fuse(model_with(), Attention(multi_head=True))
    assert count(after) == 0
    assert "leaves this to the pass multi-head-attention" in session.rejections[0].reason


@pytest.mark.parametrize("current", PASSES)
@pytest.mark.parametrize(("name", "right", "wrong"), [("heads", 2, 4), ("hidden_size", 8, 12)])
def test_a_wrong_hint_changes_nothing_but_a_note(current, name, right, wrong):
    model = model_with()
    plain = fuse(model, current())[1]
    for value, noted in ((right, False), (wrong, True)):
        session, after = fuse(model, current(**{name: value}))
        assert after.proto.graph.SerializeToString() == plain.proto.graph.SerializeToString()
        assert any(f"the option {name}={value} is not what the graph says, {right}" in note for note in session.notes) == noted


@pytest.mark.parametrize("name", ["heads", "hidden_size"])
def test_hints_are_positive(name):
    with pytest.raises(ValidationError):
        Attention(**{name: 0})


def test_without_shape_inference_nothing_is_guessed():
    session, after = fuse(model_with(), MultiHeadAttention(shape_inference=False))
    assert count(after) == 0
    assert any("is not known" in item.reason for item in session.rejections)
