"""shape-simplification computes equal sizes once: the first to compute them is read by all, where they are proven equal."""

import numpy as np
import pytest
from onnx.parser import parse_model
from pass_harness import ZOO, ops, parity, run_pass

import rewright
from rewright.passes.cleanup.shape_simplification import ShapeSimplification

CONSTANTS = "int64 i0 = {0}, int64 i1 = {1}, int64[1] a0 = {0}, int64[1] a1 = {1}, int64[1] h = {32}, float one = {1.0}"
SIZES = ((2, 3), (1, 1), (1, 4), (5, 1), (0, 3), (3, 0))
CHAIN = (
    "{0}s = Shape({1}) {0}g0 = Gather({0}s, i0) {0}u0 = Unsqueeze({0}g0, a0) {0}g1 = Gather({0}s, i1) "
    "{0}u1 = Unsqueeze({0}g1, a0) {0} = Concat<axis = 0>({0}u0, {0}u1, h) "
)
"""[b, s, 32] as TorchScript spells it, from a value that has the dimensions b and s first."""


def model(body, inputs="float[b,s] x", outputs="float[?,?,?] y, float[?,?,?] z", facts=""):
    return parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) <{facts}{CONSTANTS}> {{ {body} }}')


def data(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def merged(before, expect, feeds=None):
    """Checks ops, parity at several sizes, and that a second run finds nothing."""
    session, after = run_pass(ShapeSimplification(), before)
    assert ops(after) == expect
    for each in feeds or [{"x": data(*shape)} for shape in SIZES]:
        parity(before, after, each)
    again, same = run_pass(ShapeSimplification(), after)
    assert not again.sites
    assert same.fingerprint() == after.fingerprint()
    return session, after


def kept(before, feeds):
    session, after = run_pass(ShapeSimplification(), before)
    assert not session.sites
    assert ops(after) == [node.op_type for node in before.graph.node]
    for each in feeds:
        parity(before, after, each)


ONE_CHAIN = ["Shape", "Gather", "Unsqueeze", "Gather", "Unsqueeze", "Concat", "Expand"]


def test_the_second_chain_reads_the_first():
    body = CHAIN.format("p", "x") + "y = Expand(one, p) r = Relu(x) " + CHAIN.format("q", "r") + "z = Expand(one, q)"
    session, after = merged(model(body), [*ONE_CHAIN, "Expand"])
    assert [node.input[1] for node in after.proto.graph.node if node.op_type == "Expand"] == ["p", "p"]
    (site,) = session.sites
    assert sorted(site.ops_removed) == ["Concat", "Gather", "Gather", "Relu", "Shape", "Unsqueeze", "Unsqueeze"]
    assert not site.ops_added


def test_other_spellings_are_the_same_sizes():
    body = (
        CHAIN.format("p", "x") + "y = Expand(one, p) c = Concat<axis = 1>(x, x) t = Transpose<perm = [1, 0]>(c) "
        "o = Shape<start = 1>(t) m = Shape<start = 0, end = 1>(t) two = Add(a1, a1) half = Div(m, two) "
        "q = Concat<axis = 0>(o, half, h) z = Expand(one, q)"
    )
    merged(model(body), [*ONE_CHAIN, "Expand"])


def test_products_and_scalars():
    body = (
        "e = Shape(x) n = ReduceProd<keepdims = 0>(e) v = Unsqueeze(n, a0) y = Expand(one, v) q = Range(i0, n, i1) r = Relu(x) "
        "k = Size(r) w = Unsqueeze(k, a0) z = Expand(one, w) m = Range(i0, k, i1)"
    )
    before = model(body, outputs="float[?] y, int64[?] q, float[?] z, int64[?] m")
    merged(before, ["Shape", "ReduceProd", "Unsqueeze", "Expand", "Range", "Expand", "Range"])


def test_only_what_is_read_otherwise_is_redirected():
    body = CHAIN.format("p", "x") + "y = Expand(one, p) f = Unsqueeze(pg1, a0) z = Expand(one, f)"
    session, _ = merged(model(body, outputs="float[?,?,?] y, float[?] z"), [*ONE_CHAIN, "Expand"])
    assert len(session.sites) == 1


def test_sizes_that_only_have_the_same_rank_stay_apart():
    body = "p = Shape(x) y = Expand(one, p) q = Shape(w) z = Expand(one, q)"
    before = model(body, "float[b,s] x, float[b,t] w", "float[?,?] y, float[?,?] z")
    kept(before, [{"x": data(2, 3), "w": data(2, 4)}])


def test_a_scalar_and_a_vector_stay_apart():
    body = "e = Shape(x) q = Gather(e, i0) z = Range(i0, q, i1) p = Shape<start = 0, end = 1>(x) y = Expand(one, p)"
    kept(model(body, outputs="float[?] y, int64[?] z"), [{"x": data(2, 3)}])


def test_what_takes_fewer_nodes_does_not_keep_a_longer_chain():
    # Only a Gather reads the Concat, and that Gather goes: what it gives is known before.
    body = (
        "t = Transpose<perm = [1, 0]>(x) a = Shape<start = 1>(t) y = Expand(one, a) b = Shape<start = 0, end = 1>(t) "
        "p = Concat<axis = 0>(a, b) f = Gather(p, a0) w = Expand(one, f) r = Relu(x) q = Shape(r) z = Expand(one, q)"
    )
    before = model(body, outputs="float[?] y, float[?] w, float[?,?] z")
    merged(before, ["Transpose", "Shape", "Expand", "Expand", "Relu", "Shape", "Expand"])
    body = body.replace("r = Relu(x)", "v = Expand(one, p) r = Relu(x)")  # now it stays
    before = model(body, outputs="float[?] y, float[?] w, float[?,?] v, float[?,?] z")
    merged(before, ["Transpose", "Shape", "Expand", "Shape", "Concat", "Expand", "Expand", "Expand"])


def test_outputs_of_the_graph_keep_their_names_and_producers():
    body = (
        "p = Shape(x) y = Expand(one, p) r = Relu(x) q = Shape(r) w = Expand(one, q) m = Neg(r) n = Shape(m) z = Expand(one, n)"
    )
    before = model(body, outputs="float[?,?] y, int64[2] p, int64[2] q, float[?,?] w, float[?,?] z")
    _, after = merged(before, ["Shape", "Expand", "Relu", "Shape", "Expand", "Expand"])
    assert {"p", "q"} <= {node.output[0] for node in after.proto.graph.node}


def test_branches_read_what_is_computed_before_them():
    then = "<then_branch = t () => (float[?,?] e) { q = Shape(r) k = Neg(one) e = Expand(k, q) }, "
    other = "else_branch = f () => (float[?,?] e2) { q2 = Shape(r) k2 = Abs(one) e2 = Expand(k2, q2) }>"
    body = "r = Relu(x) p = Shape(x) y = Expand(one, p) z = If(c) " + then + other
    before = model(body, "float[b,s] x, bool c", "float[?,?] y, float[?,?] z")
    feeds = [{"x": data(*shape), "c": np.array(c)} for shape in SIZES for c in (True, False)]
    _, after = merged(before, ["Shape", "Expand", "If"], feeds)
    for branch in after.proto.graph.node[-1].attribute:
        assert [node.op_type for node in branch.g.node] == [["Neg", "Abs"][branch.name == "else_branch"], "Expand"]


def test_nothing_is_read_from_a_branch_or_from_a_later_node():
    then = "<then_branch = t () => (float[?,?] e) { q = Shape(x) e = Expand(one, q) }, "
    other = "else_branch = f () => (float[?,?] e2) { q2 = Shape(x) e2 = Expand(one, q2) }>"
    body = "z = If(c) " + then + other + " p = Shape(x) y = Expand(one, p)"
    before = model(body, "float[b,s] x, bool c", "float[?,?] y, float[?,?] z")
    kept(before, [{"x": data(2, 3), "c": np.array(c)} for c in (True, False)])


def test_what_a_branch_returns_stays():
    then = "<then_branch = t () => (int64[2] q) { q = Shape(x) }, else_branch = f () => (int64[2] q2) { q2 = Shape(x) }>"
    before = model(f"p = Shape(x) y = Expand(one, p) z = If(c) {then}", "float[b,s] x, bool c", "float[?,?] y, int64[2] z")
    kept(before, [{"x": data(2, 3), "c": np.array(True)}])


@pytest.mark.parametrize("rows", ["s", "?"])
def test_loops_are_left_alone(rows):
    # The body may say that what it carries has s rows; it has more each time.
    loop = (
        f"z = Loop(n, , x) <body = l (int64 i, bool c, float[{rows},2] v) => (bool d, float[?,2] w) {{ d = Identity(c) "
        "q = Shape(v) k = Shape(x) f = Expand(one, k) e = Expand(one, q) r = Relu(v) o = Shape(r) j = Expand(one, o) "
        "w = Concat<axis = 0>(f, e, j) }>"
    )
    before = model(f"p = Shape(x) y = Expand(one, p) {loop}", "float[s,2] x, int64 n", "float[?,?] y, float[?,2] z")
    kept(before, [{"x": data(3, 2), "n": np.array(n)} for n in (0, 1, 3)])


@pytest.mark.parametrize("facts", ["int64[1,k] p, int64[1,k] q, ", "int64[1,n] p, int64[1,n] q, ", ""])
def test_names_that_are_only_declared_prove_nothing(facts):
    body = "p = NonZero(x) q = NonZero(w) f = Shape(p) y = Expand(one, f) e = Shape(q) z = Expand(one, e)"
    before = model(body, "float[n] x, float[n] w", "float[?,?] y, float[?,?] z", facts)
    kept(before, [{"x": np.array([1, 0, 0], np.float32), "w": np.array([1, 1, 0], np.float32)}])


def test_unnamed_sizes_are_the_same_if_they_are_the_same_axis():
    body = "p = Shape(x) y = Expand(one, p) r = Relu(x) q = Shape(r) z = Expand(one, q)"
    before = model(body, "float[?,?] x", "float[?,?] y, float[?,?] z")
    merged(before, ["Shape", "Expand", "Expand"])


def test_gpt2_computes_its_sizes_once():
    path = ZOO / "gpt2.ts17.eager.onnx"
    result = rewright.optimize(path)
    assert result.report.verdict == "passed"
    assert result.model.node_count() <= 62  # 128 with a chain around every Gemm
    assert rewright.optimize(result.model, verify="off").model.fingerprint() == result.model.fingerprint()
