"""ai.onnx Attention, from opset 23 on: what it is given, and which masks it must not be given."""

import numpy as np
import onnx
import pytest
from pass_harness import as_model, parity, run, run_pass
from sharing import LOWEST, Sharing

from rewright.passes.fusion.group_query_attention import GroupQueryAttention
from rewright.passes.fusion.multi_head_attention import MultiHeadAttention
from rewright.testing import variants
from rewright.testing.mutants.models import AttentionLayers

INF = float("-inf")


def fused(knobs, target="portable"):
    session, after = run_pass(MultiHeadAttention(softcap=True), knobs.model(), target)
    assert [item.reason for item in session.rejections] == []
    assert after.op_counts()["ai.onnx::Attention"] == 1
    assert (
        not {f"ai.onnx::{op}" for op in ("Softmax", "MatMul", "Einsum", "Transpose", "Tile", "Tanh")} & after.op_counts().keys()
    )
    assert target != "portable" or all(key.startswith("ai.onnx::") for key in after.op_counts())
    node = next(node for node in after.proto.graph.node if node.op_type == "Attention")
    return after, {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}, node


def same_numbers(knobs, after):
    for batch, length in ((1, 1), (1, 7), (3, 2), (3, 16)):
        parity(knobs.model(), after, knobs.feeds(batch, length), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("target", ["portable", "cpu"])
@pytest.mark.parametrize("repeat", ["expand", "tile5", "interleave", "grouped", "einsum"])
def test_shared_keys_and_values(repeat, target):
    knobs = Sharing(repeat=repeat, opset=23, mask="bias" if repeat == "none" else "none")
    after, attributes, _ = fused(knobs, target)
    assert (attributes["q_num_heads"], attributes["kv_num_heads"]) == (4, 2)
    assert attributes["scale"] == pytest.approx(0.3)
    assert "ai.onnx::Expand" not in after.op_counts()
    same_numbers(knobs, after)


@pytest.mark.parametrize("opset", [23, 24, 25])
@pytest.mark.parametrize(("size", "value_size"), [(8, 8), (3, 5)])
def test_any_head_size(opset, size, value_size):
    knobs = Sharing(size=size, value_size=value_size, opset=opset, cross=True)
    same_numbers(knobs, fused(knobs)[0])


@pytest.mark.parametrize("mask", ["k<=q", "select-trilu", "buffer"])
def test_a_causal_mask_is_an_attribute(mask):
    knobs = Sharing(mask=mask, opset=23, fill=INF)
    after, attributes, node = fused(knobs)
    assert attributes["is_causal"] == 1
    assert len(node.input) == 3
    same_numbers(knobs, after)


@pytest.mark.parametrize("cap_by", ["Div", "scaled"])
def test_a_soft_cap_comes_before_the_mask(cap_by):
    knobs = Sharing(cap=0.5, cap_by=cap_by, mask="additive", fill=-3.0, opset=23)
    after, attributes, _ = fused(knobs)
    assert attributes["softcap"] == pytest.approx(0.5)
    same_numbers(knobs, after)


@pytest.mark.parametrize("mask", ["kept", "additive", "and", "select-kept"])
def test_a_row_that_is_masked_with_the_lowest_number_stays_uniform(mask):
    """The kernel takes the lowest number for -inf, and makes zeros of the row; half of it masks as well."""
    knobs = Sharing(mask=mask, fill=LOWEST, opset=23)
    after, _, node = fused(knobs)
    producer = {name: item for item in after.proto.graph.node for name in item.output}
    assert {"Max", "Expand"} >= {producer[node.input[3]].op_type}
    assert after.op_counts()["ai.onnx::Max"] == 1
    same_numbers(knobs, after)


def test_the_kernel_makes_zeros_of_the_lowest_number():
    """Why the bias is lifted: when this fails, it need not be any more."""
    knobs = Sharing(mask="kept", fill=LOWEST, opset=23)
    after, _, _ = fused(knobs)
    proto = after.proto
    for item in proto.graph.initializer:
        if item.name.endswith("masked") and onnx.numpy_helper.to_array(item) == np.float32(LOWEST * 0.5):
            item.CopyFrom(onnx.numpy_helper.from_array(np.asarray(LOWEST, np.float32), item.name))
    found = run(as_model(proto), knobs.feeds(2, 4))[0]
    assert (found[-1] == 0).all()
    assert not (run(as_model(knobs.model()), knobs.feeds(2, 4))[0][-1] == 0).any()


def test_a_guard_against_nan_allows_minus_infinity():
    knobs = Sharing(mask="kept", fill=INF, guard=True, opset=23)
    same_numbers(knobs, fused(knobs)[0])


REFUSED = {
    "-inf": (Sharing(mask="kept", fill=INF, opset=23), "zeros in place of NaN"),
    "a bias of unknown values": (Sharing(mask="bias", opset=23), "not known to be free of rows without any key"),
    "sums that overflow": (Sharing(mask="kept,additive", fill=LOWEST, opset=23), "not known to be free of rows"),
    "opset": (Sharing(opset=22), "came with opset 23, and the model is at 22"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_of_the_portable_target(name):
    knobs, reason = REFUSED[name]
    session, after = run_pass(MultiHeadAttention(softcap=True), knobs.model(), "portable")
    assert session.sites == []
    assert reason in session.rejections[0].reason
    assert after.fingerprint() == as_model(knobs.model()).fingerprint()


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "opset"])
def test_on_the_cpu_such_masks_keep_to_the_contrib_ops(name):
    knobs, _ = REFUSED[name]
    for current, op in ((GroupQueryAttention(), "GroupQueryAttention"), (MultiHeadAttention(softcap=True), "MultiHeadAttention")):
        session, after = run_pass(current, knobs.model())
        assert len(session.sites) == 1
        assert after.op_counts()[f"com.microsoft::{op}"] == 1
        same_numbers(knobs, after)


def test_a_constant_that_leaves_a_key_in_each_row_is_taken_as_it_is():
    model = Sharing(mask="bias", length=5, opset=23).model()
    model.graph.input.remove(next(value for value in model.graph.input if value.name == "bias"))
    plane = np.where(np.tri(5, k=1) > 0, 0, -np.inf).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.tile(plane, (1, 4, 1, 1)), "bias"))
    session, after = run_pass(MultiHeadAttention(softcap=True), model, "portable")
    assert len(session.sites) == 1
    assert "ai.onnx::Max" not in after.op_counts()
    feeds = {name: value for name, value in Sharing().feeds(3, 5).items() if name != "bias"}
    parity(model, after, feeds, rtol=1e-5, atol=2e-6)


def test_a_mask_of_integers_is_taken_for_zeros_and_ones_and_that_is_said():
    session, _ = run_pass(MultiHeadAttention(softcap=True), Sharing(mask="additive", opset=23).model(), "portable")
    assert session.notes == ["the mask 'pad' is taken to hold only zeros and ones"]


def _given(shape, kind="bool", four=False, opset=23):
    """A model that has the op already, with a mask of a shape."""
    operands = (
        "float[B, 4, S, 8] q, float[B, 4, T, 8] k, float[B, 4, T, 8] v"
        if four
        else "float[B, S, 32] q, float[B, T, 32] k, float[B, T, 32] v"
    )
    heads = "" if four else ", q_num_heads = 4, kv_num_heads = 4"
    return f"""
        <ir_version: 10, opset_import: ["" : {opset}]>
        g ({operands}, {kind}[{shape}] mask) => (float[B, N, S, H] y, float[B, N, S, H] z)
        {{
            y = Attention <scale = 0.5{heads}> (q, k, v, mask)
            z = Attention <scale = 0.25{heads}> (q, k, v, mask)
        }}
    """.replace("(float[B, N, S, H] y, float[B, N, S, H] z)", "(float y, float z)")


@pytest.mark.parametrize("four", [False, True])
@pytest.mark.parametrize(
    ("shape", "sizes"), [("B, 1, 1, T", (2, 1, 1, 5)), ("1, T", (1, 5)), ("B, 1, S, 1", (2, 1, 3, 1)), ("T", (5,))]
)
def test_a_mask_that_the_kernel_would_not_repeat_is_repeated_before_it(shape, sizes, four):
    before = _given(shape, four=four)
    session, after = run_pass(MultiHeadAttention(softcap=True), before)
    assert len(session.sites) == 2
    assert after.op_counts() == {
        "ai.onnx::Attention": 2,
        **{f"ai.onnx::{op}": n for op, n in (("Shape", 2), ("Gather", 2), ("Concat", 1), ("Expand", 1))},
    }
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((2, length, 32)).astype(np.float32) for name, length in (("q", 3), ("k", 5), ("v", 5))}
    if four:
        feeds = {name: np.ascontiguousarray(value.reshape(2, -1, 4, 8).transpose(0, 2, 1, 3)) for name, value in feeds.items()}
    feeds["mask"] = rng.random(sizes) < 0.7
    feeds["mask"].reshape(-1)[:: 5 if sizes[-1] == 5 else 1] = True
    with pytest.raises(Exception, match="attn_mask"):
        run(as_model(before), feeds)
    full = {**feeds, "mask": np.ascontiguousarray(np.broadcast_to(feeds["mask"], (2, 4, 3, 5)))}
    expected = run(as_model(_given("B, 4, S, T", four=four)), full)
    for found, wanted in zip(run(after, feeds), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    session, same = run_pass(MultiHeadAttention(softcap=True), after)
    assert session.sites == []
    assert same.fingerprint() == after.fingerprint()


@pytest.mark.parametrize(("shape", "target"), [("B, 1, S, T", "cpu"), ("1, 1, S, T", "cpu"), ("B, 1, 1, T", "portable")])
def test_other_masks_are_left_alone(shape, target):
    session, _ = run_pass(MultiHeadAttention(softcap=True), _given(shape), target)
    assert session.sites == []


@pytest.mark.parametrize("mask", ["added", "selected", "causal"])
def test_masks_of_bfloat16(mask):
    model = variants.in_dtype(as_model(AttentionLayers(opset=23, mask=mask)()), "bfloat16")
    session, after = run_pass(MultiHeadAttention(), model, "cpu")
    assert session.rejections == []
    assert after.op_counts()["ai.onnx::Attention"] == 1
