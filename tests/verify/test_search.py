"""Searches over trials: what they find, that it was really tried, and how many trials they take."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewright.verify.search import first_failing_prefix, minimal_failing_set


class Trials:
    """Counts the trials, and fails where one of the groups is applied completely."""

    def __init__(self, *groups: Iterable[int]) -> None:
        self.groups = [frozenset(group) for group in groups]
        self.tried: list[frozenset[int]] = []

    def __call__(self, kept: frozenset[int]) -> bool:
        assert kept not in self.tried, "one set was tried twice"
        self.tried.append(kept)
        return self.fails(kept)

    def fails(self, kept: frozenset[int]) -> bool:
        return any(group <= kept for group in self.groups)


@pytest.mark.parametrize("first", [1, 2, 7, 16, 23, 24])
def test_the_first_failing_prefix_is_found_in_a_logarithm_of_trials(first: int) -> None:
    asked: list[int] = []

    def fails(length: int) -> bool:
        asked.append(length)
        return length >= first

    assert first_failing_prefix(24, fails) == first
    assert len(asked) <= 5
    assert len(set(asked)) == len(asked)
    assert not {0, 24} & set(asked)


@given(outcomes=st.lists(st.booleans(), max_size=40))
def test_a_prefix_search_ends_between_one_that_passes_and_one_that_fails(outcomes: list[bool]) -> None:
    """Also where a later step undoes an earlier failure."""
    failing = [False, *outcomes, True]
    found = first_failing_prefix(len(failing) - 1, failing.__getitem__)
    assert failing[found]
    assert not failing[found - 1]


@pytest.mark.parametrize("search", [lambda: first_failing_prefix(0, bool), lambda: minimal_failing_set(0, bool, 9)])
def test_nothing_cannot_fail(search: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="fail"):
        search()


@pytest.mark.parametrize("culprit", range(24))
def test_one_culprit_among_two_dozen_takes_six_trials(culprit: int) -> None:
    trials = Trials([culprit])
    assert minimal_failing_set(24, trials, 100) == {culprit}
    assert len(trials.tried) <= 6


@pytest.mark.parametrize("culprits", [{0, 23}, {5, 6}, {0, 1, 2}, {3, 11, 12, 20}, set(range(0, 24, 2)), set(range(12, 24))])
def test_all_independent_culprits_are_found(culprits: set[int]) -> None:
    trials = Trials(*([culprit] for culprit in culprits))
    assert minimal_failing_set(24, trials, 100) == culprits
    assert len(trials.tried) <= 8 * len(culprits)


def test_one_of_two_that_fail_only_together_is_undone() -> None:
    assert minimal_failing_set(10, Trials([2, 7]), 100) in ({2}, {7})


def test_the_one_that_fails_with_each_of_several_is_undone_instead_of_them() -> None:
    assert minimal_failing_set(10, Trials([1, 4], [1, 6], [1, 8]), 100) == {1}


def test_together_and_alone() -> None:
    assert minimal_failing_set(12, Trials([9], [1, 4], [1, 6]), 100) == {1, 9}


def test_where_all_are_wrong_all_are_undone_within_the_budget() -> None:
    trials = Trials(*([member] for member in range(24)))
    assert minimal_failing_set(24, trials, 12) == set(range(24))
    assert len(trials.tried) <= 12


def test_without_a_budget_everything_is_undone_untried() -> None:
    trials = Trials([3])
    assert minimal_failing_set(8, trials, 0) == set(range(8))
    assert not trials.tried


def test_what_was_seen_to_pass_is_kept_when_the_budget_is_spent() -> None:
    trials = Trials([12], [14], [20])
    undone = minimal_failing_set(24, trials, 7)
    assert {12, 14, 20} <= undone
    assert not undone & set(range(12))


def test_a_single_member_needs_no_trial() -> None:
    trials = Trials([0])
    assert minimal_failing_set(1, trials, 10) == {0}
    assert not trials.tried


@given(data=st.data(), count=st.integers(1, 12), budget=st.integers(0, 40))
def test_the_rest_was_seen_to_pass_whatever_acts_together(data: st.DataObject, count: int, budget: int) -> None:
    """Any function of the sets, monotone or not: failures that come and go as members are added."""
    outcomes = data.draw(st.dictionaries(st.frozensets(st.integers(0, count - 1)), st.booleans()))
    tried: dict[frozenset[int], bool] = {}

    def fails(kept: frozenset[int]) -> bool:
        assert kept not in tried
        tried[kept] = outcomes.get(kept, True)
        return tried[kept]

    undone = minimal_failing_set(count, fails, budget)
    assert undone
    assert undone <= set(range(count))
    assert len(tried) <= budget
    rest = frozenset(range(count)) - undone
    assert not rest or tried[rest] is False


@given(groups=st.lists(st.sets(st.integers(0, 9), min_size=1, max_size=3), min_size=1, max_size=5))
def test_nothing_that_is_undone_could_have_stayed(groups: list[set[int]]) -> None:
    trials = Trials(*groups)
    undone = minimal_failing_set(10, trials, 1000)
    rest = frozenset(range(10)) - undone
    assert not trials.fails(rest)
    assert all(trials.fails(rest | {member}) for member in undone)
    alone = {member for group in groups if len(group) == 1 for member in group}
    assert alone <= undone
