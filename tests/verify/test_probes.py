"""What the original is invariant to, the result has to be; what the original is not, is only noted."""

import numpy as np
import pytest

from rewright.verify.inputs import InputSet, make_input_sets
from rewright.verify.invariances import run_probes
from rewright.verify.probes import MARGIN, Bench

DECODER = """g (int64[batch, seq] ids, int64[batch, seq] attention_mask) => (float[batch, seq, 4] y)
    <float[7, 4] table = {TABLE}, float one = {1}, float lowest = {-10000}, int64[1] middle = {1}> {
        x = Gather(table, ids)
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
    }""".replace("TABLE", ", ".join(str(round(float(v), 3)) for v in np.random.default_rng(0).standard_normal(28)))

WITHOUT_CAUSALITY = DECODER.replace("masked = Add(scores, both)", "masked = Add(scores, padding)")
WITHOUT_PADDING = DECODER.replace("masked = Add(scores, both)", "masked = Add(scores, future)")
WITH_MIXED_ROWS = DECODER.replace(
    "y = MatMul(weights, x)",
    "z = MatMul(weights, x) mean = ReduceMean<axes = [0]>(z) tiny = Mul(mean, little) y = Add(z, tiny)",
).replace("float one = {1}", "float one = {1}, float little = {0.01}")


@pytest.fixture
def probe(parse, worker):
    def probed(original, candidate, sets=None, **options):
        model = parse(original)
        found = run_probes(model, parse(candidate), worker, sets or make_input_sets(model), **options)
        return {
            evidence.name if evidence.name != "causality" else f"causality {evidence.subject}": evidence for evidence in found
        }

    return probed


def statuses(found):
    return {name: evidence.status for name, evidence in found.items()}


def test_a_decoder_holds_all_three(probe):
    found = probe(DECODER, DECODER)
    assert statuses(found) == {"causality ids": "held", "padding": "held", "batch": "held"}
    assert found["padding"].subject == "attention_mask"
    assert found["batch"].subject == "ids, attention_mask"
    assert all(evidence.figures["candidate"] < 1e-6 for evidence in found.values())


@pytest.mark.parametrize(
    ("candidate", "broken"),
    [
        (WITHOUT_CAUSALITY, {"causality ids"}),
        (WITHOUT_PADDING, {"padding"}),
        # what one row's padding sees, which is everything, reaches the others
        (WITH_MIXED_ROWS, {"batch", "padding", "causality ids"}),
    ],
)
def test_what_the_candidate_no_longer_holds_is_broken_and_nothing_else(probe, candidate, broken):
    found = probe(DECODER, candidate)
    assert {name for name, status in statuses(found).items() if status == "broken"} == broken
    for name in broken:
        assert found[name].reason.startswith("'y' moves by ")
        assert found[name].figures["original"] < 1e-6
        assert found[name].figures["candidate"] > 1e-4


def test_dimensions_that_an_exporter_numbered_are_matched_by_size(probe):
    numbered = DECODER.replace("(float[batch, seq, 4] y)", "(float[MatMuly_dim_0, MatMuly_dim_1, 4] y)")
    assert statuses(probe(numbered, numbered)) == {"causality ids": "held", "padding": "held", "batch": "held"}


@pytest.mark.parametrize(
    ("original", "loose"),
    [(WITHOUT_CAUSALITY, "causality ids"), (WITHOUT_PADDING, "padding"), (WITH_MIXED_ROWS, "batch")],
)
def test_what_the_original_does_not_hold_is_noted_and_blames_nobody(probe, original, loose):
    found = probe(original, original)
    assert found[loose].status == "not-held"
    assert found[loose].reason == "not held by the original: y"
    assert "broken" not in statuses(found).values()
    assert probe(original, DECODER)[loose].status == "not-held", "a candidate that holds more is no better and no worse"


def test_an_encoder_and_a_decoder_are_probed_apart(probe):
    """The decoder is causal and sees all of the encoder; what the encoder's padding holds reaches nobody."""
    text = """g (int64[batch, src] input_ids, int64[batch, src] attention_mask, int64[batch, tgt] decoder_input_ids)
        => (float[batch, tgt, 2] y, float[batch, src, 2] memory) <float[5, 2] table = {1, 2, 3, 5, 7, -1, 4, 6, -8, 9},
        int64[1] last = {2}, int64 axis = {1}> {
        rows = Gather(table, input_ids) valid = Cast<to = 1>(attention_mask) wide = Unsqueeze(valid, last)
        memory = Mul(rows, wide) pooled = ReduceSum<keepdims = 1>(memory, axis1)
        own = Gather(table, decoder_input_ids) counted = CumSum(own, axis) y = Add(counted, pooled)
    }""".replace("int64 axis = {1}", "int64 axis = {1}, int64[1] axis1 = {1}")
    found = probe(text, text)
    assert statuses(found) == {
        "causality input_ids": "held",
        "causality decoder_input_ids": "held",
        "padding": "held",
        "batch": "held",
    }
    assert found["causality input_ids"].reason == "", "the outputs of the decoder have no positions of the encoder"
    unmasked = text.replace("memory = Mul(rows, wide)", "memory = Identity(rows)")
    assert statuses(probe(text, unmasked))["padding"] == "broken"
    backwards = text.replace("CumSum(own", "CumSum<reverse = 1>(own")
    assert statuses(probe(text, backwards))["causality decoder_input_ids"] == "broken"


@pytest.mark.parametrize("inputs", ["float[B, S, 4] x, float[1, S, 4] skip", "float[1, S, 4] skip, float[B, S, 4] x"])
def test_an_input_of_one_row_for_the_whole_batch_is_probed_with_the_others(probe, inputs):
    source = f"g ({inputs}) => (float[B, S, 4] y) {{ y = Add(x, skip) }}"
    found = probe(source, source)
    (causality,) = (evidence for name, evidence in found.items() if name.startswith("causality"))
    assert causality.status == "held"
    assert set(causality.subject.split(", ")) == {"x", "skip"}


def test_a_model_that_offers_no_place_says_so(probe):
    found = probe("g (float[4] x) => (float[4] y) { y = Relu(x) }", "g (float[4] x) => (float[4] y) { y = Relu(x) }")
    assert {name.split()[0]: evidence.status for name, evidence in found.items()} == dict.fromkeys(
        ("causality", "padding", "batch"), "not-run"
    )
    assert all(evidence.reason for evidence in found.values())


def test_a_result_that_cannot_run_on_a_single_row_has_broken_the_batch(probe):
    fixed = "g (float[batch, 4] x) => (float[batch, 4] y) <int64[2] two = {2, 4}> { r = Relu(x) y = Reshape(r, two) }"
    found = probe(
        "g (float[batch, 4] x) => (float[batch, 4] y) { y = Relu(x) }",
        fixed,
        [InputSet("mine", {"x": np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)})],
    )
    assert found["batch"].status == "broken"
    assert "cannot be run" in found["batch"].reason


def test_an_original_that_cannot_run_on_a_probe_blames_nobody(probe):
    fixed = "g (float[batch, 4] x) => (float[batch, 4] y) <int64[2] two = {2, 4}> { r = Relu(x) y = Reshape(r, two) }"
    found = probe(fixed, fixed, [InputSet("mine", {"x": np.ones((2, 4), np.float32)})])
    assert found["batch"].status == "not-run"
    assert "the original cannot be run" in found["batch"].reason


def test_the_cache_is_padded_too(probe):
    """The mask covers the past and then the new tokens; both are changed where it hides them."""
    text = """g (float[batch, 1, past, 2] past_key, float[batch, seq, 2] x, int64[batch, total] attention_mask)
        => (float[batch, seq, 2] y) <int64[1] heads = {1}, int64[1] last = {2}, int64[1] length = {1}> {
        old = Squeeze(past_key, heads) all = Concat<axis = 1>(old, x)
        valid = Cast<to = 1>(attention_mask) wide = Unsqueeze(valid, last)
        hidden = Mul(all, wide) pooled = ReduceSum<keepdims = 1>(hidden, length) y = Add(x, pooled)
    }"""
    rng = np.random.default_rng(0)
    mask = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    arrays = {
        "past_key": rng.standard_normal((2, 1, 2, 2)).astype(np.float32),
        "x": rng.standard_normal((2, 3, 2)).astype(np.float32),
        "attention_mask": mask,
    }
    sets = [InputSet("mine", arrays, padding_masks=("attention_mask",))]
    assert probe(text, text, sets)["padding"].status == "held"
    assert probe(text, text.replace("Mul(all, wide)", "Identity(all)"), sets)["padding"].status == "broken"


def test_the_margin_is_for_the_candidate_only(worker):
    bench = Bench(worker)
    wanted, got = np.ones(4, np.float32), np.ones(4, np.float32) + np.float32(5e-5)
    assert not bench.agree("y", wanted, got)[0]
    assert bench.agree("y", wanted, got, margin=MARGIN)[0]


@pytest.mark.parametrize(
    "name", ["bert.ts17.sdpa", "gpt2.ts17.eager", "llama.dyn18.sdpa", "t5_enc.ts17.eager", "vit.dyn20.eager"]
)
def test_exports_equal_themselves(zoo, worker, name):
    model = zoo(name)
    found = run_probes(model, model, worker, make_input_sets(model))
    assert "broken" not in {evidence.status for evidence in found}
    assert "held" in {evidence.status for evidence in found}
    if name in ("gpt2.ts17.eager", "llama.dyn18.sdpa"):
        assert [evidence.status for evidence in found if evidence.name == "causality"] == ["held"]


EACH_POSITION = """g (float[batch, seq, 4] x) => (float[batch, seq, 4] y) <float[4, 4] w = {1,2,0,0, 0,1,0,3, 1,0,1,0, 0,0,2,1}> {
    y = MatMul(x, w)
}"""
ONE_SCALE = EACH_POSITION.replace(
    "y = MatMul(x, w)",
    "levels, scale, zero = DynamicQuantizeLinear(x) rounded = DequantizeLinear(levels, scale, zero) y = MatMul(rounded, w)",
)
WITH_THE_MEAN = EACH_POSITION.replace("y = MatMul(x, w)", "z = MatMul(x, w) mean = ReduceMean<axes = [1]>(z) y = Add(z, mean)")


def test_what_one_scale_for_all_positions_rounds_is_no_leak(probe):
    sets = [InputSet("small before large", {"x": np.full((1, 6, 4), 0.004, np.float32)}, "")]
    rounding = probe(EACH_POSITION, ONE_SCALE, sets, exactness="quantizing")["causality x"]
    assert rounding.status == "held"
    assert rounding.figures["candidate"] > 1e-4
    assert probe(EACH_POSITION, ONE_SCALE, sets)["causality x"].status == "broken"
    assert probe(EACH_POSITION, WITH_THE_MEAN, sets, exactness="quantizing")["causality x"].status == "broken"
