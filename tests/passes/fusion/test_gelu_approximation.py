"""gelu-approximation: exact Gelus become the tanh approximation, and only on demand."""

import numpy as np
import pytest
from onnx.parser import parse_model
from pass_harness import ops, parity, run_pass

from rewright.api import optimize
from rewright.model.load import load
from rewright.passes.fusion.fast_gelu import FastGelu
from rewright.passes.fusion.gelu_approximation import GeluApproximation
from rewright.registry.chain import Chain

X = np.linspace(-6, 6, 2400, dtype=np.float32).reshape(2, 300, 4)
BIAS = "float[4] b = {0.5, -1.0, 2.0, 0.0}"


def model(activation, opset=17, kind="float"):
    bias = BIAS if kind == "float" else ""
    return f"""<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>
    g ({kind}[N, S, 4] x) => ({kind}[N, S, 4] y) <{bias}> {{ y = {activation} }}"""


@pytest.mark.parametrize(
    ("activation", "opset", "inputs"),
    [
        ("com.microsoft.Gelu(x)", 17, ["x"]),
        ("com.microsoft.BiasGelu(x, b)", 17, ["x", "b"]),
        ("com.microsoft.BiasGelu(x, b)", 23, ["x", "b"]),
        ("Gelu(x)", 20, ["x"]),
        ('Gelu<approximate = "none">(x)', 23, ["x"]),
    ],
)
def test_every_exact_gelu(activation, opset, inputs):
    session, after = run_pass(GeluApproximation(), model(activation, opset))
    assert ops(after) == ["FastGelu"]
    assert list(after.proto.graph.node[0].input) == inputs
    assert not session.rejections
    parity(model(activation, opset), after, {"x": X}, atol=4.8e-4)
    with pytest.raises(AssertionError):  # it is an approximation, and the test above would see none
        parity(model(activation, opset), after, {"x": X}, atol=4.6e-4)
    again, same = run_pass(GeluApproximation(), after)
    assert not again.sites
    assert same.fingerprint() == after.fingerprint()


def test_the_standard_op_where_the_target_has_no_other():
    for target, kind in (("portable", "float"), ("cpu", "float16")):
        session, after = run_pass(GeluApproximation(), model("Gelu(x)", 20, kind), target)
        assert ops(after) == ["Gelu"]
        assert after.proto.graph.node[0].attribute[0].s == b"tanh"
        assert len(session.sites) == 1
        assert not run_pass(GeluApproximation(), after, target)[0].sites
    session, _ = run_pass(GeluApproximation(), model("com.microsoft.Gelu(x)", 17, "float16"))
    assert not session.sites
    session, _ = run_pass(GeluApproximation(), model("com.microsoft.BiasGelu(x, b)"), "portable")
    assert not session.sites


def test_other_activations_are_left_alone():
    for activation in ('Gelu<approximate = "tanh">(x)', "com.microsoft.FastGelu(x)", "com.microsoft.QuickGelu(x)"):
        assert not run_pass(GeluApproximation(), model(activation, 20))[0].sites


def test_only_level_three_approximates():
    assert GeluApproximation.exactness == "approximate"
    holding = [level for level in ("O0", "O1", "O2", "O3") if "gelu-approximation" in [step.name for step in Chain(level)]]
    assert holding == ["O3"]
    source = model("com.microsoft.BiasGelu(x, b)")
    exact, approximate = (optimize(load(parse_model(source)), level=level) for level in ("O2", "O3"))
    assert exact.model.op_counts() == {"com.microsoft::BiasGelu": 1}
    assert approximate.model.op_counts() == {"com.microsoft::FastGelu": 1}
    assert approximate.report.verdict == "passed"
    assert FastGelu.exactness == "reassociating"
