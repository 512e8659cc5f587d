import ml_dtypes
import numpy as np
import pytest

from rewright.verify.comparison import (
    QuantizationBudget,
    compare,
    cosine,
    merge,
    sqnr_db,
    top1_agreement,
    vacuity,
)
from rewright.verify.tolerance import EXACT, tolerance_for

REASSOCIATING = tolerance_for(np.dtype(np.float32), "reassociating")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_equal_arrays_are_equal_and_measured():
    evidence = compare("y", normal(2, 3), normal(2, 3), EXACT)
    assert (evidence.equal, evidence.max_abs, evidence.max_rel, evidence.needed_rtol) == (True, 0.0, 0.0, 0.0)
    assert (evidence.dtype, evidence.shape, evidence.vacuous, evidence.message) == ("float32", [2, 3], "", "")


def test_one_percent_off_is_noticed_at_every_scale():
    for scale in (1e-6, 1e-4, 1.0, 1e4):
        reference = normal(4, 64) * np.float32(scale)
        assert not compare("y", reference, reference * np.float32(1.01), REASSOCIATING).equal, scale


def test_one_ulp_is_rounding_noise_but_not_exact():
    reference = normal(4, 64)
    candidate = np.nextafter(reference, np.float32(np.inf))
    assert compare("y", reference, candidate, REASSOCIATING).equal
    evidence = compare("y", reference, candidate, EXACT)
    assert not evidence.equal
    assert "256 of 256 elements differ" in evidence.message


def test_noise_may_follow_the_magnitude_of_the_output():
    reference = normal(4, 64) * np.float32(1000)
    reference[0, 0] = 0.0
    candidate = reference.copy()
    candidate[0, 0] = 5e-3
    assert compare("y", reference, candidate, REASSOCIATING).equal
    assert not compare("y", reference / 1000, candidate / 1, REASSOCIATING).equal


def test_needed_rtol_is_the_smallest_that_passes():
    reference, candidate = normal(8, 8), normal(8, 8) * np.float32(1.02)
    evidence = compare("y", reference, candidate, REASSOCIATING)
    assert evidence.needed_rtol == pytest.approx(0.02, rel=0.05)
    just_enough = type(REASSOCIATING)(evidence.needed_rtol * 1.0001, REASSOCIATING.atol)
    too_little = type(REASSOCIATING)(evidence.needed_rtol * 0.999, REASSOCIATING.atol)
    assert compare("y", reference, candidate, just_enough).equal
    assert not compare("y", reference, candidate, too_little).equal


def test_no_rtol_helps_where_the_reference_is_zero():
    evidence = compare("y", np.array([0.0, 1.0]), np.array([1.0, 1.0]), REASSOCIATING)
    assert (evidence.equal, evidence.needed_rtol) == (False, None)


def test_the_worst_element_is_named():
    reference = normal(2, 3, 4)
    candidate = reference.copy()
    candidate[1, 2, 3] += 1
    assert "at [1, 2, 3]" in compare("y", reference, candidate, REASSOCIATING).message


@pytest.mark.parametrize("shape", [(3,), (1, 3), (3, 1)])
def test_shapes_are_never_broadcast(shape):
    evidence = compare("y", np.ones((3, 3), np.float32), np.ones(shape, np.float32), REASSOCIATING)
    assert not evidence.equal
    assert evidence.message == f"shape is {list(shape)}, the reference has [3, 3]"


def test_dtypes_are_strict():
    evidence = compare("y", normal(3), normal(3).astype(np.float64), REASSOCIATING)
    assert (evidence.equal, evidence.message) == (False, "dtype is float64, the reference has float32")


@pytest.mark.parametrize(
    ("reference", "candidate", "equal"),
    [
        ([1.0, np.nan], [1.0, np.nan], True),
        ([1.0, np.nan], [1.0, 2.0], False),
        ([1.0, 2.0], [1.0, np.nan], False),
        ([1.0, np.inf], [1.0, np.inf], True),
        ([1.0, np.inf], [1.0, -np.inf], False),
        ([1.0, np.inf], [1.0, 3e38], False),
        ([1.0, 3e38], [1.0, np.inf], False),
    ],
)
def test_nan_and_infinities_have_to_stand_at_the_same_places(reference, candidate, equal):
    reference, candidate = np.array(reference, np.float32), np.array(candidate, np.float32)
    evidence = compare("y", reference, candidate, REASSOCIATING)
    assert evidence.equal is equal
    assert equal or "positions differ" in evidence.message or "infinities differ" in evidence.message
    assert compare("y", reference, candidate, REASSOCIATING, QuantizationBudget()).equal is equal


def test_integers_have_to_be_equal_even_beyond_float64():
    reference = np.array([2**53, 5])
    evidence = compare("ids", reference, np.array([2**53 + 1, 5]), REASSOCIATING)
    assert not evidence.equal
    assert "1 of 2 elements differ, the first at [0]" in evidence.message


def test_booleans_and_strings():
    assert compare("b", np.array([True, False]), np.array([True, False]), EXACT).equal
    assert not compare("b", np.array([True, False]), np.array([True, True]), EXACT).equal
    assert compare("s", np.array(["a", "b"], object), np.array(["a", "b"]), EXACT).equal
    assert not compare("s", np.array(["a", "b"], object), np.array(["a", "c"], object), EXACT).equal


def test_bfloat16_is_compared_as_numbers():
    reference = normal(4, 4).astype(ml_dtypes.bfloat16)
    tolerance = tolerance_for(reference.dtype, "reassociating")
    assert compare("y", reference, (reference * ml_dtypes.bfloat16(1.0078125)), tolerance).equal
    assert not compare("y", reference, (reference * ml_dtypes.bfloat16(1.25)), tolerance).equal


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        (np.zeros((2, 0), np.float32), "empty"),
        (np.full((2, 2), np.nan, np.float32), "all NaN"),
        (np.full((2, 2), 3.0, np.float32), "constant"),
        (np.full((2, 2), 3), "constant"),
        (np.array([True, True]), "constant"),
        (np.array(1.5, np.float32), ""),
        (np.array([1.0, np.nan], np.float32), ""),
        (np.array([1, 2]), ""),
    ],
)
def test_vacuous_references(reference, reason):
    assert vacuity(reference) == reason


def test_a_vacuous_output_still_has_to_be_equal():
    evidence = compare("y", np.zeros(3, np.float32), np.ones(3, np.float32), REASSOCIATING)
    assert (evidence.vacuous, evidence.equal) == ("constant", False)


def test_merge_keeps_the_worst():
    reference = normal(4, 4)
    fine = compare("y", reference, reference + np.float32(1e-6), REASSOCIATING)
    bad = compare("y", reference, reference + np.float32(0.1), REASSOCIATING)
    empty = compare("y", reference[:0], reference[:0], REASSOCIATING)
    merged = merge([fine, bad, empty])
    assert (merged.equal, merged.max_abs, merged.vacuous) == (False, bad.max_abs, "")
    assert merge([empty, empty]).vacuous == "empty"
    assert merge([fine, fine]).equal


def test_a_quantized_output_is_judged_by_its_budget():
    reference = normal(4, 64)
    noisy = reference + normal(4, 64, seed=1) * np.float32(0.05)
    evidence = compare("y", reference, noisy, REASSOCIATING, QuantizationBudget())
    assert evidence.equal
    assert 24 < evidence.sqnr_db < 28
    assert evidence.cosine > 0.99
    assert evidence.top1 == top1_agreement(reference, noisy)
    destroyed = compare("y", reference, normal(4, 64, seed=1), REASSOCIATING, QuantizationBudget())
    assert not destroyed.equal
    assert "SQNR" in destroyed.message
    assert compare("y", reference, noisy, REASSOCIATING).sqnr_db is None


def test_a_quantized_level_may_be_off_by_one():
    reference = np.arange(100, dtype=np.uint8)
    assert compare("q", reference, reference + np.uint8(1), EXACT, QuantizationBudget()).equal
    assert not compare("q", reference, reference + np.uint8(2), EXACT, QuantizationBudget()).equal
    assert not compare("q", reference, reference + np.uint8(1), EXACT).equal
    token_ids = np.arange(100)
    assert not compare("ids", token_ids, token_ids + 1, EXACT, QuantizationBudget()).equal


def test_metrics_against_known_values():
    reference = np.array([3.0, 4.0])
    assert sqnr_db(reference, np.array([3.0, 4.5])) == pytest.approx(20.0)
    assert sqnr_db(reference, reference) == 200.0
    assert cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(np.sqrt(0.5))
    assert top1_agreement(np.array([[1, 2], [2, 1]]), np.array([[1, 2], [1, 2]])) == 0.5
    assert top1_agreement(np.array([[1.0], [2.0]]), np.array([[1.0], [2.0]])) is None


def test_evidence_survives_json():
    evidence = compare("y", np.array([0.0, np.nan]), np.array([1.0, 1.0]), REASSOCIATING)
    assert type(evidence).model_validate_json(evidence.model_dump_json()) == evidence
