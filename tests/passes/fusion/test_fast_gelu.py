"""fast-gelu: every spelling of the tanh form is found, nothing else is."""

import numpy as np
import pytest
from activation_spelling import ARGUMENTS, CUBIC, HALVES, SLOPE, half_times_x, tanh_argument, tanh_gelu
from onnx import TensorProto, helper
from pass_harness import ops, parity, run_pass
from spelling import Spelling

from rewright.passes.fusion.fast_gelu import FastGelu

X = np.concatenate([np.linspace(-6, 6, 24), [0.0, -0.0, 1e-20, -1e4, 1e4, 3e-4]]).astype(np.float32).reshape(2, 3, 5)
CLOSE = {"rtol": 5e-6, "atol": 2e-6}


def assert_fused(before, expected="FastGelu", target="cpu", feeds=None):
    session, after = run_pass(FastGelu(), before, target)
    assert [op for op in ops(after) if op != "Constant"] == [expected]
    assert not session.rejections
    again, same = run_pass(FastGelu(), after, target)
    assert not again.sites
    assert same.fingerprint() == after.fingerprint()
    if feeds is None:
        parity(before, after, {"x": X}, **CLOSE)
    return after


def assert_refused(before, reason, target="cpu"):
    session, after = run_pass(FastGelu(), before, target)
    assert not session.sites
    assert "Tanh" in ops(after)
    assert [reason in item.reason for item in session.rejections] == [True], session.rejections


@pytest.mark.parametrize("opset", [13, 17, 20, 23])
@pytest.mark.parametrize("argument", ARGUMENTS)
def test_every_spelling_becomes_one_fast_gelu(argument, opset):
    for number, half in enumerate([*HALVES, "sigmoid"]):
        spell = Spelling(opset, constants=("initializer", "node", "value_float")[number % 3])
        assert_fused(spell.model(tanh_gelu(spell, argument=argument, half=half, swap=bool((number + opset) % 2))))


def written_by_hand(name, spell, x="x"):
    """The activations as the modelling code has them, operand for operand."""
    c = spell.number
    if name == "gelu_new":  # GPT-2; gelu_python_tanh is the same
        inner = spell("Mul", c(SLOPE), spell("Add", x, spell("Mul", c(CUBIC), spell("Pow", x, c(3.0)))))
        return spell("Mul", spell("Mul", c(0.5), x), spell("Add", c(1.0), spell("Tanh", inner)))
    if name == "gelu_pytorch_tanh":  # the decomposition of torch.nn.functional.gelu(approximate="tanh")
        cube = spell("Mul", spell("Mul", x, x), x)
        inner = spell("Mul", c(0.7978845834732056), spell("Add", x, spell("Mul", c(0.044714998453855515), cube)))
        return spell("Mul", spell("Mul", c(0.5), x), spell("Add", c(1.0), spell("Tanh", inner)))
    growth = spell("Add", c(1.0), spell("Mul", spell("Mul", c(0.044715), x), x))
    if name == "gelu_fast":
        inner = spell("Mul", spell("Mul", x, c(0.7978845608)), growth)
        return spell("Mul", spell("Mul", c(0.5), x), spell("Add", c(1.0), spell("Tanh", inner)))
    inner = spell("Mul", spell("Mul", c(0.79788456), x), growth)  # BLOOM
    return spell("Mul", spell("Mul", x, c(0.5)), spell("Add", c(1.0), spell("Tanh", inner)))


@pytest.mark.parametrize("name", ["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "bloom"])
def test_the_activations_of_transformers(name):
    for opset in (13, 18, 20):
        spell = Spelling(opset)
        assert_fused(spell.model(written_by_hand(name, spell)))


def test_constants_of_shape_one():
    spell = Spelling()
    assert_fused(spell.model(tanh_gelu(spell, argument="factored", shape=(1,))))


def test_a_constant_that_raises_the_rank_is_refused():
    spell = Spelling(shape=(5,))
    before = spell.model(tanh_gelu(spell, shape=(1, 1)))
    del before.graph.output[0].type.tensor_type.shape.dim[:]
    for length in (1, 5):
        before.graph.output[0].type.tensor_type.shape.dim.add(dim_value=length)
    assert_refused(before, "has more dimensions")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cubic": 0.054}, "constant factor is 0.054, not 0.044715"),
        ({"slope": 0.807}, "constant factor is 0.807, not 0.797885"),
        ({"cubic": 0.0447}, "constant factor is 0.0447, not 0.044715"),
        ({"slope": 0.7978}, "constant factor is 0.7978, not 0.797885"),
        ({"half_value": 0.51}, "constant factor is 0.51, not 0.5"),
        ({"one": 1.01}, "is 1.01, not 1"),
        ({"exponent": 2}, "is 2, not 3"),
        ({"exponent": 4}, "is 4, not 3"),
    ],
)
def test_other_constants_are_refused_with_their_value(change, reason):
    """A loose tolerance takes 0.054 and 0.807 for these constants, and is wrong by 5.6e-3."""
    spell = Spelling()
    before = spell.model(tanh_gelu(spell, **change))
    assert_refused(before, reason)


def test_another_tanh_is_told_from_an_activation():
    spell = Spelling()
    session, after = run_pass(FastGelu(), spell.model(spell("Tanh", "x")))
    assert ops(after) == ["Tanh"]
    assert "completes the pattern around it" in session.rejections[0].reason


@pytest.mark.parametrize("argument", ["pow", "factored", "distributed"])
@pytest.mark.parametrize("inner", ["Tanh", "Add", "Mul"])
def test_an_inner_value_that_is_a_graph_output_is_refused(inner, argument):
    spell = Spelling()
    result = tanh_gelu(spell, argument=argument)
    kept = next(node.output[0] for node in spell.nodes if node.op_type == inner)
    assert_refused(spell.model(result, outputs=[kept]), "is used elsewhere too")


def test_an_overridable_constant_is_not_a_constant():
    spell = Spelling()
    before = spell.model(tanh_gelu(spell))
    cubic = next(item for item in before.graph.initializer if abs(item.float_data[0] - CUBIC) < 1e-6)
    before.graph.input.append(helper.make_tensor_value_info(cubic.name, TensorProto.FLOAT, []))
    session, _ = run_pass(FastGelu(), before)
    assert not session.sites
    assert session.rejections


STANDARD = '<ir_version: 10, opset_import: ["" : {}]> g ({} x) => ({} y) {{ y = Gelu<approximate = "{}">(x) }}'


@pytest.mark.parametrize("opset", [20, 23])
def test_the_standard_gelu_with_approximate_tanh(opset):
    shape = "float[2, 3, 5]"
    after = assert_fused(STANDARD.format(opset, shape, shape, "tanh"))
    assert after.op_counts() == {"com.microsoft::FastGelu": 1}
    for target, approximate, kind in (("cpu", "none", shape), ("portable", "tanh", shape), ("cpu", "tanh", "float16[2, 3, 5]")):
        session, after = run_pass(FastGelu(), STANDARD.format(opset, kind, kind, approximate), target)
        assert not session.sites
        assert not session.rejections


def test_the_portable_target_takes_only_the_standard_op():
    for argument in ARGUMENTS:
        spell = Spelling(20)
        after = assert_fused(spell.model(tanh_gelu(spell, argument=argument)), "Gelu", "portable")
        assert after.proto.graph.node[-1].attribute[0].s == b"tanh"
        assert after.op_counts() == {"ai.onnx::Gelu": 1}
    spell = Spelling(17)
    assert_refused(spell.model(tanh_gelu(spell)), "the target 'portable' has no kernel for com.microsoft.FastGelu", "portable")


def sandwich(kind, opset=17, argument="pow"):
    """float16 x; "whole": all between the Casts; "cdf": all but the last products; "sum", "inner": the tanh and its argument;
    "tanh": only the tanh."""
    half, single = TensorProto.FLOAT16, TensorProto.FLOAT
    spell = Spelling(opset, half)
    if kind == "tanh":
        inner = tanh_argument(spell, "x", argument)
        narrow = spell("Cast", spell("Tanh", spell("Cast", inner, to=single)), to=half)
        return spell.model(half_times_x(spell, "x", narrow, "first", False))
    wide = spell("Cast", "x", to=single)
    spell.elem_type = single
    if kind == "whole":
        result = spell("Cast", tanh_gelu(spell, wide, argument), to=half)
    else:
        value = spell("Tanh", tanh_argument(spell, wide, argument))
        if kind in ("sum", "cdf"):
            value = spell("Add", value, spell.number(1.0))
        if kind == "cdf":
            value = spell("Mul", value, spell.number(0.5))
        value = spell("Cast", value, to=half)
        spell.elem_type = half
        if kind == "inner":
            result = half_times_x(spell, "x", value, "last", False)
        else:
            result = spell("Mul", spell("Mul", "x", spell.number(0.5)) if kind == "sum" else "x", value)
    spell.elem_type = half
    return spell.model(result)


@pytest.mark.parametrize("argument", ["pow", "cube", "factored", "distributed"])
def test_between_casts_the_single_precision_part_is_fused_alone(argument):
    before = sandwich("whole", argument=argument)
    _, after = run_pass(FastGelu(), before)
    assert ops(after) == ["Cast", "FastGelu", "Cast"]
    parity(before, after, {"x": X.astype(np.float16)}, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("argument", ["pow", "factored", "inner"])
@pytest.mark.parametrize("kind", ["cdf", "sum", "inner", "tanh"])
def test_a_widened_tanh_needs_a_half_precision_kernel(kind, argument):
    _, after = run_pass(FastGelu(), sandwich(kind, argument=argument), "cuda")
    assert after.op_counts() == {"com.microsoft::FastGelu": 1}
    assert_refused(sandwich(kind, argument=argument), "the target 'cpu' has no kernel for com.microsoft.FastGelu on float16")
    before = sandwich(kind, 20, argument)
    _, after = run_pass(FastGelu(), before)
    assert after.op_counts() == {"ai.onnx::Gelu": 1}
    parity(before, after, {"x": X.astype(np.float16)}, rtol=4e-3, atol=2e-3)


@pytest.mark.parametrize("to", [TensorProto.FLOAT, TensorProto.DOUBLE])
def test_autocast_halves_x_before_it_widens_it(to):
    """torch.pow is one of the functions that autocast computes in float32, and the rest follows."""
    spell = Spelling(17, TensorProto.FLOAT16)
    halved = spell("Mul", "x", spell.number(0.5))
    spell.elem_type = to
    tanh = spell("Tanh", tanh_argument(spell, spell("Cast", "x", to=to), "pow"))
    result = spell("Mul", spell("Cast", halved, to=to), spell("Add", tanh, spell.number(1.0)))
    spell.elem_type = TensorProto.FLOAT16
    before = spell.model(spell("Cast", result, to=TensorProto.FLOAT16))
    if to == TensorProto.DOUBLE:
        assert_refused(before, "the tanh is computed in float64, which does not widen float16")
        return
    _, after = run_pass(FastGelu(), before)
    assert ops(after) == ["Cast", "FastGelu", "Cast"]
    parity(before, after, {"x": X.astype(np.float16)}, rtol=2e-3, atol=1e-3)


def test_a_narrowed_tanh_is_refused():
    spell = Spelling()
    wide, half = TensorProto.FLOAT, TensorProto.FLOAT16
    narrow = spell("Cast", "x", to=half)
    spell.elem_type = half
    value = spell("Cast", spell("Tanh", tanh_argument(spell, narrow, "pow")), to=wide)
    spell.elem_type = wide
    before = spell.model(half_times_x(spell, "x", value, "first", False))
    assert_refused(before, "the tanh is computed in float16, which does not widen float32", "cuda")


def test_double_precision_is_left_where_only_the_standard_op_could_take_it():
    """ONNX defines Gelu by a function whose constants are float32, which ONNX Runtime expands for double: 6e-7 off."""
    spell = Spelling(20, TensorProto.DOUBLE)
    before = spell.model(tanh_gelu(spell))
    assert_refused(before, "the target 'cpu' has no kernel for com.microsoft.FastGelu on float64")
    _, after = run_pass(FastGelu(), before, "cuda")
    assert after.op_counts() == {"com.microsoft::FastGelu": 1}
