"""What must not matter: how the model is given, an op that inference does not know, a second run."""

import onnx
import pytest
from blocks import LOWEST, Block
from judging import PADDINGS, SHAPES, assert_equal, fused_block, optimized, row_tests

import rewright

# Each row: a block, and how many attention ops it becomes, or what the reason against it says; None where either is right.
ROWS = {
    "unknown-op-in-the-residual": (Block(unknown="residual", mask="additive"), 1),
    "unknown-op-in-the-residual-cross": (Block(unknown="residual", cross=True, split="shape"), 1),
    "unknown-op-before": (Block(unknown="before", mask="additive"), "not known"),
    "unknown-op-before-packed": (Block(unknown="before", qkv="split"), "not known"),
}


test_parity, test_fused, test_a_second_run_changes_nothing = row_tests(ROWS)


@pytest.mark.parametrize(
    "block", [Block(mask="additive"), Block(unknown="before"), Block(opset=23, causal="k<=q")], ids=["mask", "unknown", "causal"]
)
def test_a_path_gives_what_a_proto_gives(block, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(block.model, path)
    from_path = rewright.optimize(path, level="O2", verify="structure")
    assert from_path.model.fingerprint() == fused_block(block).model.fingerprint()
    assert from_path.report.counts() == fused_block(block).report.counts()


@pytest.mark.parametrize("mask", ["auto", "raw", "bias"])
@pytest.mark.parametrize("current", ["attention", "multi-head-attention"])
@pytest.mark.parametrize(
    "block", [Block(mask="additive"), Block(mask="select", fill=LOWEST, causal="k<=q")], ids=["additive", "causal"]
)
def test_how_the_mask_is_given_changes_no_number(current, mask, block):
    result = optimized(block.model, chain=f"O1, {current}{{mask={mask}}}, O1")
    assert_equal(block.model, result.model, [block.feeds(*shape, padding) for shape in SHAPES for padding in PADDINGS])


def test_names_are_no_hints():
    """The same graph under names that say nothing gives the same ops."""
    block = Block(mask="additive")
    plain = onnx.ModelProto()
    plain.CopyFrom(block.model)
    names: dict[str, str] = {value.name: value.name for value in (*plain.graph.input, *plain.graph.output)}
    for tensor in plain.graph.initializer:
        tensor.name = names.setdefault(tensor.name, f"t{len(names)}")
    for node in plain.graph.node:
        node.name = ""
        for values in (node.input, node.output):
            values[:] = [names.setdefault(name, f"t{len(names)}") for name in values]
    assert optimized(plain).report.model.ops_after == fused_block(block).report.model.ops_after


def test_the_chain_again_is_the_chain_once():
    block = Block(mask="additive", causal="k<=q")
    twice = optimized(block.model, chain="O2, O2")
    assert twice.model.op_counts() == fused_block(block).model.op_counts()
