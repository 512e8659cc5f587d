"""The eleven spellings of Gelu through the whole family of passes: each becomes its own op, with and without a bias."""

import numpy as np
from activation_spelling import gelu, quick_gelu, tanh_gelu
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_harness import ops, parity, run_pass
from spelling import Spelling, commuted

from rewright.passes.fusion.bias_gelu import BiasGelu
from rewright.passes.fusion.fast_gelu import FastGelu
from rewright.passes.fusion.gelu import Gelu
from rewright.passes.fusion.quick_gelu import QuickGelu

X = np.concatenate([np.linspace(-6, 6, 24), [0.0, -0.0, 1e-20, -1e4, 1e4, 3e-4]]).astype(np.float32).reshape(2, 3, 5)
BIAS = np.array([0.5, -1.0, 2.0, 0.0, -0.25], np.float32)

SPELLINGS = {
    "erf div": lambda spell, x, **more: gelu(spell, x, "div", "first", **more),
    "erf mul": lambda spell, x, **more: gelu(spell, x, "mul", "last", **more),
    "erf half inside": lambda spell, x, **more: gelu(spell, x, "div", "on-sum", **more),
    "erf distributed": lambda spell, x, **more: gelu(spell, x, "mul", "distributed", **more),
    "tanh pow": lambda spell, x, **more: tanh_gelu(spell, x, "pow", "first", **more),
    "tanh pow, half last": lambda spell, x, **more: tanh_gelu(spell, x, "pow", "last", **more),
    "tanh factored": lambda spell, x, **more: tanh_gelu(spell, x, "factored", "first", **more),
    "tanh cube": lambda spell, x, **more: tanh_gelu(spell, x, "cube", "on-sum", **more),
    "sigmoid": lambda spell, x, **more: quick_gelu(spell, x, "mul", **more),
    "standard": lambda spell, x, **more: spell("Gelu", x),
    "standard tanh": lambda spell, x, **more: spell("Gelu", x, approximate="tanh"),
}
EXACT = {"erf div", "erf mul", "erf half inside", "erf distributed", "standard"}
ILLEGAL = {
    "constant": {"erf": {"sqrt2": 1.5}, "tanh": {"slope": 0.807}},
    "half": {"erf": {"half_value": 0.4}, "tanh": {"half_value": 0.4}},
    "coefficient": {"erf": {"sqrt2": 1.4}, "tanh": {"cubic": 0.054}},
    "exponent": {"erf": {"one": 2.0}, "tanh": {"exponent": 2}},
}
ORDERS = [
    (Gelu, FastGelu, QuickGelu, BiasGelu),
    (BiasGelu, QuickGelu, FastGelu, Gelu, BiasGelu),
    (FastGelu, BiasGelu, Gelu, BiasGelu),
]


def expected_ops(name, bias, opset):
    if name == "sigmoid":
        return ["Add", "QuickGelu"] if bias else ["QuickGelu"]
    if name in EXACT:
        return ["BiasGelu"] if bias else ["Gelu"]
    return ["FastGelu"]


def written(name, opset, bias, swap, constants, change=None, kept=None):
    spell = Spelling(opset, constants=constants)
    x = commuted(spell, "Add", "x", spell.array(BIAS), swap) if bias else "x"
    first = len(spell.nodes)
    result = SPELLINGS[name](spell, x, **({} if name.startswith("standard") else {"swap": swap}), **(change or {}))
    outputs = []
    if kept is not None:
        inner = [node.output[0] for node in spell.nodes[first:-1] if node.op_type in ("Erf", "Tanh", "Sigmoid", "Add")]
        outputs = [inner[kept % len(inner)]]
    return spell.model(result, outputs=outputs)


def through(before, order, opset):
    after, rejections = before, []
    for current in order:
        session, after = run_pass(current(), after)
        rejections += [(current.name, item.reason) for item in session.rejections]
    return after, rejections


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(SPELLINGS)),
    opset=st.integers(13, 23),
    bias=st.booleans(),
    swap=st.booleans(),
    constants=st.sampled_from(["initializer", "node", "value_float"]),
    order=st.sampled_from(ORDERS),
)
def test_each_spelling_becomes_its_own_op_in_any_order_of_the_passes(name, opset, bias, swap, constants, order):
    opset = max(opset, 20) if name.startswith("standard") else opset
    if name == "sigmoid" and QuickGelu not in order:
        order = (*order, QuickGelu)
    before = written(name, opset, bias, swap, constants)
    after, rejections = through(before, order, opset)
    assert [op for op in ops(after) if op != "Constant"] == expected_ops(name, bias, opset)
    if not bias or name != "sigmoid":
        assert not [reason for owner, reason in rejections if owner != "bias-gelu"]
    parity(before, after, {"x": X}, rtol=5e-6, atol=2e-6)


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(sorted(name for name in SPELLINGS if name.startswith(("erf", "tanh")))),
    opset=st.integers(13, 23),
    bias=st.booleans(),
    swap=st.booleans(),
    change=st.sampled_from([*ILLEGAL, "output"]),
    kept=st.integers(0, 5),
)
def test_one_illegal_change_is_refused_with_a_reason(name, opset, bias, swap, change, kept):
    kind = name.split()[0]
    if (change == "exponent" and name in ("tanh cube", "tanh factored")) or (change == "exponent" and name == "erf distributed"):
        change = "coefficient"
    if change == "output":
        before = written(name, opset, bias, swap, "initializer", kept=kept)
    else:
        before = written(name, opset, bias, swap, "initializer", ILLEGAL[change][kind])
    after, rejections = through(before, (Gelu, FastGelu, QuickGelu, BiasGelu), opset)
    assert ("Erf" if kind == "erf" else "Tanh") in ops(after)
    reasons = [reason for owner, reason in rejections if owner == ("gelu" if kind == "erf" else "fast-gelu")]
    assert len(reasons) == 1
    assert ("is used elsewhere too" if change == "output" else ", not ") in reasons[0]
    parity(before, after, {"x": X}, rtol=5e-6, atol=2e-6)


@settings(max_examples=40, deadline=None)
@given(
    opset=st.integers(13, 23),
    alpha=st.floats(-4, 4, width=32).filter(lambda value: abs(value) > 0.01),
    swap=st.booleans(),
    kind=st.sampled_from(["mul", "div"]),
    shared=st.booleans(),
)
def test_the_sigmoid_with_any_alpha_and_not_with_another_consumer(opset, alpha, swap, kind, shared):
    spell = Spelling(opset)
    result = quick_gelu(spell, "x", kind, alpha, swap)
    sigmoid = next(node.output[0] for node in spell.nodes if node.op_type == "Sigmoid")
    before = spell.model(spell("Add", result, spell("Neg", sigmoid)) if shared else result)
    session, after = run_pass(QuickGelu(), before)
    assert ("QuickGelu" in ops(after)) is not shared
    assert ["is used elsewhere too" in item.reason for item in session.rejections] == [True] * shared
    parity(before, after, {"x": X}, rtol=5e-6, atol=2e-6)
