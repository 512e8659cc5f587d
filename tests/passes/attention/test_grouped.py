"""Heads that share keys and values, and soft caps: every spelling becomes one GroupQueryAttention, with the same numbers."""

import numpy as np
import onnx
import pytest
from pass_harness import as_model, parity, run_pass
from sharing import LOWEST, Sharing

from rewright.passes.fusion.group_query_attention import GroupQueryAttention
from rewright.passes.fusion.multi_head_attention import MultiHeadAttention

INF = float("-inf")
KEY = "com.microsoft::GroupQueryAttention"


def fused(knobs):
    """The rewritten model and the attributes of its one GroupQueryAttention; nothing of the attention is left beside it."""
    session, after = run_pass(GroupQueryAttention(softcap=True), knobs.model())
    assert [item.reason for item in session.rejections] == []
    counts = after.op_counts()
    assert counts[KEY] == 1
    assert not {f"ai.onnx::{op}" for op in ("Softmax", "MatMul", "Einsum", "Transpose", "Tile", "Tanh", "IsNaN")} & counts.keys()
    node = next(node for node in after.proto.graph.node if node.op_type == "GroupQueryAttention")
    return after, {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}


def same_numbers(knobs, after):
    for batch, length in ((1, 1), (1, 7), (3, 2), (3, 16)):
        parity(knobs.model(), after, knobs.feeds(batch, length), rtol=1e-5, atol=2e-6)


REPEATS = ["expand", "tile5", "interleave", "concat5", "grouped", "einsum"]


@pytest.mark.parametrize("repeat", REPEATS)
@pytest.mark.parametrize("groups", [1, 2])
def test_shared_keys_and_values(repeat, groups):
    knobs = Sharing(repeat=repeat, groups=groups)
    after, attributes = fused(knobs)
    assert (attributes["num_heads"], attributes["kv_num_heads"], attributes["causal"]) == (4, groups, 0)
    assert attributes["scale"] == pytest.approx(0.3)
    assert "ai.onnx::Expand" not in after.op_counts() or after.op_counts()["ai.onnx::Expand"] == 1  # seqlens_k
    same_numbers(knobs, after)


@pytest.mark.parametrize("repeat", ["tile", "gather-turns"])
def test_heads_in_turns_are_not_groups(repeat):
    """Head n uses key head n mod G there: MultiHeadAttention gets the repeated keys, and the numbers are kept."""
    knobs = Sharing(repeat=repeat)
    session, same = run_pass(GroupQueryAttention(softcap=True), knobs.model())
    assert "each head has keys of its own" in session.rejections[0].reason
    session, after = run_pass(MultiHeadAttention(), same)
    assert len(session.sites) == 1
    same_numbers(knobs, after)


@pytest.mark.parametrize("mask", ["additive", "kept", "bias", "and", "bias,k<=q,additive", "window3,kept"])
@pytest.mark.parametrize("fill", [LOWEST, INF, -1e9])
def test_other_masks_are_added(mask, fill):
    """The last sequence of a batch keeps no key: uniform for the lowest number, NaN for -inf."""
    if mask == "additive" and fill == INF:
        pytest.skip("0 * -inf")
    knobs = Sharing(mask=mask, fill=fill)
    after, attributes = fused(knobs)
    assert attributes["causal"] == 0
    same_numbers(knobs, after)


@pytest.mark.parametrize("mask", ["k<=q", "select-trilu", "buffer", "window2"])
@pytest.mark.parametrize("groups", [2, 4])
def test_a_causal_mask_needs_no_bias(mask, groups):
    knobs = Sharing(mask=mask, groups=groups, repeat="grouped")
    after, attributes = fused(knobs)
    assert attributes["causal"] == 1
    assert attributes.get("local_window_size") == (2 if mask == "window2" else None)
    node = next(node for node in after.proto.graph.node if node.op_type == "GroupQueryAttention")
    assert len(node.input) == 7  # no attention_bias
    same_numbers(knobs, after)


@pytest.mark.parametrize("cap_by", ["Div", "Mul", "scaled"])
@pytest.mark.parametrize("mask", ["none", "k<=q", "bias,additive"])
def test_a_soft_cap(cap_by, mask):
    knobs = Sharing(cap=0.5, cap_by=cap_by, mask=mask)
    after, attributes = fused(knobs)
    assert attributes["softcap"] == pytest.approx(0.5)
    assert attributes["scale"] == pytest.approx(0.3)
    same_numbers(knobs, after)


@pytest.mark.parametrize(("size", "value_size"), [(12, 12), (8, 5), (5, 8), (3, 20)])
def test_a_soft_cap_fills_heads_up(size, value_size):
    knobs = Sharing(size=size, value_size=value_size, cap=0.5, mask="kept", groups=2)
    after, _ = fused(knobs)
    assert after.op_counts()["ai.onnx::Pad"] == (size % 8 > 0 or size < value_size) * 2 + (
        value_size % 8 > 0 or value_size < size
    )
    same_numbers(knobs, after)


def test_rows_of_nan_become_zeros_where_the_model_says_so():
    knobs = Sharing(mask="kept", fill=INF, guard=True)
    after, _ = fused(knobs)
    assert after.op_counts()["ai.onnx::Where"] == 2  # the mask, and the guard
    feeds = knobs.feeds(3, 4)
    parity(knobs.model(), after, feeds, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("fixed", [6, "S"])
def test_lengths_that_are_fixed_are_constants(fixed):
    knobs = Sharing(length=fixed, mask="k<=q")
    after, _ = fused(knobs)
    assert "ai.onnx::Shape" in after.op_counts()  # the batch
    parity(knobs.model(), after, knobs.feeds(2, 6), rtol=1e-5, atol=2e-6)


def test_two_sites_share_their_lengths():
    model = Sharing(mask="k<=q").model()
    twice = onnx.compose.add_prefix(model, "second_")
    merged = onnx.compose.merge_models(model, twice, io_map=[])
    _, after = run_pass(GroupQueryAttention(softcap=True), merged)
    counts = after.op_counts()
    assert (counts[KEY], counts["ai.onnx::Cast"], counts["ai.onnx::Sub"], counts["ai.onnx::Expand"]) == (2, 1, 1, 1)
    feeds = Sharing().feeds(2, 5)
    parity(merged, after, feeds | {f"second_{name}": value for name, value in feeds.items()}, rtol=1e-5, atol=2e-6)


REFUSED = {
    "own keys": (Sharing(groups=4, mask="kept"), "each head has keys of its own"),
    "head size": (Sharing(size=12), "a multiple of 8, not 12"),
    "value size": (Sharing(value_size=16), "another head size than the keys"),
    "cross": (Sharing(cross=True), "as many keys as queries"),
    "cross causal": (Sharing(cross=True, mask="k<=q", groups=4), "each head has keys of its own"),
    "long, no mask": (Sharing(length=600), "faster for 600 positions"),
    "opset 23": (Sharing(opset=23), "ai.onnx Attention"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    knobs, reason = REFUSED[name]
    session, after = run_pass(GroupQueryAttention(softcap=True), knobs.model())
    assert session.sites == []
    assert reason in session.rejections[0].reason
    assert after.fingerprint() == as_model(knobs.model()).fingerprint()


@pytest.mark.parametrize("target", ["cuda", "dml", "portable"])
def test_other_targets(target):
    session, _ = run_pass(GroupQueryAttention(softcap=True), Sharing().model(), target)
    assert session.sites == []
    assert "cpu" in session.rejections[0].reason


def test_something_added_before_the_cap():
    model = Sharing(cap=0.5, mask="none").model()
    tanh = next(node for node in model.graph.node if node.op_type == "Tanh")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.25), "early"))
    place = list(model.graph.node).index(tanh)
    model.graph.node.insert(place, onnx.helper.make_node("Add", [tanh.input[0], "early"], ["added"]))
    tanh.input[0] = "added"
    session, _ = run_pass(GroupQueryAttention(softcap=True), model)
    assert "before their soft cap" in session.rejections[0].reason


def test_other_ops_have_no_soft_cap():
    session, _ = run_pass(MultiHeadAttention(softcap=True), Sharing(cap=50.0).model())
    assert session.rejections[0].reason == "the scores have a soft cap (50), which the op does not have"


@pytest.mark.parametrize("chosen", [GroupQueryAttention, MultiHeadAttention])
def test_a_soft_cap_is_left_to_the_faster_nodes_unless_asked_for(chosen):
    session, _ = run_pass(chosen(), Sharing(cap=50.0).model())
    assert not session.sites
    assert "a soft cap (50), for which the kernel is slower than the separate nodes" in session.rejections[0].reason
