"""The blocks' inputs tell one meaning from another: what a wrong rewrite would compute is far from what is right."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from blocks import LOWEST, Block
from judging import session

INF = float("-inf")

# (what the block says, what a rewrite that ignores it computes, padding)
MEANINGS = {
    "scale": (Block(scale=1 / 3), Block(), "right"),
    "scale-off-by-one-percent": (Block(scale=0.505), Block(), "right"),
    "scale-of-key": (Block(scale=0.2, scale_at="key"), Block(scale=None), "right"),
    "softmax-axis": (Block(softmax_axis=1), Block(), "right"),
    "softmax-before-opset-13": (Block(softmax_axis=None, opset=12), Block(opset=12), "right"),
    "left-padding": (Block(mask="additive"), Block(), "left"),
    "right-padding": (Block(mask="additive"), Block(), "right"),
    "not-causal": (Block(mask="add-where", fill=LOWEST), Block(causal="k<=q", fill=LOWEST), "right"),
    "wholly-masked-row": (Block(mask="select", fill=-1e4), Block(mask="additive", fill=-1e4), "row"),
    "wholly-masked-row-inf": (Block(mask="add-where", fill=INF, guard=True), Block(mask="add-where", fill=-1e4), "row"),
    "causal": (Block(causal="k<=q"), Block(), "right"),
    "diagonal": (Block(causal="k<q"), Block(causal="k<=q"), "right"),
    "direction": (Block(causal="k>=q"), Block(causal="k<=q"), "right"),
    "window": (Block(causal="window"), Block(), "right"),
    "small-fill": (Block(causal="constant", fill=-1.5), Block(causal="constant", fill=-1e4), "right"),
    "first-row-mask": (Block(mask="vector"), Block(mask="additive"), "right"),
    "multiplied": (Block(mask="multiplied"), Block(mask="additive"), "right"),
    "query-bias": (Block(biases="kv"), Block(), "right"),
    "value-bias": (Block(biases="qk"), Block(), "right"),
    "head-mask": (Block(head_mask=(0.5, 1.0)), Block(), "right"),
    "unsplit": (Block(split="unsplit"), Block(), "right"),
    "unsplit-key": (Block(key_layout="unsplit"), Block(), "right"),
    "straight-merge": (Block(merge="straight"), Block(), "right"),
    "interleaved": (Block(split="interleaved"), Block(), "right"),
    "epsilon": (Block(norm="post-plain"), Block(), "right"),
}


@pytest.mark.parametrize("name", MEANINGS)
def test_another_meaning_has_other_numbers(name):
    said, ignored, padding = MEANINGS[name]
    feeds = said.feeds(3, 5, padding)
    wanted = {value.name for value in ignored.model.graph.input}
    expected = session(said.model).run(None, feeds)[0]
    wrong = session(ignored.model).run(None, {key: value for key, value in feeds.items() if key in wanted})[0]
    assert np.isfinite(expected).all()
    assert np.max(np.abs(expected - wrong)) > 1e-3


@pytest.mark.parametrize("opset", range(12, 24))
def test_blocks_are_valid_models(opset):
    onnx.checker.check_model(Block(opset=opset, mask="additive", causal="k<=q").model, full_check=True)


def test_a_negligible_key_bias_is_no_difference():
    """A bias of the keys adds the same number to a query's scores: what the table above must not rest on."""
    feeds = Block().feeds(3, 5)
    with_it, without = (session(replace(Block(), biases=biases).model).run(None, feeds)[0] for biases in ("k", ""))
    assert np.max(np.abs(with_it - without)) < 1e-5
