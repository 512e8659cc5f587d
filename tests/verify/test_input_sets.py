"""Made inputs: legal for the model, different from each other, the same on every machine."""

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from rewright.model.errors import UsageError
from rewright.model.load import load
from rewright.verify.inputs import MAXIMUM_ELEMENTS, make_fallback_sets, make_input_sets
from rewright.verify.models import verify

ENCODER = """g (int64[batch, seq] input_ids, int64[batch, seq] attention_mask, float[batch, seq, 4] x) => (float[batch, seq, 4] y)
    <float[5, 4] table = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20}, int64[1] last = {-1}> {
        mask = Cast<to = 9>(attention_mask)
        wide = Unsqueeze(mask, last)
        rows = Gather(table, input_ids)
        y = Where(wide, rows, x)
    }"""


@pytest.fixture(scope="module")
def sets(parse):
    return make_input_sets(parse(ENCODER))


def test_there_are_four_of_different_sizes(sets):
    assert [input_set.arrays["input_ids"].shape for input_set in sets] == [(2, 7), (3, 5), (1, 4), (2, 6)]
    assert sets[0].description == "batch=2, seq=7, right padding, normal floats"


def test_ids_cover_the_table_and_stay_in_it(sets):
    ids = np.concatenate([input_set.arrays["input_ids"].ravel() for input_set in sets])
    assert set(ids) == {0, 1, 2, 3, 4}
    assert ids.dtype == np.int64


def test_masks_are_padded_right_left_and_not_at_all(sets):
    right, left, whole, _ = (input_set.arrays["attention_mask"] for input_set in sets)
    assert (np.diff(right, axis=1) <= 0).all()
    assert (np.diff(left, axis=1) >= 0).all()
    assert whole.all()
    assert 0 < right.mean() < 1
    assert 0 < left.mean() < 1
    assert sets[0].padding_masks == ("attention_mask",)


@pytest.mark.parametrize("count", [8])
def test_no_row_is_masked_completely(parse, count):
    for input_set in make_input_sets(parse(ENCODER), count=count):
        assert input_set.arrays["attention_mask"].any(axis=1).all()


def test_floats_come_in_several_scales(sets):
    deviations = [float(input_set.arrays["x"].std()) for input_set in sets]
    assert deviations[0] == pytest.approx(1, rel=0.4)
    assert deviations[1] == pytest.approx(1e-3, rel=0.4)
    assert deviations[3] == pytest.approx(30, rel=0.4)
    # The variance of a row has to be below the usual epsilons, its mean visible beside its deviation.
    assert sets[1].arrays["x"].mean() == pytest.approx(1e-2, rel=0.2)


def test_the_same_seed_gives_the_same_arrays(parse, sets):
    again, other = make_input_sets(parse(ENCODER)), make_input_sets(parse(ENCODER), seed=1)
    assert all((again[0].arrays[name] == array).all() for name, array in sets[0].arrays.items())
    assert (other[0].arrays["x"] != sets[0].arrays["x"]).any()
    # Written down, since a seed made with hash() would be salted anew in each process.
    assert sets[0].arrays["input_ids"][0].tolist()[:6] == [2, 1, 4, 4, 0, 1]


def test_fixed_dimensions_are_respected(parse):
    model = parse("g (float[2, 3, 8, 8] x) => (float[2, 3, 8, 8] y) { y = Relu(x) }")
    assert {input_set.arrays["x"].shape for input_set in make_input_sets(model)} == {(2, 3, 8, 8)}
    assert list(make_fallback_sets(model)) == []


def test_a_model_without_inputs_gets_one_empty_set(parse):
    model = parse("g () => (float[2] y) { y = Constant<value = float[2] {1, 2}>() }")
    (only,) = make_input_sets(model)
    assert only.arrays == {}


def test_an_input_that_is_too_large_is_refused_before_it_is_made(parse):
    model = parse(f"g (float[{MAXIMUM_ELEMENTS}, N] x) => (float[{MAXIMUM_ELEMENTS}, N] y) {{ y = Relu(x) }}")
    with pytest.raises(UsageError, match=r"input 'x' of shape \[67108864, \d\] has \d+ elements"):
        make_input_sets(model)


def test_dims_without_a_positive_size_are_refused(parse):
    model = parse("g (float[N] x) => (float[N] y) { y = Relu(x) }")
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N - 100"
    with pytest.raises(UsageError, match="no sizes fit"):
        make_input_sets(model.with_proto(proto))


def test_special_kinds_have_legal_values(parse):
    model = parse(
        """g (float[B, S] x, int64[2] target, string[B] text, bool[1] flag, int64[B] step) => (float[A, C] y)
        { y = Reshape(x, target) }"""
    )
    for trial, input_set in enumerate(make_input_sets(model)):
        assert input_set.arrays["target"].tolist() == [-1, 1]
        assert all(isinstance(word, str) for word in input_set.arrays["text"])
        assert input_set.arrays["flag"].tolist() == [trial % 2 == 0]
        assert (input_set.arrays["step"] >= 0).all()


def test_positions_are_consecutive_and_below_their_table(parse):
    model = parse(
        """g (int64[B, S] position_ids) => (float[B, S, 1] y)
        <float[6, 1] table = {1, 2, 3, 4, 5, 6}> { y = Gather(table, position_ids) }"""
    )
    for input_set in make_input_sets(model):
        steps = np.diff(input_set.arrays["position_ids"], axis=1)
        assert set(steps.ravel()) <= {0, 1}
        assert input_set.arrays["position_ids"].max() < 6


def test_fallbacks_have_other_sizes_and_batch_one_first(parse):
    fallbacks = list(make_fallback_sets(parse(ENCODER)))
    assert [fallback.arrays["input_ids"].shape for fallback in fallbacks[:3]] == [(1, 5), (1, 7), (2, 4)]


@pytest.mark.parametrize("name", ["bert.ts17.sdpa", "gpt2.dyn18.sdpa", "t5_enc.ts17.eager", "vit.dyn20.eager"])
def test_real_exports_run_on_all_of_them(zoo, worker, name):
    model = zoo(name)
    run = worker.run(model, [input_set.arrays for input_set in make_input_sets(model, count=8)])
    assert [result.error for result in run.results] == [""] * 8
    assert all(np.isfinite(array).all() for result in run.results for array in result.outputs.values())


DEFAULTED = """<ir_version: 8, opset_import: ["": 17]>
    g (float[n, 2] x, float[2] w) => (float[n, 2] y) <float[2] w = {1.0, 2.0}> { y = Mul(x, w) }"""


def test_inputs_with_a_default_get_another_value_once():
    model = load(onnx.parser.parse_model(DEFAULTED))
    fed = [input_set for input_set in make_input_sets(model) if "w" in input_set.arrays]
    assert len(fed) == 1
    assert "default" in fed[0].description
    assert not np.allclose(fed[0].arrays["w"], [1, 2], atol=1e-3)


def test_before_ir_version_4_initializers_are_no_inputs():
    proto = onnx.parser.parse_model(DEFAULTED.replace("ir_version: 8", "ir_version: 3"))
    assert not any("w" in input_set.arrays for input_set in make_input_sets(load(proto)))


def test_a_default_that_is_taken_for_a_constant_is_noticed():
    taken = DEFAULTED.replace("Mul(x, w)", "Mul(x, k)").replace("{1.0, 2.0}", "{1.0, 2.0}, float[2] k = {1.0, 2.0}")
    assert not verify(onnx.parser.parse_model(DEFAULTED), onnx.parser.parse_model(taken)).equal
