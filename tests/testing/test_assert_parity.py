"""assert_parity: two models side by side."""

import numpy as np
import pytest

from rewright.testing import GraphBuilder, assert_parity

ADD = "g (float[N, 4] x) => (float[N, 4] y) <float b = {0.5}> { y = Add(x, b) }"
SUB = "g (float[N, 4] x) => (float[N, 4] y) <float b = {-0.5}> { y = Sub(x, b) }"
NEAR = ADD.replace("0.5", "0.5001")


def test_equal_models_give_the_comparison():
    assert assert_parity(ADD, SUB).parity.status == "passed"


def test_a_builder_and_a_text():
    g = GraphBuilder()
    x = g.input("x", "float32", ["N", 4])
    g.output(x + 0.5, "y")
    assert_parity(ADD, g)


def test_what_differs_is_told_with_figures():
    with pytest.raises(AssertionError) as raised:
        assert_parity(ADD, NEAR)
    message = str(raised.value)
    assert message.startswith("the two models are not equal:\n1. the outputs differ: output 'y' on input set")
    assert "max abs 1e-04, needs rtol" in message
    assert "where 1e-05 is allowed" in message


def test_tolerances_of_ones_own():
    assert_parity(ADD, NEAR, rtol=0.0, atol=1e-3)
    with pytest.raises(AssertionError):
        assert_parity(ADD, NEAR, rtol=0.0, atol=1e-5)


def test_inputs_of_ones_own():
    clipped = "g (float[N, 4] x) => (float[N, 4] y) <float b = {0.5}> { r = Abs(x) y = Add(r, b) }"
    with pytest.raises(AssertionError):
        assert_parity(ADD, clipped)
    found = assert_parity(ADD, clipped, inputs={"x": np.arange(8, dtype=np.float32).reshape(2, 4)})
    assert found.parity.input_sets == ["inputs"]


def test_another_interface_and_other_numbers_are_both_told():
    other = "g (float[M, 4] x) => (float[M, 4] z) { z = Neg(x) }"
    with pytest.raises(AssertionError, match="output 'y' is gone") as raised:
        assert_parity(ADD, other)
    assert "output 'z' is new" in str(raised.value)
    assert "the candidate has no such output" in str(raised.value)


def test_a_comparison_that_proves_nothing_is_no_parity():
    zero = "g (float[N, 4] x) => (float[N, 4] y) { y = Sub(x, x) }"
    with pytest.raises(AssertionError, match="the comparison proves nothing"):
        assert_parity(zero, zero)


def test_where_they_begin_to_differ_is_told():
    deep = "g (float[N, 4] x) => (float[N, 4] y) <float b = {0.5}> { s = Add(x, b) t = Tanh(s) y = Neg(t) }"
    with pytest.raises(AssertionError, match=r"it begins at 's', made by Add '.*': .* elements differ too much"):
        assert_parity(deep, deep.replace("0.5", "0.6"))


def test_other_names_and_any_iterable_of_inputs():
    renamed = ADD.replace("Add(x,", "Add(features,").replace("4] x)", "4] features)").replace("y", "logits")
    with pytest.raises(AssertionError, match="output 'y' is gone"):
        assert_parity(ADD, renamed)
    assert_parity(ADD, renamed, mapping={"x": "features", "y": "logits"})
    sets = ({"x": np.full((size, 4), size, np.float32) * np.arange(4, dtype=np.float32)} for size in (1, 2))
    assert assert_parity(ADD, renamed, by_position=True, inputs=sets).parity.input_sets == ["inputs-0", "inputs-1"]
