"""Models with a cache are run for several steps, each on what it stored itself."""

import numpy as np
import onnx
import pytest

from rewright.model.load import load
from rewright.verify.cache_pairs import CachePair, cache_pairs
from rewright.verify.cached_steps import STEPS, probe_cached_steps
from rewright.verify.inputs import InputSet, make_input_sets
from rewright.verify.invariances import run_probes
from rewright.verify.probes import Bench
from rewright.verify.roles import infer_roles

DECODER = """g (int64[batch, seq] input_ids, int64[batch, total] attention_mask, int64[batch, seq] position_ids,
    float[batch, 1, past, 4] past_key_values_0_key, float[batch, 1, past, 4] past_key_values_0_value)
    => (float[batch, seq, 4] logits, float[batch, 1, total, 4] present_0_key, float[batch, 1, total, 4] present_0_value)
    <float[7, 4] table = {TABLE}, float[64, 4] places = {PLACES}, float one = {1}, float lowest = {-10000},
    int64[1] heads = {1}, int64[2] inner = {1, 2}, int64[1] zero = {0}, int64[1] ends = {1000}, int64[1] keep = {-9},
    int64[1] axis = {2}> {
        tokens = Gather(table, input_ids) where = Gather(places, position_ids) x = Add(tokens, where)
        query = Unsqueeze(x, heads)
        key = Unsqueeze(where, heads) value = Unsqueeze(tokens, heads)
        present_0_key = Concat<axis = 2>(past_key_values_0_key, key)
        present_0_value = Concat<axis = 2>(past_key_values_0_value, value)
        keys = Identity(present_0_key) values = Identity(present_0_value)
        transposed = Transpose<perm = [0, 1, 3, 2]>(keys) scores = MatMul(query, transposed)
        valid = Cast<to = 1>(attention_mask) wide = Unsqueeze(valid, inner)
        invalid = Sub(one, wide) bias = Mul(invalid, lowest) masked = Add(scores, bias)
        weights = Softmax<axis = -1>(masked) context = MatMul(weights, values) logits = Squeeze(context, heads)
    }"""


def numbers(count, seed):
    return ", ".join(str(round(float(value), 3)) for value in np.random.default_rng(seed).standard_normal(count))


DECODER = DECODER.replace("TABLE", numbers(28, 0)).replace("PLACES", numbers(256, 1))

# Right on every length up to nine, which is what one step on a short past needs.
FORGETFUL = (
    DECODER.replace("keys = Identity(present_0_key)", "keys = Slice(present_0_key, keep, ends, axis)")
    .replace("values = Identity(present_0_value)", "values = Slice(present_0_value, keep, ends, axis)")
    .replace("wide = Unsqueeze(valid, inner)", "all = Unsqueeze(valid, inner) wide = Slice(all, keep, ends, last)")
    .replace("int64[1] axis = {2}", "int64[1] axis = {2}, int64[1] last = {3}")
)


@pytest.fixture
def probe(parse, worker):
    def probed(original, candidate, sets):
        model = parse(original)
        return probe_cached_steps(model, parse(candidate), infer_roles(model), sets, Bench(worker))

    return probed


def short(past=4, new=4):
    rng = np.random.default_rng(3)
    return [
        InputSet(
            "short",
            {
                "input_ids": rng.integers(0, 7, (2, new)),
                "attention_mask": np.array([[1] * (past + new), [0] + [1] * (past + new - 1)]),
                "position_ids": np.arange(past, past + new) + np.zeros((2, 1), np.int64),
                "past_key_values_0_key": rng.standard_normal((2, 1, past, 4)).astype(np.float32),
                "past_key_values_0_value": rng.standard_normal((2, 1, past, 4)).astype(np.float32),
            },
            padding_masks=("attention_mask",),
        )
    ]


def test_a_model_agrees_with_itself_over_all_steps(probe):
    evidence = probe(DECODER, DECODER, short())
    assert (evidence.status, evidence.figures) == ("held", {"steps": float(STEPS), "max_abs": 0.0})
    assert evidence.subject == "past_key_values_0_key, past_key_values_0_value"


def test_what_shows_only_when_the_cache_has_grown_is_found(probe):
    evidence = probe(DECODER, FORGETFUL, short())
    assert evidence.status == "broken"
    assert evidence.reason.startswith("step 3: output 'logits' differs by ")
    assert evidence.figures["max_abs"] > 1e-3


def test_a_candidate_that_fails_on_a_later_step_is_broken(probe):
    fixed = DECODER.replace(
        "logits = Squeeze(context, heads)", "squeezed = Squeeze(context, heads) logits = Reshape(squeezed, four)"
    ).replace("int64[1] axis = {2}", "int64[1] axis = {2}, int64[3] four = {2, 4, 4}")
    evidence = probe(DECODER, fixed, short())
    assert evidence.status == "broken"
    assert evidence.reason.startswith("step 2: the result cannot be run")


def test_masks_and_positions_grow_with_the_cache(probe, monkeypatch):
    """The original itself fails where a mask has not grown: the scores and the mask would not broadcast."""
    fed = []
    run = Bench.run
    monkeypatch.setattr(Bench, "run", lambda self, model, feeds: fed.extend(feeds) or run(self, model, feeds))
    probe(DECODER, DECODER, short())
    first, second, third = fed[::2]
    assert [feed["input_ids"].shape for feed in (first, second, third)] == [(2, 4), (2, 1), (2, 1)]
    assert [feed["past_key_values_0_key"].shape[2] for feed in (first, second, third)] == [4, 8, 9]
    assert [feed["attention_mask"].shape for feed in (first, second, third)] == [(2, 8), (2, 9), (2, 10)]
    assert [feed["position_ids"].tolist() for feed in (second, third)] == [[[8], [8]], [[9], [9]]]
    np.testing.assert_array_equal(third["attention_mask"][1], [0, 1, 1, 1, 1, 1, 1, 1, 1, 1])


def test_made_inputs_do_as_well(parse, worker):
    model = parse(DECODER)
    found = {evidence.name: evidence for evidence in run_probes(model, model, worker, make_input_sets(model))}
    assert {name: evidence.status for name, evidence in found.items()} == {
        "causality": "not-held",
        "padding": "held",
        "batch": "held",
        "cached-steps": "held",
    }


MERGED = """g (float[batch, seq, 2] x, float[batch, past, 2] past_key, bool[1] use_cache_branch)
    => (float[batch, seq, 2] y, float[batch, total, 2] present_key) <int64[1] length = {1}> {
        present_key = If(use_cache_branch) <
            then_branch = reads () => (float[batch, longer, 2] all) { all = Concat<axis = 1>(past_key, x) },
            else_branch = begins () => (float[batch, seq, 2] new) { new = Identity(x) }
        >
        pooled = ReduceSum<keepdims = 1>(present_key, length) y = Add(x, pooled)
    }"""


def test_a_merged_decoder_reads_its_cache_in_every_step(probe):
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.standard_normal((2, 3, 2)).astype(np.float32),
        "past_key": rng.standard_normal((2, 4, 2)).astype(np.float32),
        "use_cache_branch": np.array([False]),
    }
    sets = [InputSet("begins", arrays)]
    assert probe(MERGED, MERGED, sets).status == "held"
    wrong = probe(MERGED, MERGED.replace("Concat<axis = 1>(past_key, x)", "Concat<axis = 1>(x, past_key)"), sets)
    assert wrong.status == "broken"
    assert wrong.reason.startswith("step 1: output 'present_key'")


def test_a_model_without_a_cache_has_no_steps(probe):
    text = "g (float[B, 4] x) => (float[B, 4] y) { y = Relu(x) }"
    assert probe(text, text, [InputSet("mine", {"x": np.ones((2, 4), np.float32)})]) is None


def test_an_original_that_cannot_go_on_blames_nobody(probe):
    fixed = DECODER.replace(
        "logits = Squeeze(context, heads)", "squeezed = Squeeze(context, heads) logits = Reshape(squeezed, four)"
    ).replace("int64[1] axis = {2}", "int64[1] axis = {2}, int64[3] four = {2, 4, 4}")
    evidence = probe(fixed, fixed, short())
    assert evidence.status == "not-run"
    assert evidence.reason.startswith("the original cannot be run in step 2")


@pytest.mark.parametrize(
    ("past", "present"),
    [
        ("past_key_values.3.key", "present.3.key"),
        ("past_key_values.3.decoder.value", "present.3.decoder.value"),
        ("past_key_3", "present_key_3"),
        ("past_key_self_0", "present_key_self_0"),
        ("past_key_values_0_key", "present_key_values_0_key"),
        ("past_3", "present_3"),
        ("past", "present"),
        ("past_conv.1", "present_conv.1"),
        ("cache_k_0", "new_cache_k_0"),
        ("state_in", "state_out"),
    ],
)
def test_pairs_by_name(past, present):
    def value(name, dims):
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims)

    concat = onnx.helper.make_node("Concat", [past, "x"], [present], axis=1)
    inputs = [value(past, ["B", "P", 4]), value("x", ["B", 1, 4])]
    model = load(onnx.helper.make_model(onnx.helper.make_graph([concat], "g", inputs, [value(present, ["B", "T", 4])])))
    assert cache_pairs(model) == [CachePair(past, present)]


def test_pairs_without_names_by_shape_and_order_only_where_that_is_certain(parse):
    certain = """g (float[B, 2, P, 4] a, float[B, 2, P, 4] b) => (float[B, 2, T, 4] c, float[B, 2, T, 4] d) {
        c = Concat<axis = 2>(a, a) d = Concat<axis = 2>(b, b)
    }"""
    assert cache_pairs(parse(certain)) == [CachePair("a", "c"), CachePair("b", "d")]
    for uncertain in (
        certain.replace("float[B, 2, T, 4] d", "float[B, 2, 7, 4] d"),  # of fixed length
        certain.replace("float[B, 2, T, 4] d", "float[C, 2, T, 4] d"),  # two dimensions differ
        certain.replace("float[B, 2, T, 4] c, float[B, 2, T, 4] d", "float[B, 2, T, 4] c"),  # fewer outputs
        certain.replace("float[B, 2, T, 4] c, float[B, 2, T, 4] d", "float[B, 2, P, 4] c, float[B, 2, P, 4] d"),  # images, say
    ):
        assert cache_pairs(parse(uncertain)) == []
