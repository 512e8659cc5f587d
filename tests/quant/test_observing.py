"""What is kept of numbers that stream by is what all of them at once would give."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewright.quant.calibration.histogram import BINS, Observed, restore, save
from rewright.quant.calibration.thresholds import CalibrationMethod

Array = np.ndarray[Any, Any]


def batches(scales: tuple[float, ...] = (0.01, 1.0, 30.0, 3.0), offset: float = 0.0, seed: int = 0) -> list[Array]:
    random = np.random.default_rng(seed)
    return [
        (random.standard_normal((7, 11 * place + 50)) * scale + offset).astype(np.float32) for place, scale in enumerate(scales)
    ]


def seen_of(parts: list[Array], averaging: float = 0.01) -> Observed:
    seen = Observed(with_histogram=True, averaging=averaging)
    for part in parts:
        seen.add(part)
    return seen


def together(parts: list[Array]) -> Array:
    return np.concatenate([part.reshape(-1) for part in parts])


NUMBERS = st.lists(st.floats(-(2.0**90), 2.0**90, width=32), min_size=1, max_size=20)


@given(st.lists(NUMBERS, min_size=1, max_size=5), st.randoms())
def test_the_histogram_is_that_of_all_numbers_at_once_in_any_order(lists: list[list[float]], random: Any) -> None:
    parts = [np.asarray(numbers, np.float32) for numbers in lists]
    seen = seen_of(parts)
    shuffled = list(parts)
    random.shuffle(shuffled)
    other = seen_of(shuffled)
    np.testing.assert_array_equal(seen.bins, other.bins)
    reach = math.ldexp(1.0, seen.exponent)
    wanted, _ = np.histogram(together(parts).astype(np.float64), BINS, (-reach, reach))
    np.testing.assert_array_equal(seen.bins, wanted)
    assert seen.bins.sum() == seen.count == sum(part.size for part in parts)


def test_a_range_that_grows_merges_bins_and_keeps_every_number() -> None:
    small, large = np.full(10, 0.3, np.float32), np.array([1000.0, -7.0], np.float32)
    seen = seen_of([small, large])
    assert seen.exponent == 10
    width = 2.0**11 / BINS
    assert seen.bins[BINS // 2 + int(0.3 / width)] == 10
    assert seen.bins[BINS // 2 + int(1000 / width)] == 1
    assert seen.bins[BINS // 2 + math.floor(-7.0 / width)] == 1


def test_extremes_and_moments_are_those_of_all_numbers() -> None:
    parts = batches(offset=5.0)
    seen, everything = seen_of(parts), together(parts).astype(np.float64)
    assert (seen.low, seen.high) == (everything.min(), everything.max())
    assert seen.mean == pytest.approx(everything.mean(), rel=1e-6)
    assert seen.deviation == pytest.approx(everything.std(), rel=1e-6)


def test_numbers_that_are_not_finite_are_counted_and_left_out() -> None:
    seen = seen_of(
        [np.array([-np.inf, 1.0, np.nan, 3.0], np.float32), np.full(3, np.nan, np.float32), np.zeros((0,), np.float32)]
    )
    assert (seen.count, seen.skipped, seen.low, seen.high, seen.batches) == (2, 5, 1.0, 3.0, 1)
    assert CalibrationMethod("minmax").range_of(Observed()) is None


def test_the_moving_average_is_that_of_the_extremes_of_batches() -> None:
    parts = batches()
    method = CalibrationMethod("minmax", moving_average=True, averaging=0.25)
    low, high = float(parts[0].min()), float(parts[0].max())
    for part in parts[1:]:
        low, high = 0.75 * low + 0.25 * float(part.min()), 0.75 * high + 0.25 * float(part.max())
    assert method.range_of(seen_of(parts, 0.25)) == pytest.approx((low, high))


@pytest.mark.parametrize("percentile", [100.0, 99.9, 99.0, 90.0, 50.0])
@pytest.mark.parametrize("offset", [0.0, 40.0])
def test_percentiles_are_numpys_to_within_a_bin(percentile: float, offset: float) -> None:
    parts = batches(offset=offset)
    seen, cut = seen_of(parts), (100 - percentile) / 2
    found = CalibrationMethod("percentile", percentile=percentile).range_of(seen)
    wanted = np.percentile(together(parts), [cut, 100 - cut], method="inverted_cdf")
    assert found == pytest.approx(wanted, abs=1.01 * seen.width)


def directly(numbers: Array, reach: float, levels: int) -> float:
    """The threshold by entropy, written out number by number over all candidates."""
    counts, edges = np.histogram(np.abs(numbers.astype(np.float64)), 2048, (0, reach))
    used = int(np.flatnonzero(counts)[-1]) + 1
    best, threshold = math.inf, 0.0
    for kept in [*range(levels, used, 8), used]:
        p = [float(count) for count in counts[:kept]]
        p[-1] += float(sum(counts[kept:]))
        groups: dict[int, list[int]] = {}
        for place in range(kept):
            groups.setdefault(place * levels // kept, []).append(place)
        q = [0.0] * kept
        for places in groups.values():
            filled = [place for place in places if p[place] > 0]
            for place in filled:
                q[place] = float(sum(counts[each] for each in places)) / len(filled)
        total_p, total_q = sum(p), sum(q)
        divergence = sum(
            a / total_p * math.log((a / total_p) / max(b / total_q, 1e-9)) for a, b in zip(p, q, strict=True) if a > 0
        )
        if divergence < best - 1e-12:
            best, threshold = divergence, float(edges[kept])
    return threshold


@pytest.mark.parametrize("levels", [64, 128])
def test_entropy_is_what_a_direct_computation_gives(levels: int) -> None:
    random = np.random.default_rng(4)
    numbers = np.concatenate([random.laplace(size=20000), [55.0, -60.0]]).astype(np.float32)
    seen = seen_of(list(np.array_split(numbers, 5)))
    found = CalibrationMethod("entropy", levels=levels).range_of(seen)
    threshold = directly(numbers, math.ldexp(1.0, seen.exponent), levels)
    assert found == pytest.approx((max(-threshold, seen.low), min(threshold, seen.high)))
    assert threshold < 30.0  # the two outliers are cut off


def test_entropy_of_what_has_few_values_is_its_extremes() -> None:
    method = CalibrationMethod("entropy")
    assert method.range_of(seen_of([np.array([0.0, 0.25, 0.0], np.float32)])) == pytest.approx((0.0, 0.25))
    assert method.range_of(seen_of([np.zeros(4, np.float32)])) == (0.0, 0.0)


def test_distribution_is_deviations_around_the_mean_within_the_extremes() -> None:
    parts = batches((1.0, 1.0), offset=3.0)
    everything = together(parts).astype(np.float64)
    near = CalibrationMethod("distribution", deviations=2.0).range_of(seen_of(parts))
    mean, deviation = everything.mean(), everything.std()
    assert near == pytest.approx((mean - 2 * deviation, mean + 2 * deviation), rel=1e-5)
    far = CalibrationMethod("distribution", deviations=50.0).range_of(seen_of(parts))
    assert far == (everything.min(), everything.max())


def test_what_was_written_goes_on_where_it_stopped(tmp_path: Path) -> None:
    parts, path = batches(), str(tmp_path / "state.npz")
    first = [seen_of(parts[:2]), seen_of(parts[1:2])]
    save(path, first)
    again = restore(path, with_histogram=True, averaging=0.01)
    for each in (*first, *again):
        each.add(parts[3])
    for left, right in zip(first, again, strict=True):
        np.testing.assert_array_equal(left.bins, right.bins)
        assert (left.mean, left.squares, left.averaged_high) == (right.mean, right.squares, right.averaged_high)
