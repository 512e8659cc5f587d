"""Sizes as polynomials and functions: equal texts mean equal sizes."""

from __future__ import annotations

import pytest
from fact_check import evaluated
from hypothesis import given
from hypothesis import strategies as st

from rewright.shapes import terms
from rewright.shapes.dimensions import add, dim_of, divide, multiply, never_one, product_of, same_size, size_of, symbol

B, S, P = symbol("batch"), symbol("seq"), symbol("past")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (multiply(multiply(S, 2), B), "2*batch*seq"),
        (add(S, 1), "seq + 1"),
        (add(S, 1, -1), "seq - 1"),
        (add(1, S, -1), "-seq + 1"),
        (divide(multiply(16, S), 16), "seq"),
        (divide(multiply(16, S), S), 16),
        (divide(multiply(add(S, P), B), add(S, P)), "batch"),
        (divide(S, 2), None),
        (terms.floor_divide(S, 2), "floor(seq/2)"),
        (terms.floor_divide(terms.floor_divide(S, 2), 2), "floor(seq/4)"),
        (add(terms.floor_divide(add(S, -1), 2), 1), "floor((seq + 1)/2)"),
        (terms.floor_divide(add(multiply(5, S), 9), 4), "floor((seq + 1)/4) + seq + 2"),
        (terms.floor_divide(multiply(6, multiply(S, B)), multiply(4, S)), "floor(3*batch/2)"),
        (terms.ceil_divide(S, 2), "floor((seq + 1)/2)"),
        (terms.truncated_divide(add(S, -5), 2), "div(seq - 5, 2)"),
        (terms.minimum(64, S), "min(seq, 64)"),
        (terms.minimum(terms.minimum(S, 64), 32), "min(seq, 32)"),
        (terms.minimum(S, add(S, P)), "seq"),
        (terms.maximum(add(S, -1), 0), "max(seq - 1, 0)"),
        (terms.broadcast(B, 1), "batch"),
        (terms.broadcast(B, S), "broadcast(batch, seq)"),
        (terms.broadcast(terms.broadcast(S, B), B), "broadcast(batch, seq)"),
        (terms.broadcast(S, terms.minimum(S, 64)), "seq"),
        (terms.broadcast(add(S, P), terms.minimum(64, add(S, P))), "past + seq"),
        (terms.broadcast(add(S, P), terms.minimum(1, add(S, P))), "broadcast(min(past + seq, 1), past + seq)"),
        (terms.broadcast(S, terms.minimum(P, 64)), "broadcast(min(past, 64), seq)"),
        (terms.broadcast(multiply(2, S), B), "2*seq"),
        (terms.sliced(0, -1, S), "max(seq - 1, 0)"),
        (terms.sliced(1, terms.TO_THE_END, S), "max(seq - 1, 0)"),
        (terms.sliced(-1, terms.TO_THE_END, S), "min(seq, 1)"),
        (terms.sliced(multiply(-1, S), terms.TO_THE_END, S), "seq"),
        (terms.sliced(P, add(P, S), add(P, S)), "seq"),
        (terms.sliced(add(P, S, -1), S, B), "sliced(past - seq, seq, batch)"),
    ],
    ids=str,
)
def test_sizes_have_one_text(size, text):
    assert (dim_of(size) if size is not None else None) == text


def test_a_slice_from_the_end_broadcasts_with_what_it_counts():
    from_the_end = terms.sliced(multiply(-1, S), terms.TO_THE_END, add(S, P))
    assert str(from_the_end) == "sliced(-seq, end, past + seq)"
    assert terms.broadcast(S, from_the_end) == S


@pytest.mark.parametrize(
    ("size", "is_never"),
    [(S, False), (add(S, 1), False), (add(S, 2), True), (multiply(4, S), True), (add(multiply(2, S), 1), False)],
)
def test_sizes_that_are_never_one(size, is_never):
    assert never_one(size) is is_never


@pytest.mark.parametrize("text", ["2*seq", "past + seq", "floor(seq/2)", "a b"])
def test_a_declared_expression_is_a_name(text):
    assert size_of(text) not in (multiply(2, S), add(P, S), terms.floor_divide(S, 2))
    assert dim_of(size_of(text)) == text
    assert size_of(dim_of(add(size_of(text), 1))) == add(size_of(text), 1)


def test_questions_about_dimensions():
    derived = dim_of(multiply(2, S))
    assert same_size(derived, derived)
    assert not same_size(None, None)
    assert not same_size(derived, "2*seq")
    assert product_of(["batch", derived, 4]) == multiply(multiply(8, S), B)
    assert product_of(["batch", None]) is None
    assert dim_of(multiply(symbol("unk__dim0"), B)).startswith("unk__(")
    with pytest.raises(ValueError, match="not known"):
        size_of(None)


SMALL = st.integers(-3, 9)
SIZES = st.recursive(
    st.one_of(SMALL, st.sampled_from([B, S, P])),
    lambda inner: st.builds(
        lambda kind, left, right: kind(left, right),
        st.sampled_from([add, multiply, terms.minimum, terms.maximum, terms.floor_divide, terms.truncated_divide]),
        inner,
        inner,
    ).filter(lambda size: size is not None),
    max_leaves=6,
)


def value(size, sizes):
    found = evaluated(size, sizes)
    return found if found is not None else 0


@given(SIZES, SIZES, st.tuples(*[st.integers(0, 7)] * 3))
def test_functions_give_what_they_say(left, right, numbers):
    sizes = dict(zip(("batch", "seq", "past"), numbers, strict=True))
    one, two = evaluated(left, sizes), evaluated(right, sizes)
    if one is None or two is None:  # something is divided by 0
        return
    assert evaluated(terms.minimum(left, right), sizes) in (min(one, two), None)
    assert evaluated(terms.maximum(left, right), sizes) in (max(one, two), None)
    if terms.never_negative(left):
        assert one >= 0
    if never_one(left):
        assert one != 1
    whole = terms.floor_divide(left, right)
    if whole is not None and two > 0:
        assert evaluated(whole, sizes) in (one // two, None)
    rounded = terms.truncated_divide(left, right)
    if rounded is not None and two != 0:
        assert evaluated(rounded, sizes) in (int(one / two), None)


@given(SIZES, SIZES, st.integers(0, 7), st.tuples(*[st.integers(0, 7)] * 3))
def test_a_slice_counts_what_python_counts(start, end, length, numbers):
    sizes = dict(zip(("batch", "seq", "past"), numbers, strict=True))
    first, last = evaluated(start, sizes), evaluated(end, sizes)
    if first is None or last is None:
        return
    for dim in (length, S):
        count = len(range(*slice(first, last).indices(value(dim, sizes))))
        assert evaluated(terms.sliced(start, end, dim), sizes) in (count, None)


@given(SIZES, SIZES, st.tuples(*[st.integers(0, 7)] * 3))
def test_broadcasting_gives_the_one_that_is_not_one(left, right, numbers):
    sizes = dict(zip(("batch", "seq", "past"), numbers, strict=True))
    one, two = evaluated(left, sizes), evaluated(right, sizes)
    if one is None or two is None or min(one, two) < 0 or not (one == two or 1 in (one, two)):
        return
    assert evaluated(terms.broadcast(left, right), sizes) in (two if one == 1 else one, None)


@given(SIZES, SIZES, st.tuples(*[st.integers(0, 7)] * 3))
def test_substitution_is_evaluation(size, other, numbers):
    sizes = dict(zip(("batch", "seq", "past"), numbers, strict=True))
    replaced, number = terms.substituted(size, {"seq": other}), evaluated(other, sizes)
    if replaced is not None and number is not None and number >= 0:
        assert (
            evaluated(replaced, sizes) in (evaluated(size, sizes | {"seq": number}), None)
            or evaluated(size, sizes | {"seq": number}) is None
        )
