"""The grammar of chain text: what it reads, what it refuses and where it points, and that it round-trips."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewright.model.errors import UsageError
from rewright.registry.grammar import format_pass, format_value, parse_chain, parse_value

words = st.from_regex(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", fullmatch=True)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)
options = st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_]*", fullmatch=True), values, max_size=4)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("false", False),
        ("null", None),
        ("12", 12),
        ("-3", -3),
        ("1e-5", 1e-5),
        ("1.5E+3", 1500.0),
        (".5", 0.5),
        ("2.", 2.0),
        ("-inf", -math.inf),
        ("tanh", "tanh"),
        ("none", "none"),
        ("True", "True"),
        ("/lm_head/*", "/lm_head/*"),
        ("com.microsoft::Gelu", "com.microsoft::Gelu"),
        ("1.2.3", "1.2.3"),
        ('"12"', "12"),
        ("'it is'", "it is"),
        (r'"a\"b\\c\n\u00e9"', 'a"b\\c\né'),
        (r'"\ud83d\ude00"', "😀"),
        ("[]", []),
        ("[1, 2 3,]", [1, 2, 3]),
        ("{}", {}),
        ('{a=1 "b c"=[x {y=2}]}', {"a": 1, "b c": ["x", {"y": 2}]}),
        ("{8=4}", {"8": 4}),
    ],
)
def test_a_value_means_what_it_looks_like(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_options_are_separated_by_commas_or_blanks():
    (spaced,) = parse_chain("attention{ heads = 12 scale=0.125\n mask=[a b] }")
    (tight,) = parse_chain("attention{heads=12,scale=0.125,mask=[a,b],}")
    assert spaced.options == tight.options == {"heads": 12, "scale": 0.125, "mask": ["a", "b"]}


def test_an_empty_text_is_an_empty_chain_and_a_last_comma_is_allowed():
    assert parse_chain(" \n ") == []
    assert [written.name for written in parse_chain("O2, gelu,")] == ["O2", "gelu"]


@pytest.mark.parametrize(
    ("text", "message", "column"),
    [
        ("gelu bias-gelu", "expected ',' between passes, found 'bias-gelu'", 6),
        ("gelu{a=1}}", "expected ',' after a pass, found '}'", 10),
        (", gelu", "expected a name where a pass or level name should be, found ','", 1),
        ("gelu{heads 12}", "expected '=' after 'heads', found '12'", 12),
        ("gelu{heads=}", "a value is missing before '}'", 12),
        ("gelu{heads=12", "expected an option or '}', found the end", 14),
        ("gelu{'heads'=12}", "expected an option or '}', found 'heads'", 6),
        ("gelu{a=1, a=2}", "'a' is given twice", 11),
        ("gelu{a={b=1 b=2}}", "'b' is given twice", 13),
        ("gelu{a=[1, 2}", "a value is missing before '}'", 13),
        ('gelu{a="x}', 'the string has no closing "', 8),
        (r'gelu{a="\q"}', r"\q is no escape", 9),
        ("gelu{a=" + "[" * 40, "values are nested more than 32 deep", 39),
    ],
)
def test_an_error_points_at_its_place(text, message, column):
    with pytest.raises(UsageError) as caught:
        parse_chain(text)
    assert caught.value.message == f"chain text, column {column}: {message}."
    shown, caret = caught.value.hint.splitlines()[-2:]
    assert caret.strip() == "^"
    assert text[column - 1 : column] == shown[len(caret) - 1 : len(caret)]


def test_an_error_in_a_long_or_broken_line_shows_the_part_around_it():
    with pytest.raises(UsageError) as caught:
        parse_chain("gelu,\n" + "layer-norm, " * 20 + "gelu{a}, " + "clean, " * 20)
    assert caught.value.message.startswith("chain text, line 2, column 247: expected '=' after 'a', found '}'")
    shown, caret = caught.value.hint.splitlines()[-2:]
    assert len(shown) < 140
    assert shown[len(caret) - 1] == "}"


@given(values)
def test_every_value_comes_back_from_its_text(value):
    parsed = parse_value(format_value(value))
    assert parsed == value
    assert repr(parsed) == repr(value)


@given(st.lists(st.tuples(words, options), max_size=4))
def test_every_chain_comes_back_from_its_text(passes):
    text = ", ".join(format_pass(name, chosen) for name, chosen in passes)
    assert [(written.name, written.options) for written in parse_chain(text)] == passes


@given(st.text())
def test_any_text_is_read_or_refused_with_a_usage_error(text):
    with suppress(UsageError):
        parse_chain(text)
