"""quick-gelu: x * sigmoid(alpha * x) in every spelling, for any constant alpha; nothing else."""

import numpy as np
import pytest
from activation_spelling import QUICK, quick_gelu
from onnx import TensorProto, helper
from pass_harness import ops, parity, run_pass
from spelling import Spelling, commuted

from rewright.passes.fusion.quick_gelu import QuickGelu

X = np.concatenate([np.linspace(-6, 6, 24), [0.0, -0.0, 1e-20, -1e4, 1e4, 3e-4]]).astype(np.float32).reshape(2, 3, 5)
CLOSE = {"rtol": 5e-6, "atol": 2e-6}


def assert_fused(before, alpha, expected=("QuickGelu",), feeds=None):
    session, after = run_pass(QuickGelu(), before)
    assert [op for op in ops(after) if op != "Constant"] == list(expected)
    assert not session.rejections
    node = next(node for node in after.proto.graph.node if node.op_type == "QuickGelu")
    assert node.domain == "com.microsoft"
    assert [(item.name, pytest.approx(item.f, rel=1e-6)) for item in node.attribute] == [("alpha", alpha)]
    parity(before, after, feeds or {"x": X}, **CLOSE)
    again, same = run_pass(QuickGelu(), after)
    assert not again.sites
    assert same.fingerprint() == after.fingerprint()


def assert_refused(before, reason, target="cpu"):
    session, after = run_pass(QuickGelu(), before, target)
    assert not session.sites
    assert "QuickGelu" not in ops(after)
    assert [reason in item.reason for item in session.rejections] == [True], session.rejections


@pytest.mark.parametrize("opset", [13, 17, 20, 23])
@pytest.mark.parametrize("kind", QUICK)
def test_every_spelling_and_alpha(kind, opset):
    for number, alpha in enumerate((1.702, 1.0, 0.25, -1.5)):
        spell = Spelling(opset, constants=("initializer", "node", "value_float")[number % 3])
        assert_fused(
            spell.model(quick_gelu(spell, kind=kind, alpha=alpha, swap=bool(number % 2))),
            1.0 if kind in ("none", "exp") else alpha,
        )


def test_an_alpha_of_shape_one_and_one_that_raises_the_rank():
    spell = Spelling()
    assert_fused(spell.model(quick_gelu(spell, shape=(1,))), 1.702)
    spell = Spelling(shape=(5,))
    before = spell.model(quick_gelu(spell, shape=(1, 1)))
    del before.graph.output[0].type.tensor_type.shape.dim[:]
    for length in (1, 5):
        before.graph.output[0].type.tensor_type.shape.dim.add(dim_value=length)
    assert_refused(before, "alpha has more dimensions than x")


@pytest.mark.parametrize("order", ["gate first", "up first", "activation last"])
@pytest.mark.parametrize("swap", [False, True])
def test_the_gated_layers_of_language_models(order, swap):
    spell = Spelling()
    gate, up = spell("Mul", "x", spell.number(3.0)), spell("Neg", "x")
    sigmoid = spell("Sigmoid", gate)
    if order == "gate first":
        result = commuted(spell, "Mul", commuted(spell, "Mul", gate, sigmoid, swap), up, swap)
    elif order == "up first":
        result = commuted(spell, "Mul", up, commuted(spell, "Mul", sigmoid, gate, swap), swap)
    else:
        result = commuted(spell, "Mul", commuted(spell, "Mul", up, sigmoid, swap), gate, not swap)
    assert_fused(spell.model(result), 1.0, ("Mul", "Neg", "QuickGelu", "Mul"))


def test_the_swish_of_opset_24():
    text = '<ir_version: 10, opset_import: ["" : 24]> g (float[2, 3, 5] x) => (float[2, 3, 5] y) { y = Swish(x) }'
    assert_fused(text, 1.0)
    assert_fused(text.replace("Swish(", "Swish<alpha = 0.5>("), 0.5)
    session, _ = run_pass(QuickGelu(), text, "portable")
    assert not session.sites
    assert not session.rejections


def test_an_alpha_that_is_an_input_is_refused():
    spell = Spelling()
    before = spell.model(spell("Mul", "x", spell("Sigmoid", spell("Mul", "x", "z"))))
    before.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, []))
    assert_refused(before, "alpha is not a constant number ('z')")


def test_a_vector_of_alphas_is_refused():
    spell = Spelling()
    alphas = spell.array(np.arange(5, dtype=np.float32))
    assert_refused(spell.model(spell("Mul", "x", spell("Sigmoid", spell("Mul", "x", alphas)))), "alpha is not a constant number")


@pytest.mark.parametrize("kind", ["mul", "none"])
def test_a_sigmoid_that_is_used_elsewhere_is_refused(kind):
    spell = Spelling()
    result = quick_gelu(spell, kind=kind)
    sigmoid = next(node.output[0] for node in spell.nodes if node.op_type == "Sigmoid")
    assert_refused(spell.model(result, outputs=[sigmoid]), "is used elsewhere too")
    spell = Spelling()
    result = quick_gelu(spell, kind=kind)
    assert_refused(spell.model(spell("Add", result, spell("Neg", sigmoid))), "is used elsewhere too")


def test_a_gate_is_no_activation():
    spell = Spelling()
    assert_refused(spell.model(spell("Mul", "x", spell("Sigmoid", spell("Neg", "x")))), "should be one value")
    for op in ("HardSigmoid", "Tanh", "Softplus"):
        spell = Spelling()
        session, _ = run_pass(QuickGelu(), spell.model(spell("Mul", "x", spell(op, "x"))))
        assert not session.sites


def test_a_divisor_of_zero_is_refused():
    spell = Spelling()
    inner = spell("Div", "x", spell.number(0.0))
    assert_refused(spell.model(spell("Mul", "x", spell("Sigmoid", inner))), "alpha is nan")


def test_the_portable_target_declines():
    spell = Spelling(23)
    reason = "the target 'portable' has no kernel for com.microsoft.QuickGelu"
    assert_refused(spell.model(quick_gelu(spell)), reason, "portable")


def test_double_precision_needs_an_alpha_that_a_float32_holds():
    spell = Spelling(17, TensorProto.DOUBLE)
    assert_refused(spell.model(quick_gelu(spell)), "holds alpha as a float32", "cuda")
    spell = Spelling(17, TensorProto.DOUBLE)
    _, after = run_pass(QuickGelu(), spell.model(quick_gelu(spell, alpha=1.75)), "cuda")
    assert ops(after) == ["QuickGelu"]


def sandwich(kind):
    """float16 x. "whole": all between the Casts; "inner": the sigmoid and its argument; "sigmoid": it alone."""
    half, single = TensorProto.FLOAT16, TensorProto.FLOAT
    spell = Spelling(17, half)
    if kind == "sigmoid":
        scaled = spell("Mul", "x", spell.number(1.75))
        return spell.model(spell("Mul", "x", spell("Cast", spell("Sigmoid", spell("Cast", scaled, to=single)), to=half)))
    wide = spell("Cast", "x", to=single)
    spell.elem_type = single
    if kind == "whole":
        result = spell("Cast", quick_gelu(spell, wide, alpha=1.75), to=half)
    else:
        value = spell("Sigmoid", spell("Mul", wide, spell.number(1.75)))
        result = spell("Mul", "x", spell("Cast", value, to=half))
    spell.elem_type = half
    return spell.model(result)


def test_half_precision():
    before = sandwich("whole")
    _, after = run_pass(QuickGelu(), before)
    assert ops(after) == ["Cast", "QuickGelu", "Cast"]
    parity(before, after, {"x": X.astype(np.float16)}, rtol=2e-3, atol=1e-3)
    for kind in ("inner", "sigmoid"):
        _, after = run_pass(QuickGelu(), sandwich(kind), "cuda")
        assert ops(after) == ["QuickGelu"]
        assert_refused(sandwich(kind), "the target 'cpu' has no kernel for com.microsoft.QuickGelu on float16")


def test_a_narrowed_sigmoid_is_refused():
    spell = Spelling()
    value = spell("Cast", spell("Sigmoid", spell("Cast", "x", to=TensorProto.FLOAT16)), to=TensorProto.FLOAT)
    reason = "the sigmoid is computed in float16, which does not widen float32"
    assert_refused(spell.model(spell("Mul", "x", value)), reason, "cuda")
