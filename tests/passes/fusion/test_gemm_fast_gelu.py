"""gemm-fast-gelu: declines for want of a kernel; with a target that had one, it would compute x @ W."""

import re
from dataclasses import replace

import pytest

from rewright.ops.activations import GEMM_FAST_GELU
from rewright.ops.contract import CONTRACTS
from rewright.passes.fusion.gemm_fast_gelu import GemmFastGelu
from rewright.registry.chain import Chain
from rewright.testing import check_pass, refuses

WEIGHT = "float[4, 4] w = {1.0, -2.0, 0.5, 0.25, 3.0, 0.1, -0.7, 0.9, 0.2, 1.1, -1.3, 0.4, 2.0, 0.6, -0.8, 0.3}"


def model(steps, bias="float[4] b = {0.5, -1.0, 2.0, 0.0}", x="4, 4", inputs="", outputs=""):
    return f"""<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
    g (float[{x}] x{inputs}) => (float[{x}] y{outputs}) <{WEIGHT}, {bias}> {{
        {steps}
    }}"""


PRODUCT = "m = MatMul(x, w)\n"
SITES = {
    "no bias": PRODUCT + "y = com.microsoft.FastGelu(m)",
    "bias as input": PRODUCT + "y = com.microsoft.FastGelu(m, b)",
    "bias before": PRODUCT + "s = Add(m, b)\n y = com.microsoft.FastGelu(s)",
    "bias first": PRODUCT + "s = Add(b, m)\n y = com.microsoft.FastGelu(s)",
    "standard": PRODUCT + 's = Add(m, b)\n y = Gelu<approximate = "tanh">(s)',
    "standard, no bias": PRODUCT + 'y = Gelu<approximate = "tanh">(m)',
}


@pytest.fixture
def a_kernel_on_dml(monkeypatch):
    kernels = {"dml": ("float32",)}
    monkeypatch.setitem(CONTRACTS, "com.microsoft::GemmFastGelu", replace(GEMM_FAST_GELU, kernels=kernels))


@pytest.mark.parametrize("case", SITES)
@pytest.mark.parametrize("target", ["cpu", "cuda", "dml", "portable"])
def test_no_target_has_the_kernel(case, target):
    refuses(GemmFastGelu, model(SITES[case]), "^no target has a kernel for com.microsoft.GemmFastGelu$", target=target)


def test_it_is_in_no_level():
    for level in ("O0", "O1", "O2", "O3"):
        assert "gemm-fast-gelu" not in [step.name for step in Chain(level)]


@pytest.mark.parametrize("case", SITES)
def test_with_a_kernel_the_operands_keep_their_order(case, a_kernel_on_dml):
    after = check_pass(GemmFastGelu, model(SITES[case]), target="dml").model
    (node,) = after.proto.graph.node
    assert node.op_type == "GemmFastGelu"
    assert list(node.input) == (["x", "w"] if "no bias" in case else ["x", "w", "b"])


ACTIVATION = "y = com.microsoft.FastGelu(m)"
REFUSALS = {
    "weight on the left": (model("m = MatMul(w, x)\n" + ACTIVATION), "the constant is the left operand of the product"),
    "two inputs": (
        model("m = MatMul(x, v)\n" + ACTIVATION, inputs=", float[4, 4] v"),
        "the right operand of the product is not a constant matrix",
    ),
    "bias matrix": (
        model(SITES["bias before"], bias="float[1, 4] b = {0.5, -1.0, 2.0, 0.0}"),
        "the bias has the shape (1, 4), not (4,)",
    ),
    "bias of one": (model(SITES["bias before"], bias="float[1] b = {0.5}"), "the bias has the shape (1,), not (4,)"),
    "product used": (model(SITES["no bias"], outputs=", float[4, 4] m"), "is used elsewhere too"),
    "sum used": (model(SITES["bias before"], outputs=", float[4, 4] s"), "is used elsewhere too"),
    "vector": (model(SITES["no bias"], x="4"), "x has the rank 1"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_with_a_kernel(case, a_kernel_on_dml):
    before, reason = REFUSALS[case]
    refuses(GemmFastGelu, before, re.escape(reason), target="dml")


def test_a_residual_is_no_bias(a_kernel_on_dml):
    before = model("m = MatMul(x, w)\n s = Add(m, x)\n y = com.microsoft.FastGelu(s)")
    refuses(GemmFastGelu, before, re.escape("the bias has the shape (4, 4), not (4,)"), target="dml")
