"""Ordering constraints: solved stably, checked, completed; contradictions print their cycle."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewright.model.errors import UsageError
from rewright.passes.contract import Pass
from rewright.registry.ordering import solve, violations, with_required


def make(name, after=(), before=(), requires=(), number=0):
    facts = {"name": name, "after": after, "before": before, "requires": requires, "__module__": __name__}
    facts["__annotations__"] = {"number": int}
    facts["number"] = number
    return type(Pass)(name.title().replace("-", ""), (Pass,), facts)()


def names(passes):
    return [step.name for step in passes]


def test_what_nothing_constrains_keeps_its_place():
    assert names(solve([make("c"), make("a"), make("b")])) == ["c", "a", "b"]


def test_after_and_before_move_a_pass_no_further_than_needed():
    passes = [make("d", after=("b",)), make("a"), make("b"), make("c", before=("a",))]
    assert names(solve(passes)) == ["b", "d", "c", "a"]


def test_names_that_are_absent_constrain_nothing():
    assert names(solve([make("a", after=("absent",)), make("b", before=("absent",))])) == ["a", "b"]


def test_a_repeated_pass_counts_by_its_first_time():
    fold, late, shape = make("fold", number=1), make("fold", number=2), make("shape", after=("fold",))
    assert solve([fold, shape, late]) == (fold, shape, late)
    assert violations([fold, shape, late]) == ()
    assert solve([shape, fold, late]) == (fold, shape, late)


def test_two_configurations_of_one_pass_are_never_exchanged():
    one, two, blocked = make("a", number=1), make("a", number=2), make("b", before=("a",))
    assert solve([one, two, blocked]) == (blocked, one, two)


def test_a_broken_wish_is_told_and_the_order_left_alone():
    passes = [make("a", after=("b",)), make("b")]
    assert violations(passes) == ("a asks to run after b, but runs the other way round in this chain",)
    passes = [make("a"), make("b", before=("a",))]
    assert violations(passes) == ("b asks to run before a, but runs the other way round in this chain",)


@pytest.mark.parametrize("order", [solve, violations])
def test_a_cycle_is_printed_with_who_asked_for_it(order):
    passes = [make("free"), make("a", after=("c",)), make("b", after=("a",)), make("c", after=("b",))]
    with pytest.raises(UsageError) as caught:
        order(passes)
    assert "no order suits these passes: a -> b -> c -> a" in caught.value.message
    assert "a asks to run after c" in caught.value.message
    assert "free" not in caught.value.message


@pytest.mark.parametrize("order", [solve, violations])
def test_two_passes_that_contradict_each_other_are_refused(order):
    with pytest.raises(UsageError, match=r"a -> b -> a|b -> a -> b"):
        order([make("a", before=("b",)), make("b", before=("a",))])
    with pytest.raises(UsageError, match="a -> a"):
        order([make("a", after=("a",))])


def test_what_hangs_behind_a_cycle_is_not_blamed_for_it():
    passes = [make("tail", after=("a",)), make("a", after=("b",)), make("b", after=("a",))]
    with pytest.raises(UsageError) as caught:
        solve(passes)
    assert "tail" not in caught.value.message


def test_required_passes_are_inserted_with_what_they_require_themselves():
    base, middle = make("base"), make("middle", requires=("base",))
    classes = {step.name: type(step) for step in (base, middle)}
    top, other = make("top", requires=("middle", "base")), make("other", requires=("base",))
    passes, notes = with_required([top, other], classes.__getitem__)
    assert names(passes) == ["base", "middle", "top", "other"]
    assert notes == (
        "middle was inserted, because top requires it",
        "base was inserted, because middle requires it",
    )


def test_a_required_pass_that_comes_too_late_is_run_early_too():
    base, top = make("base"), make("top", requires=("base",))
    passes, _ = with_required([top, base], {"base": type(base)}.__getitem__)
    assert names(passes) == ["base", "top", "base"]


def test_passes_that_require_each_other_are_refused():
    a, b = make("a", requires=("b",)), make("b", requires=("a",))
    with pytest.raises(UsageError, match="passes require each other: a -> b -> a"):
        with_required([a], {"a": type(a), "b": type(b)}.__getitem__)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sets(st.sampled_from("abcdef"), max_size=2)), max_size=8))
def test_a_solved_order_has_no_violation_and_stays_as_it_is(spec):
    facts = dict(spec)
    passes = [make(name, after=tuple(sorted(facts[name]))) for name, _ in spec]
    try:
        solved = solve(passes)
    except UsageError:
        return
    assert sorted(names(solved)) == sorted(names(passes))
    assert violations(solved) == ()
    assert solve(solved) == solved
    if not violations(passes):
        assert solved == tuple(passes)
