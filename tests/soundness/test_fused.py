"""What the rows of the block tests become: the attention op, or a refusal that says why."""

import pytest
import test_attention_layouts
import test_attention_masks
import test_bert_block
import test_hints_and_sources
import test_other_blocks
import test_shared_values
from judging import assert_fused

MODULES = (
    test_attention_layouts,
    test_attention_masks,
    test_bert_block,
    test_hints_and_sources,
    test_other_blocks,
    test_shared_values,
)
ROWS = {
    f"{module.__name__.removeprefix('test_')}-{name}": row
    for module in MODULES
    for name, row in module.ROWS.items()
    if row[1] is not None
}


@pytest.mark.parametrize("name", ROWS)
def test_row(name):
    assert_fused(*ROWS[name])
