"""gelu: every spelling of the erf form is found, nothing else is."""

import itertools

import numpy as np
import onnx
import pytest
from activation_spelling import HALVES, SCALES, SQRT2, gelu
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from pass_harness import ops, parity, run_pass
from spelling import OPSETS, Spelling

from rewright.passes.fusion.gelu import Gelu

X = np.concatenate([np.linspace(-6, 6, 24), [0.0, -0.0, 1e-20, -1e4, 1e4, 3e-4]]).astype(np.float32).reshape(2, 3, 5)


@pytest.mark.parametrize("opset", OPSETS)
def test_every_spelling_becomes_one_gelu(opset):
    for scale, half, swap in itertools.product(SCALES, HALVES, [False, True]):
        spell = Spelling(opset, constants=("initializer", "node", "value_float")[len(scale + half) % 3])
        before = spell.model(gelu(spell, scale=scale, half=half, swap=swap))
        session, after = run_pass(Gelu(), before)
        assert after.op_counts() == {"ai.onnx::Gelu" if opset >= 20 else "com.microsoft::Gelu": 1}, (scale, half, swap)
        assert not session.rejections
        parity(before, after, {"x": X}, rtol=2e-6, atol=1e-6)
        again, same = run_pass(Gelu(), after)
        assert not again.sites
        assert same.fingerprint() == after.fingerprint()


def test_x_may_be_a_graph_input_and_one_of_several_outputs_of_a_node():
    spell = Spelling(13, shape=(2, 3, 10))
    spell.nodes.append(helper.make_node("Split", ["x"], ["a", "b"], "split", axis=2))
    before = spell.model(spell("Mul", gelu(spell, "b", half="on-sum", scale="mul"), "a"))
    before.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 5
    _, after = run_pass(Gelu(), before)
    assert ops(after) == ["Split", "Gelu", "Mul"]
    parity(before, after, {"x": np.concatenate([X, X], -1)}, rtol=2e-6, atol=1e-6)


def test_an_unfolded_square_root_that_two_gelus_share():
    spell = Spelling()
    root = spell("Sqrt", spell.number(2.0))
    value = "x"
    for _ in range(2):
        erf = spell("Erf", spell("Div", value, root))
        value = spell("Mul", spell("Mul", value, spell.number(0.5)), spell("Add", erf, spell.number(1.0)))
    before = spell.model(value)
    session, after = run_pass(Gelu(), before)
    assert ops(after) == ["Gelu", "Gelu"]
    assert len(session.sites) == 2
    parity(before, after, {"x": X}, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sqrt2": 1.4}, "is 1.4, not 1.41421"),
        ({"half_value": 0.51}, "factor is 0.51, not 0.5"),
        ({"one": 1.01}, "is 1.01, not 1"),
    ],
)
def test_other_constants_are_refused_with_their_value(change, reason):
    spell = Spelling()
    session, after = run_pass(Gelu(), spell.model(gelu(spell, **change)))
    assert not session.sites
    assert "Erf" in ops(after)
    assert [reason in item.reason for item in session.rejections] == [True]


@pytest.mark.parametrize("inner", ["Erf", "Add"])
@pytest.mark.parametrize("half", HALVES[:3])
def test_an_inner_value_that_is_a_graph_output_is_refused(inner, half):
    spell = Spelling()
    result = gelu(spell, half=half)
    kept = next(node.output[0] for node in spell.nodes if node.op_type == inner)
    before = spell.model(result, outputs=[kept])
    session, after = run_pass(Gelu(), before)
    assert after.fingerprint() == run_pass(Gelu(), after)[1].fingerprint()
    assert not session.sites
    assert "is used elsewhere too" in session.rejections[0].reason


def test_an_inner_value_that_a_body_captures_is_refused_and_a_captured_result_is_kept():
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2, 3, 5] x, bool c) => (float[2, 3, 5] y)
        <float r = {1.4142135}, float one = {1.0}, float h = {0.5}> {
            d = Div(x, r)
            e = Erf(d)
            s = Add(e, one)
            m = Mul(x, s)
            p = Mul(m, h)
            y = If(c) <
                then_branch = t () => (float[2, 3, 5] t1) { t1 = Relu(CAPTURED) },
                else_branch = f () => (float[2, 3, 5] f1) { f1 = Neg(CAPTURED) }>
        }"""
    session, after = run_pass(Gelu(), text.replace("CAPTURED", "p"))
    assert ops(after) == ["Gelu", "If"]
    onnx.checker.check_model(after.proto, full_check=True)  # the Gelu stands before the If that captures it
    for choice in (True, False):
        parity(text.replace("CAPTURED", "p"), after, {"x": X, "c": np.array(choice)}, rtol=2e-6, atol=1e-6)
    session, after = run_pass(Gelu(), text.replace("Neg(CAPTURED)", "Neg(e)").replace("CAPTURED", "p"))
    assert not session.sites
    assert "'e' inside it is used elsewhere too" in session.rejections[0].reason


def test_a_gelu_inside_a_body_is_fused_there():
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2, 3, 5] x, bool c) => (float[2, 3, 5] y)
        <float r = {1.4142135}, float one = {1.0}, float h = {0.5}> {
            y = If(c) <
                then_branch = t () => (float[2, 3, 5] t1) {
                    d = Div(x, r)
                    e = Erf(d)
                    s = Add(e, one)
                    m = Mul(x, s)
                    t1 = Mul(m, h)
                },
                else_branch = f () => (float[2, 3, 5] f1) { f1 = Neg(x) }>
        }"""
    _, after = run_pass(Gelu(), text)
    assert after.op_counts() == {"ai.onnx::If": 1, "ai.onnx::Neg": 1, "com.microsoft::Gelu": 1}
    for choice in (True, False):
        parity(text, after, {"x": X, "c": np.array(choice)}, rtol=2e-6, atol=1e-6)


def test_a_constant_that_the_caller_may_override_is_not_a_constant():
    spell = Spelling(17)
    before = spell.model(gelu(spell))
    root = before.graph.initializer[0]
    before.graph.input.append(helper.make_tensor_value_info(root.name, TensorProto.FLOAT, []))
    session, _ = run_pass(Gelu(), before)
    assert not session.sites
    assert f"'{root.name}' is not the constant 1.41421" in session.rejections[0].reason


def test_in_a_function_the_dtype_is_unknown():
    text = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[2, 3, 5] x) => (float[2, 3, 5] y) { y = local.act(x) }
        <domain: "local", opset_import: ["" : 17]>
        act (x) => (y) {
            r = Constant<value = float {1.4142135}>()
            one = Constant<value = float {1.0}>()
            h = Constant<value = float {0.5}>()
            d = Div(x, r)
            e = Erf(d)
            s = Add(e, one)
            m = Mul(x, s)
            y = Mul(m, h)
        }"""
    session, after = run_pass(Gelu(), text)
    assert after.op_counts()["ai.onnx::Erf"] == 1
    assert "dtype is unknown" in session.rejections[0].reason


def test_a_standard_gelu_is_left_alone():
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float[4] x) => (float[4] y) { y = Gelu<approximate = "tanh">(x) }'
    session, _ = run_pass(Gelu(), text)
    assert not session.sites
    assert not session.rejections


def test_the_portable_target_takes_only_the_standard_op():
    spell = Spelling(17)
    session, _ = run_pass(Gelu(), spell.model(gelu(spell)), "portable")
    assert not session.sites
    assert session.rejections[0].reason.startswith("the target 'portable' has no kernel for com.microsoft.Gelu")
    spell = Spelling(20)
    session, after = run_pass(Gelu(), spell.model(gelu(spell)), "portable")
    assert ops(after) == ["Gelu"]


def sandwich(kind, opset=17):
    """float16 x; "whole": all between the Casts; "erf": only the erf; "cdf": the erf and the half."""
    half, single = TensorProto.FLOAT16, TensorProto.FLOAT
    spell = Spelling(opset, half)
    wide = spell("Cast", "x", to=single)
    if kind == "whole":
        spell.elem_type = single
        result = spell("Cast", gelu(spell, wide), to=half)
        spell.elem_type = half
        return spell.model(result)
    total = spell("Add", spell("Erf", spell("Div", wide, spell.number(SQRT2, single))), spell.number(1.0, single))
    if kind == "cdf":
        narrow = spell("Cast", spell("Mul", total, spell.number(0.5, single)), to=half)
        return spell.model(spell("Mul", "x", narrow))
    return spell.model(spell("Mul", spell("Mul", "x", spell("Cast", total, to=half)), spell.number(0.5)))


def test_between_casts_the_single_precision_part_is_fused_alone():
    before = sandwich("whole")
    _, after = run_pass(Gelu(), before)
    assert ops(after) == ["Cast", "Gelu", "Cast"]
    parity(before, after, {"x": X.astype(np.float16)}, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["erf", "cdf"])
def test_a_widened_erf_needs_a_half_precision_kernel(kind):
    session, after = run_pass(Gelu(), sandwich(kind), "cuda")
    assert ops(after) == ["Gelu"]
    session, _ = run_pass(Gelu(), sandwich(kind), "cpu")
    assert not session.sites
    assert session.rejections[0].reason.startswith("the target 'cpu' has no kernel for com.microsoft.Gelu on float16")
    before = sandwich(kind, 20)
    _, after = run_pass(Gelu(), before)
    assert ops(after) == ["Gelu"]
    parity(before, after, {"x": X.astype(np.float16)}, rtol=2e-3, atol=1e-3)


def test_a_narrowed_erf_is_refused():
    spell = Spelling()
    half = TensorProto.FLOAT16
    scaled = spell("Div", spell("Cast", "x", to=half), spell.number(SQRT2, half))
    total = spell("Add", spell("Erf", scaled), spell.number(1.0, half))
    before = spell.model(spell("Mul", spell("Mul", "x", spell.number(0.5)), spell("Cast", total, to=TensorProto.FLOAT)))
    session, _ = run_pass(Gelu(), before, "cuda")
    assert not session.sites
    assert "the erf is computed in float16, which does not widen float32" in session.rejections[0].reason


def test_a_constant_that_raises_the_rank_is_refused():
    spell = Spelling(shape=(5,))
    erf = spell("Erf", spell("Div", "x", spell.number(SQRT2, shape=(1, 1))))
    total = spell("Add", erf, spell.number(1.0))
    before = spell.model(spell("Mul", spell("Mul", "x", spell.number(0.5)), total))
    del before.graph.output[0].type.tensor_type.shape.dim[:]
    before.graph.output[0].type.tensor_type.shape.dim.add(dim_value=1)
    before.graph.output[0].type.tensor_type.shape.dim.add(dim_value=5)
    session, _ = run_pass(Gelu(), before)
    assert not session.sites
    assert "more dimensions" in session.rejections[0].reason


@settings(max_examples=40, deadline=None)
@given(
    opset=st.sampled_from(OPSETS),
    scale=st.sampled_from(SCALES),
    half=st.sampled_from(HALVES),
    swap=st.booleans(),
    constants=st.sampled_from(["initializer", "node", "value_float"]),
    change=st.sampled_from([None, None, "sqrt2", "half_value", "one", "output"]),
)
def test_legal_spellings_are_fused_and_one_illegal_change_refuses(opset, scale, half, swap, constants, change):
    spell = Spelling(opset, constants=constants)
    changed = {"sqrt2": {"sqrt2": 1.5}, "half_value": {"half_value": 0.4}, "one": {"one": 0.9}}.get(change, {})
    if half == "distributed" and change == "one":
        changed = {"sqrt2": 1.5}
    result = gelu(spell, scale=scale, half=half, swap=swap, **changed)
    erf = next(node.output[0] for node in spell.nodes if node.op_type == "Erf")
    before = spell.model(result, outputs=[erf] if change == "output" else [])
    session, after = run_pass(Gelu(), before)
    assert len(session.sites) == (change is None)
    assert len(session.rejections) == (change is not None)
    parity(before, after, {"x": X}, rtol=2e-6, atol=1e-6)
