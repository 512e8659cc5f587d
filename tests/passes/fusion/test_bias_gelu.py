"""bias-gelu: a constant vector added before a Gelu becomes the second input of BiasGelu or FastGelu."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_harness import as_model, ops, parity, run_pass

from rewright.passes.fusion.bias_gelu import BiasGelu
from rewright.passes.fusion.fast_gelu import FastGelu
from rewright.passes.fusion.gelu import Gelu
from rewright.passes.session import PassSession
from rewright.testing import check_pass, refuses

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


def assert_fused(before, feeds=None, expected="BiasGelu"):
    inputs = {"x": X} if feeds is None else feeds
    return check_pass(BiasGelu, before, inputs=inputs, becomes={expected: 1, "Gelu": 0, "Add": 0}).model


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


@pytest.mark.parametrize("total", ["Add(r, b)", "Add(b, r)"])
@pytest.mark.parametrize(
    ("gelu", "opset"),
    [("com.microsoft.FastGelu(s)", 13), ("com.microsoft.FastGelu(s)", 23), ('Gelu<approximate = "tanh">(s)', 20)],
)
def test_the_tanh_approximation_becomes_fast_gelu(gelu, opset, total):
    """As BiasGelu, values would differ by up to 4.7e-4."""
    after = assert_fused(model(gelu, total, opset=opset), expected="FastGelu")
    assert list(after.proto.graph.node[-1].input) == ["r", "b"]


@pytest.mark.parametrize("order", [(FastGelu, BiasGelu), (BiasGelu, FastGelu), (BiasGelu, Gelu, FastGelu)])
def test_the_tanh_approximation_after_a_matmul_in_either_order_of_the_passes(order):
    weight = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    before = model('Gelu<approximate = "tanh">(s)', "Add(t, b)", opset=20, inputs=", float[4, 4] w")
    before = before.replace("s = Add", "t = MatMul(r, w)\n s = Add")
    after = as_model(before)
    for current in order:
        _, after = run_pass(current(), after)
    assert ops(after) == ["Relu", "MatMul", "FastGelu"]
    assert list(after.proto.graph.node[-1].input) == ["t", "b"]
    parity(before, after, {"x": X, "w": weight}, rtol=5e-6, atol=2e-6)


def test_a_fast_gelu_that_has_a_bias_is_left_alone():
    before = model("com.microsoft.FastGelu(s, b)")
    session, after = run_pass(BiasGelu(), before)
    assert not session.sites
    assert after.fingerprint() == as_model(before).fingerprint()


def test_no_other_approximation_is_taken():
    proto = as_model(model('Gelu<approximate = "tanh">(s)', opset=20)).proto
    next(node for node in proto.graph.node if node.op_type == "Gelu").attribute[0].s = b"quadratic"
    session = PassSession(BiasGelu(), as_model(proto))
    session.current.apply(session)
    assert not session.sites
    assert "quadratic" in session.rejections[0].reason


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
    before, reason = REFUSALS[case]
    refuses(BiasGelu, before, re.escape(reason))


def test_the_portable_target_declines():
    refuses(BiasGelu, model(), "the target 'portable' has no kernel for com.microsoft.BiasGelu", target="portable")


def test_half_precision_is_for_the_gpu_targets():
    proto = as_model(model(bias="float[4] c = {0.5, -1.0, 2.0, 0.0}", inputs=", float[4] b")).proto
    del proto.graph.initializer[:]
    proto.graph.initializer.add(name="b", dims=[4], data_type=10, raw_data=np.ones(4, np.float16).tobytes())
    del proto.graph.input[1:]
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = 10
    refuses(BiasGelu, proto, "the target 'cpu' has no kernel for com.microsoft.BiasGelu on float16")
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


WEIGHT = "float[4, 3] w = {1.0, -2.0, 0.5, 0.25, 3.0, 0.1, -0.7, 0.9, 0.2, 1.1, -1.3, 0.4}"


def gemm_model(
    attributes="alpha = 1.0",
    activation="com.microsoft.Gelu(s)",
    bias="float[3] b = {0.5, -1.0, 2.0}",
    opset=17,
    inputs="",
    outputs="",
    operands="x, w, b",
):
    weight = WEIGHT.replace("[4, 3]", "[3, 4]") if "transB = 1" in attributes else WEIGHT
    return f"""<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>
    g (float[6, 4] x{inputs}) => (float[6, 3] y{outputs}) <{", ".join(filter(None, (weight, bias)))}> {{
        s = Gemm<{attributes}>({operands})
        y = {activation}
    }}"""


@pytest.mark.parametrize("attributes", ["alpha = 1.0", "beta = 0.5, transB = 1", "alpha = 0.25, beta = 2.0"])
@pytest.mark.parametrize("bias", ["float[3] b = {0.5, -1.0, 2.0}", "float[1, 3] b = {0.5, -1.0, 2.0}"])
@pytest.mark.parametrize("activation", ["com.microsoft.Gelu(s)", "com.microsoft.FastGelu(s)"])
def test_a_gemm_gives_its_bias_on_demand(attributes, bias, activation):
    before = gemm_model(attributes, activation, bias)
    after = check_pass(BiasGelu(gemm=True), before, inputs={"x": X.reshape(6, 4)}).model
    assert ops(after) == ["Gemm", "FastGelu" if "Fast" in activation else "BiasGelu"]
    assert len(after.proto.graph.node[0].input) == 2


@pytest.mark.parametrize(
    ("before", "option", "reason"),
    [
        (gemm_model(), False, "the Gemm adds the bias at no cost"),
        (gemm_model(bias="float[1] b = {0.5}"), True, "the bias has 1 elements, the Gemm 3 columns"),
        (gemm_model(bias="float b = {0.5}"), True, "the bias of the Gemm is not a constant vector"),
        (gemm_model(bias="", inputs=", float[3] b"), True, "the bias of the Gemm is not a constant vector ('b')"),
        (gemm_model(bias="", operands="x, w"), True, "the Gemm has no bias"),
        (gemm_model(outputs=", float[6, 3] s"), True, "is used elsewhere too"),
        (gemm_model(opset=10), True, "before opset 11 a Gemm must have a bias"),
    ],
)
def test_a_gemm_keeps_its_bias(before, option, reason):
    refuses(BiasGelu(gemm=option), before, re.escape(reason))


@settings(max_examples=30, deadline=None)
@given(
    swap=st.booleans(),
    rank=st.integers(1, 4),
    standard=st.booleans(),
    tanh=st.booleans(),
    change=st.sampled_from([None, None, "length", "rank"]),
    seed=st.integers(0, 5),
)
def test_legal_sums_are_fused_and_one_illegal_change_refuses(swap, rank, standard, tanh, change, seed):
    rng = np.random.default_rng(seed)
    shape = [2, 3, 5, 4][4 - rank :]
    bias = {"length": "float[1] b = {0.5}", "rank": "float[1, 4] b = {0.5, -1.0, 2.0, 0.0}"}.get(change, BIAS)
    attribute = '<approximate = "tanh">' if tanh else ""
    gelu = f"Gelu{attribute}(s)" if standard else f"com.microsoft.{'FastGelu' if tanh else 'Gelu'}(s)"
    text = ", ".join(map(str, shape))
    out = "1, 4" if change == "rank" and rank == 1 else text
    before = model(gelu, "Add(b, r)" if swap else "Add(r, b)", x=text, bias=bias, opset=20, out=out)
    session, after = run_pass(BiasGelu(), before)
    assert len(session.sites) == (change is None)
    assert len(session.rejections) == (change is not None)
    assert change or ops(after)[-1] == ("FastGelu" if tanh else "BiasGelu")
    parity(before, after, {"x": (3 * rng.standard_normal(shape)).astype(np.float32)}, rtol=5e-6, atol=2e-6)
