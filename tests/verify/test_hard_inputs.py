"""Inputs that vary what the given ones do not, and the bounds of what a part of a model clips to."""

import numpy as np
import pytest

from rewright.model.regions import GraphIndex
from rewright.verify.input_files import load_input_sets
from rewright.verify.inputs import make_input_sets
from rewright.verify.sites.hard_inputs import hard_sets
from rewright.verify.sites.thresholds import thresholds

TABLE = "float[6, 4] table = {" + ", ".join(["1"] * 24) + "}"
MODEL = f"""g (int64[B, S] ids, int64[B, S] position_ids, int64[B, S] types, bool[B, S] mask, bool use, float[B, S, 4] x) =>
    (float[B, S, 4] y) <{TABLE}, int64 pad = {{5}}, int64[1] axes = {{2}}> {{
        a = Gather(table, ids)  b = Gather(table, position_ids)  c = Gather(table, types)
        is_pad = Equal(ids, pad)  is_left = Not(is_pad)  both = And(is_left, mask)  wide = Unsqueeze(both, axes)
        d = Add(a, b)  e = Add(d, c)  f = Where(wide, e, x)
        y = If (use) <then_branch = t () => (float[B, S, 4] u) {{ u = Identity(f) }}, else_branch = o () => (float[B, S, 4] v) {{
            v = Neg(f)
        }}>
    }}"""
COUNTED = np.tile(np.arange(4), (2, 1))
USUAL = {
    "ids": np.array([[1, 2, 3, 4], [4, 3, 2, 1]]),
    "position_ids": COUNTED,
    "types": 0 * COUNTED,
    "mask": np.ones((2, 4), bool),
    "use": np.array(True),
    "x": np.ones((2, 4, 4), np.float32),
}


def test_what_does_not_vary_gets_other_legal_values(parse):
    model = parse(MODEL)
    varied, flags = hard_sets(model, load_input_sets(model, USUAL))
    arrays = varied.arrays
    assert arrays["ids"].tolist() == [[1, 2, 3, 4], [4, 3, 5, 5]]  # the first row stays
    assert arrays["mask"].tolist() == [[True] * 4, [True, True, False, False]]
    assert arrays["position_ids"].tolist() == (COUNTED + 2).tolist()  # the table has six rows
    assert len(np.unique(arrays["types"])) > 1
    assert 0 <= arrays["types"].min() <= arrays["types"].max() < 6
    assert (arrays["x"] == USUAL["x"]).all()
    assert bool(arrays["use"])
    assert varied.padding_masks == ("mask",)
    assert not flags.arrays["use"]
    assert (flags.arrays["ids"] == USUAL["ids"]).all()
    assert USUAL["mask"].all()  # what was given is not written to


def test_what_varies_is_left_alone(parse):
    model = parse(MODEL)
    other = USUAL | {
        "ids": USUAL["ids"] + 1,
        "position_ids": COUNTED[:, ::-1].copy(),
        "types": COUNTED % 2,
        "mask": COUNTED < 3,
        "use": np.array(False),
    }
    assert hard_sets(model, load_input_sets(model, [USUAL, other])) == []
    assert hard_sets(model, []) == []


@pytest.mark.parametrize("name", ["bert.ts17.sdpa", "gpt2.ts17.eager", "vit.ts17.sdpa"])
def test_made_up_inputs_vary_already(name, zoo):
    model = zoo(name)
    assert hard_sets(model, make_input_sets(model)) == []


def test_indices_of_a_table_of_unknown_height_are_left_alone(parse):
    model = parse("g (float[R, 4] table, int64[B, S] ids) => (float[B, S, 4] y) { y = Gather(table, ids) }")
    given = {"table": np.ones((3, 4), np.float32), "ids": 0 * COUNTED}
    assert hard_sets(model, load_input_sets(model, given)) == []


def test_bounds_that_made_up_numbers_do_not_reach(parse):
    model = parse("""g (float[N] x) => (float[N] y) <float low = {-500}, float six = {6}, float huge = {3.4e38}> {
        high = Constant <value_float = 700.0> ()
        a = Clip(x, low, high)  b = Min(a, six)  c = Max(b, low)  d = Clip(c, low, huge)  y = Mul(d, high)
    }""")
    index = GraphIndex(model)
    assert thresholds(index, list(index.nodes)) == [500.0, 700.0]
    assert thresholds(index, [index.nodes[2]]) == []
    assert thresholds(index, [index.nodes[-1]]) == []  # a factor is no bound
