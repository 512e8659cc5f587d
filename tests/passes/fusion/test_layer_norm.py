"""layer-norm: every spelling of the decomposed normalisation is found, and every attribute is proven."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from norm_spelling import AFFINE, BIAS, FORMS, MEANS, ROOTS, SCALE, SHAPE, SQUARES, H, X, layer_norm, model_of
from onnx import TensorProto
from pass_harness import as_model, ops, parity, run, run_pass
from spelling import Spelling

from rewright.passes.fusion.layer_norm import LayerNorm

OPSETS = [17, 18, 20, 23]


def reference(x, epsilon=1e-5, affine="both"):
    x = x.astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    value = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    value = value * (SCALE if affine in ("both", "scale") else 1)
    return value + (BIAS if affine in ("both", "bias") else 0)


ADVERSARIAL = [X, 1e-3 * X, X + np.float32(50), 1e3 * X, np.zeros_like(X), np.full_like(X, 7.0)]


def assert_fused(before, rest=(), **expected):
    session, after = run_pass(LayerNorm(), before)
    assert sorted(ops(after)) == sorted(["LayerNormalization", *rest])
    assert len(session.sites) == 1
    assert not session.rejections
    for x in ADVERSARIAL[:3]:
        # Both are float32: where the mean is 50 times the spread, each is off by some 50 units in the last place.
        parity(before, after, {"x": x}, rtol=3e-5, atol=3e-5)
    again, same = run_pass(LayerNorm(), after)
    assert not again.sites
    assert same.fingerprint() == after.fingerprint()
    return after


def assert_refused(before, reason, count=2):
    session, after = run_pass(LayerNorm(), before)
    assert not session.sites
    assert after.fingerprint() == as_model(before).fingerprint()
    assert [reason in item.reason for item in session.rejections] == [True] * count, session.rejections


@pytest.mark.parametrize("opset", OPSETS)
def test_every_spelling_becomes_one_layer_normalization(opset):
    everything = itertools.product(ROOTS, SQUARES, FORMS, AFFINE, [1, 2, 3], MEANS, [False, True])
    for number, (root, square, form, affine, subs, mean, swap) in enumerate(everything):
        if number % 97 != opset:  # each opset takes another part
            continue
        spelling = {"root": root, "square": square, "form": form, "affine": affine, "subs": subs, "mean": mean, "swap": swap}
        before = model_of(opset, constants=("initializer", "node")[number % 2], **spelling)
        after = run_pass(LayerNorm(), before)[1]
        assert [op for op in ops(after) if op != "Constant"] == ["LayerNormalization"], spelling
        found = run(after, {"x": X})[0]
        np.testing.assert_allclose(found, reference(X, affine=affine), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("axes", [(-1,), (2,)])
@pytest.mark.parametrize("parameter_shape", [(H,), (1, H), (1, 1, H)])
def test_axes_and_parameter_shapes(opset, axes, parameter_shape):
    after = assert_fused(model_of(opset, axes=axes, parameter_shape=parameter_shape))
    assert [list(tensor.dims) for tensor in after.proto.graph.initializer] == [[H], [H]]
    attributes = {item.name: item for item in after.proto.graph.node[0].attribute}
    assert attributes["axis"].i == -1
    assert attributes["epsilon"].f == np.float32(1e-5)


@pytest.mark.parametrize("epsilon", [1e-12, 1e-5, 0.1, 3.0])
def test_any_positive_epsilon_is_taken_over_exactly(epsilon):
    before = model_of(epsilon=epsilon)
    after = run_pass(LayerNorm(), before)[1]
    for x in ADVERSARIAL:
        found = run(after, {"x": x})[0].astype(np.float64)
        expected = run(as_model(before), {"x": x})[0]
        error = np.abs(found - reference(x, np.float32(epsilon))).max()
        assert error <= 2 * np.abs(expected - reference(x, np.float32(epsilon))).max() + 1e-5


@pytest.mark.parametrize("epsilon", [None, 0.0])
def test_without_epsilon_the_op_adds_nothing_and_rows_without_variance_stay_nan(epsilon):
    before = model_of(epsilon=epsilon)
    _, after = run_pass(LayerNorm(), before)
    assert ops(after) == ["LayerNormalization"]
    for x in ADVERSARIAL:
        parity(before, after, {"x": x}, rtol=3e-5, atol=3e-5)
    assert np.isnan(run(after, {"x": np.zeros_like(X)})[0]).all()


def test_low_variance_and_large_offsets_are_no_worse_than_the_decomposition():
    rng = np.random.default_rng(5)
    spell = Spelling(17, shape=("N", 256))
    scale, bias = np.ones(256, np.float32), np.zeros(256, np.float32)
    before = spell.model(layer_norm(spell, parameter_shape=(256,), scale=scale, bias=bias))
    after = run_pass(LayerNorm(), before)[1]
    for offset, spread in [(0, 1e-3), (0, 1e-4), (10, 1), (1000, 1), (10, 0.01), (1e4, 1)]:
        x = (offset + spread * rng.standard_normal((8, 256))).astype(np.float32)
        exact = x.astype(np.float64) - x.astype(np.float64).mean(-1, keepdims=True)
        exact = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + np.float32(1e-5))
        old = np.abs(run(as_model(before), {"x": x})[0] - exact).max()
        assert np.abs(run(after, {"x": x})[0] - exact).max() <= 2 * old + 1e-6


def test_no_scale_becomes_ones_and_a_number_becomes_a_vector():
    after = assert_fused(model_of(affine="neither"))
    assert len(after.proto.graph.initializer) == 1
    after = assert_fused(model_of(affine="bias"))
    assert len(after.proto.graph.node[0].input) == 3
    assert_fused(model_of(affine="both", parameter_shape=(1,)))
    assert_fused(model_of(affine="both", parameter_shape=()))


def test_two_last_axes_with_parameters_over_both_or_over_the_last():
    for parameter_shape in [(3, H), (1, 3, H), (H,), (1, H), (3, 1)]:
        after = assert_fused(model_of(18, axes=(-2, -1), parameter_shape=parameter_shape))
        assert {item.name: item.i for item in after.proto.graph.node[0].attribute}["axis"] == -2
        assert list(after.proto.graph.initializer[0].dims) == [3, H]
    assert_fused(model_of(axes=(2, 1), parameter_shape=(H,)))


def test_a_vector_is_normalised_whole():
    spell = Spelling(17, shape=(H,))
    before = spell.model(layer_norm(spell, axes=(0,)))
    _, after = run_pass(LayerNorm(), before)
    assert ops(after) == ["LayerNormalization"]
    parity(before, after, {"x": X[0, 0]}, rtol=1e-5, atol=1e-6)
    spell = Spelling(17, shape=(H,))
    _, after = run_pass(LayerNorm(), spell.model(layer_norm(spell, axes=None)))
    assert ops(after) == ["LayerNormalization"]


def test_symbolic_leading_dimensions():
    before = model_of(shape=("batch", "sequence", H))
    assert_fused(before)
    parity(before, run_pass(LayerNorm(), before)[1], {"x": np.tile(X, (3, 1, 1))}, rtol=1e-5, atol=1e-5)


REFUSALS = [
    ({"axes": (1,), "parameter_shape": (H,)}, "a mean is over the axes [-2], not over the last ones"),
    ({"axes": (0, 2)}, "a mean is over the axes [-3, -1], not over the last ones"),
    ({"variance_axes": (1, 2)}, "the two means are over different axes"),
    ({"exponent": 3.0}, "is 3, not 2"),
    ({"epsilon": -1e-5}, "epsilon is -"),
    ({"epsilon": float("nan")}, "epsilon is nan"),
    ({"epsilon_shape": (3, 1)}, "epsilon is not a constant number"),
    ({"epsilon_shape": (1, 1, 1, 1)}, "epsilon has more dimensions than x"),
]


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize(("change", "reason"), REFUSALS)
def test_what_does_not_fit_is_refused_with_the_reason(opset, change, reason):
    before = model_of(opset, **change)
    del before.graph.output[0].type.tensor_type.shape.dim[:]
    before.graph.output[0].type.tensor_type.ClearField("shape")
    session, _ = run_pass(LayerNorm(), _with_unknown_rank_output(before))
    assert not session.sites
    assert all(reason in item.reason for item in session.rejections), session.rejections
    assert len(session.rejections) == 2


def _with_unknown_rank_output(proto):
    """Some refused spellings change the output's shape: say nothing about it beyond its rank."""
    rank = 4 if any(list(tensor.dims) == [1, 1, 1, 1] for tensor in proto.graph.initializer) else 3
    for _ in range(rank):
        proto.graph.output[0].type.tensor_type.shape.dim.add()
    return proto


def test_the_middle_axis_is_not_taken_for_the_last_even_where_all_shapes_fit():
    """Both means over axis 1 of (2, 4, 4), scale and bias of length 4: fused as the last axis it would differ by 2.4."""
    for opset in (17, 18):
        before = model_of(opset, shape=(2, 4, 4), axes=(1,), parameter_shape=(4,), scale=SCALE[:4], bias=BIAS[:4])
        assert_refused(before, "a mean is over the axes [-2], not over the last ones")


@pytest.mark.parametrize("opset", [17, 18])
def test_keepdims_0_is_refused(opset):
    # Square, so that the wrongly broadcast graph runs at all.
    spell = Spelling(opset, shape=(H, H))
    session, _ = run_pass(LayerNorm(), spell.model(layer_norm(spell, keepdims=0)))
    assert not session.sites
    assert {item.reason.split(" at ")[0] for item in session.rejections} == {"keepdims is 0"}


def test_a_scale_that_may_expand_the_result_is_refused_and_the_rest_is_fused():
    """x may have one column, which a scale of length 6 expands: nothing proves the contrary."""
    before = model_of(shape=("N", "S", "D"))
    del before.graph.output[0].type.tensor_type.shape.dim[:]
    for _ in range(3):
        before.graph.output[0].type.tensor_type.shape.dim.add()
    session, after = run_pass(LayerNorm(), before)
    assert not session.sites
    assert "LayerNormalization" not in ops(after)
    # With a known last axis of 1 the normalisation alone is fused; the expanding scale stays a Mul.
    before = model_of(shape=(2, 3, 1))
    before.graph.output[0].type.tensor_type.shape.dim[2].dim_value = H
    session, after = run_pass(LayerNorm(), before)
    assert ops(after) == ["LayerNormalization", "Mul", "Add"]
    parity(before, after, {"x": X[..., :1]}, rtol=1e-5, atol=1e-6)


def test_a_scale_with_more_dimensions_than_x_stays_outside():
    before = model_of(shape=(3, H), parameter_shape=(1, 1, H))
    shape = before.graph.output[0].type.tensor_type.shape
    del shape.dim[:]
    for size in (1, 3, H):
        shape.dim.add(dim_value=size)
    _, after = run_pass(LayerNorm(), before)
    assert ops(after) == ["LayerNormalization", "Mul", "Add"]
    parity(before, after, {"x": X[0]}, rtol=1e-5, atol=1e-6)


def test_a_residual_after_the_scale_is_not_taken_for_the_bias():
    spell = Spelling(17, shape=SHAPE)
    before = spell.model(spell("Add", layer_norm(spell, affine="scale"), "x"))
    _, after = run_pass(LayerNorm(), before)
    assert ops(after) == ["LayerNormalization", "Add"]
    parity(before, after, {"x": X}, rtol=1e-5, atol=1e-6)


def test_a_computed_scale_of_the_right_shape_is_taken_as_it_is():
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[2, 3, {H}] x, float[{H}] g) => (float[2, 3, {H}] y) <float e = {{1e-5}}, float two = {{2.0}}> {{
            m = ReduceMean<axes = [-1]>(x)
            d = Sub(x, m)
            s = Pow(d, two)
            v = ReduceMean<axes = [-1]>(s)
            ve = Add(v, e)
            r = Sqrt(ve)
            n = Div(d, r)
            a = Abs(g)
            y = Mul(n, a)
        }}"""
    _, after = run_pass(LayerNorm(), text)
    assert ops(after) == ["Abs", "LayerNormalization"]
    parity(text, after, {"x": X, "g": BIAS}, rtol=1e-5, atol=1e-6)
    _, after = run_pass(LayerNorm(), text.replace(f"float[{H}] g", f"float[1, {H}] g"))
    assert ops(after) == ["LayerNormalization", "Abs", "Mul"]  # a computed value can not be reshaped for free


@pytest.mark.parametrize("inner", ["Sub", "ReduceMean", "Sqrt"])
def test_an_inner_value_that_is_a_graph_output_is_refused(inner):
    spell = Spelling(17, shape=SHAPE)
    result = layer_norm(spell)
    kept = next(node.output[0] for node in spell.nodes if node.op_type == inner)
    proto = spell.model(result)
    proto.graph.output.add(name=kept).type.tensor_type.elem_type = TensorProto.FLOAT
    for size in (2, 3, H if inner == "Sub" else 1):
        proto.graph.output[1].type.tensor_type.shape.dim.add(dim_value=size)
    assert_refused(proto, "is used elsewhere too")


def test_a_scaled_value_that_is_used_elsewhere_keeps_its_name():
    spell = Spelling(17, shape=SHAPE)
    result = layer_norm(spell)
    scaled = spell.nodes[-1].input[0]
    proto = spell.model(result, outputs=[scaled])
    _, after = run_pass(LayerNorm(), proto)
    assert ops(after) == ["LayerNormalization", "Add"]
    assert [value.name for value in after.proto.graph.output] == ["y", scaled]
    parity(proto, after, {"x": X}, rtol=1e-5, atol=1e-6)


def test_double_precision_is_refused():
    spell = Spelling(17, TensorProto.DOUBLE, shape=SHAPE)
    before = spell.model(layer_norm(spell, scale=SCALE.astype(np.float64), bias=BIAS.astype(np.float64)))
    assert_refused(before, "does not compute in float64")


def test_rms_normalisation_is_not_centred():
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[2, 3, {H}] x) => (float[2, 3, {H}] y) <float e = {{1e-5}}, float two = {{2.0}}> {{
            s = Pow(x, two)
            v = ReduceMean<axes = [-1]>(s)
            ve = Add(v, e)
            r = Sqrt(ve)
            q = Reciprocal(r)
            y = Mul(x, q)
        }}"""
    assert_refused(text, "'x' is not computed by Sub in this graph", count=1)


@settings(max_examples=40, deadline=None)
@given(
    opset=st.sampled_from(OPSETS),
    root=st.sampled_from(ROOTS),
    square=st.sampled_from(SQUARES),
    form=st.sampled_from(FORMS),
    affine=st.sampled_from(AFFINE),
    subs=st.sampled_from([1, 2, 3]),
    swap=st.booleans(),
    mean=st.sampled_from(MEANS),
    axes=st.sampled_from([(-1,), (2,)]),
    parameter_shape=st.sampled_from([(H,), (1, H), (1, 1, H)]),
    epsilon=st.sampled_from([1e-5, 1e-12, 1e-3]),
    change=st.sampled_from([None, None, "axes", "epsilon", "exponent"]),
    seed=st.integers(0, 9),
)
def test_legal_spellings_are_fused_and_one_illegal_change_refuses(change, seed, square, **spelling):
    legal = dict(spelling, square=square)
    opset = legal.pop("opset")
    if change is not None:
        legal |= {"mean": "mean", "form": "after"}
    if change == "axes":
        legal["variance_axes"] = (1, 2)
    elif change == "epsilon":
        legal["epsilon"] = -1e-3
    elif change == "exponent":
        legal |= {"square": "pow", "exponent": 4.0}
    before = model_of(opset, **legal)
    session, after = run_pass(LayerNorm(), before)
    x = np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)
    if change is None:
        assert ops(after) == ["LayerNormalization"]
    else:
        assert not session.sites
        expected = {"axes": "different axes", "epsilon": "epsilon is -0.001", "exponent": "is 4, not 2"}[change]
        assert any(expected in item.reason for item in session.rejections)
    parity(before, after, {"x": x}, rtol=1e-4, atol=2e-5)
