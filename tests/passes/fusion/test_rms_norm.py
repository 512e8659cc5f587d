"""rms-norm: every spelling of the decomposed normalisation is found, every attribute is proven, the op is the target's."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from pass_harness import ZOO, as_model, ops, parity, run, run_pass
from spelling import Spelling, commuted

from rewright.model.load import load
from rewright.passes.fusion.rms_norm import RmsNorm
from rewright.passes.session import PassSession
from rewright.verify.structure import check_structure

H = 6
SHAPE = (2, 3, H)
OPSETS = [11, 13, 14, 17, 18, 20, 23]
RNG = np.random.default_rng(0)
SCALE = RNG.uniform(0.5, 1.5, H).astype(np.float32)
X = RNG.standard_normal(SHAPE).astype(np.float32)
ADVERSARIAL = [X, 1e-3 * X, 400 * X, X + np.float32(50), np.zeros_like(X), np.full_like(X, 7.0)]

ROOTS = ["div-sqrt", "div-pow", "reciprocal", "one-over", "pow", "sqrt-reciprocal"]
FORMS = ["after", "on-inverse", "on-x", "scale-over-root", "none"]
MEANS = ["mean", "sum", "share", "sum-square", "share-square", "squeezed"]


def reduced(spell, op, value, axes, **attributes):
    """A reduction, with its axes as the opset has them."""
    if axes is None:
        return spell(op, value, **attributes)
    if spell.opset >= (13 if op == "ReduceSum" else 18):
        return spell(op, value, spell.array(np.array(axes, np.int64)), **attributes)
    return spell(op, value, axes=list(axes), **attributes)


def mean_square(spell, x, square, mean, axes, keepdims, length):
    attributes = {} if keepdims is None else {"keepdims": keepdims}
    squares = spell("Mul", x, x) if square == "mul" else spell("Pow", x, spell.number(2.0 if square == "pow" else square))
    if mean == "squeezed":
        dropped = reduced(spell, "ReduceMean", squares, axes, keepdims=0)
        if spell.opset >= 13:
            return spell("Unsqueeze", dropped, spell.array(np.array(axes, np.int64)))
        return spell("Unsqueeze", dropped, axes=list(axes))
    if mean.endswith("square"):
        spell.nodes.pop()
        total = reduced(spell, "ReduceSumSquare", x, axes, **attributes)
    else:
        total = reduced(spell, "ReduceMean" if mean == "mean" else "ReduceSum", squares, axes, **attributes)
    if mean == "mean":
        return total
    if mean.startswith("sum"):
        return spell("Div", total, spell.number(float(length)))
    return spell("Mul", spell.number(1.0 / length), total)


def rms_norm(
    spell,
    x="x",
    root="reciprocal",
    square="pow",
    form="after",
    mean="mean",
    swap=False,
    axes=(-1,),
    keepdims=None,
    epsilon=1e-6,
    epsilon_shape=(),
    parameter_shape=(H,),
    scale=SCALE,
    length=H,
):
    """The computation in one of its spellings; the defaults are PyTorch's."""
    variance = mean_square(spell, x, square, mean, axes, keepdims, length)
    if epsilon is not None:
        variance = commuted(spell, "Add", variance, spell.number(epsilon, shape=epsilon_shape), swap)
    factor = None if form == "none" else spell.array(np.resize(scale, parameter_shape))
    if form == "on-inverse":
        return commuted(spell, "Mul", x, commuted(spell, "Mul", inverse_root(spell, variance, root), factor, swap), swap)
    if form == "scale-over-root":
        return commuted(spell, "Mul", x, spell("Div", factor, spell("Sqrt", variance)), swap)
    if form == "on-x":
        return divided(spell, commuted(spell, "Mul", x, factor, swap), variance, root, swap)
    value = divided(spell, x, variance, root, swap)
    return value if factor is None else commuted(spell, "Mul", value, factor, swap)


def inverse_root(spell, variance, root):
    if root in {"one-over", "div-sqrt"}:
        return spell("Div", spell.number(1.0), spell("Sqrt", variance))
    if root in {"pow", "div-pow"}:
        return spell("Pow", variance, spell.number(-0.5))
    if root == "sqrt-reciprocal":
        return spell("Sqrt", spell("Reciprocal", variance))
    return spell("Reciprocal", spell("Sqrt", variance))


def divided(spell, value, variance, root, swap):
    if root == "div-sqrt":
        return spell("Div", value, spell("Sqrt", variance))
    if root == "div-pow":
        return spell("Div", value, spell("Pow", variance, spell.number(0.5)))
    return commuted(spell, "Mul", value, inverse_root(spell, variance, root), swap)


def model_of(opset=17, shape=SHAPE, outputs=(), constants="initializer", **spelling):
    spell = Spelling(opset, shape=shape, constants=constants)
    return spell.model(rms_norm(spell, **spelling), outputs)


def reference(x, epsilon=1e-6, scale=SCALE):
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


def fused_op(opset, target="cpu"):
    return "RMSNormalization" if opset >= 23 and target != "dml" else "SimplifiedLayerNormalization"


def assert_fused(before, opset=17, rest=(), tolerance=1e-5, feeds=ADVERSARIAL):
    session, after = run_pass(RmsNorm(), before)
    assert sorted(ops(after)) == sorted([fused_op(opset), *rest])
    assert len(session.sites) == 1
    assert not session.rejections
    assert check_structure(session.model, after).status == "passed"
    for x in feeds:
        parity(before, after, {"x": x}, rtol=tolerance, atol=tolerance)
    again, same = run_pass(RmsNorm(), after)
    assert not again.sites
    assert same.fingerprint() == after.fingerprint()
    return after


def assert_refused(before, reason):
    session, after = run_pass(RmsNorm(), before)
    assert not session.sites
    assert after.fingerprint() == as_model(before).fingerprint()
    assert [reason in item.reason for item in session.rejections] == [True], session.rejections


@pytest.mark.parametrize("opset", OPSETS)
def test_every_spelling_becomes_one_node(opset):
    everything = itertools.product(ROOTS, ["pow", "mul"], FORMS, MEANS, [False, True])
    for number, (root, square, form, mean, swap) in enumerate(everything):
        if number % 19 != opset % 19:  # each opset takes another part
            continue
        spelling = {"root": root, "square": square, "form": form, "mean": mean, "swap": swap}
        before = model_of(opset, constants=("initializer", "node")[number % 2], **spelling)
        after = run_pass(RmsNorm(), before)[1]
        assert [op for op in ops(after) if op != "Constant"] == [fused_op(opset)], spelling
        found = run(after, {"x": X})[0]
        np.testing.assert_allclose(found, reference(X, scale=1 if form == "none" else SCALE), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("axes", [(-1,), (2,)])
@pytest.mark.parametrize("parameter_shape", [(H,), (1, H), (1, 1, H), (1,), ()])
def test_axes_and_parameter_shapes(opset, axes, parameter_shape):
    after = assert_fused(model_of(opset, axes=axes, parameter_shape=parameter_shape, keepdims=1), opset)
    assert [list(tensor.dims) for tensor in after.proto.graph.initializer] == [[H]]
    attributes = {item.name: helper.get_attribute_value(item) for item in after.proto.graph.node[0].attribute}
    assert attributes == {"axis": -1, "epsilon": np.float32(1e-6)}


def test_without_a_scale_there_are_ones():
    after = assert_fused(model_of(form="none"))
    assert list(load(after).tensor(after.proto.graph.initializer[0])) == [1.0] * H


@pytest.mark.parametrize("epsilon", [1e-12, 1e-6, 1e-5, 0.1, 3.0])
def test_any_positive_epsilon_is_taken_over(epsilon):
    after = assert_fused(model_of(epsilon=epsilon), feeds=[X, 400 * X, 1e-3 * X], tolerance=1e-4)
    found = run(after, {"x": 1e-3 * X})[0]
    np.testing.assert_allclose(found, reference(1e-3 * X, np.float32(epsilon)), rtol=1e-5)


@pytest.mark.parametrize("opset", [17, 23])
@pytest.mark.parametrize("epsilon", [None, 0.0])
def test_without_epsilon_the_op_adds_nothing_and_a_row_of_zeros_stays_nan(epsilon, opset):
    """Exporters drop an epsilon that they take for 0."""
    after = assert_fused(model_of(opset, epsilon=epsilon), opset)
    assert np.isnan(run(after, {"x": np.zeros_like(X)})[0]).all()


def test_a_scale_of_one_plus_the_weight():
    """Gemma's: the sum is a constant after folding, and before it a value of a known shape."""
    spell = Spelling(17, shape=SHAPE)
    weight = spell("Add", spell.array(SCALE), spell.number(1.0))
    before = spell.model(spell("Mul", rms_norm(spell, form="none"), weight))
    _, after = run_pass(RmsNorm(), before)
    assert ops(after) == ["Add", "SimplifiedLayerNormalization"]
    parity(before, after, {"x": X}, rtol=1e-5, atol=1e-6)


def test_rank_4_over_the_head_size():
    """Qwen3 and OLMo2 normalise queries and keys."""
    before = model_of(shape=("batch", "sequence", 2, H))
    x = np.stack([X, 2 * X], 2)
    _, after = run_pass(RmsNorm(), before)
    assert ops(after) == ["SimplifiedLayerNormalization"]
    parity(before, after, {"x": x}, rtol=1e-5, atol=1e-6)


def test_two_last_axes_and_a_vector():
    for parameter_shape in [(3, H), (1, 3, H), (H,)]:
        after = assert_fused(model_of(18, axes=(-2, -1), parameter_shape=parameter_shape))
        assert list(after.proto.graph.initializer[0].dims) == [3, H]
    assert_fused(model_of(shape=(H,), axes=(0,)), feeds=[X[0, 0]])
    assert_fused(model_of(shape=(H,), axes=None), feeds=[X[0, 0]])


def test_a_computed_scale_of_the_right_shape_is_taken_as_it_is():
    spell = Spelling(17, shape=SHAPE)
    scale = spell("Abs", spell.array(SCALE))
    before = spell.model(spell("Mul", rms_norm(spell, form="none"), scale))
    assert_fused(before, rest=["Abs"])


REFUSALS = [
    ({"axes": (1,)}, "a mean is over the axes [-2], not over the last ones"),
    ({"axes": (0, 2)}, "a mean is over the axes [-3, -1], not over the last ones"),
    ({"square": 3.0}, "is 3, not 2"),
    ({"epsilon": -1e-5}, "epsilon is -"),
    ({"epsilon": float("nan")}, "epsilon is nan"),
    ({"epsilon_shape": (3, 1)}, "epsilon is not a constant number"),
    ({"epsilon_shape": (1, 1, 1, 1), "form": "none"}, "epsilon has more dimensions than x"),
]


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize(("change", "reason"), REFUSALS)
def test_what_does_not_fit_is_refused_with_the_reason(opset, change, reason):
    before = model_of(opset, **change)
    before.graph.output[0].type.tensor_type.ClearField("shape")
    for _ in range(4 if len(change.get("epsilon_shape", ())) == 4 else 3):
        before.graph.output[0].type.tensor_type.shape.dim.add()
    assert_refused(before, reason)


@pytest.mark.parametrize("mean", ["sum", "share", "sum-square", "share-square"])
def test_a_sum_over_another_number_is_no_mean(mean):
    session, _ = run_pass(RmsNorm(), model_of(mean=mean, length=H + 1))
    assert not session.sites


def test_dropped_axes_must_come_back_where_they_were():
    for axes in ([-1], [1], [2]):
        text = f"""<ir_version: 8, opset_import: ["" : 17]>
            g (float[4, 4] x) => (float[4, 4] y) <float e = {{1e-5}}, int64[1] a = {{{axes[0]}}}> {{
                s = Mul(x, x)
                m = ReduceMean<axes = [1], keepdims = 0>(s)
                {"u = Unsqueeze(m, a)" if axes != [2] else "u = Identity(m)"}
                v = Add(u, e)
                r = Sqrt(v)
                y = Div(x, r)
            }}"""
        session, after = run_pass(RmsNorm(), text)
        assert len(session.sites) == (axes != [2])
        parity(text, after, {"x": np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32)}, rtol=1e-5, atol=1e-5)
    _, after = run_pass(RmsNorm(), text.replace("Identity(m)", "Unsqueeze(m, a)").replace("a = {2}", "a = {0}"))
    assert "SimplifiedLayerNormalization" not in ops(after)


def test_the_middle_axis_is_not_taken_for_the_last_even_where_all_shapes_fit():
    """The mean over axis 1 of (2, 4, 4), a scale of length 4: fused as the last axis it would differ by 2.2."""
    for opset in (13, 17, 18, 23):
        before = model_of(opset, shape=(2, 4, 4), axes=(1,), parameter_shape=(4,), scale=SCALE[:4], square="mul")
        assert_refused(before, "a mean is over the axes [-2], not over the last ones")


def test_a_scale_that_changes_the_shape_stays_outside():
    """x (1, 1) and a scale of length 2 give (1, 2)."""
    before = model_of(shape=(1, 1), parameter_shape=(2,))
    before.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2
    session, after = run_pass(RmsNorm(), before)
    assert sorted(ops(after)) == ["Mul", "SimplifiedLayerNormalization"]
    parity(before, after, {"x": X[:1, 0, :1]}, rtol=1e-6)
    # Where it is not known whether the scale expands, nothing is fused, for there is no telling how many ones to make.
    before = model_of(shape=("N", "S", "D"))
    before.graph.output[0].type.tensor_type.ClearField("shape")
    for _ in range(3):
        before.graph.output[0].type.tensor_type.shape.dim.add()
    session, after = run_pass(RmsNorm(), before)
    assert not session.sites
    assert [item.reason for item in session.rejections]


@pytest.mark.parametrize("inner", ["Pow", "ReduceMean", "Sqrt", "Reciprocal"])
def test_an_inner_value_that_is_a_graph_output_is_refused(inner):
    spell = Spelling(17, shape=SHAPE)
    result = rms_norm(spell)
    kept = next(node.output[0] for node in spell.nodes if node.op_type == inner)
    proto = spell.model(result)
    proto.graph.output.append(helper.make_tensor_value_info(kept, TensorProto.FLOAT, [2, 3, H if inner == "Pow" else 1]))
    assert_refused(proto, "is used elsewhere too")


def test_double_precision_is_refused():
    spell = Spelling(17, TensorProto.DOUBLE, shape=SHAPE)
    assert_refused(spell.model(rms_norm(spell, scale=SCALE.astype(np.float64))), "does not compute in float64")


def test_an_l2_norm_is_not_a_root_mean_square():
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[2, 3, {H}] x) => (float[2, 3, {H}] y) <float e = {{1e-12}}> {{
            n = ReduceL2<axes = [-1]>(x)
            c = Clip(n, e)
            y = Div(x, c)
        }}"""
    session, after = run_pass(RmsNorm(), text)
    assert not session.sites
    assert after.fingerprint() == as_model(text).fingerprint()


def half_precision(cast_back, opset=17):
    """float16 x widened to float32, normalised, and cast back before the scale or at the end."""
    spell = Spelling(opset, shape=SHAPE)
    wide = spell("Cast", "x", to=TensorProto.FLOAT)
    value = rms_norm(spell, wide, form="none")
    if cast_back == "scale":
        value = spell("Mul", spell("Cast", value, to=TensorProto.FLOAT16), spell.array(SCALE.astype(np.float16)))
    else:
        value = spell("Cast", spell("Mul", value, spell.array(SCALE)), to=TensorProto.FLOAT16)
    return spell.model(value, x_type=TensorProto.FLOAT16)


@pytest.mark.parametrize("opset", [17, 23])
@pytest.mark.parametrize(("cast_back", "around"), [("scale", []), ("end", ["Cast"])])
def test_half_precision_by_where_the_cast_back_stands(cast_back, around, opset):
    before = half_precision(cast_back, opset)
    _, after = run_pass(RmsNorm(), before)
    assert ops(after) == [*around, fused_op(opset), *around]
    for x in (X, 1e-3 * X, 400 * X):  # squares of 400 are beyond float16
        parity(before, after, {"x": x.astype(np.float16)}, rtol=4e-3, atol=4e-3)


def test_a_result_narrowed_to_another_type_than_x_had_is_fused_without_its_scale():
    spell = Spelling(17, shape=SHAPE)
    narrow = spell("Cast", rms_norm(spell, form="none"), to=TensorProto.FLOAT16)
    before = spell.model(spell("Cast", spell("Mul", narrow, spell.array(SCALE.astype(np.float16))), to=TensorProto.FLOAT))
    _, after = run_pass(RmsNorm(), before)
    assert ops(after) == ["SimplifiedLayerNormalization", "Cast", "Mul", "Cast"]
    parity(before, after, {"x": X}, rtol=4e-3, atol=4e-3)


def test_the_op_is_what_the_target_runs():
    for opset, target in itertools.product([17, 23], ["cpu", "cuda", "dml"]):
        assert ops(run_pass(RmsNorm(), model_of(opset), target)[1]) == [fused_op(opset, target)]
    assert ops(run_pass(RmsNorm(), model_of(23), "portable")[1]) == ["RMSNormalization"]
    session, _ = run_pass(RmsNorm(), model_of(17), "portable")
    reason = "the target 'portable' has no kernel for ai.onnx.SimplifiedLayerNormalization"
    assert [item.reason.startswith(reason) for item in session.rejections] == [True]


def test_what_is_known_survives_the_op_that_onnx_does_not_know():
    """Dtypes and shapes of what comes after it, also in a model that was saved and read again."""
    spell = Spelling(17, shape=("batch", 3, H))
    before = spell.model(spell("Relu", rms_norm(spell)))
    _, after = run_pass(RmsNorm(), before)
    session = PassSession(RmsNorm(), load(after.proto))
    session.ensure_facts()
    normalised = session.view.graph.nodes[0].outputs[0]
    assert (normalised.dtype, list(normalised.shape)) == (np.float32, ["batch", 3, H])


@pytest.mark.parametrize("name", ["llama.ts17.eager", "llama.dyn18.sdpa", "t5_enc.ts17.eager"])
def test_real_exports_keep_no_decomposed_normalisation(name):
    session, after = run_pass(RmsNorm(), ZOO / f"{name}.onnx")
    assert len(session.sites) == 5
    assert not session.rejections
    assert "ai.onnx::ReduceMean" not in after.op_counts()


@settings(max_examples=40, deadline=None)
@given(
    opset=st.sampled_from(OPSETS),
    root=st.sampled_from(ROOTS),
    square=st.sampled_from(["pow", "mul"]),
    form=st.sampled_from(FORMS),
    mean=st.sampled_from(MEANS),
    swap=st.booleans(),
    axes=st.sampled_from([(-1,), (2,)]),
    parameter_shape=st.sampled_from([(H,), (1, H), (1, 1, H), ()]),
    epsilon=st.sampled_from([1e-5, 1e-12, 1e-3]),
    change=st.sampled_from([None, None, "axes", "epsilon", "exponent", "output"]),
    seed=st.integers(0, 9),
)
def test_legal_spellings_are_fused_and_one_illegal_change_refuses(change, seed, opset, **legal):
    if change is not None:
        legal |= {"mean": "mean", "square": "pow", "form": "after"}
    if change == "axes":
        legal["axes"] = (1,)
    elif change == "epsilon":
        legal["epsilon"] = -1e-3
    elif change == "exponent":
        legal["square"] = 4.0
    before = model_of(opset, **legal)
    if change == "output":
        mean = next(node.output[0] for node in before.graph.node if node.op_type == "ReduceMean")
        before.graph.output.append(helper.make_tensor_value_info(mean, TensorProto.FLOAT, [2, 3, 1]))
    session, after = run_pass(RmsNorm(), before)
    if change is None:
        assert ops(after) == [fused_op(opset)]
    else:
        assert not session.sites
        expected = {
            "axes": "the axes [-2]",
            "epsilon": "epsilon is -0.001",
            "exponent": "is 4, not 2",
            "output": "used elsewhere",
        }
        assert any(expected[change] in item.reason for item in session.rejections)
    parity(before, after, {"x": np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)}, rtol=1e-4, atol=2e-5)
