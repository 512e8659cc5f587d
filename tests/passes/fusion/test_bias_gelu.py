"""bias-gelu: a constant vector added before an exact Gelu becomes the op's second input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_harness import as_model, ops, parity, run_pass

from rewright.passes.fusion.bias_gelu import BiasGelu
from rewright.passes.fusion.gelu import Gelu

X = np.concatenate([np.linspace(-6, 6, 22), [0.0, -0.0, 1e-20, 30.0]]).astype(np.float32)[:24].reshape(2, 3, 4)
BIAS = "float[4] b = {0.5, -1.0, 2.0, 0.0}"


def model(
    gelu="com.microsoft.Gelu(s)", total="Add(r, b)", x="N, S, 4", bias=BIAS, opset=17, rest="", outputs="", inputs="", out=None
):
    ir_version = 10 if opset >= 20 else 8
    return f"""<ir_version: {ir_version}, opset_import: ["" : {opset}, "com.microsoft" : 1]>
    g (float[{x}] x{inputs}) => (float[{out or x}] y{outputs}) <{bias}> {{
        r = Relu(x)
        s = {total}
        y = {gelu}
        {rest}
    }}"""


def assert_fused(before, feeds=None, target="cpu"):
    session, after = run_pass(BiasGelu(), before, target)
    assert [op for op in ops(after) if op not in ("Relu", "MatMul")] == ["BiasGelu"]
    assert not session.rejections
    parity(before, after, feeds or {"x": X}, rtol=2e-6, atol=1e-6)
    again, same = run_pass(BiasGelu(), after)
    assert not again.sites
    assert same.fingerprint() == after.fingerprint()
    return after


def assert_refused(before, reason, target="cpu"):
    session, after = run_pass(BiasGelu(), before, target)
    assert not session.sites
    assert after.fingerprint() == as_model(before).fingerprint()
    assert [reason in item.reason for item in session.rejections] == [True], session.rejections


@pytest.mark.parametrize("total", ["Add(r, b)", "Add(b, r)"])
@pytest.mark.parametrize(
    ("gelu", "opset"),
    [
        ("com.microsoft.Gelu(s)", 11),
        ("com.microsoft.Gelu(s)", 17),
        ("com.microsoft.Gelu(s)", 23),
        ("Gelu(s)", 20),
        ('Gelu<approximate = "none">(s)', 23),
    ],
)
def test_either_gelu_and_either_order(gelu, opset, total):
    after = assert_fused(model(gelu, total, opset=opset))
    node = after.proto.graph.node[-1]
    assert list(node.input) == ["r", "b"]
    assert {entry.domain for entry in after.proto.opset_import} == {"", "com.microsoft"}


@pytest.mark.parametrize("total", ["Add(t, b)", "Add(b, t)"])
def test_after_a_matmul(total):
    weight = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    before = model(total=total, inputs=", float[4, 4] w").replace("s = Add", "t = MatMul(r, w)\n s = Add")
    assert_fused(before, {"x": X, "w": weight})


def test_the_tanh_approximation_is_refused():
    """With the erf form instead, values differ by up to 4.7e-4."""
    before = model('Gelu<approximate = "tanh">(s)', opset=20)
    assert_refused(before, "the Gelu is the tanh approximation, BiasGelu is exact")


REFUSALS = {
    "matrix": (model(bias="float[1, 4] b = {0.5, -1.0, 2.0, 0.0}"), "no operand of the sum is a constant vector"),
    "two activations": (model(total="Add(r, x)"), "no operand of the sum is a constant vector"),
    "input bias": (model(bias="float one = {1.0}", inputs=", float[4] b"), "no operand of the sum is a constant vector"),
    "one element": (model(bias="float[1] b = {0.5}"), "the bias has 1 elements, the last axis of the other operand 4"),
    "expanding": (model(x="N, S, 1", out="N, S, 4"), "the bias has 4 elements, the last axis of the other operand 1"),
    "symbolic length": (model(x="N, S, D", out="N, S, ?"), "the bias has 4 elements, the last axis of the other operand D"),
    "sum is an output": (model(outputs=", float[N, S, 4] s"), "is used elsewhere too"),
    "sum is used": (model(outputs=", float[N, S, 4] z", rest="z = Neg(s)"), "is used elsewhere too"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case):
    assert_refused(*REFUSALS[case])


def test_the_portable_target_declines():
    assert_refused(model(), "the target 'portable' has no kernel for com.microsoft.BiasGelu", "portable")


def test_half_precision_is_for_the_gpu_targets():
    proto = as_model(model(bias="float[4] c = {0.5, -1.0, 2.0, 0.0}", inputs=", float[4] b")).proto
    del proto.graph.initializer[:]
    proto.graph.initializer.add(name="b", dims=[4], data_type=10, raw_data=np.ones(4, np.float16).tobytes())
    del proto.graph.input[1:]
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = 10
    assert_refused(proto, "the target 'cpu' has no kernel for com.microsoft.BiasGelu on float16")
    for target in ("cuda", "dml"):
        _, after = run_pass(BiasGelu(), proto, target)
        assert ops(after) == ["Relu", "BiasGelu"]


def test_the_decomposed_form_in_two_steps():
    before = model(
        "Mul(h, s)",
        total="""Add(r, b)
        q = Div(s, root)
        e = Erf(q)
        p = Add(e, one)
        h = Mul(p, half)""",
        bias=BIAS + ", float root = {1.41421356}, float one = {1.0}, float half = {0.5}",
    )
    _, middle = run_pass(Gelu(), before)
    after = assert_fused(middle)
    parity(before, after, {"x": X}, rtol=2e-6, atol=1e-6)


def test_in_bodies_with_a_captured_bias():
    before = f"""<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    g (float[N, 4] x, bool c) => (float[N, 4] y) <{BIAS}> {{
        y = If(c) <
            then_branch = t () => (float[N, 4] t1) {{ s = Add(x, b)
                t1 = com.microsoft.Gelu(s) }},
            else_branch = e () => (float[N, 4] e1) {{ e1 = Neg(x) }}>
    }}"""
    _, after = run_pass(BiasGelu(), before)
    assert after.op_counts() == {"ai.onnx::If": 1, "ai.onnx::Neg": 1, "com.microsoft::BiasGelu": 1}
    for choice in (True, False):
        parity(before, after, {"x": X[0], "c": np.array(choice)}, rtol=2e-6, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    swap=st.booleans(),
    rank=st.integers(1, 4),
    standard=st.booleans(),
    change=st.sampled_from([None, None, "tanh", "length", "rank"]),
    seed=st.integers(0, 5),
)
def test_legal_sums_are_fused_and_one_illegal_change_refuses(swap, rank, standard, change, seed):
    rng = np.random.default_rng(seed)
    shape = [2, 3, 5, 4][4 - rank :]
    bias = {"length": "float[1] b = {0.5}", "rank": "float[1, 4] b = {0.5, -1.0, 2.0, 0.0}"}.get(change, BIAS)
    attribute = '<approximate = "tanh">' if change == "tanh" else ""
    gelu = f"Gelu{attribute}(s)" if standard or change == "tanh" else "com.microsoft.Gelu(s)"
    text = ", ".join(map(str, shape))
    out = "1, 4" if change == "rank" and rank == 1 else text
    before = model(gelu, "Add(b, r)" if swap else "Add(r, b)", x=text, bias=bias, opset=20, out=out)
    session, after = run_pass(BiasGelu(), before)
    assert len(session.sites) == (change is None)
    assert len(session.rejections) == (change is not None)
    parity(before, after, {"x": (3 * rng.standard_normal(shape)).astype(np.float32)}, rtol=2e-6, atol=1e-6)
