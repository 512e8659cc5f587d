"""constant-folding: what depends on constants only is computed once; what must not be frozen stays."""

import numpy as np
import onnx
import pytest
from onnx.parser import parse_model
from pass_harness import as_model, ops, parity, run_pass, zoo_feeds

from rewright.passes.cleanup.constant_folding import ConstantFolding


def model(body, constants="", inputs="float[b,3] x", output="float[?,?] y", opset=17, ir=8):
    held = f"<{constants}>" if constants else ""
    return parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]> g ({inputs}) => ({output}) {held} {{ {body} }}')


X = np.arange(6, dtype=np.float32).reshape(2, 3)


def folded(before, expect, feeds=None, **options):
    session, after = run_pass(ConstantFolding(**options), before)
    assert ops(after) == expect
    parity(before, after, feeds or {"x": X})
    again, same = run_pass(ConstantFolding(**options), after)
    assert not again.sites
    assert same.fingerprint() == after.fingerprint()
    return session, after


def values(after):
    return {t.name: onnx.numpy_helper.to_array(t) for t in after.proto.graph.initializer}


def test_a_region_becomes_the_values_that_others_read():
    before = model(
        "t = Transpose(w) s = Sqrt(t) h = Mul(s, two) y = MatMul(x, h)",
        "float[4,3] w = {1,4,9,1,4,9,1,4,9,1,4,9}, float two = {2}",
    )
    session, after = folded(before, ["MatMul"])
    assert list(values(after)) == ["h"]
    assert values(after)["h"].dtype == np.float32
    np.testing.assert_array_equal(values(after)["h"][:, 0], [2, 4, 6])
    assert session.sites[0].ops_removed == ("Mul", "Sqrt", "Transpose")


def test_constant_nodes_become_initializers_in_every_spelling():
    before = model(
        "a = Constant<value = float[1] {2}>() b = Constant<value_float = 0.5>() c = Constant<value_floats = [1.0]>() "
        "d = Constant<value_ints = [0, -1]>() e = Mul(x, a) f = Add(e, b) h = Sub(f, c) y = Reshape(h, d)"
    )
    _, after = folded(before, ["Mul", "Add", "Sub", "Reshape"])
    held = values(after)
    assert {name: (array.dtype.name, array.shape) for name, array in held.items()} == {
        "a": ("float32", (1,)), "b": ("float32", ()), "c": ("float32", (1,)), "d": ("int64", (2,)),
    }  # fmt: skip


@pytest.mark.parametrize(
    "random",
    [
        "n = RandomNormal<shape = [3]>() k = Mul(n, w)",
        "k = RandomNormalLike(w)",
        "k = RandomUniformLike(w)",
        "n = Bernoulli(w) k = Mul(n, w)",
        "k = Dropout(w, r, t)",
    ],
)
def test_random_ops_are_not_frozen(random):
    before = model(f"{random} y = Add(x, k)", "float[3] w = {0.5, 0.5, 0.5}, float r = {0.5}, bool t = {1}")
    session, after = run_pass(ConstantFolding(), before)
    assert ops(after) == ops(as_model(before))
    assert not session.sites


def test_quantization_is_not_undone():
    before = model("k = DequantizeLinear(w, s) y = Add(x, k)", "int8[3] w = {1, 2, 3}, float s = {0.5}")
    session, _ = folded(before, ["DequantizeLinear", "Add"])
    assert "quantization" in session.rejections[0].reason


def test_an_overridable_initializer_is_no_constant():
    before = model("k = Sqrt(w) y = Add(x, k)", "float[3] w = {1, 4, 9}", "float[b,3] x, float[3] w")
    folded(before, ["Sqrt", "Add"], {"x": X, "w": np.array([16, 16, 16], np.float32)})


def test_graph_outputs_keep_their_producers():
    before = model("k = Sqrt(w) y = Add(x, k)", "float[3] w = {1, 4, 9}", output="float[?,?] y, float[3] k")
    session, _ = folded(before, ["Sqrt", "Add"])
    assert session.rejections[0].reason == "it produces an output of the graph"


def test_growth_is_capped_and_transposed_weights_may_be_large():
    body = "k = Transpose(w) e = Expand(c, n) p = MatMul(x, k) y = Add(p, e)"
    weight = np.arange(3 * 2000, dtype=np.float32).reshape(2000, 3)
    before = model(body, "float[1] c = {1}, int64[2] n = {2, 2000}")
    before.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    session, after = folded(before, ["Expand", "MatMul", "Add"], max_bytes=1000)
    assert "max_bytes" in session.rejections[0].reason
    assert len(after.proto.graph.initializer[-1].raw_data) == 0  # the transposed weight is in the spill file
    twice = model("a = Transpose(w) b = Neg(w) p = MatMul(x, a) q = MatMul(p, b) y = Identity(q)")
    twice.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    folded(twice, ["Transpose", "Neg", "MatMul", "MatMul", "Identity"], max_bytes=1000)
    folded(twice, ["MatMul", "MatMul", "Identity"])


def test_equal_large_results_are_stored_once():
    weight = np.arange(1200, dtype=np.float32).reshape(400, 3)
    before = model("a = Transpose(w) b = Transpose(w) p = MatMul(x, a) q = MatMul(x, b) y = Add(p, q)")
    before.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    _, after = folded(before, ["MatMul", "MatMul", "Add"])
    first, second = ({e.key: e.value for e in t.external_data} for t in after.proto.graph.initializer)
    assert first == second


def test_an_op_without_kernel_stays_with_what_depends_on_it():
    body = "s = Sinh(u) l = Cast<to = 1>(s) h = Sqrt(w) m = Add(l, h) y = Add(x, m)"  # no kernel for doubles
    before = model(body, "float[3] w = {1, 4, 9}, double[3] u = {1, 1, 1}")
    session, after = run_pass(ConstantFolding(), before)
    assert ops(after) == ["Sinh", "Cast", "Add", "Add"]
    assert [r.node for r in session.rejections] == ["s"]
    assert "ONNX Runtime cannot compute it" in session.rejections[0].reason
    assert not run_pass(ConstantFolding(), after)[0].sites


def test_division_by_zero_does_not_reach_the_session():
    before = model("k = Div(w, z) f = Cast<to = 1>(k) y = Add(x, f)", "int64[1] w = {1}, int64[1] z = {0}")
    session, after = run_pass(ConstantFolding(), before)
    assert ops(after) == ["Div", "Cast", "Add"]
    assert "division" in session.rejections[0].reason


def test_sizes_that_are_known_only_after_a_first_round():
    body = "d = Div(a, b) n = Concat<axis = 0>(d, d) e = ConstantOfShape<value = float[1] {3}>(n) k = ReduceSum(e) y = Add(x, k)"
    before = model(body, "int64[1] a = {7}, int64[1] b = {2}")
    folded(before, ["Add"])


@pytest.mark.parametrize(
    ("body", "shape", "expected"),
    [
        ("k = Shape(x)", "float[2,3,4] x", [2, 3, 4]),
        ("k = Shape<start = 1, end = 2>(x)", "float[2,3,4] x", [3]),
        ("k = Shape<start = -2>(x)", "float[b,3,4] x", [3, 4]),
        ("k = Size(x)", "float[2,3,4] x", 24),
        ("s = Shape(x) k = Gather(s, i)", "float[b,3,4] x", [4, 3]),
        ("s = Shape(x) k = Slice(s, j, l)", "float[b,3,4] x", [3, 4]),
        ("s = Shape<start = 1>(x) k = Gather(s, z)", "float[b,3,4] x", 3),
    ],
)
def test_shapes_that_are_known(body, shape, expected):
    constants = "int64[2] i = {-1, 1}, int64[1] j = {-2}, int64[1] l = {9223372036854775807}, int64 z = {0}"
    rank = 1 if isinstance(expected, list) else 0
    output = f"int64{'[?]' if rank else ''} y"
    before = model(f"{body} n = Cast<to = 7>(r) y = Mul(k, n)", constants, f"{shape}, int32 r", output)
    x = np.zeros((2, 3, 4), np.float32)
    _, after = folded(before, ["Cast", "Mul"], {"x": x, "r": np.array(1, np.int32)})
    np.testing.assert_array_equal(values(after)["k"], expected)


def test_a_shape_that_is_not_known_stays():
    before = model("s = Shape(x) k = Gather(s, i) f = Cast<to = 1>(k) y = Add(x, f)", "int64[1] i = {0}")
    folded(before, ["Shape", "Gather", "Cast", "Add"])


def test_bodies_are_folded_and_capture_constants():
    body = """y = If(c) <
      then_branch = t () => (float[?,?] a) { h = Sqrt(w) i = Constant<value_float = 2.0>() j = Mul(h, i) a = Add(x, j) },
      else_branch = e () => (float[?,?] b) { h = Neg(w) b = Add(x, h) }>"""
    before = model(body, "float[3] w = {1, 4, 9}", "float[b,3] x, bool c")
    session, after = run_pass(ConstantFolding(), before)
    branches = {a.name: [n.op_type for n in a.g.node] for a in after.proto.graph.node[0].attribute}
    assert branches == {"then_branch": ["Add"], "else_branch": ["Add"]}
    assert {site.graph for site in session.sites} == {"t", "e"}
    for flag in (True, False):
        parity(before, after, {"x": X, "c": np.array(flag)})
    assert not run_pass(ConstantFolding(), after)[0].sites


def test_old_ir_versions_keep_their_signature():
    before = model("k = Sqrt(w) y = Add(x, k)", "float[3] w = {1, 4, 9}", "float[b,3] x, float[3] w", ir=3, opset=8)
    session, after = run_pass(ConstantFolding(), before)
    assert not session.sites
    assert "IR version 3" in session.notes[0]
    assert ops(after) == ["Sqrt", "Add"]


def test_the_zoo(zoo_model):
    session, after = run_pass(ConstantFolding(), zoo_model)
    assert session.sites or zoo_model.name.count("dyn")
    parity(zoo_model, after, zoo_feeds(after))
    again, same = run_pass(ConstantFolding(), after)
    assert not again.sites
    assert same.fingerprint() == after.fingerprint()
