"""What moves by a rounding step of a coarser type that flows into an output is no fault of a pass."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from rewright.api import Chain
from rewright.verify.budget import QuantizationBudget
from rewright.verify.coarseness import coarsest_types
from rewright.verify.inputs import InputSet
from rewright.verify.parity import ParityGate

SQUARE_ROOT_OF_A_CONSTANT = """g (float16[batch, 12] x) => (float16[batch, 12] y) {
    two = Constant<value = float16[1] {16384}>() r = Sqrt(two) y = Div(x, r)
}"""


@pytest.mark.parametrize("output", ["float16", "float"])
def test_an_identity_between_half_precision_ops_may_go(parse, worker, output):
    """Without it ONNX Runtime does not round the sine to float16, and an exact pass moves the output."""
    text = f"""g (float16[batch, 12] x) => ({output}[batch, 12] y) {{
        s = Sin(x) i = Identity(s) f = Cast<to = 1>(i) y = {"Cast<to = 10>" if output == "float16" else "Identity"}(f)
    }}"""
    without = text.replace("i = Identity(s) f = Cast<to = 1>(i)", "f = Cast<to = 1>(s)")
    evidence = ParityGate(parse(text), None, worker).check(parse(without), "exact")
    assert evidence.status == "passed", evidence.reason


def test_folding_a_constant_of_half_precision_is_kept(parse):
    report = Chain("constant-folding").run(parse(SQUARE_ROOT_OF_A_CONSTANT)).report
    assert (report.verdict, [site.status for site in report.passes[0].sites]) == ("passed", ["kept", "kept"]), report.reason
    assert "rounding to float16" in report.passes[0].parity.outputs[0].message


def test_more_than_a_rounding_step_is_a_difference(parse, worker):
    text = "g (float16[batch, 12] x) => (float16[batch, 12] y) { s = Sin(x) y = Mul(s, s) }"
    wrong = text.replace("y = Mul(s, s)", "c = Constant<value = float16[1] {15380}>() t = Mul(s, c) y = Mul(s, t)")
    assert ParityGate(parse(text), None, worker).check(parse(wrong), "exact").status == "failed"


def test_single_precision_stays_exact(parse, worker):
    text = "g (float[batch, 12] x) => (float[batch, 12] y) { s = Sin(x) y = Mul(s, s) }"
    off = text.replace("y = Mul(s, s)", "c = Constant<value = float {1.000001}>() t = Mul(s, c) y = Mul(s, t)")
    assert ParityGate(parse(text), None, worker).check(parse(off), "exact").status == "failed"


def test_float64_from_float32_is_as_exact_as_float32(parse, worker):
    text = "g (double[batch, 12] x) => (double[batch, 12] y) { s = Cast<to = 1>(x) t = Tanh(s) y = Cast<to = 11>(t) }"
    nearly = text.replace("t = Tanh(s)", "c = Constant<value = float {1.0000002}>() u = Tanh(s) t = Mul(c, u)")
    wrong = text.replace("t = Tanh(s)", "c = Constant<value = float {1.0001}>() u = Tanh(s) t = Mul(c, u)")
    gate = ParityGate(parse(text), None, worker)
    statuses = [gate.check(parse(item), "reassociating").status for item in (text, nearly, wrong)]
    assert statuses == ["passed", "passed", "failed"]
    assert gate.check(parse(nearly), "exact").status == "failed"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("a = Relu(x) y = Neg(a)", None),
        ("a = Cast<to = 10>(x) b = Cast<to = 1>(a) y = Neg(b)", np.float16),
        ("y = Neg(x) a = Cast<to = 10>(x) b = Cast<to = 1>(a)", None),
        ("c = Constant<value = float16[1] {16384}>() d = Cast<to = 1>(c) y = Add(x, d)", np.float16),
    ],
)
def test_what_half_precision_flows_into(parse, body, expected):
    found = coarsest_types(parse(f"g (float[N] x) => (float[N] y) {{ {body} }}"))
    assert found.get("y") == expected


def test_bodies_and_their_captures_count(parse):
    text = """g (float[N] x, float16[N] h, bool flag) => (float[N] y, float[N] z) {
        y = If(flag) <then_branch = t () => (float[N] a) { a = Cast<to = 1>(h) },
                      else_branch = e () => (float[N] b) { b = Neg(x) }>
        z = If(flag) <then_branch = t2 () => (float[N] a2) { a2 = Relu(x) },
                      else_branch = e2 () => (float[N] b2) { b2 = Neg(x) }>
    }"""
    assert coarsest_types(parse(text)) == {"y": np.float16}


def test_functions_count(parse):
    model = parse("g (float[N] x) => (float[N] y) { y = Neg(x) }").proto
    nodes = [
        helper.make_node("Cast", ["a"], ["b"], to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["b"], ["c"], to=TensorProto.FLOAT),
    ]
    model.functions.append(helper.make_function("local", "Rounded", ["a"], ["c"], nodes, [helper.make_opsetid("", 17)]))
    model.graph.node[0].domain, model.graph.node[0].op_type = "local", "Rounded"
    assert coarsest_types(parse("g (float[N] x) => (float[N] y) { y = Neg(x) }").with_proto(model))["y"].name == "bfloat16"


NORMALISED = """g (float[batch, 4] x) => (float[batch, 4] y) <float[4] scale = {1,1,2,2}, float[4] shift = {0,1,0,1},
    float[4, 4] w = {1,2,-1,0,0,1,2,-1,1,-1,0,2,2,0,1,1}> {
    a = MatMul(x, w) n = LayerNormalization(a, scale, shift) y = MatMul(n, w)
}"""
IN_HALF = """g (float[batch, 4] x) => (float[batch, 4] y) <float16[4] scale = {15360,15360,16384,16384}, float16[4] shift =
    {0,15360,0,15360}, float16[4, 4] w = {15360,16384,48128,0,0,15360,16384,48128,15360,48128,0,16384,16384,0,15360,15360}> {
    h = Cast<to = 10>(x) a = MatMul(h, w) n = LayerNormalization(a, scale, shift) z = MatMul(n, w) y = Cast<to = 1>(z)
}"""


@pytest.mark.parametrize(
    ("step", "status"),
    [
        ("i = Identity(n) z = MatMul(i, w)", "passed"),
        ("c = Constant<value_float = 1.02>() d = Cast<to = 10>(c) s = MatMul(n, w) z = Mul(s, d)", "failed"),
    ],
)
def test_after_float16_a_pass_may_move_outputs_by_what_rounding_to_it_moves(parse, worker, step, status):
    """Where rows cancel, rounding moves small elements by more than a tolerance of float16 allows; that is measured."""
    rng = np.random.default_rng(0)
    rows = InputSet("rows", {"x": (4 * rng.standard_normal((256, 4))).astype(np.float32)})
    gate = ParityGate(parse(NORMALISED), [rows], worker, budget=QuantizationBudget.parse("sqnr=40"))
    assert gate.check(parse(IN_HALF), "quantizing").status == "passed"
    gate.keep("quantizing")
    evidence = gate.check(parse(IN_HALF.replace("z = MatMul(n, w)", step)), "reassociating")
    assert evidence.status == status, evidence.reason
