"""Sizes for symbolic dimensions, and expressions of them."""

import numpy as np
import pytest

from rewright.verify.roles import InputRole
from rewright.verify.symbols import evaluate, parse_expression, resolve, sizes, symbols_of


def role(name, *dims, kind="integer"):
    return InputRole(name, np.dtype(np.int64), dims, kind)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("past_sequence_length + 1", 6),
        ("past_sequence_length + sequence_length", 12),
        ("2*sequence_length", 14),
        ("floor(sequence_length/2)", 3),
        ("Max(1, past_sequence_length)", 5),
        ("(sequence_length - 1) // 2 + 1", 4),
        ("sequence_length/2", None),
        ("sequence_length // 0", None),
        ("unheard_of + 1", None),
    ],
)
def test_expressions_are_evaluated(text, value):
    assert evaluate(parse_expression(text), {"past_sequence_length": 5, "sequence_length": 7}) == value


@pytest.mark.parametrize(
    "text", ["batch", "batch-size", "Concat.3", "unk__12", "", "a b", "1 +", "x[0]", "f(x)", "x.__class__ * 2"]
)
def test_names_and_anything_that_is_not_arithmetic_stay_symbols(text):
    assert parse_expression(text) is None


def test_a_huge_power_is_not_computed():
    assert parse_expression("9**9**9**9 + x") is None


def test_every_symbol_gets_at_least_two_sizes_and_never_only_one():
    symbols = symbols_of([role("ids", "batch", "seq"), role("past", "batch", 4, "past_len", 16, kind="past")])
    assert symbols == {"batch": "batch", "seq": "length", "past_len": "past"}
    for symbol in symbols:
        tried = {sizes(symbols, trial)[symbol] for trial in range(4)}
        assert len(tried) >= 2
        assert tried - {0, 1}


def test_symbols_of_one_sort_are_told_apart():
    symbols = symbols_of([role("a", "batch", "encoder_length"), role("b", "batch", "decoder_length")])
    chosen = sizes(symbols, 0)
    assert chosen["encoder_length"] != chosen["decoder_length"]


def test_a_symbol_has_one_size_in_all_inputs_and_expressions_follow():
    roles = [role("ids", "b", "s"), role("mask", "b", "p + s"), role("past", "b", 4, "p", 16, kind="past")]
    chosen = sizes(symbols_of(roles), 1)
    ids, mask, past = (resolve(each.dims, chosen) for each in roles)
    assert ids[0] == mask[0] == past[0]
    assert mask[1] == past[2] + ids[1]


def test_a_total_length_is_past_plus_new():
    roles = [role("ids", "b", "sequence_length"), role("mask", "b", "total_sequence_length"), role("past", "b", "past_length")]
    chosen = sizes(symbols_of(roles), 0)
    assert chosen["total_sequence_length"] == chosen["past_length"] + chosen["sequence_length"]


def test_unnamed_dimensions_are_the_same_along_an_axis():
    roles = [role("ids", None, None), role("mask", None, None)]
    chosen = sizes(symbols_of(roles), 0)
    assert resolve(roles[0].dims, chosen) == resolve(roles[1].dims, chosen) == (2, 7)


def test_a_size_that_is_not_positive_is_refused():
    assert resolve(("s - 7", 3), {"s": 7}) is None
    assert resolve(("s - 6", 3), {"s": 7}) == (1, 3)
