"""What pattern functions can say, and what they are told when they say something else."""

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from matching import bindings, reason

from rewright.model.errors import PassError
from rewright.pattern.language import root_ops, trace


def test_operands_commute_where_the_op_does() -> None:
    assert bindings(lambda op, a, b: op.Abs(a) + b, "n = Abs(x) y = Add(z, n)") == {"a": "x", "b": "z"}
    assert bindings(lambda op, a, b: op.Abs(a) * b, "n = Abs(x) y = Mul(n, z)") == {"a": "x", "b": "z"}
    assert bindings(lambda op, a, b: op.Max(op.Abs(a), b), "n = Abs(x) y = Max(z, n)") == {"a": "x", "b": "z"}
    assert bindings(lambda op, a, b: op.Abs(a) - b, "n = Abs(x) y = Sub(z, n)") is None
    assert bindings(lambda op, a, b: op.Abs(a) / b, "n = Abs(x) y = Div(n, z)") == {"a": "x", "b": "z"}


def test_commuted_operands_are_both_tried_below() -> None:
    pattern = lambda op, a, b: (op.Abs(a) + op.Neg(b)) * op.Neg(a)  # noqa: E731
    assert bindings(pattern, "p = Abs(x) q = Neg(z) r = Neg(x) s = Add(q, p) y = Mul(r, s)") == {"a": "x", "b": "z"}


NUMBERS: dict[str, tuple[Any, list[str], list[str]]] = {
    "x + 2": (lambda op, x: x + 2, ["Add(x, c)", "Add(c, x)", "Sub(x, m)"], ["Sub(c, x)", "Add(x, m)", "Sub(x, c)"]),
    "2 + x": (lambda op, x: 2 + x, ["Add(x, c)"], ["Sub(x, c)"]),
    "x - 2": (lambda op, x: x - 2, ["Sub(x, c)", "Add(m, x)"], ["Sub(c, x)", "Add(x, c)"]),
    "2 - x": (lambda op, x: 2 - x, ["Sub(c, x)"], ["Sub(x, c)"]),
    "x * 2": (lambda op, x: x * 2, ["Mul(x, c)", "Mul(c, x)", "Div(x, h)"], ["Div(h, x)", "Div(x, c)"]),
    "x / 2": (lambda op, x: x / 2, ["Div(x, c)", "Mul(h, x)"], ["Div(c, x)", "Mul(x, c)"]),
    "2 / x": (lambda op, x: 2 / x, ["Div(c, x)"], ["Div(x, c)", "Reciprocal(x)"]),
    "1 / x": (lambda op, x: 1 / x, ["Div(o, x)", "Reciprocal(x)"], ["Div(x, o)"]),
    "x ** 2": (lambda op, x: x**2, ["Pow(x, c)", "Mul(x, x)"], ["Pow(c, x)", "Mul(x, c)", "Mul(x, z)"]),
    "x ** 0.5": (lambda op, x: x**0.5, ["Pow(x, h)", "Sqrt(x)"], ["Pow(x, c)"]),
    "x ** 3": (lambda op, x: x**3, ["Pow(x, t)"], ["Pow(x, c)", "Mul(x, x)"]),
    "-x": (lambda op, x: -x, ["Neg(x)", "Mul(x, n)", "Div(x, n)"], ["Mul(x, o)"]),
    "x * 0": (lambda op, x: x * 0, ["Mul(x, nil)"], ["Mul(x, o)", "Div(x, o)"]),
    "square": (lambda op, x: op.square(x), ["Mul(x, x)", "Pow(x, c)"], ["Pow(x, t)"]),
    "numpy": (lambda op, x: op.Mul(x, np.float32(2)), ["Mul(x, c)"], ["Mul(x, h)"]),
}
CONSTANTS = (
    "<float c = {2.0}, float m = {-2.0}, float h = {0.5}, float o = {1.0}, float n = {-1.0}, float t = {3.0}, float nil = {0.0}>"
)


@pytest.mark.parametrize(("pattern", "fits", "differs"), NUMBERS.values(), ids=NUMBERS)
def test_numbers_are_found_in_every_spelling(pattern: Any, fits: list[str], differs: list[str]) -> None:
    for spelling in fits:
        assert bindings(pattern, f"y = {spelling}", inner=CONSTANTS) == {"x": "x"}, spelling
    for spelling in differs:
        assert bindings(pattern, f"y = {spelling}", inner=CONSTANTS) in (None, {"x": "c"}, {"x": "o"}, {"x": "nil"}), spelling


def test_a_cube_is_found_as_products() -> None:
    for body in ("s = Mul(x, x) y = Mul(s, x)", "s = Mul(x, x) y = Mul(x, s)"):
        assert bindings(lambda op, x: x**3, body) == {"x": "x"}


def test_the_division_of_integers_is_no_multiplication() -> None:
    signature = {"signature": "(int64[2,3] x) => (int64[2,3] y)", "inner": "<int64 c = {2}>"}
    assert bindings(lambda op, x: x * 0.5, "y = Div(x, c)", **signature) is None
    assert bindings(lambda op, x: op.product(x, 0.5), "y = Div(x, c)", **signature) is None
    assert bindings(lambda op, x: x * 2, "y = Mul(x, c)", **signature) == {"x": "x"}
    assert bindings(lambda op, x: x + 2, "y = Add(c, x)", **signature) == {"x": "x"}


INVERSE_ROOTS = ["s = Sqrt(x) y = Reciprocal(s)", "s = Sqrt(x) y = Div(o, s)", "r = Reciprocal(x) y = Sqrt(r)", "y = Pow(x, m)"]


@pytest.mark.parametrize("body", INVERSE_ROOTS)
def test_the_inverse_root_has_four_spellings(body: str) -> None:
    constants = {"inner": "<float o = {1.0}, float m = {-0.5}>"}
    assert bindings(lambda op, x: op.inverse_sqrt(x), body, **constants) == {"x": "x"}


TOLERANCES = [
    ("float", 0.70710678, True),
    ("float", 0.7071, True),
    ("float", 0.7070, False),
    ("float16", 0.7071, True),
    ("float16", 0.70, False),
    ("bfloat16", 0.7070312, True),
    ("bfloat16", 0.75, False),
    ("double", 0.70710678, True),
    ("float8e5m2", 0.75, True),  # the nearest value that the dtype has
    ("float8e5m2", 0.625, False),
]
DTYPES = {"float": np.float32, "double": np.float64, "bfloat16": ml_dtypes.bfloat16, "float8e5m2": ml_dtypes.float8_e5m2}


@pytest.mark.parametrize(("dtype", "value", "fits"), TOLERANCES)
def test_constants_are_compared_at_the_precision_of_their_dtype(dtype: str, value: float, fits: bool) -> None:
    constant = np.asarray(value, np.float64).astype(DTYPES.get(dtype, np.float16))
    signature = f"({dtype}[2,3] x) => ({dtype}[2,3] y)"
    found = bindings(lambda op, x: op.Mul(x, math.sqrt(0.5)), "y = Mul(x, c)", signature=signature, c=constant)
    assert (found is not None) == fits


def test_the_author_may_name_another_tolerance() -> None:
    constants = {"inner": "<float c = {2.01}>"}
    assert bindings(lambda op, x: op.Mul(x, op.constant(2, rel_tol=0.01)), "y = Mul(x, c)", **constants) == {"x": "x"}
    assert bindings(lambda op, x: op.Mul(x, op.constant(2, rel_tol=0.001)), "y = Mul(x, c)", **constants) is None
    assert bindings(lambda op, x: op.product(x, 2, rel_tol=0.01), "y = Mul(x, c)", **constants) == {"x": "x"}


@pytest.mark.parametrize(("shape", "fits"), [("", True), ("[1]", True), ("[1,1]", True), ("[1,1,1]", False)])
def test_a_constant_that_would_lift_the_rank_is_no_mere_factor(shape: str, fits: bool) -> None:
    for pattern in (lambda op, x: x * 2, lambda op, x: op.product(x, 2), lambda op, x: op.Max(x, 2)):
        body = "y = Max(x, c)" if pattern.__code__.co_names == ("Max",) else "y = Mul(x, c)"
        options = {"signature": "(float[2,3] x) => (float[n,2,3] y)", "inner": f"<float{shape} c = {{2.0}}>"}
        assert (bindings(pattern, body, **options) is not None) == fits


def test_beside_a_value_of_unknown_rank_only_a_scalar_is_a_mere_factor() -> None:
    for shape, fits in (("", True), ("[1]", False)):
        body, options = "u = custom.Mystery(x) y = Mul(u, c)", {"inner": f"<float{shape} c = {{2.0}}>"}
        assert (bindings(lambda op, u: u * 2, body, **options) is not None) == fits


def test_constant_nodes_and_initializers_are_constants_but_overridable_ones_are_not() -> None:
    assert bindings(lambda op, x: x * 2, "k = Constant <value_float = 2.0> () y = Mul(x, k)") == {"x": "x"}
    overridable = {"signature": "(float[2,3] x, float c) => (float[2,3] y)", "inner": "<float c = {2.0}>"}
    assert bindings(lambda op, x: x * 2, "y = Mul(x, c)", **overridable) is None


def test_alternatives_are_tried_in_order() -> None:
    pattern = lambda op, x: op.any_of(op.Relu(x), op.Clip(x, op.optional(0), op.optional(6)))  # noqa: E731
    assert bindings(pattern, "y = Relu(x)") == {"x": "x"}
    assert bindings(pattern, "y = Clip(x, a)", inner="<float a = {0.0}>") == {"x": "x"}
    assert bindings(pattern, "y = Clip(x, , b)", inner="<float b = {6.0}>") == {"x": "x"}
    assert bindings(pattern, "y = Clip(x, a)", inner="<float a = {1.0}>") is None


def test_an_optional_input_is_bound_or_absent() -> None:
    pattern = lambda op, x, low, high: op.Clip(x, op.optional(low), op.optional(high))  # noqa: E731
    inner = "<float a = {0.0}, float b = {6.0}>"
    assert bindings(pattern, "y = Clip(x, a, b)", inner=inner) == {"x": "x", "low": "a", "high": "b"}
    assert bindings(pattern, "y = Clip(x, , b)", inner=inner) == {"x": "x", "high": "b"}
    assert bindings(pattern, "y = Clip(x)") == {"x": "x"}


def test_an_omitted_input_must_be_omitted() -> None:
    pattern = lambda op, x, high: op.Clip(x, None, high)  # noqa: E731
    inner = "<float a = {0.0}, float b = {6.0}>"
    assert bindings(pattern, "y = Clip(x, , b)", inner=inner) == {"x": "x", "high": "b"}
    assert "should be omitted" in reason(pattern, "y = Clip(x, a, b)", inner=inner)
    assert "is omitted" in reason(lambda op, x, low, high: op.Clip(x, low, high), "y = Clip(x, , b)", inner=inner)


def test_more_inputs_than_named_are_refused_unless_the_pattern_is_open() -> None:
    body = "y = Sum(x, z, x)"
    assert "3 inputs, 2 expected" in reason(lambda op, a, b: op.Sum(a, b), body)
    assert bindings(lambda op, a, b: op.Sum(a, b, open_inputs=True), body) == {"a": "x", "b": "z"}


def test_attributes_are_compared_with_the_schemas_default_where_they_are_absent() -> None:
    assert bindings(lambda op, x: op.Softmax(x, axis=-1), "y = Softmax(x)") == {"x": "x"}
    assert "axis is -1, not 1" in reason(lambda op, x: op.Softmax(x, axis=1), "y = Softmax(x)")
    assert bindings(lambda op, x: op.LeakyRelu(x, alpha=0.1), "y = LeakyRelu <alpha = 0.1> (x)") == {"x": "x"}
    assert bindings(lambda op, x: op.LeakyRelu(x, alpha=0.01), "y = LeakyRelu(x)") == {"x": "x"}
    assert bindings(lambda op, x: op.Transpose(x, perm=(1, 0)), "y = Transpose <perm = [1, 0]> (x)") == {"x": "x"}
    assert bindings(lambda op, x: op.Transpose(x, perm=(1, 0)), "y = Transpose(x)") is None
    gelu = lambda op, x: op.Gelu(x, approximate="none", domain=("", "com.microsoft"))  # noqa: E731
    assert "approximate is None" in reason(gelu, "y = com.microsoft.Gelu(x)")


def test_domains_are_part_of_the_op() -> None:
    assert bindings(lambda op, x: op.Gelu(x), "y = com.microsoft.Gelu(x)") is None
    assert bindings(lambda op, x: op.Gelu(x, domain="com.microsoft"), "y = com.microsoft.Gelu(x)") == {"x": "x"}
    assert bindings(lambda op, x: op.Gelu(x, domain=("", "com.microsoft")), "y = com.microsoft.Gelu(x)") == {"x": "x"}


def test_outputs_of_one_op_come_from_one_node() -> None:
    def pattern(op: Any, x: Any) -> Any:
        left, right = op.Split(x, outputs=2, num_outputs=2)
        return left * op.Sigmoid(right)

    body = "a, b = Split <axis = {0}, num_outputs = 2> (x) {1} s = Sigmoid({2}) y = Mul({3}, s)"
    fill = lambda *parts: body.replace("{0}", "1").replace("{1}", parts[0]).replace("{2}", parts[1]).replace("{3}", parts[2])  # noqa: E731
    assert bindings(pattern, fill("", "b", "a")) == {"x": "x"}
    assert "another output of Split" in reason(pattern, fill("", "a", "b"))
    other = "c, d = Split <axis = 0, num_outputs = 2> (x)"
    assert "another Split" in reason(pattern, fill(other, "d", "a"))


def test_through_looks_below_casts_but_not_below_a_dropout_that_trains() -> None:
    pattern = lambda op, x: op.Neg(op.through(op.Abs(x)))  # noqa: E731
    assert bindings(pattern, "a = Abs(x) y = Neg(a)") == {"x": "x"}
    assert bindings(pattern, "a = Abs(x) b = Cast <to = 1> (a) c = Identity(b) y = Neg(c)") == {"x": "x"}
    inner = {"inner": "<float r = {0.5}, bool on = {1}, bool off = {0}>"}
    assert bindings(pattern, "a = Abs(x) d = Dropout(a) y = Neg(d)") == {"x": "x"}
    assert bindings(pattern, "a = Abs(x) d = Dropout(a, r, off) y = Neg(d)", **inner) == {"x": "x"}
    assert bindings(pattern, "a = Abs(x) d = Dropout(a, r, on) y = Neg(d)", **inner) is None


PRODUCTS = [
    "p = Mul(x, n) y = Mul(p, c)",
    "p = Mul(n, x) y = Mul(c, p)",
    "p = Mul(x, c) y = Mul(n, p)",
    "p = Mul(c, n) y = Mul(x, p)",
    "p = Mul(n, q) q2 = Mul(p, r) y = Mul(q2, x)",
    "p = Div(n, h) y = Mul(p, x)",
    "p = Mul(n, x) y = Div(p, h)",
]


@pytest.mark.parametrize("body", PRODUCTS)
def test_a_product_is_found_in_every_association_and_order(body: str) -> None:
    inner = {"inner": "<float c = {6.0}, float h = {0.16666667}, float q = {2.0}, float r = {3.0}>"}
    assert bindings(lambda op, x, z: op.product(x, 6, op.Neg(z)), f"n = Neg(z) {body}", **inner) == {"x": "x", "z": "z"}


def test_a_constant_may_be_a_bound_factor() -> None:
    found = bindings(lambda op, x, s: op.product(op.Abs(x), s), "a = Abs(x) y = Mul(c, a)", inner="<float c = {6.0}>")
    assert found == {"x": "x", "s": "c"}


def test_a_wrong_factor_is_named() -> None:
    inner = {"inner": "<float c = {5.0}>"}
    said = reason(lambda op, x, z: op.product(x, 6, op.Neg(z)), "n = Neg(z) p = Mul(n, c) y = Mul(p, x)", **inner)
    assert "constant factor is 5, not 6" in said


WRONG = {
    "no op": (lambda x: x, "its first parameter is op"),
    "no pattern": (lambda op, x: 3, "return the value that is replaced"),
    "a parameter": (lambda op, x: x, "returns a parameter or a number"),
    "text": (lambda op, x: op.Neg("x"), "operand 'x'"),
    "no alternative": (lambda op, x: op.any_of(op.Neg(x), None), "op.optional"),
}


@pytest.mark.parametrize(("pattern", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_pattern_function_is_told_what_to_do(pattern: Any, message: str) -> None:
    with pytest.raises(PassError) as caught:
        trace(pattern, "some-pass")
    assert message in str(caught.value)
    assert "Pass developer" in caught.value.hint


def test_the_ops_that_can_end_a_pattern_are_known() -> None:
    ends = lambda pattern: set(root_ops(trace(pattern, "test").root))  # noqa: E731
    assert ends(lambda op, x: x * 2) == {"Mul", "Div"}
    assert ends(lambda op, x: op.through(op.Abs(x), "Cast")) == {"Abs", "Cast"}
    assert ends(lambda op, x: op.product(x, op.Neg(x))) == {"Mul", "Div"}
    assert ends(lambda op, x: op.product(op.Neg(x))) == {"Mul", "Div", "Neg"}
