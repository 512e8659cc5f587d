"""The gate proves that it can fail."""

import numpy as np
import pytest

from rewright.verify.inputs import InputSet
from rewright.verify.mutation import self_test
from rewright.verify.parity import ParityGate


@pytest.mark.parametrize("name", ["bert.dyn20.eager", "gpt2.ts17.eager", "t5_enc.ts17.eager", "vit.ts17.sdpa"])
def test_faults_in_real_exports_are_noticed(zoo, worker, name):
    model = zoo(name)
    before = model.fingerprint()
    evidence = self_test(model, ParityGate(model, None, worker))
    assert evidence.status == "passed"
    assert len(evidence.tried) == 4
    assert evidence.noticed == evidence.tried
    assert model.fingerprint() == before


def test_a_gate_that_cannot_notice_fails_the_test(parse, worker):
    """An input set of zeros hides every weight that is multiplied with it."""
    model = parse("g (float[B, 2] x) => (float[B, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { y = MatMul(x, w) }")
    blind = ParityGate(model, [InputSet("zeros", {"x": np.zeros((3, 2), np.float32)})], worker)
    evidence = self_test(model, blind)
    assert evidence.status == "failed"
    assert evidence.reason == "the parity gate did not notice: weight 'w' perturbed by a twentieth"
    seeing = self_test(model, ParityGate(model, None, worker))
    assert (seeing.status, seeing.noticed) == ("passed", ["weight 'w' perturbed by a twentieth"])


def test_a_model_without_a_place_for_a_fault(parse, worker):
    model = parse("g (float[B, 2] x) => (float[2, B] y) { y = Transpose(x) }")
    evidence = self_test(model, ParityGate(model, None, worker))
    assert evidence.status == "not-run"
    assert "no weight and no op" in evidence.reason


def test_a_model_that_cannot_be_run(parse, worker):
    model = parse("g (float[B, 2] x) => (float[B, 2] y) { r = com.microsoft.NoSuchOp(x) y = Relu(r) }")
    evidence = self_test(model, ParityGate(model, None, worker))
    assert evidence.status == "not-run"
    assert "the original cannot be run" in evidence.reason


@pytest.mark.filterwarnings("error")
def test_the_lowest_number_can_be_perturbed(parse, worker):
    text = (
        "g (float[N, 2] x, bool[N, 2] m) => (float[N, 2] y) <float[2] low = {-3.4028234e38, -1}> "
        "{ s = Where(m, x, low) y = Softmax(s) }"
    )
    model = parse(text)
    evidence = self_test(model, ParityGate(model, None, worker))
    assert "weight 'low' perturbed by a twentieth" in evidence.tried


def test_the_number_that_masks_is_no_weight(parse, worker):
    masked = """g (float[b, 4] x, bool[b, 4] m) => (float[b, 4] y) <float low = {-1000000000.0}> {
        s = Where(m, x, low)  y = Softmax<axis = -1>(s) }"""
    reference = parse(masked)
    evidence = self_test(reference, ParityGate(reference, None, worker))
    assert not any("low" in tried for tried in evidence.tried)
