"""layer-norm in half precision, over sums and dropped axes, and what looks like it in other layouts."""

import numpy as np
import pytest
from norm_spelling import BIAS, SCALE, SHAPE, H, X, layer_norm, model_of
from onnx import TensorProto
from pass_harness import ZOO, as_model, ops, parity, run_pass
from spelling import Spelling

from rewright.passes.fusion.layer_norm import LayerNorm
from rewright.passes.fusion.rms_norm import RmsNorm
from rewright.passes.fusion.skip_layer_norm import SkipLayerNorm


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


@pytest.mark.parametrize("mean", ["sum", "share"])
@pytest.mark.parametrize("opset", [17, 23])
def test_a_sum_over_another_number_is_no_mean(mean, opset):
    before = model_of(opset, mean=mean, length=H + 1)
    session, after = run_pass(LayerNorm(), before)
    assert not session.sites
    assert after.fingerprint() == as_model(before).fingerprint()


def test_axes_that_do_not_come_back_where_they_were_are_refused():
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[4, 4] x) => (float[4, 4] y) <float e = {1e-5}, int64[1] a = {0}> {
            m = ReduceMean<axes = [1], keepdims = 0>(x)
            u = Unsqueeze(m, a)
            d = Sub(x, u)
            s = Mul(d, d)
            v = ReduceMean<axes = [1], keepdims = 0>(s)
            w = Unsqueeze(v, a)
            ve = Add(w, e)
            r = Sqrt(ve)
            y = Div(d, r)
        }"""
    session, after = run_pass(LayerNorm(), text)
    assert not session.sites
    assert {"the axes that a mean drops are not those that come back" in item.reason for item in session.rejections} == {True}
    right = text.replace("a = {0}", "a = {-1}")
    _, after = run_pass(LayerNorm(), right)
    assert ops(after) == ["LayerNormalization"]
    parity(right, after, {"x": np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)}, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("opset", [17, 18])
def test_a_normalisation_over_channels_stays(opset):
    """Images as ConvNeXt, SAM and SegFormer normalise them: axis 1 of (N, C, H, W), scale and bias (C, 1, 1)."""
    before = model_of(opset, shape=(2, 4, 4, 4), axes=(1,), parameter_shape=(4, 1, 1), scale=SCALE[:4], bias=BIAS[:4], length=4)
    for current in (LayerNorm(), RmsNorm()):
        session, after = run_pass(current, before)
        assert not session.sites
        assert after.fingerprint() == as_model(before).fingerprint()
    session, _ = run_pass(LayerNorm(), before)
    assert {"a mean is over the axes [-3], not over the last ones" in item.reason for item in session.rejections} == {True}


def test_group_normalisation_and_what_follows_it_stay():
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2, 4, 4, 4] x, float[4, 4, 3, 3] w) => (float[2, 4, 4, 4] y)
        <int64[3] flat = {0, 2, -1}, int64[4] back = {2, 4, 4, 4}, float[2] one = {1, 1}, float[2] zero = {0, 0}> {
            f = Reshape(x, flat)
            n = InstanceNormalization(f, one, zero)
            r = Reshape(n, back)
            c = Conv<pads = [1, 1, 1, 1]>(r, w)
            s = Sigmoid(c)
            y = Mul(c, s)
        }"""
    for current in (LayerNorm(), RmsNorm(), SkipLayerNorm()):
        session, after = run_pass(current, text)
        assert not session.sites
        assert after.fingerprint() == as_model(text).fingerprint()


def test_a_mean_of_squares_without_the_mean_taken_off_is_for_rms_norm():
    """Where both fit, layer normalisation goes first; the centred value normalised again is a root-mean-square."""
    before = model_of(affine="neither")
    _, after = run_pass(LayerNorm(), before)
    assert ops(after) == ["LayerNormalization"]
    _, alone = run_pass(RmsNorm(), before)
    assert ops(alone) == ["ReduceMean", "Sub", "SimplifiedLayerNormalization"]
    parity(before, alone, {"x": X}, rtol=1e-5, atol=1e-5)


def test_modernbert_normalises_without_a_bias():
    session, after = run_pass(SkipLayerNorm(), ZOO / "modernbert.dyn20.eager.onnx")
    assert len(session.sites) == 4
    nodes = [node for node in after.proto.graph.node if node.op_type == "SkipLayerNormalization"]
    assert {len(node.input) for node in nodes} == {3}
