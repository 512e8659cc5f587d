"""layer-norm below opset 17: the opset is raised, or a residual's normalisation becomes an op that follows no opset."""

import numpy as np
import onnx
import pytest
from onnx import helper
from pass_harness import as_model, ops, parity, run_pass

from rewright.passes.fusion.layer_norm import LayerNorm
from rewright.passes.fusion.skip_layer_norm import SkipLayerNorm

H = 8
RNG = np.random.default_rng(0)
X, SKIP = RNG.standard_normal((2, 3, 4, H)).astype(np.float32)
FEEDS = {"x": X, "skip": SKIP}
G, B = (", ".join(f"{value:.3f}" for value in RNG.standard_normal(H)) for _ in range(2))
NORM = """m = ReduceMean<axes = [-1]>({0})
        d = Sub({0}, m)
        s = Mul(d, d)
        v = ReduceMean<axes = [-1]>(s)
        ve = Add(v, e)
        r = Sqrt(ve)
        n = Div(d, r)
        ng = Mul(n, g)
        {1} = Add(ng, b)"""


def model(body, opset, outputs="", ir=7, skip="B, S, 8", y="y"):
    return f"""<ir_version: {ir}, opset_import: ["" : {opset}]>
    g (float[B, S, 8] x, float[{skip}] skip) => (float[B, S, 8] {y}{outputs})
    <float[8] g = {{{G}}}, float[8] b = {{{B}}}, float e = {{1e-3}}, int64[1] first = {{0}}> {{
        {body}
    }}"""


def plain(opset, **options):
    return model("t = Softmax<axis = -1>(x)\n" + NORM.format("t", "z") + "\n y = Mul(z, skip)", opset, **options)


def blocked(opset=11, add="Add(x, skip)", rest="", name="y", y="y", **options):
    """Softmax means something else from opset 13 on."""
    norm = NORM.format("sum", name)
    return model(f"sum = {add}\n {norm}\n [blocker] w = Softmax<axis = -1>(skip)\n {rest}", opset, y=y, **options)


def opset_of(after):
    return {entry.domain: entry.version for entry in after.proto.opset_import}


@pytest.mark.parametrize("opset", [13, 14, 15, 16])
def test_the_opset_is_raised_where_every_node_means_the_same(opset):
    before = plain(opset)
    session, after = run_pass(LayerNorm(), before)
    assert ops(after) == ["Softmax", "LayerNormalization", "Mul"]
    assert opset_of(after) == {"": 17}
    assert after.proto.ir_version == helper.OP_SET_ID_VERSION_MAP[("ai.onnx", 17)]
    assert session.notes == [f"the opset was raised from {opset} to 17, where LayerNormalization is standard"]
    assert not session.rejections
    onnx.checker.check_model(after.proto, full_check=True)
    parity(before, after, FEEDS, rtol=1e-5, atol=1e-5)
    again, same = run_pass(LayerNorm(), after)
    assert not again.sites
    assert same.fingerprint() == after.fingerprint()


def test_the_portable_target_gets_it_too():
    assert "LayerNormalization" in ops(run_pass(LayerNorm(), plain(14), "portable")[1])


def test_passes_that_follow_on_the_same_view_see_the_new_opset():
    session, _ = run_pass(LayerNorm(), plain(14))
    assert session.view.opset_of(session.view.graph) == 17


def test_without_a_site_the_opset_stays():
    before = model("y = Add(x, skip)", 13)
    session, after = run_pass(LayerNorm(), before)
    assert not session.sites
    assert after.fingerprint() == as_model(before).fingerprint()


@pytest.mark.parametrize("opset", [11, 12])
def test_what_stands_in_the_way_is_named(opset):
    session, after = run_pass(LayerNorm(), plain(opset))
    assert not session.sites
    assert after.fingerprint() == as_model(plain(opset)).fingerprint()
    expected = f"standard from opset 17 on, the model is at {opset}, and Softmax"
    assert [expected in item.reason for item in session.rejections] == [True, True]


@pytest.mark.parametrize("opset", [11, 12])
@pytest.mark.parametrize("add", ["Add(x, skip)", "Add(skip, x)"])
def test_a_residual_needs_no_opset(opset, add):
    before = blocked(opset, add)
    session, after = run_pass(LayerNorm(), before)
    assert ops(after) == ["SkipLayerNormalization", "Softmax"]
    assert opset_of(after) == {"": opset, "com.microsoft": 1}
    node = after.proto.graph.node[0]
    assert {item.name: item.f for item in node.attribute} == {"epsilon": np.float32(1e-3)}
    assert not session.rejections
    for factor in (1, 1e-2):
        parity(before, after, {name: np.float32(factor) * value for name, value in FEEDS.items()}, rtol=1e-5, atol=1e-5)
    again, same = run_pass(LayerNorm(), after)
    assert not again.sites
    assert same.fingerprint() == after.fingerprint()


def test_the_sum_is_the_fourth_output_where_it_is_needed():
    rest = "u = Relu(sum)\n z = Mul(y, u)"
    before = blocked(rest=rest, outputs=", float[B, S, 8] z")
    _, after = run_pass(LayerNorm(), before)
    assert list(after.proto.graph.node[0].output) == ["y", "", "", "sum"]
    parity(before, after, FEEDS, rtol=1e-5, atol=1e-5)


def test_no_residual_and_no_kernel_stay_with_the_node_that_stands_in_the_way():
    expected = "LayerNormalization is standard from opset 17 on, the model is at 11, and Softmax 'blocker' would mean"
    for before, target in ((blocked(), "portable"), (blocked(add="Mul(x, skip)"), "cpu"), (blocked(skip="B, 1, 8"), "cpu")):
        session, after = run_pass(LayerNorm(), before, target)
        assert not session.sites
        assert after.fingerprint() == as_model(before).fingerprint()
        assert [expected in item.reason for item in session.rejections] == [True, True]


def test_a_residual_at_a_raised_opset_is_for_skip_layer_norm():
    before = blocked(14)
    _, after = run_pass(LayerNorm(), before)
    assert ops(after) == ["Add", "LayerNormalization", "Softmax"]
    _, after = run_pass(SkipLayerNorm(), after)
    assert ops(after) == ["SkipLayerNormalization", "Softmax"]
    parity(before, after, FEEDS, rtol=1e-5, atol=1e-5)


def test_a_mean_over_another_axis_is_refused_for_that():
    text = blocked(11, skip="B, S, 8").replace("axes = [-1]", "axes = [1]")
    session, _ = run_pass(LayerNorm(), text)
    assert not session.sites
    assert ["not over the last ones" in item.reason for item in session.rejections] == [True, True]


def test_functions_are_raised_with_the_model():
    norm = NORM.format("x", "y")
    constants = (
        f"g = Constant<value_floats = [{G}]>()\n b = Constant<value_floats = [{B}]>()\n e = Constant<value_float = 1e-3>()"
    )
    body = f'\n<domain: "own", opset_import: ["" : 14]> norm (x) => (y) {{ {constants}\n {norm} }}'
    before = f"""<ir_version: 8, opset_import: ["" : 14, "own" : 1]>
    g (float[2, 3, 8] x) => (float[2, 3, 8] z) {{ t = own.norm(x)\n {norm.replace("y =", "z =").replace("(x", "(t")} }}{body}"""
    before = before.replace("z) {", f"z) <float[8] g = {{{G}}}, float[8] b = {{{B}}}, float e = {{1e-3}}> {{", 1)
    _, after = run_pass(LayerNorm(), before)
    assert "LayerNormalization" in ops(after)
    assert opset_of(after)[""] == 17
    assert [entry.version for entry in after.proto.functions[0].opset_import if not entry.domain] == [17]
    parity(before, after, {"x": X[:2, :3]}, rtol=1e-5, atol=1e-5)
