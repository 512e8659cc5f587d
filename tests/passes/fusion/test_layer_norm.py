"""layer-norm: every spelling of the decomposed normalisation is found, and every attribute is proven."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from pass_harness import as_model, ops, parity, run, run_pass
from spelling import Spelling, commuted

from rewright.passes.fusion.layer_norm import LayerNorm

H = 6
SHAPE = (2, 3, H)
OPSETS = [17, 18, 20, 23]
RNG = np.random.default_rng(0)
SCALE = RNG.uniform(0.5, 1.5, H).astype(np.float32)
BIAS = RNG.standard_normal(H).astype(np.float32)
X = RNG.standard_normal(SHAPE).astype(np.float32)

ROOTS = ["div-sqrt", "div-pow", "reciprocal", "one-over", "pow", "sqrt-reciprocal"]
SQUARES = ["pow", "mul"]
FORMS = ["after", "on-inverse", "on-centred", "tensorflow"]
AFFINE = ["both", "scale", "bias", "neither"]


def layer_norm(
    spell,
    x="x",
    root="div-sqrt",
    square="pow",
    form="after",
    affine="both",
    subs=1,
    swap=False,
    axes=(-1,),
    variance_axes=None,
    keepdims=None,
    epsilon=1e-5,
    epsilon_shape=(),
    exponent=2.0,
    parameter_shape=(H,),
    scale=SCALE,
    bias=BIAS,
):
    """The computation in one of its spellings; the defaults are PyTorch's."""

    def mean(value, over):
        attributes = {} if keepdims is None else {"keepdims": keepdims}
        if over is None:
            return spell("ReduceMean", value, **attributes)
        if spell.opset >= 18:
            return spell("ReduceMean", value, spell.array(np.array(over, np.int64)), **attributes)
        return spell("ReduceMean", value, axes=list(over), **attributes)

    average = mean(x, axes)
    subs = 1 if form == "tensorflow" else subs  # a second Sub would be dead there
    centred = spell("Sub", x, average)
    again = spell("Sub", x, mean(x, axes) if subs == 3 else average) if subs > 1 else centred
    squared = spell("Mul", again, again) if square == "mul" else spell("Pow", again, spell.number(exponent))
    variance = mean(squared, axes if variance_axes is None else variance_axes)
    variance = commuted(spell, "Add", variance, spell.number(epsilon, shape=epsilon_shape), swap)
    factor = spell.array(np.resize(scale, parameter_shape)) if affine in ("both", "scale") else None
    shift = spell.array(np.resize(bias, parameter_shape)) if affine in ("both", "bias") else None
    if form == "after" or (factor is None and form != "tensorflow"):
        value = divided(spell, centred, variance, root, swap)
        value = value if factor is None else commuted(spell, "Mul", value, factor, swap)
    elif form == "on-centred":
        value = divided(spell, commuted(spell, "Mul", centred, factor, swap), variance, root, swap)
    else:
        inverse = inverse_root(spell, variance, root)
        inverse = inverse if factor is None else commuted(spell, "Mul", inverse, factor, swap)
        if form == "tensorflow" and shift is not None:
            scaled_mean = commuted(spell, "Mul", average, inverse, swap)
            left, right = commuted(spell, "Mul", x, inverse, not swap), spell("Sub", shift, scaled_mean)
            return commuted(spell, "Add", left, right, swap)
        value = commuted(spell, "Mul", centred, inverse, swap)
    return value if shift is None else commuted(spell, "Add", value, shift, swap)


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
    return spell.model(layer_norm(spell, **spelling), outputs)


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
    everything = itertools.product(ROOTS, SQUARES, FORMS, AFFINE, [1, 2, 3], [False, True])
    for number, (root, square, form, affine, subs, swap) in enumerate(everything):
        if number % 11 != opset % 11:  # each opset takes another part
            continue
        spelling = {"root": root, "square": square, "form": form, "affine": affine, "subs": subs, "swap": swap}
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
    ({"axes": None}, None),
    ({"exponent": 3.0}, "is 3, not 2"),
    ({"epsilon": 0.0}, "epsilon is 0.0, not positive"),
    ({"epsilon": -1e-5}, "not positive"),
    ({"epsilon_shape": (3, 1)}, "epsilon is not a constant number"),
    ({"epsilon_shape": (1, 1, 1, 1)}, "epsilon has more dimensions than x"),
]


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize(("change", "reason"), [item for item in REFUSALS if item[1]])
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


def half_precision(cast_back, opset=17, elem_type=TensorProto.FLOAT16):
    """float16 x widened to float32, normalised, and cast back before the scale, before the bias, or at the end."""
    spell = Spelling(opset, TensorProto.FLOAT, shape=SHAPE)
    wide = spell("Cast", "x", to=TensorProto.FLOAT)
    value = layer_norm(spell, wide, affine="neither")
    dtype = np.float16
    if cast_back == "scale":
        value = spell("Mul", spell("Cast", value, to=elem_type), spell.array(SCALE.astype(dtype)))
    elif cast_back == "bias":
        value = spell("Cast", spell("Mul", value, spell.array(SCALE)), to=elem_type)
    else:
        value = spell("Add", spell("Mul", value, spell.array(SCALE)), spell.array(BIAS))
        return spell.model(spell("Cast", value, to=elem_type), x_type=elem_type)
    return spell.model(spell("Add", value, spell.array(BIAS.astype(dtype))), x_type=elem_type)


@pytest.mark.parametrize(
    ("cast_back", "expected"),
    [
        ("scale", ["LayerNormalization"]),
        ("bias", ["Cast", "LayerNormalization", "Cast", "Add"]),
        ("end", ["Cast", "LayerNormalization", "Cast"]),
    ],
)
def test_half_precision_by_where_the_cast_back_stands(cast_back, expected):
    before = half_precision(cast_back)
    _, after = run_pass(LayerNorm(), before)
    assert ops(after) == expected
    for x in (X, 1e-3 * X, X + 20):
        parity(before, after, {"x": x.astype(np.float16)}, rtol=4e-3, atol=4e-3)


def test_a_result_narrowed_to_another_type_than_x_had_is_fused_without_its_scale():
    spell = Spelling(17, shape=SHAPE)
    narrow = spell("Cast", layer_norm(spell, affine="neither"), to=TensorProto.FLOAT16)
    scaled = spell("Mul", narrow, spell.array(SCALE.astype(np.float16)))
    before = spell.model(spell("Cast", scaled, to=TensorProto.FLOAT))
    _, after = run_pass(LayerNorm(), before)
    assert ops(after) == ["LayerNormalization", "Cast", "Mul", "Cast"]
    parity(before, after, {"x": X}, rtol=4e-3, atol=4e-3)


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


@settings(max_examples=60, deadline=None)
@given(
    opset=st.sampled_from(OPSETS),
    root=st.sampled_from(ROOTS),
    square=st.sampled_from(SQUARES),
    form=st.sampled_from(FORMS),
    affine=st.sampled_from(AFFINE),
    subs=st.sampled_from([1, 2, 3]),
    swap=st.booleans(),
    axes=st.sampled_from([(-1,), (2,)]),
    parameter_shape=st.sampled_from([(H,), (1, H), (1, 1, H)]),
    epsilon=st.sampled_from([1e-5, 1e-12, 1e-3]),
    change=st.sampled_from([None, None, "axes", "epsilon", "exponent"]),
    seed=st.integers(0, 9),
)
def test_legal_spellings_are_fused_and_one_illegal_change_refuses(change, seed, square, **spelling):
    legal = dict(spelling, square=square)
    opset = legal.pop("opset")
    if change == "axes":
        legal["variance_axes"] = (1, 2)
    elif change == "epsilon":
        legal["epsilon"] = 0.0
    elif change == "exponent":
        legal |= {"square": "pow", "exponent": 4.0}
    before = model_of(opset, **legal)
    session, after = run_pass(LayerNorm(), before)
    x = np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)
    if change is None:
        assert ops(after) == ["LayerNormalization"]
    else:
        assert not session.sites
        expected = {"axes": "different axes", "epsilon": "epsilon is 0.0", "exponent": "is 4, not 2"}[change]
        assert any(expected in item.reason for item in session.rejections)
    parity(before, after, {"x": x}, rtol=1e-4, atol=2e-5)
