"""shape-simplification: computed shapes become constants where they are proven, and only there."""

import numpy as np
import onnx
import pytest
from onnx.parser import parse_model
from pass_harness import ops, parity, run_pass, zoo_feeds

from rewright.passes.cleanup.shape_simplification import ShapeSimplification

INDICES = "int64 i0 = {0}, int64 i1 = {1}, int64[1] a0 = {0}, int64[1] h = {4}, int64[1] d = {8}, int64[1] rest = {-1}"


def model(body, constants=INDICES, inputs="float[b,s,32] x", output="float[?,?,?,?] y", opset=17, ir=8):
    held = f"<{constants}>" if constants else ""
    return parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]> g ({inputs}) => ({output}) {held} {{ {body} }}')


def data(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def simplified(before, expect, shapes=((2, 3, 32), (1, 1, 32), (0, 3, 32), (3, 0, 32)), feeds=None):
    """Checks ops, parity on several shapes, empty ones included, and idempotence."""
    session, after = run_pass(ShapeSimplification(), before)
    assert ops(after) == expect
    for each in feeds or [{"x": data(*shape)} for shape in shapes]:
        parity(before, after, each)
    again, same = run_pass(ShapeSimplification(), after)
    assert not again.sites
    assert same.fingerprint() == after.fingerprint()
    return session, after


def targets(after):
    """The constant targets of the Reshapes, in order."""
    held = {t.name: after.tensor(t).tolist() for t in after.proto.graph.initializer}
    return [held.get(n.input[1]) for n in after.proto.graph.node if n.op_type == "Reshape"]


TORCHSCRIPT = (
    "s0 = Shape(x) g0 = Gather(s0, i0) u0 = Unsqueeze(g0, a0) s1 = Shape(x) g1 = Gather(s1, i1) u1 = Unsqueeze(g1, a0) "
    "t = Concat<axis = 0>(u0, u1, h, d) y = Reshape(x, t)"
)

WITH_AXES_AS_ATTRIBUTES = TORCHSCRIPT.replace("(g0, a0)", "<axes = [0]>(g0)").replace("(g1, a0)", "<axes = [0]>(g1)")


def test_torchscript_spelling():
    session, after = simplified(model(TORCHSCRIPT), ["Reshape"])
    assert targets(after) == [[0, 0, 4, 8]]
    assert sorted(session.sites[0].ops_removed) == [
        "Concat", "Gather", "Gather", "Reshape", "Shape", "Shape", "Unsqueeze", "Unsqueeze",
    ]  # fmt: skip


def test_dynamo_spelling_drops_allowzero():
    body = (
        "s0 = Shape<start = 0, end = 1>(x) s1 = Shape<start = 1, end = 2>(x) t = Concat<axis = 0>(s0, s1, h, d) "
        "y = Reshape<allowzero = 1>(x, t)"
    )
    _, after = simplified(model(body), ["Reshape"])
    assert targets(after) == [[0, 0, 4, 8]]
    assert not after.proto.graph.node[0].attribute


def test_what_the_dimension_is_read_from_does_not_matter():
    body = "n = Relu(x) s0 = Shape(n) p = Slice(s0, a0, two) t = Concat<axis = 0>(p, h, d) y = Reshape(x, t)"
    simplified(model(body, INDICES + ", int64[1] two = {2}"), ["Reshape"])


def test_arithmetic_on_dimensions():
    body = """s0 = Shape(x) g0 = Gather(s0, i0) g2 = Gather(s0, i2) q = Div(g2, four) m = Add(g0, g0) n = Sub(m, g0)
      u0 = Unsqueeze(n, a0) u2 = Unsqueeze(q, a0) c = Cast<to = 6>(u2) e = Cast<to = 7>(c)
      t = Concat<axis = 0>(u0, rest, h, e) y = Reshape(x, t)"""
    _, after = simplified(model(body, INDICES + ", int64 i2 = {2}, int64 four = {4}"), ["Reshape"], ((2, 3, 32), (1, 1, 32)))
    assert targets(after) == [[0, -1, 4, 8]]  # the -1 is the export's own


def test_what_remains_is_minus_one_only_beside_numbers():
    body = (
        "s0 = Shape(x) g0 = Gather(s0, i0) g1 = Gather(s0, i1) m = Mul(g0, g1) u = Unsqueeze(m, a0) "
        "t = Concat<axis = 0>(u, h, d) y = Reshape(x, t)"
    )
    _, after = simplified(model(body, output="float[?,?,?] y"), ["Reshape"], ((2, 3, 32), (1, 1, 32), (0, 3, 32)))
    assert targets(after) == [[-1, 4, 8]]
    body = "s0 = Shape(x) t = Concat<axis = 0>(n, h, d) y = Reshape(x, t)"  # even a value that is not known at all
    before = model(body, inputs="float[b,s,32] x, int64[1] n", output="float[?,?,?] y")
    feeds = [{"x": data(2, 3, 32), "n": np.array([n], np.int64)} for n in (6, -1)]
    _, after = simplified(before, ["Shape", "Reshape"], feeds=feeds)
    body = "s0 = Shape(x) g0 = Gather(s0, i0) u0 = Unsqueeze(g0, a0) t = Concat<axis = 0>(u0, n, h, d) y = Reshape(x, t)"
    before = model(body, inputs="float[b,s,32] x, int64[1] n")
    session, after = run_pass(ShapeSimplification(), before)
    assert not session.sites
    assert (
        session.rejections[0].reason == "entry 1 of its target is neither a number nor proven to be the input's dimension there"
    )


def test_a_dimension_at_another_place_is_not_copied():
    body = (
        "s0 = Shape(x) g0 = Gather(s0, i0) g1 = Gather(s0, i1) u0 = Unsqueeze(g0, a0) u1 = Unsqueeze(g1, a0) "
        "t = Concat<axis = 0>(u1, u0, h, d) y = Reshape(x, t)"
    )
    session, after = run_pass(ShapeSimplification(), model(body))
    assert not session.sites
    parity(model(body), after, {"x": data(2, 3, 32)})


def test_dimensions_that_only_agree_by_number_are_not_equal():
    body = TORCHSCRIPT.replace("Shape(x)", "Shape(z)")
    before = model(body, inputs="float[b,s,32] x, float[p,q,32] z")
    session, after = run_pass(ShapeSimplification(), before)
    assert [site.ops_removed for site in session.sites] == [("Shape",)]  # the second of z
    assert targets(after) == [None]
    parity(before, after, {"x": data(2, 3, 32), "z": data(3, 2, 32)})


def test_unnamed_dimensions_are_followed():
    simplified(
        model("r = Relu(x) " + TORCHSCRIPT.replace("Reshape(x", "Reshape(r"), inputs="float[?,?,32] x"), ["Relu", "Reshape"]
    )


def test_a_zero_of_the_target_itself_under_allowzero_stays():
    body = "s0 = Shape<start = 0, end = 1>(x) t = Concat<axis = 0>(s0, zero, h) y = Reshape<allowzero = 1>(x, t)"
    before = model(body, INDICES + ", int64[1] zero = {0}", output="float[?,?,?] y")
    session, after = run_pass(ShapeSimplification(), before)
    assert not session.sites
    parity(before, after, {"x": data(2, 0, 32)})


def test_inserted_ones_become_unsqueeze():
    body = (
        "s0 = Shape(x) g0 = Gather(s0, i0) u0 = Unsqueeze(g0, a0) g1 = Gather(s0, i1) u1 = Unsqueeze(g1, a0) "
        "t = Concat<axis = 0>(u0, one, one, u1) y = Reshape(x, t)"
    )
    before = model(body, INDICES + ", int64[1] one = {1}", "float[b,s] x")
    simplified(before, ["Unsqueeze"], ((2, 3), (1, 1), (0, 3)))


@pytest.mark.parametrize("opset", [11, 12, 13, 14, 17, 18, 20, 21, 23])
def test_every_opset(opset):
    body = TORCHSCRIPT
    if opset < 13:
        body = body.replace("Unsqueeze(g0, a0)", "Unsqueeze<axes = [0]>(g0)").replace(
            "Unsqueeze(g1, a0)", "Unsqueeze<axes = [0]>(g1)"
        )
    simplified(model(body, opset=opset), ["Reshape"], ((2, 3, 32), (1, 1, 32)))


def test_expand_to_the_same_shape_goes():
    body = "s = Shape(x) e = Expand(x, s) y = Neg(e)"
    simplified(model(body, output="float[?,?,?] y"), ["Neg"])
    body = """s = Shape(x) w = Concat<axis = 0>(rest, rest, rest) o = ConstantOfShape<value = int64[1] {1}>(n)
      q = Equal(w, m) t = Where(q, o, w) e = Expand(x, t) y = Neg(e)"""
    constants = INDICES + ", int64[1] n = {3}, int64[3] m = {-1, -1, -1}"
    simplified(model(body, constants, output="float[?,?,?] y"), ["Shape", "Neg"])
    body = "s0 = Shape(x) e = Expand(o, s0) y = Add(x, e)"  # a real one stays
    simplified(model(body, "float[1,1,1] o = {1}", output="float[?,?,?] y"), ["Shape", "Expand", "Add"])


def test_slice_to_the_dimension_s_own_end_goes():
    body = "s0 = Shape(x) g1 = Gather(s0, i1) u1 = Unsqueeze(g1, a0) c = Slice(x, a0, u1, one, one) y = Neg(c)"
    before = model(body, INDICES + ", int64[1] one = {1}", output="float[?,?,?] y")
    simplified(before, ["Neg"])
    other = model(body.replace("Gather(s0, i1)", "Gather(s0, i0)"), INDICES + ", int64[1] one = {1}", output="float[?,?,?] y")
    assert not run_pass(ShapeSimplification(), other)[0].sites


def test_position_embeddings_sliced_to_the_length_keep_its_name():
    body = """s0 = Shape(x) g1 = Gather(s0, i1) u1 = Unsqueeze(g1, a0) c = Slice(p, a0, u1, one, one) z = Add(x, c)
      s = Shape(z) k0 = Gather(s, i0) k1 = Gather(s, i1) v0 = Unsqueeze(k0, a0) v1 = Unsqueeze(k1, a0)
      t = Concat<axis = 0>(v0, v1, h, d) y = Reshape(z, t)"""
    before = model(body, INDICES + ", int64[1] one = {1}")
    before.graph.initializer.append(onnx.numpy_helper.from_array(data(1, 9, 32), "p"))
    _, after = simplified(
        before, ["Shape", "Gather", "Unsqueeze", "Slice", "Add", "Reshape"], ((2, 3, 32), (1, 1, 32), (2, 9, 32))
    )
    assert targets(after) == [[0, 0, 4, 8]]


def test_reshape_of_reshape():
    constants = "int64[2] f = {-1, 32}, int64[4] t = {2, 3, 4, 8}"
    simplified(model("a = Reshape(x, f) y = Reshape(a, t)", constants), ["Reshape"], ((2, 3, 32), (3, 2, 32)))
    # The 0 copies b, which x has at the same place.
    constants = "int64[4] f = {0, 0, 4, 8}, int64[2] t = {0, -1}"
    simplified(
        model("a = Reshape(x, f) y = Reshape(a, t)", constants, output="float[?,?] y"), ["Reshape"], ((2, 3, 32), (1, 1, 32))
    )
    # The 0 copies what x has not got: b * s.
    constants = "int64[2] f = {-1, 32}, int64[3] t = {0, 4, 8}"
    session, _ = run_pass(ShapeSimplification(), model("a = Reshape(x, f) y = Reshape(a, t)", constants, output="float[?,?,?] y"))
    assert not session.sites
    # Something else reads the first one.
    body, constants = "a = Reshape(x, f) y = Reshape(a, t) z = Neg(a)", "int64[2] f = {-1, 32}, int64[4] t = {2, 3, 4, 8}"
    session, _ = run_pass(ShapeSimplification(), model(body, constants, output="float[?,?,?,?] y, float[?,?] z"))
    assert not session.sites


def test_a_reshape_of_a_reshape_whose_shape_was_read_collapses_in_one_run():
    body = (
        "a = Reshape(x, f) s = Shape(a) g1 = Gather(s, i1) u1 = Unsqueeze(g1, a0) "
        "t = Concat<axis = 0>(rest, h, u1) y = Reshape(a, t)"
    )
    before = model(body, INDICES + ", int64[2] f = {-1, 8}", output="float[?,?,?] y")
    _, after = simplified(before, ["Reshape"])
    assert targets(after) == [[-1, 4, 8]]


def test_three_reshapes_of_which_the_second_hid_the_first_collapse_in_one_run():
    # The second one's target is not known, so that it cannot read x itself; the third one does not need it.
    body, constants = "a = Reshape(x, f) b = Reshape(a, n) y = Reshape(b, t)", "int64[2] f = {-1, 32}, int64[4] t = {2, 3, 4, 8}"
    before = model(body, constants, "float[b,s,32] x, int64[3] n")
    feeds = [{"x": data(*shape), "n": np.array(n, np.int64)} for shape, n in (((2, 3, 32), (2, -1, 8)), ((6, 1, 32), (1, 1, -1)))]
    _, after = simplified(before, ["Reshape"], feeds=feeds)
    assert after.proto.graph.node[0].input[0] == "x"


def test_a_reshape_that_only_reshapes_read_goes():
    constants = "int64[2] f = {-1, 32}, int64[4] t = {2, 3, 4, 8}, int64[3] u = {6, 4, 8}"
    body, output = "a = Reshape(x, f) y = Reshape(a, t) z = Reshape(a, u)", "float[?,?,?,?] y, float[?,?,?] z"
    _, after = simplified(model(body, constants, output=output), ["Reshape", "Reshape"], ((2, 3, 32), (3, 2, 32)))
    assert [node.input[0] for node in after.proto.graph.node] == ["x", "x"]
    # One of them needs it: its 0 copies b * s.
    session, _ = run_pass(ShapeSimplification(), model(body, constants.replace("{6, 4, 8}", "{0, 4, 8}"), output=output))
    assert not session.sites
    # One of them reads it as a target.
    body = "a = Reshape(x, f) y = Reshape(x, a) z = Reshape(a, u)"
    constants = "int64[1] f = {-1}, int64[2] u = {1, 2}"
    before = model(body, constants, "int64[n] x", "int64[?,?] y, int64[1,2] z")
    session, after = run_pass(ShapeSimplification(), before)
    assert not session.sites
    parity(before, after, {"x": np.array([2, 1])})


def test_numbers_become_initializers():
    body = "s0 = Shape(x) g = Gather(s0, two) m = Mul(g, g) c = Cast<to = 1>(m) y = Add(x, c)"
    before = model(body, "int64 two = {2}", output="float[?,?,?] y")
    _, after = simplified(before, ["Cast", "Add"])
    assert onnx.numpy_helper.to_array(after.proto.graph.initializer[-1]) == 1024


def test_division_and_overflow_are_those_of_the_dtype():
    body = "q = Div(a, b) c = Cast<to = 1>(q) y = Add(x, c)"
    before = model(body, "int64[2] a = {-7, 7}, int64[2] b = {2, -2}", "float[2] x", "float[?] y")
    simplified(before, ["Cast", "Add"], ((2,),))
    before = model("q = Mul(a, a) c = Cast<to = 1>(q) y = Add(x, c)", "int32[1] a = {70000}", "float[1] x", "float[?] y")
    simplified(before, ["Mul", "Cast", "Add"], ((1,),))
    before = model("q = Div(a, z) y = Add(x, q)", "int64[1] a = {7}, int64[1] z = {0}", "int64[1] x", "int64[?] y")
    assert not run_pass(ShapeSimplification(), before)[0].sites


def test_outputs_keep_their_producers():
    before = model("y = Shape(x)", "", "float[2,3] x", "int64[2] y")
    session, _ = run_pass(ShapeSimplification(), before)
    assert not session.sites
    kept = ["Shape", "Gather", "Unsqueeze", "Gather", "Unsqueeze", "Concat", "Reshape"]
    _, after = simplified(model(TORCHSCRIPT, output="float[?,?,?,?] y, int64[4] t"), kept, ((2, 3, 32),))
    assert targets(after) == [[0, 0, 4, 8]]


def test_an_overridable_initializer_is_no_number():
    body = "s0 = Shape(x) t = Concat<axis = 0>(n, n, h, d) y = Reshape(x, t)"
    before = model(body, INDICES + ", int64[1] n = {2}", "float[b,s,32] x, int64[1] n")
    session, _ = run_pass(ShapeSimplification(), before)
    assert not session.sites


def test_bodies():
    inner = TORCHSCRIPT.replace("y = Reshape", "o = Reshape")
    branches = [f"{name} () => (float[?,?,?,?] o) {{ {inner} }}" for name in "te"]
    body = f"y = If(c) < then_branch = {branches[0]}, else_branch = {branches[1]} >"
    before = model(body, inputs="float[b,s,32] x, bool c")
    session, after = run_pass(ShapeSimplification(), before)
    assert [[n.op_type for n in a.g.node] for a in after.proto.graph.node[0].attribute] == [["Reshape"], ["Reshape"]]
    for flag in (True, False):
        parity(before, after, {"x": data(2, 3, 32), "c": np.array(flag)})
    assert not run_pass(ShapeSimplification(), after)[0].sites
    assert {site.graph for site in session.sites} == {"t", "e"}


def test_loops_do_not_freeze_what_changes():
    body = """y = Loop(n, , x) < body = l (int64 i, bool c, float[p,q] v) => (bool c2, float[p2,q2] v2) {
        c2 = Identity(c) w = Concat<axis = 0>(v, v)
        s = Shape(w) g = Gather(s, i0) u = Unsqueeze(g, a0) t = Concat<axis = 0>(u, rest)
        v2 = Reshape(w, t) } >"""
    before = model(body, inputs="float[b,s] x, int64 n", output="float[?,?] y")
    _, after = run_pass(ShapeSimplification(), before)
    parity(before, after, {"x": data(2, 3), "n": np.array(3, np.int64)})


def test_old_ir_versions_keep_their_signature():
    inputs = "float[b,s,32] x, int64 i0, int64 i1, int64[1] h, int64[1] d, int64[1] a0, int64[1] rest"
    body = TORCHSCRIPT.replace("Unsqueeze(g0, a0)", "Unsqueeze<axes = [0]>(g0)").replace(
        "Unsqueeze(g1, a0)", "Unsqueeze<axes = [0]>(g1)"
    )
    session, _ = run_pass(ShapeSimplification(), model(body, inputs=inputs, opset=8, ir=3))
    assert not session.sites
    assert "IR version 3" in session.notes[0]


def test_the_zoo(zoo_model):
    _, after = run_pass(ShapeSimplification(), zoo_model)
    for batch, length in ((2, 6), (1, 1), (3, 5)):
        parity(zoo_model, after, zoo_feeds(after, batch, length))
    again, same = run_pass(ShapeSimplification(), after)
    assert not again.sites
    assert same.fingerprint() == after.fingerprint()


def test_a_where_whose_condition_is_known_gives_one_of_its_values():
    body = (
        "r = Relu(x) n = Neg(x) s0 = Shape(x) g0 = Gather(s0, i0) c = Less(g0, i0) u = Unsqueeze(c, a0) "
        "w = Where(u, r, n) y = Abs(w)"
    )
    simplified(model(body, output="float[?,?,?] y"), ["Neg", "Abs"], feeds=[{"x": data(2, 3, 32)}])


def test_a_where_that_widens_what_it_gives_stays():
    body = "r = Relu(x) w = Where(c, v, r) y = Abs(w)"
    before = model(body, "bool[1] c = {1}, float[1] v = {2}", output="float[?,?,?] y")
    simplified(before, ["Relu", "Where", "Abs"])
