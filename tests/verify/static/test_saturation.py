"""What eight bits with a scale and a zero point hold, and what is cut off."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import parser

from rewright.model.load import load
from rewright.verify.inputs import InputSet
from rewright.verify.static.checks import static_checks
from rewright.verify.static.interval import Interval
from rewright.verify.static.ranges import Ranges
from rewright.verify.static.saturation import saturation


def test_an_interval_that_fits():
    fit = saturation(Interval(-1.0, 1.0), 1 / 127, 0, np.dtype(np.int8))
    assert not fit.is_cut
    assert fit.held == Interval(-128 / 127, 1.0)
    assert fit.used == pytest.approx(2 / (255 / 127))


def test_an_interval_that_does_not():
    cut = saturation(Interval(-0.5, 3.0), 1 / 127, 128, np.dtype(np.uint8))
    assert cut.is_cut
    assert cut.below == 0.0
    assert cut.above == pytest.approx((3.0 - 1.0 - 0.5 / 127) / (255 / 127))


def test_a_scale_has_to_be_positive():
    with pytest.raises(ValueError, match="scale"):
        saturation(Interval(0.0, 1.0), 0.0, 0, np.dtype(np.int8))


@given(
    low=st.floats(-100, 100), width=st.floats(0, 100), scale=st.floats(1e-3, 1), point=st.integers(-128, 127)
)  # fmt: skip
def test_what_is_not_cut_comes_back_within_half_a_level(low, width, scale, point):
    values = np.linspace(low, low + width, 50)
    levels = np.clip(np.round(values / scale) + point, -128, 127)
    error = np.abs((levels - point) * scale - values).max()
    cut = saturation(Interval(low, low + width), scale, point, np.dtype(np.int8))
    assert (error > scale / 2 * (1 + 1e-9) + 1e-12) <= cut.is_cut
    if cut.is_cut and max(cut.below, cut.above) > 1e-9:
        assert error > scale / 2


MODEL = """<ir_version: 9, opset_import: ["": 17]> g (float[N, 4] x) => (float[N, 4] y) <float s = {0.0078125}, int8 z = {0}> {
    a = Tanh(x)  b = Add(a, a)  q = QuantizeLinear(b, s, z)  y = DequantizeLinear(q, s, z) }"""


def test_a_node_that_cuts_off_what_its_input_reaches():
    model = load(parser.parse_model(MODEL))
    (possible,) = static_checks(model).findings
    assert (possible.kind, possible.certainty, possible.op, possible.value) == ("saturation", "possible", "QuantizeLinear", "b")
    assert "may reach from -2 to 2, and int8 holds -1 to 0.9922" in possible.message
    large = np.full((2, 4), 3.0, np.float32)
    (measured,) = static_checks(model, input_sets=[InputSet("large", {"x": large})]).findings
    assert static_checks(model, input_sets=[InputSet("large", {"x": large})]).status == "passed"  # it may be on purpose
    assert (measured.certainty, measured.measured_high) == ("measured", pytest.approx(2 * np.tanh(3.0), rel=1e-5))
    # small inputs do not reach it, but others may
    (still,) = static_checks(model, input_sets=[InputSet("small", {"x": large / 30})]).findings
    assert still.certainty == "possible"
    half = parser.parse_model(MODEL.replace("Add(a, a)", "Identity(a)").replace("0.0078125", "0.0079"))
    assert static_checks(load(half)).findings == []


def test_quantized_values_have_bounds():
    ranges = Ranges(load(parser.parse_model(MODEL)))
    known = {tensor.name: bounds for tensor, _, bounds in ranges.values()}
    assert known["q"] == Interval(-128.0, 127.0)
    assert (known["y"].low, known["y"].high) == pytest.approx((-1.0, 127 / 128), rel=1e-5)
    coarse = Ranges(load(parser.parse_model(MODEL.replace("0.0078125", "0.1"))))
    known = {tensor.name: bounds for tensor, _, bounds in coarse.values()}
    assert (known["q"].low, known["q"].high) == pytest.approx((-21, 21), rel=1e-5)  # a level more than 2 / 0.1
    assert (known["y"].low, known["y"].high) == pytest.approx((-2.1, 2.1), rel=1e-5)


def test_sums_of_integers_that_leave_32_bits():
    text = """<ir_version: 9, opset_import: ["": 17]>
    g (uint8[N, {k}] a, int8[{k}, M] b) => (int32[N, M] y) {{ y = MatMulInteger(a, b) }}"""
    assert static_checks(load(parser.parse_model(text.format(k=60000)))).findings == []
    (found,) = static_checks(load(parser.parse_model(text.format(k=70000)))).findings
    assert (found.kind, found.certainty) == ("saturation", "possible")
    assert 60000 * 255 * 128 < 2**31 < 70000 * 255 * 128
