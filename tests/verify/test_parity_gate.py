"""The parity gate passes what computes the same and notices what does not."""

import os
import signal
import threading

import numpy as np
import onnx
import pytest

from rewright.verify.inputs import InputSet
from rewright.verify.parity import ParityEvidence, ParityGate
from rewright.verify.process import SessionWorker


@pytest.fixture
def judge(parse, worker):
    """Check one text against another."""

    def judged(reference, candidate, exactness="reassociating", **options):
        return ParityGate(parse(reference), None, worker, **options).check(parse(candidate), exactness)

    return judged


def changed(model, change):
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    change(proto)
    return model.with_proto(proto)


def unary(body):
    return f"g (float[batch, seq, 8] x) => (float[batch, seq, 8] y) {body}"


RELU = unary("{ y = Relu(x) }")


def test_a_model_equals_itself(judge):
    evidence = judge(RELU, RELU, "exact")
    assert (evidence.status, evidence.reason, evidence.gate) == ("passed", "", "parity")
    assert evidence.input_sets == ["set-0", "set-1", "set-2", "set-3"]
    (output,) = evidence.outputs
    assert (output.name, output.max_abs, output.needed_rtol, output.vacuous) == ("y", 0.0, 0.0, "")
    assert ParityEvidence.model_validate_json(evidence.model_dump_json()) == evidence


def test_relu_is_not_neg(judge):
    evidence = judge(RELU, unary("{ y = Neg(x) }"))
    assert evidence.status == "failed"
    assert "output 'y' on input set 'set-3'" in evidence.reason
    assert evidence.worst_input_set == "set-3"


def test_one_percent_is_not_rounding(judge):
    evidence = judge(RELU, unary("<float s = {1.01}> { r = Relu(x) y = Mul(r, s) }"))
    assert evidence.status == "failed"
    assert evidence.outputs[0].needed_rtol == pytest.approx(0.01, rel=0.1)


def test_another_order_of_summation_is_rounding_but_not_exact(judge):
    halves = """<float half = {0.3}, float rest = {0.7}> { a = Mul(x, half) b = Mul(x, rest) y = Add(a, b) }"""
    assert judge(unary("{ y = Identity(x) }"), unary(halves), "reassociating").status == "passed"
    assert judge(unary("{ y = Identity(x) }"), unary(halves), "exact").status == "failed"


LAYER_NORM = """<float[8] one = {1, 1, 1, 1, 1, 1, 1, 1}> { y = LayerNormalization<epsilon = EPSILON>(x, one) }"""


def test_an_epsilon_shows_on_rows_of_low_variance(judge):
    wrong = judge(unary(LAYER_NORM.replace("EPSILON", "1e-5")), unary(LAYER_NORM.replace("EPSILON", "1e-12")))
    assert (wrong.status, wrong.worst_input_set) == ("failed", "set-1")
    assert wrong.outputs[0].max_abs > 1


DECOMPOSED = """<float[8] one = {1, 1, 1, 1, 1, 1, 1, 1}, float two = {2}, float epsilon = {0.00001}> {
    mean = ReduceMean<axes = [-1]>(x) centred = Sub(x, mean) square = Pow(centred, two)
    variance = ReduceMean<axes = [-1]>(square) safe = Add(variance, epsilon) deviation = Sqrt(safe)
    y = Div(centred, deviation)
}"""


def test_a_fused_layer_norm_equals_the_decomposed_one_on_every_set(judge):
    evidence = judge(unary(DECOMPOSED), unary(LAYER_NORM.replace("EPSILON", "1e-5")), count=8)
    assert evidence.status == "passed", evidence.reason
    assert len(evidence.input_sets) == 8


def test_an_rms_norm_is_not_a_layer_norm(judge):
    rms = DECOMPOSED.replace("centred = Sub(x, mean)", "centred = Identity(x)")
    assert judge(unary(DECOMPOSED), unary(rms)).status == "failed"


def test_a_dropped_padding_mask_is_noticed_in_a_real_export(zoo, worker):
    model = zoo("bert.ts17.sdpa")

    def drop_mask(proto):
        equal = onnx.helper.make_node("Equal", ["attention_mask", "attention_mask"], ["everywhere"], name="everywhere")
        cast = onnx.helper.make_node("Cast", ["everywhere"], ["all_ones"], name="all_ones", to=onnx.TensorProto.INT64)
        for node in proto.graph.node:
            for index, name in enumerate(node.input):
                if name == "attention_mask":
                    node.input[index] = "all_ones"
        proto.graph.node.insert(0, cast)
        proto.graph.node.insert(0, equal)

    evidence = ParityGate(model, None, worker).check(changed(model, drop_mask), "reassociating")
    assert evidence.status == "failed"
    assert evidence.worst_input_set != "set-2", "nothing is padded there"


@pytest.mark.parametrize(
    "name", ["bert.dyn18.sdpa", "gpt2.ts17.eager", "llama.dyn18.sdpa", "t5_enc.ts17.eager", "vit.dyn20.eager"]
)
def test_onnxruntimes_own_optimizations_are_rounding(zoo, worker, name):
    model = zoo(name)
    gate = ParityGate(model, None, worker, candidate_optimization="ORT_ENABLE_ALL")
    evidence = gate.check(model, "reassociating")
    assert evidence.status == "passed", evidence.reason


def test_nan_where_the_original_has_a_number(judge):
    logarithm = "{ a = Abs(x) y = Log(a) }"
    evidence = judge(unary(logarithm), unary("{ y = Log(x) }"))
    assert evidence.status == "failed"
    assert "NaN positions differ" in evidence.reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("<float[1] zero = {0}> { y = Mul(x, zero) }", "constant"),
        ("<float zero = {0}> { z = Mul(x, zero) y = Div(z, z) }", "all NaN"),
    ],
)
def test_an_output_that_cannot_differ_is_never_a_pass(judge, body, reason):
    evidence = judge(unary(body), unary(body))
    assert evidence.status == "vacuous"
    assert evidence.outputs[0].vacuous == reason
    assert reason in evidence.reason


def test_a_vacuous_output_beside_a_telling_one_passes_and_is_named(judge):
    text = "g (float[B, 4] x) => (float[B, 4] y, float[B, 4] z) <float zero = {0}> { y = Relu(x) z = Mul(x, zero) }"
    evidence = judge(text, text)
    assert evidence.status == "passed"
    assert {output.name: output.vacuous for output in evidence.outputs} == {"y": "", "z": "constant"}


def test_a_scalar_that_never_changes_is_vacuous_and_one_that_does_is_not(judge):
    scalar = "g (float[B, 4] x) => (float y) {body}"
    same = scalar.replace("{body}", "{ s = Shape(x) r = Size(s) y = Cast<to = 1>(r) }")
    varying = scalar.replace("{body}", "{ y = ReduceMean<keepdims = 0>(x) }")
    assert judge(same, same).outputs[0].vacuous == "constant over all input sets"
    assert judge(varying, varying).status == "passed"


def test_a_candidate_that_does_not_load_has_failed(judge):
    evidence = judge(RELU, unary("{ y = com.microsoft.NoSuchOp(x) }"))
    assert evidence.status == "failed"
    assert "NoSuchOp" in evidence.reason
    assert "\n" not in evidence.reason


def test_a_candidate_that_runs_on_some_sizes_only_has_failed(judge):
    evidence = judge(RELU, unary("<int64[3] fixed = {2, 7, 8}> { r = Relu(x) y = Reshape(r, fixed) }"))
    assert evidence.status == "failed"
    assert "input set 'set-1'" in evidence.reason


def test_a_missing_a_new_and_a_retyped_output_have_failed(parse, worker):
    two = parse("g (float[B] x) => (float[B] y, float[B] z) { y = Relu(x) z = Neg(x) }")
    one = parse("g (float[B] x) => (float[B] y) { y = Relu(x) }")
    retyped = parse("g (float[B] x) => (double[B] y) { r = Relu(x) y = Cast<to = 11>(r) }")
    assert "the candidate has no such output" in ParityGate(two, None, worker).check(one, "exact").reason
    assert "the original has no such output" in ParityGate(one, None, worker).check(two, "exact").reason
    assert "dtype is float64" in ParityGate(one, None, worker).check(retyped, "approximate").reason


def test_a_candidate_that_crashes_has_failed_and_the_gate_goes_on(parse):
    endless = """g (float[N] x) => (float[N] y) <int64 trips = {4000000000}, bool true = {1}> {
        y = Loop(trips, true, x) <
            body = b (int64 i, bool c, float[N] v) => (bool c2, float[N] w) { c2 = Identity(c) w = Abs(v) }
        >
    }"""
    reference = parse("g (float[N] x) => (float[N] y) { y = Abs(x) }")
    with SessionWorker() as worker:
        gate = ParityGate(reference, None, worker)
        assert gate.check(reference, "exact").status == "passed"
        threading.Timer(0.3, os.kill, (worker.pid, signal.SIGSEGV)).start()
        evidence = gate.check(parse(endless), "exact")
        assert (evidence.status, "SIGSEGV" in evidence.reason) == ("failed", True)
        assert gate.check(reference, "exact").status == "passed"


def test_a_model_that_cannot_be_run_is_not_judged(judge):
    broken = unary("{ y = com.microsoft.NoSuchOp(x) }")
    evidence = judge(broken, broken)
    assert evidence.status == "not-run"
    assert "the original cannot be run" in evidence.reason


def test_sets_that_the_original_cannot_take_are_replaced(parse, worker):
    batch_one = parse(
        "g (float[batch, seq] x) => (float[1, seq] y) <int64[2] one = {1, -1}> { r = Reshape(x, one) y = Add(r, x) }"
    )
    narrow = parse("g (float[batch, seq] x) => (float[4, 1] y) <int64[2] fixed = {4, 1}> { r = Relu(x) y = Reshape(r, fixed) }")
    evidence = ParityGate(batch_one, None, worker).check(batch_one, "exact")
    assert len(evidence.input_sets) == 4
    evidence = ParityGate(narrow, None, worker).check(narrow, "exact")
    assert evidence.status == "passed"
    assert "set-2" in evidence.input_sets
    assert any(dropped.startswith("set-0 (batch=2, seq=7") for dropped in evidence.dropped)


def test_no_set_at_all(parse, worker):
    impossible = parse("g (float[batch, seq] x) => (float[9999] y) <int64[1] fixed = {9999}> { y = Reshape(x, fixed) }")
    evidence = ParityGate(impossible, None, worker).check(impossible, "exact")
    assert evidence.status == "not-run"
    assert "cannot be run on any input set; set-0" in evidence.reason


def test_given_input_sets_are_the_only_ones(parse, worker):
    gate = ParityGate(parse(RELU), [InputSet("mine", {"x": np.ones((1, 1, 8), np.float32)})], worker)
    evidence = gate.check(parse(unary("{ y = Identity(x) }")), "exact")
    assert evidence.input_sets == ["mine"]
    assert evidence.status == "vacuous", "ones are constant through a Relu"


def test_an_exact_pass_after_a_looser_one_is_still_held_to_its_promise(parse, worker):
    gate = ParityGate(parse(RELU), None, worker)
    noisy = parse(unary("<float s = {1.0000005}> { r = Relu(x) y = Mul(r, s) }"))
    noisier = parse(unary("<float s = {1.000001}> { r = Relu(x) y = Mul(r, s) }"))
    assert gate.check(noisy, "reassociating").status == "passed"
    gate.keep("reassociating")
    assert gate.check(noisy, "exact").status == "passed"
    evidence = gate.check(noisier, "exact")
    assert evidence.status == "failed"
    assert evidence.reason.startswith("against the model before this pass")
    assert gate.check(noisier, "reassociating").status == "passed"


def test_a_trial_cannot_be_kept(parse, worker):
    gate = ParityGate(parse(RELU), None, worker)
    noisy = parse(unary("<float s = {1.0000005}> { r = Relu(x) y = Mul(r, s) }"))
    gate.check(noisy, "reassociating")
    gate.check(parse(RELU), "reassociating", is_trial=True)
    gate.keep("reassociating")
    assert gate.check(noisy, "exact").status == "passed"


def test_the_outputs_of_the_last_candidate_are_known_and_no_other_ones(parse, worker):
    gate = ParityGate(parse(RELU), None, worker)
    candidate, other = parse(unary("{ a = Relu(x) y = Identity(a) }")), parse(unary("{ y = Neg(x) }"))
    assert gate.outputs_of(candidate) == []
    gate.check(candidate, "exact")
    gate.check(other, "exact", is_trial=True)
    assert gate.outputs_of(other) == []
    for known, original in zip(gate.outputs_of(candidate), gate.original_outputs, strict=True):
        np.testing.assert_array_equal(known["y"], original["y"])


def test_quantizing_passes_are_judged_by_their_budget(judge):
    rough = unary("<float s = {0.05}> { r = Relu(x) d = Div(r, s) q = Round(d) y = Mul(q, s) }")
    large = "g (float[batch, seq, 8] x) => (float[batch, seq, 8] y) <float k = {100}> { l = Mul(x, k) y = Relu(l) }"
    assert judge(RELU, rough, "approximate").status == "failed"
    evidence = judge(large, large, "quantizing")
    assert evidence.status == "passed"
    assert evidence.outputs[0].sqnr_db == 200
    assert judge(RELU, unary("{ y = Neg(x) }"), "quantizing").status == "failed"


def test_ops_without_a_kernel_are_checked_through_their_meaning(parse, worker):
    gpu_only = parse(unary("{ y = com.microsoft.OnlyOnSomeDevice(x) }"))

    def lower(model):
        def replace(proto):
            for node in proto.graph.node:
                if node.op_type == "OnlyOnSomeDevice":
                    node.op_type, node.domain = "Relu", ""

        return changed(model, replace)

    gate = ParityGate(parse(RELU), None, worker, lower=lower)
    assert gate.check(gpu_only, "exact").status == "passed"
    assert ParityGate(parse(RELU), None, worker).check(gpu_only, "exact").status == "failed"


ATTENTION = """g (float[batch, seq, 4] x, int64[batch, seq] attention_mask) => (float[batch, seq, 4] y)
    <float one = {1}, float lowest = {LOWEST}, int64[1] middle = {1}, int64 low = {0}> {
        transposed = Transpose<perm = [0, 2, 1]>(x)
        scores = MatMul(x, transposed)
        valid = Cast<to = 1>(attention_mask)
        keys = Unsqueeze(valid, middle)
        invalid = Sub(one, keys)
        padding = Mul(invalid, lowest)
        shape = Shape(scores)
        ones = Expand(one, shape)
        lower = Trilu<upper = 0>(ones)
        upper = Sub(one, lower)
        future = Mul(upper, lowest)
        both = Add(padding, future)
        masked = Add(scores, both)
        weights = Softmax<axis = -1>(masked)
        y = MatMul(weights, x)
    }"""


def test_rows_that_are_padding_may_differ_between_spellings_of_a_mask(judge):
    ten_thousand, lowest = ATTENTION.replace("LOWEST", "-10000"), ATTENTION.replace("LOWEST", "-3.4e38")
    evidence = judge(ten_thousand, lowest)
    assert evidence.status == "passed", evidence.reason
    assert "padded positions were not compared" in evidence.outputs[0].message
    assert judge(ten_thousand, lowest, "exact").status == "failed"
    unmasked = ATTENTION.replace("LOWEST", "-10000").replace("masked = Add(scores, both)", "masked = Add(scores, future)")
    assert judge(ten_thousand, unmasked).status == "failed"


def test_rows_are_padding_also_where_the_exporter_has_numbered_the_dimensions_of_the_output(judge):
    numbered = ATTENTION.replace("(float[batch, seq, 4] y)", "(float[MatMuly_dim_0, MatMuly_dim_1, 4] y)")
    evidence = judge(numbered.replace("LOWEST", "-10000"), numbered.replace("LOWEST", "-3.4e38"))
    assert evidence.status == "passed", evidence.reason
    assert "padded positions were not compared" in evidence.outputs[0].message
