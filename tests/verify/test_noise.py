"""What rounding alone does to the original is measured, and a rewrite that stays within it is accepted; nothing else is."""

import numpy as np
import onnx
import pytest

from rewright.verify.comparison import NOISE_CEILING, compare
from rewright.verify.inputs import InputSet
from rewright.verify.noise import PHASE, SAMPLES, perturb_lookups, perturbed_feeds
from rewright.verify.parity import ParityGate
from rewright.verify.process import SessionWorker
from rewright.verify.tolerance import tolerance_for

FLOAT32 = np.dtype(np.float32)
TOLERANCE = tolerance_for(FLOAT32, "reassociating")

AMPLIFYING = """g (float[B, 16] x) => (float[B, 16] y) <float large = {LARGE}, float one = {1.0}> {
    HEAD
    y = Sin(z)
}"""
"""The sine of a large number: a unit in the last place of x moves y by LARGE times as much."""

EXACTLY = "z = Mul(x, large)"


def amplifying(large, head=EXACTLY):
    return AMPLIFYING.replace("LARGE", str(large)).replace("HEAD", head)


def rows(scale=1.0, seed=0):
    return (scale * np.random.default_rng(seed).standard_normal((4, 16))).astype(np.float32)


def given(*arrays):
    return [InputSet(f"set-{index}", {"x": array}) for index, array in enumerate(arrays)]


@pytest.fixture
def judge(parse, worker):
    def judged(reference, candidate, sets=None, exactness="reassociating", **options):
        return ParityGate(parse(reference), sets, worker, **options).check(parse(candidate), exactness)

    return judged


# x * large, computed in another order: (x * (large / 3)) * 3 is as exact, and rounds otherwise.
THIRDS = "t = Mul(x, third) z = Mul(t, three)"


def in_thirds(large):
    text = amplifying(large, THIRDS)
    return text.replace("float one = {1.0}", f"float third = {{{large / 3}}}, float three = {{3.0}}")


def test_a_rewrite_within_the_noise_of_the_original_is_accepted_and_says_so(judge):
    evidence = judge(amplifying(300), in_thirds(300), given(rows()))
    (output,) = evidence.outputs
    assert evidence.status == "passed", evidence.reason
    assert output.needed_rtol > output.rtol, "the tolerance alone would not have accepted it"
    assert output.noise > 1e-5
    assert "within the rounding noise of the original" in output.message


def test_noise_is_not_measured_where_the_tolerance_is_kept(judge):
    evidence = judge(amplifying(2), in_thirds(2), given(rows()))
    assert evidence.status == "passed"
    assert evidence.outputs[0].noise is None


def test_an_exact_pass_has_no_noise(judge):
    evidence = judge(amplifying(300), in_thirds(300), given(rows()), exactness="exact")
    assert evidence.status == "failed"
    assert evidence.outputs[0].noise is None


def test_a_tolerance_of_the_users_own_is_not_widened(judge):
    evidence = judge(amplifying(300), in_thirds(300), given(rows()), tolerance=TOLERANCE)
    assert evidence.status == "failed"


def test_a_quiet_original_excuses_nothing(judge):
    """The same difference, 2e-5, where a unit in the last place of the input moves the output by no more."""
    quiet = "g (float[B, 16] x) => (float[B, 16] y) <float s = {SCALE}> { y = Mul(x, s) }"
    evidence = judge(quiet.replace("SCALE", "1.0"), quiet.replace("SCALE", "1.00006"), given(rows()))
    assert evidence.status == "failed"
    assert evidence.outputs[0].noise < 1e-6


def test_a_noisy_set_does_not_excuse_another_one(judge):
    """A fault that shows on the set of small numbers, where the original is quiet, stays a failure."""
    fault = amplifying(300, "shifted = Add(x, tiny) z = Mul(shifted, large)").replace("float one = {1.0}", "float tiny = {1e-7}")
    noisy, quiet = given(rows(), rows(1e-4, seed=1))
    assert judge(amplifying(300), fault, [noisy]).status == "passed", "there it cannot be told from rounding"
    evidence = judge(amplifying(300), fault, [noisy, quiet])
    assert (evidence.status, evidence.worst_input_set) == ("failed", "set-1")


def test_nothing_beyond_a_small_factor_is_excused_however_loud_the_noise(judge):
    evidence = judge(amplifying(30000), in_thirds(30000), given(rows()))
    assert evidence.status == "failed"
    assert evidence.outputs[0].noise is None


def test_the_noise_of_one_row_does_not_excuse_another():
    reference = np.zeros((2, 16), np.float32)
    candidate = reference.copy()
    moved = np.zeros((2, 16))
    moved[0] = 1e-3
    candidate[0, 3] = 5e-5
    assert compare("y", reference, candidate, TOLERANCE, noise=lambda: moved).equal
    candidate[1, 3] = 5e-5
    judged = compare("y", reference, candidate, TOLERANCE, noise=lambda: moved)
    assert not judged.equal
    assert "1 of 32 elements" in judged.message
    candidate[1, 3] = 0.0
    candidate[0, 3] = 1.01 * NOISE_CEILING * TOLERANCE.atol
    assert not compare("y", reference, candidate, TOLERANCE, noise=lambda: moved).equal


LOOKUP = """g (int64[B, S] ids) => (float[B, S, 8] y) <float[5, 8] table = {TABLE}, float large = {300.0}> {
    row = Gather(table, ids) z = Mul(row, large) y = Sin(z)
}"""


def lookup():
    table = np.random.default_rng(3).standard_normal(40).round(4)
    return LOOKUP.replace("TABLE", ", ".join(map(str, table)))


@pytest.mark.parametrize("opset", [13, 17, 23])
def test_the_rows_that_token_ids_look_up_are_perturbed(judge, opset):
    header = f'<ir_version: 10, opset_import: ["": {opset}]>'
    thirds = lookup().replace("float large = {300.0}", "float third = {100.0}, float three = {3.0}")
    thirds = thirds.replace("z = Mul(row, large)", "t = Mul(row, third) z = Mul(t, three)")
    evidence = judge(header + lookup(), header + thirds)
    assert evidence.status == "passed", evidence.reason
    assert 1e-5 < evidence.outputs[0].noise < 1e-3


def test_a_lookup_moves_by_one_unit_in_the_last_place_and_differently_each_time(parse, worker: SessionWorker):
    text = lookup().replace("z = Mul(row, large) y = Sin(z)", "y = Identity(row)")
    model = parse(text)
    ids = {"ids": np.array([[0, 1, 2], [3, 4, 0]])}
    (plain,) = (result.outputs["y"] for result in worker.run(model, [ids]).results)
    feeds = [{**ids, PHASE: np.float32(phase)} for phase in (0, 1)]
    moved = [result.outputs["y"] for result in worker.run(perturb_lookups(model), feeds).results]
    for sample in moved:
        ulps = np.abs(sample - plain) / np.spacing(np.abs(plain))
        assert ulps.min() >= 1
        assert ulps.max() <= 2
    assert not np.array_equal(*moved)


def test_masks_and_ids_are_not_perturbed_and_numbers_are(parse):
    model = parse("""g (int64[B, S] ids, float[B, S] attention_mask, float[B, S] x) => (float[B, S] y) {
        m = Mul(x, attention_mask) i = Cast<to = 1>(ids) y = Add(m, i)
    }""")
    arrays = {"ids": np.ones((2, 3), np.int64), "attention_mask": np.ones((2, 3), np.float32), "x": rows()[:2, :3]}
    feeds = perturbed_feeds(model, arrays)
    assert len(feeds) == SAMPLES
    for feed in feeds:
        assert feed["ids"] is arrays["ids"]
        assert feed["attention_mask"] is arrays["attention_mask"]
        np.testing.assert_array_equal(np.abs(feed["x"] - arrays["x"]) <= np.spacing(np.abs(arrays["x"])), True)
        assert (feed["x"] != arrays["x"]).all()


@pytest.mark.parametrize("name", ["gpt2.ts17.eager", "llama.dyn18.sdpa"])
def test_a_wrong_epsilon_is_not_mistaken_for_noise(zoo, worker, name):
    model = zoo(name)

    def eased(proto):
        for node in proto.graph.node:
            for attribute in node.attribute:
                if node.op_type == "LayerNormalization" and attribute.name == "epsilon":
                    attribute.f *= 3
        for tensor in proto.graph.initializer:
            if not tensor.dims and tensor.data_type == onnx.TensorProto.FLOAT:
                value = onnx.numpy_helper.to_array(tensor)
                if 0 < value < 1e-4:
                    tensor.CopyFrom(onnx.numpy_helper.from_array(3 * value, tensor.name))
        for node in proto.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                value = onnx.numpy_helper.to_array(node.attribute[0].t)
                if value.size == 1 and value.dtype == np.float32 and 0 < value.item() < 1e-4:
                    node.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(3 * value))

    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    eased(proto)
    assert proto != model.proto
    assert ParityGate(model, None, worker).check(model.with_proto(proto), "reassociating").status == "failed"
