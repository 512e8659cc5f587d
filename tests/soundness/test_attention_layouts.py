"""How the heads are split off and merged: spellings of one attention, and look-alikes that move values elsewhere."""

from blocks import Block
from judging import row_tests

# Each row: a block, and how many attention ops it becomes, or what the reason against it says; None where either is right.
SPELLINGS = {
    f"{split}-{key}{'-cross' if cross else ''}": (Block(split=split, key_layout=key, cross=cross, mask="additive"), 1)
    for split in ("zeros", "heads", "sequence", "shape")
    for key in ("once", "twice")
    for cross in (False, True)
}

LOOK_ALIKES = {
    # The shapes fit, the values are others.
    "query-and-value-without-transpose": (Block(split="unsplit"), None),
    "key-without-transpose": (Block(key_layout="unsplit"), None),
    "merged-without-transpose": (Block(merge="straight"), None),
    "head-size-before-heads": (Block(split="interleaved", mask="additive"), None),
    "heads-first": (Block(heads_first=True, mask="additive"), None),
    "heads-first-computed": (Block(heads_first=True, split="shape"), None),
}

ROWS = {**SPELLINGS, **LOOK_ALIKES}


test_parity, test_fused, test_a_second_run_changes_nothing = row_tests(ROWS)
