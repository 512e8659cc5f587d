"""bias-skip-layer-norm: the bias of the MatMul before a SkipLayerNormalization becomes its fifth input."""

import itertools

import numpy as np
import pytest
from pass_harness import as_model, ops, parity, run_pass

from rewright.passes.fusion.bias_skip_layer_norm import BiasSkipLayerNorm

H = 8
RNG = np.random.default_rng(0)
FEEDS = {
    "x": RNG.standard_normal((3, 4, H)).astype(np.float32),
    "skip": RNG.standard_normal((3, 4, H)).astype(np.float32),
    "w": RNG.standard_normal((H, H)).astype(np.float32),
}
VECTORS = ", ".join(f"float[8] {name} = {{{', '.join(f'{v:.3f}' for v in RNG.standard_normal(H))}}}" for name in "gbv")


def model(
    body="t = MatMul(x, w)\n p = Add(t, v)",
    norm="y = com.microsoft.SkipLayerNormalization<epsilon = 1e-3>(p, skip, g, b)",
    rest="",
    outputs="",
    skip="B, S, 8",
    constants="",
):
    return f"""<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    g (float[B, S, 8] x, float[{skip}] skip, float[8, 8] w) => (float[B, S, 8] y{outputs}) <{VECTORS}{constants}> {{
        {body}
        {norm}
        {rest}
    }}"""


def assert_fused(before, inputs, feeds=FEEDS, rest=()):
    session, after = run_pass(BiasSkipLayerNorm(), before)
    assert len(session.sites) == 1
    assert not session.rejections
    assert ops(after) == ["MatMul", "SkipLayerNormalization", *rest]
    node = next(node for node in after.proto.graph.node if node.op_type == "SkipLayerNormalization")
    assert list(node.input) == inputs
    parity(before, after, feeds, rtol=1e-5, atol=1e-5)
    again, same = run_pass(BiasSkipLayerNorm(), after)
    assert not again.sites
    assert same.fingerprint() == after.fingerprint()
    return node


def assert_refused(before, reason):
    session, after = run_pass(BiasSkipLayerNorm(), before)
    assert not session.sites
    assert after.fingerprint() == as_model(before).fingerprint()
    assert [reason in item.reason for item in session.rejections] == [True], session.rejections


@pytest.mark.parametrize(
    ("add", "order", "beta"), list(itertools.product(["Add(t, v)", "Add(v, t)"], ["p, skip", "skip, p"], [", b", ""]))
)
def test_either_operand_and_either_order(add, order, beta):
    norm = f"y = com.microsoft.SkipLayerNormalization<epsilon = 1e-3>({order}, g{beta})"
    inputs = ["t" if name == "p" else name for name in order.split(", ")]
    node = assert_fused(model(f"t = MatMul(x, w)\n p = {add}", norm), [*inputs, "g", "b" if beta else "", "v"])
    assert [item.f for item in node.attribute] == [np.float32(1e-3)]


def test_the_sum_includes_the_bias_and_keeps_its_name():
    norm = "y, m, d, sum = com.microsoft.SkipLayerNormalization(p, skip, g, b)"
    before = model(norm=norm.replace("y, m, d, sum", "y, , , sum"), outputs=", float[B, S, 8] sum")
    node = assert_fused(before, ["t", "skip", "g", "b", "v"])
    assert list(node.output) == ["y", "", "", "sum"]
    before = model(norm=norm.replace("y, m, d, sum", "y, , , sum"), rest="z = Relu(sum)", outputs=", float[B, S, 8] z")
    assert_fused(before, ["t", "skip", "g", "b", "v"], rest=["Relu"])


def test_a_broadcast_skip():
    feeds = FEEDS | {"skip": FEEDS["skip"][:1]}
    assert_fused(model(skip="1, S, 8"), ["t", "skip", "g", "b", "v"], feeds)


def test_where_both_operands_have_a_bias_the_first_is_taken_and_nothing_more():
    body = "t = MatMul(x, w)\n p = Add(t, v)\n u = MatMul(skip, w)\n q = Add(u, g)"
    before = model(body, "y = com.microsoft.SkipLayerNormalization(p, q, g, b)")
    _, after = run_pass(BiasSkipLayerNorm(), before)
    assert ops(after) == ["MatMul", "MatMul", "Add", "SkipLayerNormalization"]
    parity(before, after, FEEDS, rtol=1e-5, atol=1e-5)
    again, _ = run_pass(BiasSkipLayerNorm(), after)
    assert [item.reason for item in again.rejections] == ["the node has a bias already"]


REFUSALS = {
    "no matmul": (model("p = Add(x, v)"), "no operand is a MatMul with a constant bias"),
    "a cast between": (
        model("t = MatMul(x, w)\n c = Cast<to = 1>(t)\n p = Add(c, v)"),
        "no operand is a MatMul with a constant bias",
    ),
    "a computed bias": (
        model("t = MatMul(x, w)\n r = ReduceMax<axes = [0, 1], keepdims = 0>(skip)\n p = Add(t, r)"),
        "no operand is a MatMul with a constant bias",
    ),
    "the sum is needed": (model(rest="z = Relu(p)", outputs=", float[B, S, 8] z"), "the value 'p' is used elsewhere too"),
    "the sum is an output": (model(outputs=", float[B, S, 8] p"), "the value 'p' is used elsewhere too"),
    "one number": (
        model("t = MatMul(x, w)\n p = Add(t, one)", constants=", float one = {0.5}"),
        "the bias 'one' has the shape (), and gamma (8,)",
    ),
    "rank 2": (
        model("t = MatMul(x, w)\n p = Add(t, row)", constants=f", float[1, 8] row = {{{', '.join('12345678')}}}"),
        "the bias 'row' has the shape (1, 8), and gamma (8,)",
    ),
    "another op of this name": (model(norm="y = com.microsoft.SkipLayerNormalization(x, skip, g)"), "no operand"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case):
    assert_refused(*REFUSALS[case])


def test_an_op_of_another_domain_is_left_alone():
    before = model(norm="y = acme.SkipLayerNormalization(p, skip, g)").replace('"com.microsoft"', '"acme" : 1, "com.microsoft"')
    session, after = run_pass(BiasSkipLayerNorm(), before)
    assert not session.sites
    assert not session.rejections
    assert after.fingerprint() == as_model(before).fingerprint()
