"""skip-rms-norm: Add and root-mean-square normalisation become one op, where the kernel takes the shapes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_harness import as_model, ops, parity, run, run_pass

from rewright.passes.fusion.skip_rms_norm import SkipRmsNorm

H = 8
RNG = np.random.default_rng(0)
X, SKIP = RNG.standard_normal((2, 3, 4, H)).astype(np.float32)
FEEDS = {"x": X, "skip": SKIP}
GAMMA = ", ".join(f"{value:.3f}" for value in RNG.uniform(0.5, 1.5, H))
SPELLINGS = [(17, "SimplifiedLayerNormalization"), (18, "SimplifiedLayerNormalization"), (23, "RMSNormalization")]


def model(
    x="B, S, 8",
    skip="B, S, 8",
    norm="SimplifiedLayerNormalization<epsilon = 1e-6>(sum, gamma)",
    rest="",
    outputs="",
    inputs="",
    opset=17,
    body="sum = Add(a, b)",
    out="B, S, 8",
):
    return f"""<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>
    g (float[{x}] x, float[{skip}] skip{inputs}) => (float[{out}] y{outputs}) <float[8] gamma = {{{GAMMA}}}> {{
        a = Relu(x)
        b = Neg(skip)
        {body}
        y = {norm}
        {rest}
    }}"""


def attributes(after):
    node = next(node for node in after.proto.graph.node if node.op_type == "SkipSimplifiedLayerNormalization")
    return list(node.input), list(node.output), {item.name: item.f for item in node.attribute}


def assert_fused(before, feeds=FEEDS, rest=(), target="cpu"):
    session, after = run_pass(SkipRmsNorm(), before, target)
    assert sorted(op for op in ops(after) if op not in ("Relu", "Neg")) == sorted(["SkipSimplifiedLayerNormalization", *rest])
    assert not session.rejections
    for factor in (1, 1e-3, 400):
        parity(before, after, {name: np.float32(factor) * value for name, value in feeds.items()}, rtol=1e-5, atol=1e-5)
    again, same = run_pass(SkipRmsNorm(), after)
    assert not again.sites
    assert same.fingerprint() == after.fingerprint()
    return after


def assert_refused(before, reason, target="cpu"):
    session, after = run_pass(SkipRmsNorm(), before, target)
    assert not session.sites
    assert after.fingerprint() == as_model(before).fingerprint()
    assert [reason in item.reason for item in session.rejections] == [True], session.rejections


@pytest.mark.parametrize(("opset", "op"), SPELLINGS)
@pytest.mark.parametrize("axis", ["", ", axis = -1", ", axis = 2"])
def test_the_sum_and_its_normalisation_become_one_op(opset, op, axis):
    after = assert_fused(model(norm=f"{op}<epsilon = 1e-3{axis}>(sum, gamma)", opset=opset))
    assert attributes(after) == (["a", "b", "gamma"], ["y"], {"epsilon": np.float32(1e-3)})


@pytest.mark.parametrize(("opset", "op"), SPELLINGS)
def test_without_epsilon_the_default_of_the_normalisation_holds_not_that_of_the_fused_op(opset, op):
    """Activations of about 1e-3: with the fused op's own default of 1e-12 the result differs by more than 1."""
    after = assert_fused(model(norm=f"{op}(sum, gamma)", opset=opset))
    assert attributes(after)[2] == {"epsilon": np.float32(1e-5)}
    assert np.abs(run(after, {"x": 1e-3 * X, "skip": 1e-3 * SKIP})[0]).max() < 2


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("x", "skip", "order"),
    [
        ("B, S, 8", "1, S, 8", ["a", "b"]),
        ("B, S, 8", "S, 8", ["a", "b"]),
        ("1, S, 8", "B, S, 8", ["b", "a"]),
        ("S, 8", "B, S, 8", ["b", "a"]),
    ],
)
def test_a_broadcast_operand_becomes_the_skip(x, skip, order, batch):
    def feed(text, seed):
        sizes = {"B": batch, "S": 4}
        shape = [int(sizes.get(dim.strip(), dim)) for dim in text.split(",")]
        return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)

    after = assert_fused(model(x=x, skip=skip), {"x": feed(x, 1), "skip": feed(skip, 2)})
    assert attributes(after)[0][:2] == order


@pytest.mark.parametrize("shape", ["T, 8", "4, 8"])
def test_rank_2(shape):
    assert_fused(model(x=shape, skip=shape, out=shape), {"x": X[0], "skip": SKIP[0]})


def test_a_chain_of_residuals_whose_sums_are_used_on():
    rest = """m = Abs(y)
        next = Add(sum, m)
        z = SimplifiedLayerNormalization(next, gamma)"""
    after = assert_fused(model(rest=rest, outputs=", float[B, S, 8] z"), rest=["Abs", "SkipSimplifiedLayerNormalization"])
    assert attributes(after)[1] == ["y", "", "", "sum"]
    after = assert_fused(model(outputs=", float[B, S, 8] sum"))
    assert attributes(after)[1] == ["y", "", "", "sum"]


@pytest.mark.parametrize(("opset", "op"), SPELLINGS)
def test_half_precision_has_a_cpu_kernel_and_double_has_none(opset, op):
    text = model(norm=f"{op}<epsilon = 1e-6>(sum, gamma)", opset=opset, inputs=", float[8] gamma")
    text = text.replace(f"<float[8] gamma = {{{GAMMA}}}>", "")
    half = text.replace("float[", "float16[")
    _, after = run_pass(SkipRmsNorm(), half)
    assert ops(after) == ["Relu", "Neg", "SkipSimplifiedLayerNormalization"]
    feeds = {"x": 100 * X, "skip": 100 * SKIP, "gamma": np.linspace(0.5, 2, H)}
    parity(half, after, {name: np.float16(value) for name, value in feeds.items()}, rtol=1e-2, atol=1e-2)
    reason = "the target 'cpu' has no kernel for com.microsoft.SkipSimplifiedLayerNormalization on float64"
    assert_refused(text.replace("float[", "double["), reason)


def test_the_portable_target_declines_and_dml_takes_only_equal_shapes():
    reason = "the target 'portable' has no kernel for com.microsoft.SkipSimplifiedLayerNormalization"
    assert_refused(model(norm="RMSNormalization(sum, gamma)", opset=23), reason, "portable")
    assert_refused(model(skip="1, S, 8"), "the kernel of the target 'dml' takes only equal ones", "dml")
    assert_fused(model(), target="dml")


REFUSALS = {
    "rank 4": (model(x="A, B, S, 8", skip="A, B, S, 8", out="A, B, S, 8"), "the sum has rank 4, and the op takes 2 or 3"),
    "unproven batch": (model(skip="C, S, 8", out="?, S, 8"), "the operands have the shapes"),
    "broadcast over the sequence": (model(skip="B, 1, 8"), "the operands have the shapes"),
    "constant operand": (model(body="sum = Add(a, gamma)"), "an operand of the sum is a constant, not a residual"),
    "axis": (
        model(
            x="B, 4, 8",
            skip="B, 4, 8",
            out="B, 4, 8",
            norm="SimplifiedLayerNormalization<axis = 1>(sum, wide)",
            inputs=", float[4, 8] wide",
        ),
        "the normalised axes begin at 1",
    ),
    "gamma that depends on the sum": (
        model(
            norm="SimplifiedLayerNormalization(sum, g)",
            body="sum = Add(a, b)\ng = ReduceMean<axes = [0, 1], keepdims = 0>(sum)",
        ),
        "an input of the match depends on an output of it",
    ),
    "gamma of another shape": (
        model(norm="SimplifiedLayerNormalization(sum, g)", inputs=", float[1, 8] g"),
        "gamma has the shape (1, 8), not (8,)",
    ),
    "gamma of another dtype": (
        model(norm="RMSNormalization(sum, g)", inputs=", float16[8] g", opset=23).replace(
            "float[B, S, 8] y", "float16[B, S, 8] y"
        ),
        "gamma is of float16, and the sum of float32",
    ),
    "the deviation is used": (
        model(outputs=", float[B, S, 1] inverse").replace("y = Simp", "y, inverse = Simp"),
        "the output 'inverse' of SimplifiedLayerNormalization is used",
    ),
    "stash_type": (
        model(norm="RMSNormalization<stash_type = 16>(sum, gamma)", opset=23),
        "stash_type is not float",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case):
    assert_refused(*REFUSALS[case])


@settings(max_examples=30, deadline=None)
@given(
    spelling=st.sampled_from(SPELLINGS),
    rank=st.sampled_from([2, 3]),
    swap=st.booleans(),
    epsilon=st.sampled_from(["", "<epsilon = 1e-6>", "<epsilon = 1e-3, axis = -1>"]),
    used=st.booleans(),
    change=st.sampled_from([None, None, "symbol", "gamma"]),
    seed=st.integers(0, 5),
)
def test_legal_sums_are_fused_and_one_illegal_change_refuses(spelling, rank, swap, epsilon, used, change, seed):
    opset, op = spelling
    dims = ["B", "S", "8"][3 - rank :]
    full = ", ".join(dims)
    other = full.replace("S", "T") if change == "symbol" else full
    body = "sum = Add(b, a)" if swap else "sum = Add(a, b)"
    name = "narrow" if change == "gamma" else "gamma"
    out = full.replace("S", "?") if change == "symbol" else full
    before = model(
        x=full, skip=other, out=out, body=body, norm=f"{op}{epsilon}(sum, {name})", opset=opset, inputs=", float[1] narrow"
    )
    if used:
        before = before.replace("y = ", "r = Relu(sum)\n y = ").replace("] y)", f"] y, float[{out}] r)")
    session, after = run_pass(SkipRmsNorm(), before)
    assert len(session.sites) == (change is None), before
    assert len(session.rejections) == (change is not None)
    rng = np.random.default_rng(seed)
    shape = [3, 4, H][3 - rank :]
    feeds = {"x": rng.standard_normal(shape), "skip": rng.standard_normal(shape), "narrow": np.full(1, 0.5)}
    parity(before, after, {name: value.astype(np.float32) for name, value in feeds.items()}, rtol=1e-5, atol=1e-5)
