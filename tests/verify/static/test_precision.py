"""What a narrower type cannot hold: values, constants, squares, sums, integers."""

from __future__ import annotations

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import parser

from rewright.model.load import load
from rewright.verify.inputs import InputSet, make_input_sets
from rewright.verify.static.checks import static_checks
from rewright.verify.static.evidence import Finding, StaticEvidence

ZOO = Path(__file__).parents[2] / "zoo"


def checked(
    body: str, precision: str = "float16", inputs: dict[str, np.ndarray] | None = None, **bounds: tuple[float, float]
) -> StaticEvidence:
    """A graph of ``x`` (N, 4), in ONNX's text form, checked for a narrower type."""
    model = parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 17]> g (float[N, 4] x, int64[N] ids) => (float[N, 4] y) {body}'
    )
    sets = [] if inputs is None else [InputSet("given", {"ids": np.zeros(1, np.int64), **inputs})]
    return static_checks(load(model), precision=precision, bounds=bounds, input_sets=sets)


def said(evidence: StaticEvidence) -> list[tuple[str, str, str]]:
    return [(finding.certainty, finding.kind, finding.op) for finding in evidence.findings if finding.kind != "kernel"]


def the(evidence: StaticEvidence, kind: str) -> Finding:
    (found,) = (finding for finding in evidence.findings if finding.kind == kind)
    return found


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (10, []),
        (30000, [("possible", "overflow", "Mul")]),
        (-30000, [("possible", "overflow", "Mul")]),
    ],
)
def test_what_may_overflow(scale, expected):
    evidence = checked(f"<float c = {{{scale}.0}}> {{ y = Mul(x, c) }}", x=(-3, 3))
    assert said(evidence) == expected
    assert (evidence.status, evidence.keep) == ("passed", [])


def test_the_same_value_measured():
    ones = np.ones((1, 4), np.float32)
    body = "<float c = {30000.0}> { y = Mul(x, c) }"
    assert said(checked(body, inputs={"x": ones * 2}, x=(-3, 3))) == [("possible", "overflow", "Mul")]
    evidence = checked(body, inputs={"x": ones * 2.5}, x=(-3, 3))
    assert said(evidence) == [("measured", "overflow", "Mul")]
    found = the(evidence, "overflow")
    assert (found.low, found.high) == pytest.approx((-90000, 90000))
    assert (found.measured_low, found.measured_high) == (75000, 75000)
    assert "it reaches 7.5e+04, and the largest float16 is 65504" in found.message
    assert (evidence.status, evidence.keep) == ("failed", [found.node])
    # in bfloat16 there is room for it
    assert said(checked(body, "bfloat16", inputs={"x": ones * 2.5}, x=(-3, 3))) == []


def test_what_overflows_in_every_run():
    evidence = checked("<float c = {60000.0}> { a = Add(x, c)  y = Add(a, c) }", x=(0, 1))
    assert said(evidence) == [("certain", "overflow", "Add")]
    assert the(evidence, "overflow").value == "y"


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float8e4m3fn", "float8e5m2"])
def test_the_limit_is_the_types_own(precision):
    dtype = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float8e4m3fn": ml_dtypes.float8_e4m3fn}.get(
        precision, ml_dtypes.float8_e5m2
    )
    largest = float(ml_dtypes.finfo(dtype).max)
    for factor in (1.0, 1.2):
        number = min(largest * factor, float(np.finfo(np.float32).max))
        with np.errstate(over="ignore"):
            lost = not np.isfinite(np.float32(number).astype(dtype).astype(np.float32))
        evidence = checked(f"<float c = {{{number!r}}}> {{ y = Min(x, c) }}".replace("e+", "e"), precision, x=(0, 1))
        assert (("certain", "overflow", "Min") in said(evidence)) is lost
        assert lost is (factor > 1)


def test_a_mask_of_the_lowest_float32_is_named_as_one():
    lowest = float(np.finfo(np.float32).min)
    body = f"<float m = {{{lowest!r}}}> {{ c = Greater(x, x)  y = Where(c, x, m) }}".replace("e+", "e")
    for precision in ("float16", "bfloat16"):
        evidence = checked(body, precision, x=(-1, 1))
        assert "the mask value -3.403e+38 becomes -inf" in evidence.findings[0].message
        assert evidence.findings[0].certainty == "certain"
    assert said(checked("<float m = {-10000.0}> { c = Greater(x, x)  y = Where(c, x, m) }", x=(-1, 1))) == []


@pytest.mark.parametrize(
    ("epsilon", "expected"),
    [
        ("1e-12", [("certain", "underflow", "Add")]),
        ("2e-8", [("certain", "underflow", "Add")]),
        ("1e-5", [("possible", "underflow", "Add")]),  # subnormal
        ("1e-3", []),
    ],
)
def test_an_epsilon_that_vanishes(epsilon, expected):
    assert (float(np.float16(float(epsilon))) == 0.0) is (expected[:1] == [("certain", "underflow", "Add")])
    evidence = checked(f"<float e = {{{epsilon}}}> {{ p = Abs(x)  w = Add(p, e)  y = Sqrt(w) }}", x=(-1, 1))
    assert said(evidence) == expected
    assert said(checked(f"<float e = {{{epsilon}}}> {{ p = Abs(x)  w = Add(p, e)  y = Sqrt(w) }}", "bfloat16", x=(-1, 1))) == []


def test_the_epsilon_of_a_fused_normalisation():
    evidence = checked("<float[4] g = {1.0, 1.0, 1.0, 1.0}> { y = LayerNormalization <epsilon = 1e-12> (x, g) }", x=(-1, 1))
    assert said(evidence) == [("possible", "underflow", "LayerNormalization")]


def test_a_square_under_a_mean():
    body = "<float c = {2.0}> { p = Pow(x, c)  m = ReduceMean <axes = [-1]> (p)  y = Sub(x, m) }"
    evidence = checked(body, x=(-400, 400))
    square = the(evidence, "square")
    assert (square.op, square.certainty) == ("Pow", "possible")
    assert "what is squared must stay below 255.9" in square.message
    assert 255.9**2 < 65504 < 256**2
    assert said(checked(body, x=(-100, 100))) == []
    # nothing is known of x: the square is named all the same
    assert the(checked(body), "square").message.startswith("nothing bounds it")


def test_the_sum_under_a_mean_that_fits():
    body = "{ y = ReduceMean <axes = [-1]> (x) }"
    found = the(checked(body, x=(0, 20000)), "sum")
    assert "the sum of 4 terms under the mean may reach 8e+04" in found.message
    assert said(checked(body, x=(0, 16000))) == []


def test_integers_that_are_rounded():
    body = "<float[4] o = {0.0, 0.0, 0.0, 0.0}> { f = Cast <to = 1> (ids)  u = Unsqueeze(f, one)  y = Add(u, o) }"
    body = body.replace("<float[4]", "<int64[1] one = {1}, float[4]")
    assert said(checked(body, ids=(0, 2048))) == []
    assert said(checked(body, ids=(0, 2049))) == [("possible", "rounding", "Cast")]
    assert float(np.float16(2049)) != 2049
    assert said(checked(body, "bfloat16", ids=(0, 2048))) == [("possible", "rounding", "Cast")]
    evidence = checked(body, inputs={"x": np.zeros((1, 4), np.float32), "ids": np.array([2049])})
    assert the(evidence, "rounding").certainty == "measured"


def test_what_is_narrow_already_is_not_judged():
    model = parser.parse_model(
        '<ir_version: 9, opset_import: ["": 17]> g (float16[N] x) => (float16[N] y) { a = Mul(x, x)  y = Cast <to = 10> (a) }'
    )
    assert [f for f in static_checks(load(model), precision="float16").findings if f.kind != "kernel"] == []


def test_a_prediction_holds_in_numpy():
    """Where the check is certain or silent about a chain of ops, float16 arithmetic agrees."""
    rng = np.random.default_rng(5)
    x = rng.uniform(-3, 3, (8, 4)).astype(np.float32)
    for scale in (1.0, 50.0, 100.0, 500.0):
        evidence = checked(f"<float c = {{{scale}}}> {{ s = Mul(x, c)  y = Mul(s, s) }}", inputs={"x": x}, x=(-3, 3))
        with np.errstate(over="ignore"):
            narrow = (x.astype(np.float16) * np.float16(scale)) ** 2
        overflowed = not np.isfinite(narrow).all()
        assert overflowed is any(finding.certainty == "measured" for finding in evidence.findings), scale
        if not said(evidence):
            assert 9 * scale * scale < 65504


def test_a_real_model():
    model = load(ZOO / "bert.ts14.eager.onnx")
    evidence = static_checks(model, precision="float16", input_sets=make_input_sets(model))
    certain = [(finding.kind, finding.node) for finding in evidence.findings if finding.certainty == "certain"]
    assert certain == [
        ("underflow", "/bert/embeddings/LayerNorm/Add"),
        ("overflow", "/bert/Mul"),
        *(
            ("underflow", f"/bert/encoder/layer.{layer}/{part}/LayerNorm/Add")
            for layer in (0, 1)
            for part in ("attention/output", "output")
        ),
    ]
    measured = [finding for finding in evidence.findings if finding.certainty == "measured"]
    assert {finding.node for finding in measured} == {
        "/bert/Mul", "/bert/encoder/layer.0/attention/self/Add", "/bert/encoder/layer.1/attention/self/Add",
    }  # fmt: skip
    assert all(finding.measured_low == pytest.approx(-3.4028235e38) for finding in measured)
    assert set(evidence.keep) == {node for _, node in certain} | {finding.node for finding in measured}
    assert evidence.input_sets == ["set-0", "set-1", "set-2", "set-3"]
    assert evidence.bounded / evidence.values > 0.95
    assert math.isfinite(sum(assumption.high for assumption in evidence.assumptions))
