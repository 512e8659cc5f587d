"""A BERT block whose scale, softmax or projections are unusual: fused with what it says, or left."""

import pytest
from blocks import Block
from judging import assert_block_equal, row_tests

# Each row: a block, and how many attention ops it becomes, or what the reason against it says; None where either is right.
SCALES = {
    "div-1": (Block(scale=1.0, mask="additive"), 1),
    "div-3": (Block(scale=1 / 3, mask="additive"), 1),
    "div-8-without-mask": (Block(scale=1 / 8), 1),
    "mul": (Block(scale=0.31, scale_op="Mul"), 1),
    "mul-by-node": (Block(scale=0.31, scale_op="Mul", scale_from="constant"), 1),
    "sqrt-of-constant": (Block(scale=0.7, scale_op="Sqrt"), 1),
    "none": (Block(scale=None), 1),
    "on-query": (Block(scale=0.9, scale_at="query"), 1),
    "on-key": (Block(scale=0.2, scale_op="Mul", scale_at="key"), 1),
    "on-both": (Block(scale=0.2, scale_op="Mul", scale_at="both"), 1),
    "on-both-computed": (Block(scale_op="Mul", scale_at="both", scale_from="shape"), 1),
    "computed": (Block(scale_from="shape", mask="additive"), 1),
    # The attribute of the fused ops takes 0 for "the usual scale".
    "zero": (Block(scale=0.0, scale_op="Mul"), "scale|positive|zero"),
    "negative": (Block(scale=-0.5, scale_op="Mul"), "scale|positive|negative"),
    "from-input": (Block(scale_from="input"), "temperature"),
    "by-head": (Block(scale=0.4, scale_op="Mul", scale_from="heads"), None),
}

SOFTMAX = {
    "axis-3": (Block(softmax_axis=3), 1),
    "axis-1": (Block(softmax_axis=1), "axis 1"),
    "axis-2": (Block(softmax_axis=2, mask="additive"), "axis 2"),
    "axis-minus-2": (Block(softmax_axis=-2), "axis -?2"),
    "no-axis-at-13": (Block(softmax_axis=None, opset=13), 1),
    # Before opset 13 the default is 1, and everything from the axis on is normalised together.
    "no-axis-at-12": (Block(softmax_axis=None, opset=12), "axis 1"),
    "last-axis-at-12": (Block(opset=12, mask="additive"), 1),
    "axis-2-at-12": (Block(softmax_axis=2, opset=12), "axis 2"),
    "guarded": (Block(guard=True, mask="additive"), 1),
    "head-mask": (Block(head_mask=(0.5, 1.0)), None),
    "head-mask-of-ones": (Block(head_mask=(1.0, 1.0)), None),
}

PROJECTIONS = {
    "no-bias": (Block(biases=""), 1),
    "query-and-value-bias": (Block(biases="qv", mask="additive"), 1),
    "key-bias": (Block(biases="k"), 1),
    "packed-split": (Block(qkv="split"), 1),
    "packed-split-18": (Block(qkv="split", opset=18, biases="", mask="additive"), 1),
    "packed-slice": (Block(qkv="slice", mask="additive"), 1),
    "packed-slice-12": (Block(qkv="slice", opset=12), 1),
    "cross": (Block(cross=True), 1),
    "cross-without-bias": (Block(cross=True, biases="", mask="additive"), 1),
}

ROWS = {**SCALES, **SOFTMAX, **PROJECTIONS}


test_parity, test_fused, test_a_second_run_changes_nothing = row_tests(ROWS)


@pytest.mark.parametrize("opset", [13, 14, 16, 18, 20, 21, 23])
def test_parity_of_an_unusual_scale_in_every_opset(opset):
    assert_block_equal(Block(opset=opset, scale=1 / 3, mask="additive"))
    assert_block_equal(Block(opset=opset, scale=0.05, scale_at="both", cross=True))
