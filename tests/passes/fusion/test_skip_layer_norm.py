"""skip-layer-norm: Add and LayerNormalization become one op, where the kernel takes the shapes and nothing is assumed."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_harness import as_model, ops, parity, run, run_pass

from rewright.passes.fusion.skip_layer_norm import SkipLayerNorm

H = 8
RNG = np.random.default_rng(0)
X, SKIP = RNG.standard_normal((2, 3, 4, H)).astype(np.float32)
FEEDS = {"x": X, "skip": SKIP}
GAMMA = ", ".join(f"{value:.3f}" for value in RNG.uniform(0.5, 1.5, H))
BETA = ", ".join(f"{value:.3f}" for value in RNG.standard_normal(H))


def model(
    x="B, S, 8",
    skip="B, S, 8",
    norm="LayerNormalization<epsilon = 1e-5>(sum, gamma, beta)",
    rest="",
    outputs="",
    inputs="",
    opset=17,
    body="sum = Add(a, b)",
    out="B, S, 8",
):
    return f"""<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>
    g (float[{x}] x, float[{skip}] skip{inputs}) => (float[{out}] y{outputs})
    <float[8] gamma = {{{GAMMA}}}, float[8] beta = {{{BETA}}}> {{
        a = Relu(x)
        b = Neg(skip)
        {body}
        y = {norm}
        {rest}
    }}"""


def attributes(after):
    node = next(node for node in after.proto.graph.node if node.op_type == "SkipLayerNormalization")
    return list(node.input), list(node.output), {item.name: item.f for item in node.attribute}


def assert_fused(before, feeds=FEEDS, rest=(), tolerance=1e-5, target="cpu"):
    session, after = run_pass(SkipLayerNorm(), before, target)
    assert sorted(op for op in ops(after) if op not in ("Relu", "Neg")) == sorted(["SkipLayerNormalization", *rest])
    assert not session.rejections
    for factor in (1, 1e-3):
        parity(before, after, {name: factor * value for name, value in feeds.items()}, rtol=tolerance, atol=tolerance)
    again, same = run_pass(SkipLayerNorm(), after)
    assert not again.sites
    assert same.fingerprint() == after.fingerprint()
    return after


def assert_refused(before, reason, target="cpu"):
    session, after = run_pass(SkipLayerNorm(), before, target)
    assert not session.sites
    assert after.fingerprint() == as_model(before).fingerprint()
    assert [reason in item.reason for item in session.rejections] == [True], session.rejections


@pytest.mark.parametrize("opset", [17, 18, 20, 23])
@pytest.mark.parametrize("axis", ["", ", axis = -1", ", axis = 2"])
def test_the_sum_and_its_normalisation_become_one_op(opset, axis):
    after = assert_fused(model(norm=f"LayerNormalization<epsilon = 1e-5{axis}>(sum, gamma, beta)", opset=opset))
    inputs, outputs, found = attributes(after)
    assert inputs == ["a", "b", "gamma", "beta"]
    assert outputs == ["y"]
    assert found == {"epsilon": np.float32(1e-5)}


@pytest.mark.parametrize("epsilon", [1e-12, 1e-6, 0.1])
def test_epsilon_is_taken_over(epsilon):
    after = assert_fused(model(norm=f"LayerNormalization<epsilon = {epsilon}>(sum, gamma, beta)"), tolerance=1e-4)
    assert attributes(after)[2] == {"epsilon": np.float32(epsilon)}


def test_without_epsilon_the_specification_of_layer_normalization_holds_not_that_of_the_fused_op():
    """Activations of about 1e-3: with the fused op's own default of 1e-12 the result differs by more than 1."""
    before = model(norm="LayerNormalization(sum, gamma, beta)")
    after = assert_fused(before)
    assert attributes(after)[2] == {"epsilon": np.float32(1e-5)}
    assert np.abs(run(after, {"x": 1e-3 * X, "skip": 1e-3 * SKIP})[0]).max() < 3


def test_without_a_bias_the_op_has_no_beta():
    after = assert_fused(model(norm="LayerNormalization(sum, gamma)"))
    assert attributes(after)[0] == ["a", "b", "gamma"]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("x", "skip", "order"),
    [
        ("B, S, 8", "1, S, 8", ["a", "b"]),
        ("B, S, 8", "S, 8", ["a", "b"]),
        ("1, S, 8", "B, S, 8", ["b", "a"]),
        ("S, 8", "B, S, 8", ["b", "a"]),
        ("B, 4, 8", "1, 4, 8", ["a", "b"]),
    ],
)
def test_a_broadcast_operand_becomes_the_skip(x, skip, order, batch):
    def feed(text, seed):
        sizes = {"B": batch, "S": 4}
        shape = [int(sizes.get(dim.strip(), dim)) for dim in text.split(",")]
        return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)

    before = model(x=x, skip=skip, out="B, S, 8" if "S" in x else "B, 4, 8")
    after = assert_fused(before, {"x": feed(x, 1), "skip": feed(skip, 2)})
    assert attributes(after)[0][:2] == order


@pytest.mark.parametrize("shape", ["T, 8", "4, 8"])
def test_rank_2(shape):
    assert_fused(model(x=shape, skip=shape, out=shape), {"x": X[0], "skip": SKIP[0]})


def test_a_sum_that_is_used_elsewhere_becomes_the_fourth_output():
    before = model(rest="z = Mul(sum, y)", outputs=", float[B, S, 8] z")
    after = assert_fused(before, rest=["Mul"])
    assert attributes(after)[1] == ["y", "", "", "sum"]
    before = model(outputs=", float[B, S, 8] sum")
    after = assert_fused(before)
    assert attributes(after)[1] == ["y", "", "", "sum"]


def test_a_sum_that_is_used_before_the_normalisation_stands_in_order():
    before = model(body="sum = Add(a, b)\n w = Relu(sum)\n", rest="z = Mul(w, y)", outputs=", float[B, S, 8] z")
    assert_fused(before, rest=["Mul"])


def test_a_chain_of_residuals():
    rest = """m = Abs(y)
        next = Add(m, sum)
        z = LayerNormalization(next, gamma, beta)"""
    before = model(rest=rest, outputs=", float[B, S, 8] z")
    after = assert_fused(before, rest=["Abs", "SkipLayerNormalization"])
    assert after.op_counts()["com.microsoft::SkipLayerNormalization"] == 2


def test_a_bias_stays_outside_and_takes_part_in_a_sum():
    after = assert_fused(model(body="p = Add(a, gamma)\nsum = Add(p, b)"), rest=["Add"])
    assert attributes(after)[0] == ["p", "b", "gamma", "beta"]


def of_dtype(name):
    text = re.sub(r"\n *<float\[8\] gamma.*", " {", model(inputs=", float[8] gamma, float[8] beta"))
    return text.replace("float[", f"{name}[")


def test_half_precision_has_a_cpu_kernel_and_double_has_none():
    half = of_dtype("float16")
    _, after = run_pass(SkipLayerNorm(), half)
    assert ops(after) == ["Relu", "Neg", "SkipLayerNormalization"]
    for offset in (0, 5):
        feeds = {"x": X + offset, "skip": SKIP, "gamma": np.linspace(0.5, 2, H), "beta": np.linspace(-1, 1, H)}
        parity(half, after, {name: np.float16(value) for name, value in feeds.items()}, rtol=1e-2, atol=1e-2)
    assert_refused(of_dtype("double"), "the target 'cpu' has no kernel for com.microsoft.SkipLayerNormalization on float64")


def test_the_portable_target_declines():
    assert_refused(model(), "the target 'portable' has no kernel for com.microsoft.SkipLayerNormalization", "portable")


def test_a_broadcast_operand_is_not_for_dml():
    assert_refused(model(skip="1, S, 8"), "the kernel of the target 'dml' takes only equal ones", "dml")
    _, after = run_pass(SkipLayerNorm(), model(), "dml")
    assert "SkipLayerNormalization" in ops(after)


REFUSALS = {
    "rank 4": (model(x="A, B, S, 8", skip="A, B, S, 8", out="A, B, S, 8"), "the sum has rank 4, and the op takes 2 or 3"),
    "rank 1": (model(x="8", skip="8", out="8"), "the sum has rank 1"),
    "unproven batch": (model(skip="C, S, 8", out="?, S, 8"), "the operands have the shapes"),
    "unproven length": (model(skip="1, T, 8", out="B, ?, 8"), "the operands have the shapes"),
    "broadcast over the sequence": (model(skip="B, 1, 8"), "the operands have the shapes"),
    "broadcast of rank 2": (model(x="S, 8", skip="1, 8", out="S, 8"), "the operands have the shapes"),
    "both broadcast": (model(x="B, 1, 8", skip="1, S, 8"), "the operands have the shapes"),
    "constant operand": (model(body="sum = Add(a, gamma)"), "an operand of the sum is a constant, not a residual"),
    "axis": (
        model(
            x="B, 4, 8",
            skip="B, 4, 8",
            out="B, 4, 8",
            norm="LayerNormalization<axis = 1>(sum, wide)",
            inputs=", float[4, 8] wide",
        ),
        "the normalised axes begin at 1",
    ),
    "gamma that depends on the sum": (
        model(norm="LayerNormalization(sum, g)", body="sum = Add(a, b)\ng = ReduceMean<axes = [0, 1], keepdims = 0>(sum)"),
        "an input of the match depends on an output of it",
    ),
    "gamma of another shape": (
        model(norm="LayerNormalization(sum, g)", inputs=", float[1, 8] g"),
        "gamma has the shape (1, 8), not (8,)",
    ),
    "the mean is used": (
        model(norm="LayerNormalization(sum, gamma, beta)", outputs=", float[B, S, 1] mean").replace(
            "y = Layer", "y, mean = Layer"
        ),
        "the output 'mean' of LayerNormalization is used",
    ),
    "stash_type": (
        model(norm="LayerNormalization<stash_type = 16>(sum, gamma, beta)"),
        "stash_type is not float",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case):
    assert_refused(*REFUSALS[case])


def test_rank_comes_from_what_is_known_and_an_unknown_op_costs_only_its_place():
    before = model(
        body="""u = acme.Unknown(a)
        first = Add(u, b)
        z = LayerNormalization(first, gamma, beta)
        sum = Add(a, b)""",
        outputs=", float[?, ?, ?] z",
    ).replace('"com.microsoft" : 1', '"com.microsoft" : 1, "acme" : 1')
    session, after = run_pass(SkipLayerNorm(), before)
    assert [op for op in ops(after) if "Norm" in op] == ["LayerNormalization", "SkipLayerNormalization"]
    assert len(session.rejections) == 1


def test_captured_and_inside_a_body():
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[B, S, 8] x, float[B, S, 8] skip, bool c) => (float[B, S, 8] out)
    <float[8] gamma = {{{GAMMA}}}, float[8] beta = {{{BETA}}}> {{
        sum = Add(x, skip)
        y = LayerNormalization(sum, gamma, beta)
        out = If(c) <
            then_branch = t () => (float[B, S, 8] t1) {{ t0 = Add(sum, y)
                t1 = LayerNormalization(t0, gamma, beta) }},
            else_branch = e () => (float[B, S, 8] e1) {{ e1 = Neg(sum) }}>
    }}"""
    _, after = run_pass(SkipLayerNorm(), text)
    assert after.op_counts() == {"ai.onnx::If": 1, "ai.onnx::Neg": 1, "com.microsoft::SkipLayerNormalization": 2}
    for choice in (True, False):
        parity(text, after, FEEDS | {"c": np.array(choice)}, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("offset", "spread"), [(0, 1e-3), (0, 1e-4), (10, 1), (300, 1), (10, 0.01), (1e4, 1)])
def test_low_variance_and_large_offsets_stay_close_to_float64(offset, spread):
    """The kernel's error grows with offset / spread, as any float32 mean's does, and no faster."""
    rng = np.random.default_rng(2)
    x = (offset + spread * rng.standard_normal((2, 3, H))).astype(np.float32)
    skip = (spread * rng.standard_normal((2, 3, H))).astype(np.float32)
    before = model(norm="LayerNormalization(sum, gamma)", body="sum = Add(x, skip)")
    _, after = run_pass(SkipLayerNorm(), before)
    total = (x + skip).astype(np.float64)
    centred = total - total.mean(-1, keepdims=True)
    gamma = np.array([float(item) for item in GAMMA.split(",")])
    exact = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * gamma
    assert np.abs(run(after, {"x": x, "skip": skip})[0] - exact).max() < 1e-6 * (2 + offset / spread)


@settings(max_examples=40, deadline=None)
@given(
    rank=st.sampled_from([2, 3]),
    broadcast=st.sampled_from(["none", "none", "one", "missing"]),
    swap=st.booleans(),
    beta=st.booleans(),
    epsilon=st.sampled_from(["", "<epsilon = 1e-6>", "<epsilon = 1e-3>", "<epsilon = 1e-5, axis = -1>"]),
    used=st.booleans(),
    change=st.sampled_from([None, None, "symbol", "axis", "output"]),
    seed=st.integers(0, 5),
)
def test_legal_sums_are_fused_and_one_illegal_change_refuses(rank, broadcast, swap, beta, epsilon, used, change, seed):
    rng = np.random.default_rng(seed)
    dims = ["B", "S", "8"][3 - rank :]
    other = {"one": ["1", "S", "8"], "missing": ["S", "8"]}.get(broadcast, dims) if rank == 3 else dims
    full, other = ", ".join(dims), ", ".join(other)
    sizes = {"B": 3, "S": 4, "T": 4, "C": 3}
    norm = f"LayerNormalization{epsilon}(sum, gamma{', beta' if beta else ''})"
    out, inputs = full, ""
    if change == "axis":
        epsilon = f"<axis = {rank - 2}>"
        dims[rank - 2] = "4"
        out = full = other = ", ".join(dims)
        norm, inputs = f"LayerNormalization{epsilon}(sum, wide)", ", float[4, 8] wide"
    if change == "symbol":
        other, out = other.replace("S", "T"), out.replace("S", "?")
    if change == "output":
        norm = norm + "\n"
    x, skip = (other, full) if swap else (full, other)
    before = model(x=x, skip=skip, norm=norm, out=out, inputs=inputs)
    if used:
        before = before.replace("y = Layer", "r = Relu(sum)\n y = Layer").replace("] y)", f"] y, float[{out}] r)")
    if change == "output":
        mean = ", ".join([*dims[:-1], "1"])
        before = before.replace("y = Layer", "y, m = Layer").replace("] y", f"] y, float[{mean}] m", 1)
    session, after = run_pass(SkipLayerNorm(), before)
    assert len(session.sites) == (change is None), before
    assert len(session.rejections) == (change is not None)

    def feed(text):
        return rng.standard_normal([sizes.get(dim.strip()) or int(dim) for dim in text.split(",")]).astype(np.float32)

    feeds = {"x": feed(x), "skip": feed(skip)} | ({"wide": feed("4, 8")} if inputs else {})
    parity(before, after, feeds, rtol=1e-5, atol=1e-5)
