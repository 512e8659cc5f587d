"""The made-up values around sites: each kind exists because a fault was invisible without it."""

from __future__ import annotations

import numpy as np
import pytest

from rewright.model.regions import GraphIndex
from rewright.verify.sites.boundary_values import boundary_sets
from rewright.verify.sites.ranges import FreeValues, free_inputs, index_inputs

X = np.ones((2, 5, 8), np.float32)


def made(kind, captured, free=(), **options):
    return next(one for one in boundary_sets([(0, captured)], free, **options) if one.name == kind).arrays


def test_tiny_rows_reach_the_smallest_epsilon():
    """1e-12 in place of 1e-11 shows where a row's variance is of that size, and not where it is 1e-6."""
    deviations = made("tiny", {"x": X}, ("x",))["x"].reshape(-1, 8).std(axis=-1)
    assert (deviations[1::2] < 1e-5).all()
    assert (deviations[::2] > 1e-4).all()


def test_what_is_added_is_cancelled():
    """x + vector has the vector's variance unless x takes it away; the sum is the same in any order where the rest is zero."""
    vector = np.linspace(-3, 3, 8, dtype=np.float32)
    arrays = made("sums near zero", {"x": X, "skip": X}, ("x", "skip"), added={"x": vector})
    assert np.abs(arrays["x"] + vector).max() < 1e-2
    assert not arrays["skip"].any()
    assert np.array_equal((arrays["x"] + vector) + arrays["skip"], (arrays["x"] + arrays["skip"]) + vector)
    names = [one.name for one in boundary_sets([(0, {"x": X})], ("x",), added={"x": vector[:3]})]
    assert "sums near zero" not in names


def test_indices_reach_both_ends_of_a_table():
    ids = np.full((2, 5), 3)
    found = made("first and last rows", {"ids": ids}, indices={"ids": (0, 40)})["ids"]
    assert found.shape == ids.shape
    assert sorted(found.reshape(-1)) == [0, 1, 2, 3, 4, 35, 36, 37, 38, 39]
    small = made("first and last rows", {"ids": ids}, indices={"ids": (0, 2)})["ids"]
    assert set(small.reshape(-1)) == {0, 1}


def test_index_inputs_have_their_tables_heights(parse):
    model = parse(
        """g (int64[B, S] ids, float[B, S, 2] x) => (float[B, S, 2] y) <float[7, 2] table =
        {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}> { rows = Gather <axis = 0> (table, ids) y = Add(rows, x) }"""
    )
    low, bound = index_inputs(model)["ids"]
    assert bound == 7
    assert low in (0, -7)
    assert "x" not in index_inputs(model)


@pytest.mark.parametrize(
    ("body", "is_free"),
    [
        ("a = Relu(x) v = MatMul(a, w)", True),
        ("a = Gelu(x) b = MatMul(a, w) v = Add(b, c)", True),
        ("a = Softmax(x) v = MatMul(a, w)", True),
        ("v = Relu(x)", False),
        ("a = Cast <to = 1> (ids) v = MatMul(a, w)", False),
        ("a = Shape(x) b = Cast <to = 1> (a) v = MatMul(b, w)", False),
        ("a = Greater(x, c) b = Cast <to = 1> (a) v = MatMul(b, w)", False),
    ],
)
def test_a_product_is_any_number_if_something_free_has_a_part_in_it(parse, body, is_free):
    model = parse(
        f"""<ir_version: 10, opset_import: ["": 20]> g (float[2, 2] x, int64[2, 2] ids) => (float[2, 2] v)
        <float[2, 2] w = {{1, 2, 3, 4}}, float[2] c = {{1, 2}}> {{ {body} }}"""
    )
    assert FreeValues(GraphIndex(model), free_inputs(model)).takes_any("v") is is_free
