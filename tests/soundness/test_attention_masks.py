"""Masks: every form keeps its meaning for padding on either side, with holes, and for a row that is wholly masked."""

import numpy as np
import pytest
from blocks import LOWEST, Block
from judging import assert_equal, fused_block, row_tests

import rewright

INF = float("-inf")

# Each row: a block, and how many attention ops it becomes, or what the reason against it says; None where either is right.
PADDING = {
    "additive": (Block(mask="additive"), 1),
    "additive-lowest": (Block(mask="additive", fill=LOWEST), 1),
    "additive-small": (Block(mask="additive", fill=-2.0), 1),
    "additive-positive": (Block(mask="additive", fill=3.0), 1),
    "add-where-lowest": (Block(mask="add-where", fill=LOWEST), 1),
    "add-where-inf": (Block(mask="add-where", fill=INF), 1),
    # BART's encoder: the mask ends in Where, and is not causal.
    "bart-encoder": (Block(mask="add-where", fill=LOWEST, scale_at="query", scale_op="Mul", biases="qv"), 1),
    "select-inf": (Block(mask="select", fill=INF), 1),
    "select-lowest": (Block(mask="select", fill=LOWEST), 1),
    # -1e4 leaves a wholly masked row uniform; added to the scores it would not.
    "select-1e4": (Block(mask="select", fill=-1e4), None),
    "select-masked-1e9": (Block(mask="select-masked", fill=-1e9), None),
    "select-zero": (Block(mask="select", fill=0.0), None),
    "guarded-inf": (Block(mask="add-where", fill=INF, guard=True), 1),
    "of-queries": (Block(mask="queries"), None),
    "multiplied": (Block(mask="multiplied"), None),
    "of-the-first-row": (Block(mask="vector"), 1),
    "float-input": (Block(mask="input"), 1),
    "float-input-inf": (Block(mask="input", fill=INF, guard=True), 1),
    "bias-by-head": (Block(mask="bias"), 1),
    "cross": (Block(cross=True, mask="additive"), 1),
    "cross-select-inf": (Block(cross=True, mask="select", fill=INF, guard=True), 1),
    # SDPA in BART: roots of the scale on both operands, a guard, and the key and value are outputs as well.
    "sdpa-present": (Block(scale_at="both", mask="add-where", fill=INF, guard=True, outputs=("key", "value")), None),
    "sdpa-cross": (Block(scale_at="both", mask="add-where", fill=INF, guard=True, cross=True), 1),
}

CAUSAL = {
    **{f"{kind}-{opset}": (Block(causal=kind, fill=LOWEST, opset=opset), 1) for kind in ("k<=q", "q>=k") for opset in (17, 20)},
    "not-k>q": (Block(causal="not-k>q", fill=INF), 1),
    "trilu": (Block(causal="trilu", fill=INF), 1),
    "trilu-18": (Block(causal="trilu", fill=-1e4, opset=18), 1),
    "constant": (Block(causal="constant", fill=LOWEST), 1),
    "constant-small": (Block(causal="constant", fill=-1.5), 1),
    "window": (Block(causal="window", fill=INF), 1),
    "and-padding": (Block(causal="q>=k", mask="additive"), 1),
    "and-left-padding-inf": (Block(causal="k<=q", mask="add-where", fill=INF, guard=True), 1),
    "and-select": (Block(causal="trilu", mask="select", fill=LOWEST), None),
    # Under left padding the first query sees padding alone: then the future, at -1e4, beats padding at the lowest number.
    "select-and-lowest-padding": (
        Block(causal="k<=q", causal_op="select", causal_fill=-1e4, mask="add-where", fill=LOWEST),
        None,
    ),
    "blend-and-lowest-padding": (Block(causal="trilu", causal_op="blend", causal_fill=-1e4, mask="additive", fill=LOWEST), None),
    "blend-constant": (Block(causal="constant", causal_op="blend", fill=-1e4), None),
    "select-and-small-padding": (Block(causal="k<=q", causal_op="select", causal_fill=LOWEST, mask="add-where", fill=-1e4), None),
    "select-and-inf-padding": (
        Block(causal="q>=k", causal_op="select", causal_fill=LOWEST, mask="select", fill=INF, guard=True),
        None,
    ),
    # None of these is causal attention.
    "without-the-diagonal": (Block(causal="k<q", fill=-1e4), 1),
    "without-the-diagonal-inf": (Block(causal="trilu-1", fill=INF), 1),
    "the-future": (Block(causal="k>=q", fill=LOWEST), 1),
    "constant-flipped": (Block(causal="constant-flipped", fill=LOWEST), 1),
    # With more or fewer keys than queries the alignment is the mask's, not the kernel's.
    "cross-k<=q": (Block(causal="k<=q", fill=LOWEST, cross=True), 1),
    "cross-trilu": (Block(causal="trilu", fill=INF, cross=True), 1),
}

ROWS = {**PADDING, **CAUSAL}


test_parity, test_fused, test_a_second_run_changes_nothing = row_tests(ROWS)


@pytest.mark.parametrize("numbers", [(-1, 0, 1, 2), (0, 2**32)], ids=["small", "beyond-32-bits"])
@pytest.mark.parametrize(
    "block",
    [
        Block(mask="add-where", fill=LOWEST),
        Block(mask="select", fill=LOWEST),
        Block(mask="select-masked", fill=-1e4),
        Block(mask="add-where", fill=INF, guard=True),
        Block(mask="select", fill=LOWEST, cross=True),
    ],
    ids=["add-where", "select", "select-masked", "guarded", "cross"],
)
def test_a_mask_may_hold_other_numbers_than_0_and_1(block, numbers):
    """Nothing in the model says that the input is 0 or 1: where only its truth counts, 2 is not masked."""
    rng, feeds = np.random.default_rng(0), block.feeds(3, 5)
    feeds["mask"] = rng.choice(np.array(numbers), feeds["mask"].shape)
    assert_equal(block.model, fused_block(block).model, [feeds])


def test_a_mask_that_is_used_as_a_number_is_taken_for_zeros_and_ones_and_the_report_says_so():
    """(1 - mask) * fill raises a key of which the mask is 2; no exporter means that, and ``mask=bias`` keeps it."""
    block = Block(mask="additive")
    notes = [note for step in fused_block(block).report.passes for note in step.notes]
    assert "the mask 'mask' is taken to hold only zeros and ones" in notes
    feeds = block.feeds(3, 5)
    feeds["mask"] = np.random.default_rng(0).choice(np.array([-1, 0, 1, 2]), feeds["mask"].shape)
    kept = rewright.optimize(block.model, chain="O1, attention{mask=bias}", verify="structure")
    assert kept.report.counts()["attention"] == 1
    assert_equal(block.model, kept.model, [feeds])


@pytest.mark.parametrize("kind", ["select", "select-masked", "add-where", "additive"])
def test_scores_below_the_number_that_masks(kind):
    """-1e4 in the place of a score is larger than some scores; beyond that, rounding differs by the order of the sums."""
    block = Block(mask=kind, fill=-1e4)
    sets = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        sets.append({**block.feeds(3, 5), "x": (150 * rng.normal(size=(3, 5, 8))).astype(np.float32)})
    assert_equal(block.model, fused_block(block).model, sets, tolerance=1e-2)
