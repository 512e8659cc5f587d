"""Where two models begin to differ: by the names that both have, by numbers, by position."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import rewright
from rewright.verify import trace
from rewright.verify.divergence import Divergence, first_divergence
from rewright.verify.inner_values import is_same_step
from rewright.verify.inputs import InputSet
from rewright.verify.models import verify

X = InputSet("x", {"x": np.linspace(-2, 3, 12, dtype=np.float32).reshape(3, 4)})

CHAIN = "g (float[N, 4] x) => (float[N, 4] y) <float s = {{2}}> {{ a = Mul(x, s)  b = {}(a)  c = Tanh(b)  y = Neg(c) }}"


def found(reference, candidate, worker, outputs=("y",), input_set=X, **options) -> Divergence:
    divergence = first_divergence(reference, candidate, input_set, outputs, worker, **options)
    assert divergence is not None
    return divergence


def names(divergence: Divergence) -> tuple[str, str]:
    """The first value that differs, and the last that agrees, as the reference calls them."""
    return divergence.first.reference.name, divergence.last_agreeing.reference.name if divergence.last_agreeing else ""


@pytest.mark.parametrize("trusts_names", [True, False])
def test_the_first_of_the_values_that_both_have(parse, worker, trusts_names):
    divergence = found(parse(CHAIN.format("Relu")), parse(CHAIN.format("Sigmoid")), worker, trusts_names=trusts_names)
    assert names(divergence) == ("b", "a")
    assert (divergence.first.reference.op, divergence.first.candidate.op) == ("Relu", "Sigmoid")
    assert divergence.first.matched_by == "name"
    assert divergence.first.evidence.max_abs == pytest.approx(6 - 1 / (1 + np.exp(-6)), rel=1e-4)  # at 2 * 3
    assert divergence.last_agreeing is not None
    assert divergence.last_agreeing.evidence.max_abs == 0
    assert (divergence.compared, divergence.shared) == (4, 4)


def test_models_that_agree_do_not_diverge(parse, worker):
    assert first_divergence(parse(CHAIN.format("Relu")), parse(CHAIN.format("Relu")), X, ["y"], worker) is None


def test_what_heals_is_not_where_it_begins(parse, worker):
    """The masked scores differ by 1e4 against 3e38, their softmax does not; the output differs by what comes after it."""
    text = """g (float[N, 4] x) => (float[N, 4] y) <float zero = {{0}}, float far = {{{}}}, float s = {{{}}}> {{
        keep = Greater(x, zero)  masked = Where(keep, x, far)  p = Softmax(masked)  q = Mul(p, s)  y = Tanh(q)
    }}"""
    inputs = InputSet("x", {"x": np.array([[1, 2, -1, 3], [0.5, -4, 1, 1]], np.float32)})
    divergence = found(parse(text.format(-1e4, 3)), parse(text.format(-3e38, 2)), worker, input_set=inputs)
    assert names(divergence) == ("q", "p")


@pytest.mark.parametrize("fill", [-1e4, -3.4e38])
def test_what_a_mask_leaves_is_compared_beside_what_it_fills(parse, worker, fill):
    """By the magnitude of the whole, the scores that are not masked would be allowed to differ by anything."""
    text = """g (float[N, 4] x) => (float[N, 4] y) <float zero = {{0}}, float far = {{{}}}, float s = {{{}}}> {{
        keep = Greater(x, zero)  scores = Mul(x, s)  masked = Where(keep, scores, far)  y = Softmax(masked)
    }}"""
    inputs = InputSet("x", {"x": np.array([[1, 2, -1, 3], [0.5, -4, 1, 1]], np.float32)})
    divergence = found(parse(text.format(fill, 1)), parse(text.format(fill, 1.01)), worker, input_set=inputs)
    assert names(divergence) == ("scores", "")


def test_a_path_that_rejoins(parse, worker):
    """Only the branch that is wrong is followed, although values of the right one come later in the order."""
    text = """g (float[N, 4] x) => (float[N, 4] y) {{
        left = {}(x)  left2 = Exp(left)  right = Sigmoid(x)  right2 = Tanh(right)  y = Add(left2, right2)
    }}"""
    divergence = found(parse(text.format("Tanh")), parse(text.format("Relu")), worker)
    assert names(divergence) == ("left", "")
    assert divergence.first.evidence.message


def test_values_that_were_fused_away_are_passed_over(parse, worker):
    reference = parse("g (float[N, 4] x) => (float[N, 4] y) { a = Tanh(x)  s = Sigmoid(a)  m = Mul(a, s)  y = Neg(m) }")
    fused = "g (float[N, 4] x) => (float[N, 4] y) { a = Tanh(x)  m = com.microsoft.QuickGelu <alpha = 1.702> (a)  y = Neg(m) }"
    divergence = found(reference, parse(fused), worker, trusts_names=True)
    assert names(divergence) == ("m", "a")
    assert divergence.first.candidate.op == "com.microsoft::QuickGelu"


def test_other_names_are_matched_by_numbers_and_by_position(parse, worker):
    other = """g (float[N, 4] x) => (float[N, 4] y) <float s = {2}> {
        k = Mul(s, x)  l = Relu(k)  m = Add(l, s)  n = Tanh(m)  y = Neg(n)
    }"""
    divergence = found(parse(CHAIN.format("Relu")), parse(other), worker)
    assert names(divergence) == ("c", "b")
    assert (divergence.first.candidate.name, divergence.first.matched_by) == ("n", "position")
    assert divergence.last_agreeing is not None
    assert (divergence.last_agreeing.candidate.name, divergence.last_agreeing.matched_by) == ("l", "numbers")


def test_names_that_were_given_anew_mean_other_values(parse, worker):
    """An exporter that numbers its values: one more at the front moves all the names."""
    reference = parse("g (float[N, 4] x) => (float[N, 4] y) { v0 = Sin(x)  v1 = Tanh(v0)  v2 = Elu(v1)  y = Neg(v2) }")
    shifted = parse(
        """g (float[N, 4] x) => (float[N, 4] y) {
            v0 = Identity(x)  v1 = Sin(v0)  v2 = Tanh(v1)  v3 = Elu <alpha = 0.5> (v2)  y = Neg(v3)
        }"""
    )
    divergence = found(reference, shifted, worker)
    assert names(divergence) == ("v2", "v1")
    assert divergence.last_agreeing is not None
    assert (divergence.last_agreeing.candidate.name, divergence.last_agreeing.matched_by) == ("v2", "numbers")
    assert (divergence.first.candidate.name, divergence.first.matched_by) == ("v3", "position")


def test_a_name_that_stands_for_another_value_is_not_blamed(parse, worker):
    """What both call `size` differs, and neither model is wrong there."""
    reference = """g (float[N, 2, 4] x) => (float[P, Q] y) <int64[1] four = {4}, int64[1] two = {2}, int64[1] all = {-1}> {
        size = Shape <start = 0, end = 1> (x)  double = Mul(size, two)  form = Concat <axis = 0> (double, four)
        flat = Reshape(x, form)  waved = Sin(flat)  y = Neg(waved)
    }"""
    candidate = """g (float[N, 2, 4] x) => (float[P, Q] y) <int64[1] four = {4}, int64[1] all = {-1}> {
        form2 = Concat <axis = 0> (all, four)  size = Shape <start = 2, end = 3> (x)  form = Concat <axis = 0> (all, size)
        flat2 = Reshape(x, form)  waved = Cos(flat2)  y = Neg(waved)
    }"""
    inputs = InputSet("x", {"x": np.linspace(-2, 3, 24, dtype=np.float32).reshape(3, 2, 4)})
    divergence = found(parse(reference), parse(candidate), worker, input_set=inputs, trusts_names=True)
    assert divergence.first.reference.name == "waved"


def test_two_faults_one_behind_the_other(parse, worker):
    text = "g (float[N, 4] x) => (float[N, 4] y) {{ a = Neg(x)  b = {}(a)  c = Tanh(b)  d = {}(c)  y = Neg(d) }}"
    divergence = found(parse(text.format("Sin", "Exp")), parse(text.format("Cos", "Sigmoid")), worker)
    assert names(divergence) == ("b", "a")


def test_an_output_that_is_changed_after_it_was_right(parse, worker):
    reference = parse("g (float[N, 4] x) => (float[N, 4] y) { y = Tanh(x) }")
    candidate = parse("g (float[N, 4] x) => (float[N, 4] y) <float s = {1.01}> { r = Tanh(x)  y = Mul(r, s) }")
    divergence = found(reference, candidate, worker)
    assert names(divergence) == ("y", "y")
    assert divergence.last_agreeing is not None
    assert divergence.last_agreeing.candidate.name == "r"


def test_a_body_shows_where_it_comes_out(parse, worker):
    text = """g (float[N, 4] x, bool c) => (float[N, 4] y) {{
        a = Tanh(x)
        b = If (c) <
            then_branch = t () => (float[N, 4] t1) {{ t1 = {}(a) }},
            else_branch = e () => (float[N, 4] e1) {{ e1 = Neg(a) }}>
        y = Sigmoid(b)
    }}"""
    inputs = InputSet("true", {**X.arrays, "c": np.array(True)})
    divergence = found(parse(text.format("Relu")), parse(text.format("Exp")), worker, input_set=inputs)
    assert names(divergence) == ("b", "a")
    assert divergence.first.reference.op == "If"


def test_values_that_are_no_tensors_are_left_out(parse, worker):
    text = """g (float[4, 4] x) => (float[4, 4] y) {{
        a = Tanh(x)  parts = SplitToSequence <axis = 0> (a)  b = ConcatFromSequence <axis = 0> (parts)  d = {}(b)  y = Neg(d)
    }}"""
    inputs = InputSet("x", {"x": np.linspace(-2, 3, 16, dtype=np.float32).reshape(4, 4)})
    assert names(found(parse(text.format("Exp")), parse(text.format("Sigmoid")), worker, input_set=inputs)) == ("d", "b")


def test_a_step_that_only_enlarges_a_difference_is_not_where_it_begins(parse, worker):
    """`a` is off by less than the tolerance; what the difference of near numbers leaves of it is not."""
    text = """g (float[N, 4] x) => (float[N, 4] y) <float one = {{1}}, float half = {{0.5}},
    float thousand = {{1000}}, float s = {{1.000005}}> {{
        a0 = Add(x, half)  {}  b = Sub(a, one)  y = Mul(b, thousand)
    }}"""
    inputs = InputSet("x", {"x": np.array([[0.5, 0.6, 0.4, 0.55]], np.float32)})
    models = parse(text.format("a = Identity(a0)")), parse(text.format("a = Mul(a0, s)"))
    divergence = found(*models, worker, input_set=inputs, trusts_names=True)
    assert names(divergence) == ("a", "a0")
    assert divergence.first.evidence.rtol < 1e-5


def test_another_precision_inside_is_no_difference(parse, worker):
    reference = parse("g (float[N, 4] x) => (float[N, 4] y) { a = Sin(x)  b = Tanh(a)  c = Neg(b)  y = Exp(c) }")
    candidate = parse(
        """g (float[N, 4] x) => (float[N, 4] y) {
            a32 = Sin(x)  a = Cast <to = 10> (a32)  b16 = Tanh(a)  b = Identity(b16)
            c16 = Abs(b)  c = Cast <to = 1> (c16)  y = Exp(c)
        }"""
    )
    assert names(found(reference, candidate, worker)) == ("c", "b")


def test_a_shape_that_differs(parse, worker):
    text = "g (float[N, 4] x) => (float[M, P] y) <int64[2] s = {{{}}}> {{ a = Tanh(x)  r = Reshape(a, s)  y = Neg(r) }}"
    divergence = found(parse(text.format("2, 6")), parse(text.format("6, 2")), worker)
    assert names(divergence) == ("r", "a")
    assert "shape" in divergence.first.evidence.message


@pytest.mark.parametrize("trusts_names", [True, False])
def test_the_answer_does_not_depend_on_how_much_one_run_gives(parse, worker, monkeypatch, trusts_names):
    steps = "  ".join(f"v{index + 1} = {'Tanh' if index % 2 else 'Sin'}(v{index})" for index in range(40))
    text = "g (float[N, 4] x) => (float[N, 4] y) {{ v0 = Neg(x)  {}  y = Neg(v40) }}"
    reference, candidate = parse(text.format(steps)), parse(text.format(steps.replace("Sin(v12)", "Cos(v12)")))
    whole = found(reference, candidate, worker, trusts_names=trusts_names)
    monkeypatch.setattr(trace, "CHUNK_BYTES", 400)
    monkeypatch.setattr(trace, "FIRST_CHUNK", 2)
    assert trace.Tracer(reference, X.arrays, worker).room() == 2
    in_parts = found(reference, candidate, worker, trusts_names=trusts_names)
    assert names(in_parts) == names(whole) == ("v13", "v12")


def test_large_values_are_sampled_at_the_same_places():
    array = np.arange(100_000, dtype=np.float32).reshape(100, 1000)
    seen = trace.Seen.of(array)
    assert trace.SAMPLE / 2 < seen.sample.size <= trace.SAMPLE
    assert np.array_equal(trace.Seen.of(array + 1).sample, seen.sample + 1)
    assert trace.Seen.of(array[:2]).sample.size == 2000


@pytest.mark.parametrize(("name", "op"), [("bert.ts17.sdpa", "SkipLayerNormalization"), ("llama.dyn18.sdpa", "MatMul")])
def test_a_fault_in_an_optimized_export_is_found(zoo, name, op):
    reference = zoo(name)
    result = rewright.optimize(reference, level="O2", verify="off").model
    proto = onnx.ModelProto()
    proto.CopyFrom(result.proto)
    nodes = [node for node in proto.graph.node if node.op_type == op]
    wrong = nodes[len(nodes) // 2]
    value = wrong.output[0]
    wrong.output[0] = "planted"
    position = list(proto.graph.node).index(wrong) + 1
    proto.graph.node.insert(position, onnx.helper.make_node("Mul", ["planted", "planted_scale"], [value], name="planted_fault"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1.05), "planted_scale"))
    divergence = verify(reference, result.with_proto(proto)).divergence
    assert divergence is not None
    assert divergence.first.candidate.node == "planted_fault"
    assert divergence.first.reference.name == value
    assert divergence.last_agreeing is not None


def test_steps_are_the_same_whichever_defaults_are_spelled_out():
    def node(**attributes):
        return onnx.helper.make_node("LayerNormalization", ["x", "g"], ["y"], **attributes)

    assert is_same_step(node(axis=-1), node(stash_type=1, epsilon=1e-5))
    assert not is_same_step(node(axis=-1), node(epsilon=1e-12))
    assert not is_same_step(node(), onnx.helper.make_node("RMSNormalization", ["x", "g"], ["y"]))
