"""group-query-attention over real exports, and in the level: what it takes, what it leaves to the passes around it."""

import numpy as np
import onnx
import pytest
from pass_harness import ZOO, as_model, parity, run_pass

import rewright
from rewright.passes.fusion.group_query_attention import GroupQueryAttention
from rewright.registry.builtin import LEVELS

KEY = "com.microsoft::GroupQueryAttention"


def feeds(batch, length, seed=0):
    """Token ids, and masks: whole, padded on either side, with a hole, and for a last sequence that is padding alone."""
    rng = np.random.default_rng(seed)
    mask = np.ones((batch, length), np.int64)
    if batch > 1:
        mask[0, length // 2 :], mask[1, : length // 2], mask[-1] = 0, 0, 0
    return {"input_ids": rng.integers(0, 90, (batch, length), dtype=np.int64), "attention_mask": mask}


@pytest.mark.parametrize("name", ["llama.dyn18.sdpa", "llama.ts17.eager"])
def test_llama(name, tmp_path):
    path = ZOO / f"{name}.onnx"
    chain = "O1, rotary-embedding, attention, group-query-attention, multi-head-attention, dead-code"
    result = rewright.optimize(path, tmp_path / "after.onnx", chain=chain, verify="off")
    after = as_model(tmp_path / "after.onnx")
    assert result.report.verdict != "failed"
    counts = after.op_counts()
    assert counts[KEY] == 2
    assert "ai.onnx::Softmax" not in counts
    nodes = [node for node in after.proto.graph.node if node.op_type == "GroupQueryAttention"]
    attributes = [{item.name: onnx.helper.get_attribute_value(item) for item in node.attribute} for node in nodes]
    assert [(held["num_heads"], held["kv_num_heads"]) for held in attributes] == [(4, 2)] * 2
    assert len({node.input[5] for node in nodes}) == 1  # one seqlens_k, and one bias, for both layers
    assert len({node.input[10] for node in nodes}) == 1
    for batch, length in ((1, 1), (1, 9), (4, 6)):
        given = feeds(batch, length)
        parity(path, after, {value.name: given[value.name] for value in after.proto.graph.input}, rtol=1e-4, atol=2e-5)


def test_a_second_run_changes_nothing(tmp_path):
    path = tmp_path / "after.onnx"
    rewright.optimize(ZOO / "llama.dyn18.sdpa.onnx", path, chain="O1, rotary-embedding, group-query-attention", verify="off")
    session, same = run_pass(GroupQueryAttention(), path)
    assert (session.sites, session.rejections) == ([], [])
    assert same.fingerprint() == as_model(path).fingerprint()


def test_a_decoder_that_attends_causally_without_a_mask_input_needs_no_bias():
    session, after = run_pass(GroupQueryAttention(), _decoder(causal_first=True))
    assert len(session.sites) == 1
    node = next(node for node in after.proto.graph.node if node.op_type == "GroupQueryAttention")
    assert len(node.input) == 7
    x = np.random.default_rng(1).standard_normal((2, 5, 16)).astype(np.float32)
    parity(_decoder(True), after, {"x": x}, rtol=1e-5, atol=2e-6)


def test_what_looks_ahead_is_not_causal():
    session, _ = run_pass(GroupQueryAttention(), _decoder(causal_first=False))
    assert session.sites == []
    assert "the mask is not just causal" in session.rejections[0].reason


def test_the_level_asks_for_it_between_the_other_two():
    passes = LEVELS["O2"].split(", ")
    place = passes.index("group-query-attention")
    assert passes[place - 1 : place + 2] == ["attention", "group-query-attention", "multi-head-attention"]


def _decoder(causal_first):
    """Two heads of 8 over x (B, S, 16), a mask made of two ranges; ``causal_first`` keeps the keys up to the query."""
    return f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[B, S, 16] x) => (float[B, S, 16] y)
        <int64[4] split = {{0, 0, 2, 8}}, int64[3] merged = {{0, 0, 16}}, int64[1] first = {{0}}, int64[1] last = {{1}},
         int64 one = {{1}}, int64 zero = {{0}}, float scale = {{0.35}}, float keep = {{0}}, float drop = {{-3.4e38}}>
        {{
            heads = Reshape (x, split)
            rows = Transpose <perm = [0, 2, 1, 3]> (heads)
            columns = Transpose <perm = [0, 2, 3, 1]> (heads)
            product = MatMul (rows, columns)
            scores = Mul (product, scale)
            shape = Shape (x)
            length = Gather (shape, one)
            positions = Range (zero, length, one)
            column = Unsqueeze (positions, first)
            row = Unsqueeze (positions, last)
            seen = {"LessOrEqual" if causal_first else "GreaterOrEqual"} (column, row)
            bias = Where (seen, keep, drop)
            masked = Add (scores, bias)
            probabilities = Softmax <axis = -1> (masked)
            context = MatMul (probabilities, rows)
            back = Transpose <perm = [0, 2, 1, 3]> (context)
            y = Reshape (back, merged)
        }}
    """
