"""identity-elimination: what gives its input back goes; what nearly does stays."""

import numpy as np
import pytest
from onnx.parser import parse_model
from pass_harness import ops, parity, run_pass, zoo_feeds

from rewright.passes.cleanup.identity_elimination import IdentityElimination

X = np.array([[[0.0, -0.0, np.nan], [np.inf, -2.5, 1e-42]]], np.float32)


def model(body, constants="", inputs="float[b,2,3] x", opset=17, output="float[?,?,?] y"):
    held = f"<{constants}>" if constants else ""
    return parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> g ({inputs}) => ({output}) {held} {{ {body} }}')


def simplified(*args, expect, feeds=None, exact=True, **kwargs):
    """Runs the pass twice, checks ops, parity and idempotence; returns the first session."""
    before = model(*args, **kwargs)
    session, after = run_pass(IdentityElimination(), before)
    assert ops(after) == expect
    parity(before, after, feeds or {"x": X})
    again, same = run_pass(IdentityElimination(), after)
    assert not again.sites
    assert same.fingerprint() == after.fingerprint()
    return session


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("a = Identity(x) y = Neg(a)", ""),
        ("a, unused = Dropout(x) y = Neg(a)", ""),
        ("a = Dropout(x, r, t) y = Neg(a)", "float r = {0.5}, bool t = {0}"),
        ("a = Cast<to = 1>(x) y = Neg(a)", ""),
        ("a = CastLike(x, x) y = Neg(a)", ""),
        ("a = Concat<axis = 0>(x) y = Neg(a)", ""),
        ("a = Reshape(x, s) y = Neg(a)", "int64[3] s = {0, 2, 3}"),
        ("a = Reshape(x, s) y = Neg(a)", "int64[3] s = {-1, 2, 3}"),
        ("a = Reshape(x, s) y = Neg(a)", "int64[3] s = {0, -1, 3}"),
        ("a = Reshape<allowzero = 1>(x, s) y = Neg(a)", "int64[3] s = {-1, 2, 3}"),
        ("a = Expand(x, s) y = Neg(a)", "int64[2] s = {1, 3}"),
        ("a = Transpose<perm = [0, 1, 2]>(x) y = Neg(a)", ""),
        ("a = Transpose<perm = [1, 2, 0]>(x) b = Transpose<perm = [2, 0, 1]>(a) y = Neg(b)", ""),
        ("a = Transpose(x) b = Transpose(a) y = Neg(b)", ""),
        ("a = Slice(x, s, e) y = Neg(a)", "int64[3] s = {0, 0, 0}, int64[3] e = {9223372036854775807, 2, 9}"),
        ("a = Slice(x, s, e, i, i) y = Neg(a)", "int64[1] s = {-5}, int64[1] e = {7}, int64[1] i = {1}"),
        ("a = Unsqueeze(x, i) b = Squeeze(a, i) y = Neg(b)", "int64[2] i = {0, -1}"),
        ("a = Mul(x, one) y = Neg(a)", "float[1,1] one = {1}"),
        ("a = Mul(one, x) y = Neg(a)", "float one = {1}"),
        ("a = Div(x, one) y = Neg(a)", "float one = {1}"),
        ("a = Sub(x, zero) y = Neg(a)", "float zero = {0}"),
        ("a = Add(zero, x) y = Neg(a)", "float zero = {-0.0}"),
    ],
)
def test_gives_its_input_back(body, constants):
    assert simplified(body, constants, expect=["Neg"]).sites


@pytest.mark.parametrize(
    ("body", "constants", "reason"),
    [
        ("a = Add(x, zero) y = Neg(a)", "float zero = {0}", "-0.0"),
        ("a = Sub(x, zero) y = Neg(a)", "float zero = {-0.0}", None),
        ("a = Sub(one, x) y = Neg(a)", "float one = {0}", None),
        ("a = Div(one, x) y = Neg(a)", "float one = {1}", None),
        ("a = Mul(x, one) y = Neg(a)", "float[1,1,1,1] one = {1}", "more axes"),
        ("a = Mul(x, two) y = Neg(a)", "float two = {1.0000001}", None),
        ("a = Cast<to = 11>(x) y = Neg(a)", "", None),
        ("a = Transpose<perm = [0, 2, 1]>(x) y = Neg(a)", "", None),
        ("a = Reshape(x, s) y = Neg(a)", "int64[3] s = {0, 3, 2}", None),
        ("a = Reshape(x, s) y = Neg(a)", "int64[3] s = {1, 2, 3}", None),  # b is 1 here, but not always
        ("a = Reshape(x, s) y = Neg(a)", "int64[3] s = {2, -1, 3}", None),
        ("a = Expand(x, s) y = Neg(a)", "int64[3] s = {2, 1, 1}", None),
        ("a = Expand(x, s) y = Neg(a)", "int64[4] s = {1, 1, 1, 1}", None),
        ("a = Slice(x, s, e, i, t) y = Neg(a)",
         "int64[1] s = {-1}, int64[1] e = {-9223372036854775807}, int64[1] i = {1}, int64[1] t = {-1}", None),
        ("a = Slice(x, s, e, i) y = Neg(a)", "int64[1] s = {0}, int64[1] e = {1}, int64[1] i = {0}", None),
        ("a = Squeeze(x) b = Unsqueeze(a, i) y = Neg(b)", "int64[1] i = {0}", "axes"),
    ],
)  # fmt: skip
def test_nearly_gives_its_input_back(body, constants, reason):
    output = "double[?,?,?] y" if "to = 11" in body else "float[?,?,?,?] y" if "1,1,1,1" in constants else "float[?,?,?] y"
    if "int64[4]" in constants:
        output = "float[?,?,?,?] y"
    before = model(body, constants, output=output)
    session, _ = run_pass(IdentityElimination(), before)
    assert not session.sites
    assert reason is None or any(reason in rejection.reason for rejection in session.rejections)


def test_dropout_that_may_train_or_whose_mask_is_used_stays():
    session, _ = run_pass(IdentityElimination(), model("y = Dropout(x, r, t)", "float r = {0.5}", "float[b,2,3] x, bool t"))
    assert not session.sites
    assert session.rejections[0].reason == "training_mode is not constant false"
    session, _ = run_pass(IdentityElimination(), model("y, m = Dropout(x)", output="float[?,?,?] y, bool[?,?,?] m"))
    assert session.rejections[0].reason == "its mask is used"


def test_equal_permutations_are_not_inverses():
    body = "a = Transpose<perm = [1, 2, 0]>(x) b = Transpose<perm = [1, 2, 0]>(a) y = Neg(b)"
    before = model(body, inputs="float[4,4,4] x", output="float[4,4,4] y")
    session, after = run_pass(IdentityElimination(), before)
    assert ops(after) == ["Transpose", "Neg"]
    assert list(after.proto.graph.node[0].attribute[0].ints) == [2, 0, 1]
    parity(before, after, {"x": np.random.default_rng(0).standard_normal((4, 4, 4)).astype(np.float32)})
    assert session.sites[0].ops_removed == ("Transpose", "Transpose")


def test_a_transpose_that_something_else_uses_stays():
    body = "a = Transpose<perm = [1, 2, 0]>(x) b = Transpose<perm = [2, 0, 1]>(a) y = Neg(b) z = Abs(a)"
    simplified(body, expect=["Transpose", "Neg", "Abs"], output="float[?,?,?] y, float[?,?,?] z")


def test_a_weight_that_two_transposes_share_is_left_alone():
    weight = "float[2,2] w = {1, 2, 3, 4}"
    body = "a = Transpose(w) b = Transpose(w) p = MatMul(x, a) y = MatMul(p, b)"
    before = model(body, weight, "float[1,2] x", output="float[1,2] y")
    session, after = run_pass(IdentityElimination(), before)
    assert not session.sites
    parity(before, after, {"x": np.array([[1, -3]], np.float32)})


def test_transposes_of_unknown_rank_are_refused():
    body = "r = Reshape(x, s) a = Transpose(r) b = Transpose(a) c = Neg(b) y = Reshape(c, t)"
    before = model(body, "int64[3] t = {0, 2, 3}", "float[b,2,3] x, int64[n] s")
    session, _ = run_pass(IdentityElimination(), before)
    assert not session.sites
    assert "rank is unknown" in session.rejections[0].reason


def test_an_output_keeps_its_name():
    simplified("a = Neg(x) y = Identity(a) z = Abs(a)", expect=["Neg", "Abs"], output="float[?,?,?] y, float[?,?,?] z")
    simplified("y = Identity(x)", expect=["Identity"])
    simplified("y = Cast<to = 1>(x)", expect=["Identity"])
    two = "float[?,?,?] y, float[?,?,?] z"
    simplified("z = Neg(x) y = Identity(z)", expect=["Neg", "Identity"], output=two)
    simplified("y = Identity(w)", "float[3] w = {1, 2, 3}", expect=["Identity"], output="float[3] y")


def test_an_overridable_initializer_is_not_a_constant():
    proto = model("a = Mul(x, one) y = Neg(a)", "float one = {1}", "float[b,2,3] x, float one")
    session, after = run_pass(IdentityElimination(), proto)
    assert not session.sites
    parity(proto, after, {"x": X, "one": np.array(3, np.float32)})


@pytest.mark.parametrize("opset", [9, 11, 12, 13, 18, 21, 23])
def test_axes_as_attributes_and_as_inputs(opset):
    if opset < 13:
        simplified("a = Unsqueeze<axes = [0, 4]>(x) b = Squeeze<axes = [4, 0]>(a) y = Neg(b)", expect=["Neg"], opset=opset)
    else:
        body = "a = Unsqueeze(x, i) b = Squeeze(a, j) y = Neg(b)"
        simplified(body, "int64[2] i = {0, 4}, int64[2] j = {4, 0}", expect=["Neg"], opset=opset)
    if opset < 10:
        simplified("a = Slice<starts = [0], ends = [9223372036854775807]>(x) y = Neg(a)", expect=["Neg"], opset=opset)


def test_bodies_and_captured_values():
    body = """k = Identity(x) y = If(c) <
      then_branch = t () => (float[?,?,?] a) { i = Identity(k) a = Neg(i) },
      else_branch = e () => (float[?,?,?] b) { b = Identity(k) }>"""
    before = model(body, inputs="float[b,2,3] x, bool c")
    _, after = run_pass(IdentityElimination(), before)
    branches = {a.name: [n.op_type for n in a.g.node] for a in after.proto.graph.node[0].attribute}
    assert ops(after) == ["If"]
    assert branches == {"then_branch": ["Neg"], "else_branch": ["Identity"]}  # a branch cannot return a captured value
    for flag in (True, False):
        parity(before, after, {"x": X, "c": np.array(flag)})
    assert not run_pass(IdentityElimination(), after)[0].sites


def test_integers_and_zero():
    before = model("a = Add(x, zero) y = Neg(a)", "int64 zero = {0}", "int64[b] x", output="int64[?] y")
    _, after = run_pass(IdentityElimination(), before)
    assert ops(after) == ["Neg"]


def test_the_zoo(zoo_model):
    _, after = run_pass(IdentityElimination(), zoo_model)
    parity(zoo_model, after, zoo_feeds(after))
    again, same = run_pass(IdentityElimination(), after)
    assert not again.sites
    assert same.fingerprint() == after.fingerprint()
