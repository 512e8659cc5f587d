"""One attention in random spellings becomes one op and keeps its numbers; one change, and it is left alone with the reason."""

import re

import numpy as np
from attention_graph import INF, LOWEST, assert_same, count, run
from attention_spelling import Spelling
from hypothesis import given, settings
from hypothesis import strategies as st

import rewright

CHAIN = "constant-folding,attention,group-query-attention,multi-head-attention"
OPSETS = [11, 13, 17, 20, 23]
PADDING = ["additive", "padding", "padding_not", "boolean"]
CAUSAL = ["causal_range", "causal_constant", "causal_triangle", "window"]
BIASES = ["relative", "distance"]


@st.composite
def spellings(draw, change=""):
    opset = draw(st.sampled_from(OPSETS))
    layout = draw(st.sampled_from(["4d", "3d", "einsum"] if opset >= 13 else ["4d", "3d"]))
    causal = [name for name in CAUSAL if name != "causal_triangle" or opset >= 14]
    groups = [draw(st.lists(st.sampled_from(names), max_size=1)) for names in (PADDING, causal, BIASES)]
    masks = tuple(draw(st.permutations([name for group in groups for name in group])))
    fill = draw(st.sampled_from([-1e4, LOWEST, -INF]))
    by_head = any(name in masks for name in BIASES)
    return Spelling(
        opset=opset,
        heads=draw(st.sampled_from([2, 3])),
        size=draw(st.sampled_from([2, 4])),
        cross=draw(st.booleans()),
        layout=layout,
        split=draw(st.sampled_from(["zeros", "heads", "sequence", "computed"])),
        source=draw(st.sampled_from(["separate", "packed", "inputs"])),
        biases=draw(st.sampled_from(["", "q", "qv", "qkv"])),
        key_steps=draw(st.sampled_from([1, 2])),
        labels="".join(draw(st.permutations("abcdefgh"))[:5]),
        scale_at=draw(st.sampled_from(["scores", "q", "k", "both", "nowhere"])),
        scale_by=draw(st.sampled_from(["Mul", "Div", "Sqrt"])),
        masks=masks,
        fill=fill,
        swap=draw(st.booleans()),
        guard=draw(st.booleans()) and not by_head,
        softmax=draw(st.sampled_from(["plain", "plain", "double"])),
        result=draw(st.sampled_from(["merged", "4d"])),
        change=change or draw(st.sampled_from(["", "", "heads are mixed"])),
    )


def optimized(model):
    result = rewright.optimize(model, chain=CHAIN, verify="structure", on_failure="raise")
    reasons = [item.reason for record in result.report.passes if "attention" in record.name for item in record.rejections]
    return result.model, reasons


def close(spelling, model, after):
    """-10000 leaves three digits of a score, in an order of additions that is not the same."""
    tolerance = 1e-2 if spelling.fill == -1e4 and spelling.masks else 5e-5
    shapes = [(3, 5, "right"), (3, 5, "left"), (3, 5, "row"), (1, 1, "right"), (1, 5, "row"), (3, 1, "row")]
    assert_same(model, after, *(spelling.feeds(*shape) for shape in shapes), tolerance=tolerance)


@settings(max_examples=40)
@given(spellings())
def test_a_legal_spelling_becomes_one_op(spelling):
    model = spelling.model()
    after, reasons = optimized(model)
    assert count(after) == 1, reasons
    assert "Softmax" not in [node.op_type for node in after.proto.graph.node]
    close(spelling, model, after)


ILLEGAL = {
    "temperature": r"divided by the value 'temperature', which is not a constant number",
    "softmax axis": r"the softmax runs over axis 1, not over the last",
    "negative scale": r"the scores are scaled by -1.0, which is not positive",
    "scores are an output": r"the scores '.*' are (an output of the graph|used elsewhere too)",
    "scores are used": r"the scores '.*' are used elsewhere too",
    "probabilities are an output": r"the attention probabilities '.*' are (an output of the graph|used elsewhere too)",
    "probabilities are used": r"the attention probabilities '.*' are used elsewhere too",
    "head mask": r"the result of the softmax goes into Mul",
    "weak selection": r"masked scores become -10000, which a score may reach",
}


@settings(max_examples=40)
@given(st.sampled_from(sorted(ILLEGAL)).flatmap(spellings))
def test_one_illegal_change_and_it_stays(spelling):
    model = spelling.model()
    after, reasons = optimized(model)
    assert count(after) == 0
    assert any(re.search(ILLEGAL[spelling.change], reason) for reason in reasons), reasons
    close(spelling, model, after)


def test_every_change_is_refused_in_the_plainest_spelling():
    for change, reason in ILLEGAL.items():
        model = Spelling(change=change).model()
        after, reasons = optimized(model)
        assert count(after) == 0, change
        assert any(re.search(reason, item) for item in reasons), (change, reasons)


def test_the_spelling_says_what_it_should():
    """The generator's own arithmetic, held against numpy."""
    spelling = Spelling(source="inputs", masks=("padding", "causal_range"), fill=-INF, guard=True)
    model = spelling.model()
    after, _ = optimized(model)
    feeds = spelling.feeds(3, 5, "row")
    q, k, v = (feeds[role].reshape(3, 5, 2, 4).transpose(0, 2, 1, 3) for role in "qkv")
    kept = feeds["mask"].astype(bool)[:, None, None] & np.tril(np.ones((5, 5), bool))
    scores = np.where(kept, q @ k.transpose(0, 1, 3, 2) / 4, -np.inf)
    highest = np.maximum(scores.max(-1, keepdims=True), LOWEST)
    powers = np.exp(scores - highest)
    expected = powers / np.maximum(powers.sum(-1, keepdims=True), 1e-30) @ v

    np.testing.assert_allclose(run(after, feeds)[0], expected.transpose(0, 2, 1, 3).reshape(3, 5, 8), rtol=1e-5, atol=1e-5)
