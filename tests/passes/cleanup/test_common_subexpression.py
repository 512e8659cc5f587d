"""common-subexpression: equal nodes and constants become one; what may differ stays two."""

import numpy as np
import onnx
import pytest
from onnx.parser import parse_model
from pass_harness import ops, parity, run_pass, zoo_feeds

import rewright
from rewright.passes.cleanup.common_subexpression import CommonSubexpression

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def model(body, constants="", inputs="float[b,3] x", output="float[?,?] y", opset=17):
    held = f"<{constants}>" if constants else ""
    domains = f'["" : {opset}, "own" : 1, "com.microsoft" : 1]'
    return parse_model(f"<ir_version: 8, opset_import: {domains}> g ({inputs}) => ({output}) {held} {{ {body} }}")


def merged(before, expect, feeds=None):
    session, after = run_pass(CommonSubexpression(), before)
    assert ops(after) == expect
    parity(before, after, feeds or {"x": X})
    again, same = run_pass(CommonSubexpression(), after)
    assert not again.sites
    assert same.fingerprint() == after.fingerprint()
    return session, after


def test_chains_of_equal_nodes_become_one():
    session, _ = merged(model("a = Neg(x) b = Exp(a) c = Neg(x) d = Exp(c) y = Sub(b, d)"), ["Neg", "Exp", "Sub"])
    assert [site.removed for site in session.sites] == [("c",), ("d",)]


@pytest.mark.parametrize(
    "body",
    [
        "a = Softmax<axis = 0>(x) b = Softmax<axis = 1>(x) y = Sub(a, b)",
        "a = Sub(x, two) b = Sub(two, x) y = Mul(a, b)",
        "a = RandomNormalLike(x) b = RandomNormalLike(x) y = Sub(a, b)",
        "a = Bernoulli(h) b = Bernoulli(h) y = Sub(a, b)",
        "a = Dropout(x, r, t) b = Dropout(x, r, t) y = Sub(a, b)",
        "a = Clip(x, two) b = Clip(x, , two) y = Sub(a, b)",
        "a = Add(x, zero) b = Add(x, minus) y = Sub(a, b)",
    ],
)
def test_what_may_differ_stays(body):
    constants = (
        "float two = {2}, float[3] h = {0.5, 0.5, 0.5}, float r = {0.5}, bool t = {1}, float zero = {0}, float minus = {-0.0}"
    )
    session, after = run_pass(CommonSubexpression(), model(body, constants))
    assert not session.sites
    assert ops(after)[-1] in ("Sub", "Mul")


def test_ops_of_unknown_domains_and_bodies_stay():
    body = "a = own.Thing(x) b = own.Thing(x) y = Sub(a, b)"
    session, _ = run_pass(CommonSubexpression(), model(body))
    assert not session.sites


def test_contrib_ops_and_trailing_omitted_inputs_merge():
    body = "a = com.microsoft.Gelu(x) b = com.microsoft.Gelu(x) c = Clip(a, two) d = Clip(b, two, ) y = Sub(c, d)"
    merged(model(body, "float two = {2}"), ["Gelu", "Clip", "Sub"])


def test_outputs_keep_their_names():
    two = "float[?,?] y, float[?,?] z"
    merged(model("a = Neg(x) b = Abs(a) y = Neg(x) c = Abs(y) z = Exp(b) ", output=two), ["Neg", "Abs", "Exp"])
    _, after = merged(model("y = Neg(x) z = Neg(x)", output=two), ["Neg", "Identity"])
    assert [list(node.output) for node in after.proto.graph.node] == [["y"], ["z"]]
    merged(model("y = Identity(x) z = Identity(x)", output=two), ["Identity", "Identity"])


def test_nodes_with_several_outputs():
    body = "a, b = Split<axis = 0>(x) c, d = Split<axis = 0>(x) e = Add(a, d) f = Add(b, c) y = Sub(e, f)"
    merged(model(body), ["Split", "Add", "Add", "Sub"])
    session, _ = run_pass(CommonSubexpression(), model("a, m = Dropout(x) b = Dropout(x) y = Sub(a, b)"))
    assert not session.sites  # what is present differs


def test_small_constants_are_merged_by_their_bytes():
    constants = "float[3] a = {1, 2, 3}, float[3] b = {1, 2, 3}, float[1,3] c = {1, 2, 3}, int64[1] d = {3}, int64[1] e = {3}"
    before = model("p = Add(x, a) q = Add(p, b) r = Add(q, c) y = Identity(r)", constants)
    _, after = merged(before, ["Add", "Add", "Add", "Identity"])
    assert sorted(t.name for t in after.proto.graph.initializer) == ["a", "c", "d"]


def test_large_constants_are_merged_where_they_are_one_slice(tmp_path):
    before = model("p = MatMul(x, a) q = MatMul(x, b) y = Sub(p, q)")
    weight = np.arange(1200, dtype=np.float32)
    (tmp_path / "w.bin").write_bytes(weight.tobytes() + (weight + 0.0).tobytes())
    for name, offset in (("a", 0), ("b", 0), ("c", 4800)):
        tensor = before.graph.initializer.add(name=name, data_type=1, dims=[3, 400], data_location=1)
        for key, value in (("location", "w.bin"), ("offset", str(offset)), ("length", "4800")):
            tensor.external_data.add(key=key, value=value)
    onnx.save(before, tmp_path / "m.onnx")
    _, after = run_pass(CommonSubexpression(), tmp_path / "m.onnx")
    assert [t.name for t in after.proto.graph.initializer] == ["a", "c"]  # equal bytes elsewhere are not read
    parity(tmp_path / "m.onnx", after, {"x": X})


def test_an_overridable_initializer_is_no_constant():
    before = model(
        "p = Add(x, a) q = Add(x, b) y = Sub(p, q)", "float[3] a = {1,2,3}, float[3] b = {1,2,3}", "float[b,3] x, float[3] b"
    )
    merged(before, ["Add", "Add", "Sub"], {"x": X, "b": np.zeros(3, np.float32)})


def test_bodies_see_what_is_computed_before_them_and_not_each_other():
    body = """n = Neg(x) y = If(c) <
      then_branch = t () => (float[?,?] a) { k = Neg(x) l = Exp(k) m = Exp(k) a = Add(l, m) },
      else_branch = e () => (float[?,?] b) { k = Exp(x) b = Neg(x) }> z = Exp(n)"""
    before = model(body, inputs="float[b,3] x, bool c", output="float[?,?] y, float[?,?] z")
    _session, after = run_pass(CommonSubexpression(), before)
    branches = {a.name: [n.op_type for n in a.g.node] for n in after.proto.graph.node for a in n.attribute}
    assert branches == {"then_branch": ["Exp", "Add"], "else_branch": ["Exp", "Neg"]}  # b is what the branch returns
    for flag in (True, False):
        parity(before, after, {"x": X, "c": np.array(flag)})
    assert not run_pass(CommonSubexpression(), after)[0].sites


def test_the_zoo(zoo_model):
    _, after = run_pass(CommonSubexpression(), zoo_model)
    parity(zoo_model, after, zoo_feeds(after))
    again, same = run_pass(CommonSubexpression(), after)
    assert not again.sites
    assert same.fingerprint() == after.fingerprint()


def test_a_constant_of_the_graph_around_a_body_is_not_merged_with_itself():
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 16]> g (int64 n, bool c, float[4] z) => (float[4] y) <int64 two = {2}> {
            y = Loop (n, c, z) <body = b (int64 i, bool go, float[4] v) => (bool on, float[4] w) <int64 limit = {2}> {
                w = Tanh(v)  on = Less(i, limit)
            }>
        }""")
    result = rewright.optimize(model, chain="common-subexpression, common-subexpression", verify="model")
    assert [record.status for record in result.report.passes] == ["applied", "unchanged"]
