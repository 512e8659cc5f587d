"""Proven bounds: what each op makes of them, and that no run ever leaves them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from onnx import parser

import rewright
from rewright.model.load import load
from rewright.testing.strategies import cases, models
from rewright.verify.inputs import make_input_sets
from rewright.verify.process import SessionWorker
from rewright.verify.static.assumptions import assumed_bounds
from rewright.verify.static.interval import Interval
from rewright.verify.static.measured import measure
from rewright.verify.static.ranges import Ranges

ZOO = Path(__file__).parents[2] / "zoo"
INF = math.inf


@pytest.fixture(scope="module")
def worker():
    with SessionWorker(threads=1) as made:
        yield made


def ranges_of(body: str, opset: int = 17, **bounds: tuple[float, float]) -> Ranges:
    """Of a graph that computes ``y`` of ``x`` (N, 4), in ONNX's text form."""
    head = f'<ir_version: 9, opset_import: ["": {opset}, "com.microsoft": 1]>'
    model = parser.parse_model(f"{head} g (float[N, 4] x, float[N, 4] z, int64[N] ids, bool flag) => (y) {body}")
    return Ranges(load(model), {name: Interval(*pair) for name, pair in bounds.items()})


def bounds_of(ranges: Ranges, name: str = "y") -> tuple[float, float]:
    (found,) = (known for tensor, _, known in ranges.values() if tensor.name == name)
    return found.low, found.high


BOUNDED = [
    ("{ y = Relu(x) }", (0, 3)),
    ("{ y = Add(x, z) }", (-12, 13)),
    ("{ y = Sub(x, z) }", (-12, 13)),
    ("{ y = Mul(x, z) }", (-30, 30)),
    ("{ y = Mul(x, x) }", (0, 9)),
    ("<float c = {2.0}> { y = Pow(x, c) }", (0, 9)),
    ("<float c = {3.0}> { y = Pow(x, c) }", (-8, 27)),
    ("<float c = {4.0}> { y = Div(x, c) }", (-0.5, 0.75)),
    ("{ y = Div(x, z) }", (-INF, INF)),
    ("{ e = Exp(z)  y = Div(x, e) }", (-2 * math.e**10, 3 * math.e**10)),
    ("{ y = Sqrt(x) }", (0, math.sqrt(3))),
    ("{ y = Log(x) }", (-INF, math.log(3))),
    ("{ y = Tanh(x) }", (math.tanh(-2), math.tanh(3))),
    ("{ y = Sigmoid(x) }", (1 / (1 + math.exp(2)), 1 / (1 + math.exp(-3)))),
    ("{ y = Abs(x) }", (0, 3)),
    ("{ y = Neg(x) }", (-3, 2)),
    ("{ y = com.microsoft.FastGelu(x) }", (-0.1701, 3)),
    ("{ y = com.microsoft.QuickGelu <alpha = 1.0> (x) }", (-0.27847, 3)),
    ("{ y = LeakyRelu <alpha = 0.5> (x) }", (-1, 3)),
    ("<float low = {-1.0}> { y = Clip(x, low) }", (-1, 3)),
    ("{ y = Max(x, z) }", (-2, 10)),
    ("{ y = Min(x, z) }", (-10, 3)),
    ("<float m = {-10000.0}> { c = Greater(x, z)  y = Where(c, x, m) }", (-10000, 3)),
    ("{ y = Softmax(z) }", (0, 1)),
    ("{ y = ReduceMax <keepdims = 0> (x) }", (-2, 3)),
    ("{ y = ReduceMean <axes = [-1]> (x) }", (-2, 3)),
    ("<int64[1] a = {-1}> { y = ReduceSum(x, a) }", (-8, 12)),
    ("<int64[1] a = {0}> { y = ReduceSum(x, a) }", (-INF, INF)),
    ("{ y = ReduceL2 <axes = [-1]> (x) }", (0, 6)),
    ("<float[2] t = {-7.0, 5.0}> { y = Gather(t, ids) }", (-7, 5)),
    ("<float[4, 2] w = {1.0, -1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.5}> { y = MatMul(x, w) }", (-6, 9)),
    ("<float[4, 2] w = {1.0, -1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.5}, float[2] b = {100.0, 0.0}> { y = Gemm(x, w, b) }", (-4, 109)),
    ("<float[2, 4] w = {1.0, 2.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.5}> { y = Gemm <transB = 1, alpha = 2.0> (x, w) }", (-12, 18)),
    ("{ t = Transpose <perm = [1, 0]> (x)  y = MatMul(x, t) }", (-24, 36)),
    ("{ t = Transpose <perm = [1, 0]> (x)  y = MatMul(t, x) }", (-INF, INF)),
    ("{ y = Concat <axis = 0> (x, z) }", (-10, 10)),
    ("{ y = ConstantOfShape <value = float[1] {3.5}> (ids) }", (3.5, 3.5)),
    ("{ i = Cast <to = 7> (x)  f = Cast <to = 1> (i)  y = Relu(f) }", (0, 2.0**63)),
    ("{ b = Cast <to = 9> (x)  y = Cast <to = 1> (b) }", (0, 1)),
    ("{ s = Shape(x)  y = Cast <to = 1> (s) }", (0, 2.0**63)),
    ("{ y = If (flag) <then_branch = t () => (float a) { a = Neg(x) }, else_branch = e () => (float b) { b = Tanh(z) }> }",
     (-3, 2)),
    ("<float[1, 1, 2] w = {1.0, -2.0}> { u = Unsqueeze(x, ids)  y = Conv <pads = [1, 1]> (u, w) }", (-8, 7)),
]  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), BOUNDED, ids=[body[:60] for body, _ in BOUNDED])
def test_bounds(body, expected):
    low, high = bounds_of(ranges_of(body, x=(-2, 3), z=(-10, 10)))
    assert low == pytest.approx(expected[0], rel=1e-4, abs=1e-5)
    assert high == pytest.approx(expected[1], rel=1e-4, abs=1e-5)
    assert low <= expected[0] + 1e-12
    assert high >= expected[1] - 1e-12


NORMALISED = [
    "{ y = LayerNormalization(x, g, b) }",
    "<float[1] a = {-1.0}, float c = {2.0}, float e = {1e-12}> { m = ReduceMean <axes = [-1]> (x)  d = Sub(x, m)  p = Pow(d, c)"
    " v = ReduceMean <axes = [-1]> (p)  w = Add(v, e)  s = Sqrt(w)  q = Div(d, s)  h = Mul(q, g)  y = Add(h, b) }",
    "<float c = {0.0}, float e = {1e-6}> { p = Mul(x, x)  v = ReduceMean <axes = [-1]> (p)  w = Add(e, v)  s = Sqrt(w)"
    " r = Reciprocal(s)  q = Mul(x, r)  h = Mul(g, q)  y = Add(h, b) }",
    "<float c = {-0.5}, float e = {1e-6}> { p = Mul(x, x)  v = ReduceMean <axes = [-1]> (p)  w = Add(e, v)  r = Pow(w, c)"
    " q = Mul(r, x)  h = Mul(g, q)  y = Add(h, b) }",
]


@pytest.mark.parametrize("body", NORMALISED)
def test_a_normalised_row_is_bounded_though_its_input_is_not(body):
    declared = "float[4] g = {0.5, -2.0, 1.0, 0.0}, float[4] b = {0.0, 1.0, -3.0, 5.0}"
    start = f"<{declared}, {body[1:]}" if body.startswith("<") else f"<{declared}> {body}"
    found = ranges_of(start)
    low, high = bounds_of(found)
    fused = "LayerNormalization" in body
    # each element of a row of four is at most 2; a decomposed one is bounded without regard to which scale meets which bias
    assert (low, high) == pytest.approx((-5.0, 5.0) if fused else (-7.0, 9.0), rel=1e-3)


def test_what_follows_a_normalisation_is_bounded_by_the_norms_of_the_columns():
    weights = "<float[4] g = {1.0, 1.0, 1.0, 1.0}, float[4, 1] w = {3.0, 3.0, 3.0, 3.0}> "
    low, high = bounds_of(ranges_of(weights + "{ n = LayerNormalization(x, g)  y = MatMul(n, w) }"))
    assert (low, high) == pytest.approx((-12, 12), rel=1e-3)  # 2 * 6; element by element it would be 24
    low, high = bounds_of(
        ranges_of(weights + "{ n = Clip(x, min, max)  y = MatMul(n, w) }".replace("min", "").replace(", max", ""))
    )
    assert (low, high) == (-INF, INF)


def test_an_average_is_bounded_by_what_is_averaged():
    low, high = bounds_of(
        ranges_of("{ t = Transpose <perm = [1, 0]> (z)  s = MatMul(x, t)  p = Softmax(s)  y = MatMul(p, z) }", z=(-10, 10))
    )
    assert (low, high) == pytest.approx((-10, 10), rel=1e-2)
    low, high = bounds_of(
        ranges_of("{ s = Softmax <axis = 0> (x)  t = Transpose <perm = [1, 0]> (z)  y = MatMul(s, t) }", z=(-10, 10))
    )
    assert (low, high) == pytest.approx((-40, 40), rel=1e-2)  # the weights of a row do not add up to 1


def test_a_norm_does_not_bound_another_row():
    body = (
        "{ p = Mul(x, x)  v = ReduceSum <keepdims = 0> (p, a)  e = Add(v, c)  s = Sqrt(e)  u = Unsqueeze(s, a0)  y = Div(x, u) }"
    )
    declared = "<int64[1] a = {-1}, int64[1] a0 = {0}, float c = {1e-6}> "
    assert bounds_of(ranges_of(declared + body)) == (-INF, INF)
    # squares that vanish: the norm of 1e-30 is 0
    assert bounds_of(ranges_of("{ s = ReduceL2 <axes = [-1]> (x)  y = Div(x, s) }")) == (-INF, INF)
    assert bounds_of(
        ranges_of("{ s = ReduceL2 <axes = [-1]> (x)  m = Max(s, e)  y = Div(x, m) }".replace("{", "<float e = {1e-6}> {", 1))
    ) == (pytest.approx((-1, 1), rel=1e-3))


@pytest.mark.parametrize("epsilon", [1e-7, 1e-5])
def test_squares_that_vanish_in_half_precision(epsilon, worker):
    bits = int(np.float16(epsilon).view(np.uint16))
    text = f"""<ir_version: 9, opset_import: ["": 17]> g (float16[N, 4] x) => (float16[N, 4] y) <float16 e = {{{bits}}}> {{
        p = Mul(x, x)  m = ReduceMean <axes = [-1]> (p)  v = Add(m, e)  s = Sqrt(v)  y = Div(x, s) }}"""
    model = load(parser.parse_model(text))
    ranges = Ranges(model)
    rng = np.random.default_rng(3)
    sets = [
        {"x": (rng.standard_normal((64, 4)) * scale).astype(np.float16)} for scale in (1e-5, 1e-4, 3e-4, 1e-3, 1e-2, 1.0, 100.0)
    ]
    measured, problems = measure(model, ranges, worker, sets)
    assert problems == []
    assert outside(ranges, measured) == []
    # an element is at most the root of four, and more where squares below 6e-5 lose to epsilon
    assert 2.0 < bounds_of(ranges)[1] < {1e-7: 100.0, 1e-5: 6.0}[epsilon]


def test_a_row_that_repeats_an_element_has_another_norm():
    weights = "<float[4] g = {1.0, 1.0, 1.0, 1.0}, float[4, 1] w = {3.0, 3.0, 3.0, 3.0}, int64[4] i = {0, 0, 0, 0}> "
    body = "{ n = LayerNormalization(x, g)  r = Gather <axis = AXIS> (n, i)  y = MatMul(r, w) }"
    assert bounds_of(ranges_of(weights + body.replace("AXIS", "1")))[1] == pytest.approx(24, rel=1e-3)
    assert bounds_of(ranges_of(weights + body.replace("AXIS", "0")))[1] == pytest.approx(12, rel=1e-3)


def test_a_bias_that_goes_down_the_columns_meets_every_column():
    weights = "float[4, 4] w = {0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0}"
    for shape, high in (("[4]", 100), ("[1, 4]", 100), ("[4, 1]", 103)):
        body = f"<{weights}, float{shape} b = {{100.0, 0.0, 0.0, 0.0}}> {{ y = Gemm(x, w, b) }}"
        assert bounds_of(ranges_of(body, x=(-2, 3)))[1] == pytest.approx(high, rel=1e-5)


def test_integers_wrap_around():
    body = "{ a = Add(ids, ids)  y = Cast <to = 1> (a) }"
    assert bounds_of(ranges_of(body, ids=(5, 7))) == pytest.approx((10, 14), rel=1e-5)
    low, high = bounds_of(ranges_of(body, ids=(2**62, 2**62)))
    assert (low, high) == pytest.approx((-(2.0**63), 2.0**63), rel=1e-5)
    body = "<int64[4] w = {1, 1, 1, 1}> { m = Mul(ids, w)  s = ReduceSum(m)  y = Cast <to = 1> (s) }"
    assert bounds_of(ranges_of(body, ids=(2**62, 2**62)))[0] <= -(2.0**63)


def test_a_dropout_that_drops_is_none_of_inference():
    body = "<float r = {0.5}, bool t = {TRUE}> { y = Dropout(x, r, t) }"
    assert bounds_of(ranges_of(body.replace("TRUE", "0"), x=(-2, 3))) == (-2, 3)
    assert bounds_of(ranges_of(body.replace("TRUE", "1"), x=(-2, 3))) == (-INF, INF)


def test_what_may_overflow_has_no_bound():
    assert bounds_of(ranges_of("{ y = Exp(x) }", x=(-2, 100))) == (pytest.approx(math.exp(-2), rel=1e-5), INF)
    assert bounds_of(ranges_of("{ y = Mul(x, x) }", x=(-1e30, 1))) == (0, INF)
    # the sum overflows on the way to the mean
    assert bounds_of(ranges_of("{ y = ReduceMean <axes = [-1]> (x) }", x=(-3e38, 3e38))) == (-INF, INF)
    assert bounds_of(ranges_of("{ h = Cast <to = 10> (x)  y = Cast <to = 1> (h) }", x=(-70000, 5))) == (
        -INF,
        pytest.approx(5, rel=1e-2),
    )


def test_functions_are_looked_into_with_what_they_are_called_with():
    model = parser.parse_model("""<ir_version: 9, opset_import: ["": 17, "own": 1]>
    g (float[N, 4] x) => (y) <float low = {-5.0}, float high = {2.0}> { c = own.Twice(low)  d = own.Twice(high)  y = Sub(c, d) }
    <domain: "own", opset_import: ["": 17]> Twice (a) => (b) { b = Add(a, a) }""")
    ranges = Ranges(load(model))
    assert [bounds_of(ranges, name) for name in "cdy"] == [pytest.approx(pair) for pair in ((-10, -10), (4, 4), (-14, -14))]


def test_what_a_loop_carries_is_unknown_and_what_it_gives_is_not():
    body = """{ n = Constant <value = int64 {3}> ()  t = Constant <value = bool {1}> ()
    y, s = Loop (n, t, x) <body = b (int64 i, bool c, float[N, 4] v) => (bool d, float[N, 4] w, float[N, 4] o) {
        d = Identity(c)  w = Add(v, v)  o = Tanh(v) }> }"""
    ranges = ranges_of(body, x=(-1, 1))
    assert bounds_of(ranges, "y") == (-INF, INF)
    assert bounds_of(ranges, "s") == pytest.approx((-1, 1), abs=1e-5)


def test_large_constants_are_not_read_unless_allowed():
    weight = np.ones((64, 64), np.float32)
    graph = parser.parse_graph("g (float[N, 64] x) => (float[N, 64] y) { y = MatMul(x, w) }")
    graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    model = load(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9))
    given_bounds = {"x": Interval(-1.0, 1.0)}
    assert bounds_of(Ranges(model, given_bounds)) == pytest.approx((-64, 64), rel=1e-4)
    unread = Ranges(model, given_bounds, most_weight_bytes=1000)
    assert (bounds_of(unread), unread.unread) == ((-INF, INF), ["w"])


def test_a_chain_of_many_nodes_is_no_matter():
    nodes = "".join(f"v{index + 1} = Neg(v{index})  " for index in range(3000))
    assert bounds_of(ranges_of(f"{{ v0 = Tanh(x)  {nodes} y = Identity(v3000) }}")) == pytest.approx((-1, 1), rel=1e-2)


def outside(ranges: Ranges, measured: dict[str, Interval]) -> list[str]:
    """The values that were measured beyond their bounds."""
    known = {tensor.name: bounds for tensor, _, bounds in ranges.values()}
    return [name for name, seen in measured.items() if seen.low < known[name].low or seen.high > known[name].high]


@pytest.mark.parametrize("path", sorted(ZOO.glob("*.onnx")), ids=lambda path: path.stem)
def test_no_run_of_a_real_model_leaves_its_bounds(path, worker):
    model = load(path)
    ranges = Ranges(model, {name: known for name, (known, _) in assumed_bounds(model).items()})
    sets = [input_set.arrays for input_set in make_input_sets(model)]
    measured, problems = measure(model, ranges, worker, sets)
    assert problems == []
    assert outside(ranges, measured) == []
    bounded = [known.is_bounded for tensor, _, known in ranges.values() if tensor.name in measured]
    assert sum(bounded) >= 0.8 * len(measured) > 40


@pytest.mark.parametrize("name", ["bert.ts17.sdpa", "gpt2.dyn18.sdpa", "llama.ts17.eager", "modernbert.dyn20.eager"])
def test_fused_ops_have_bounds_too(name, worker):
    model = rewright.Chain("O3, embed-layer-norm").run(ZOO / f"{name}.onnx", verify="off").model
    assert any(node.domain == "com.microsoft" for node in model.proto.graph.node)
    ranges = Ranges(model, {name: known for name, (known, _) in assumed_bounds(model).items()})
    measured, _ = measure(model, ranges, worker, [input_set.arrays for input_set in make_input_sets(model)])
    assert outside(ranges, measured) == []
    assert all(known.is_bounded for tensor, _, known in ranges.values() if tensor.name in measured)


def test_a_wrong_bound_would_be_seen(worker):
    model = load(ZOO / "vit.ts17.sdpa.onnx")
    sets = [make_input_sets(model)[0].arrays]
    for limit, is_wrong in ((10.0, False), (0.5, True)):
        ranges = Ranges(model, {"pixel_values": Interval(-limit, limit)})
        measured, _ = measure(model, ranges, worker, sets)
        assert ("pixel_values" in outside(ranges, measured)) is is_wrong
        assert len(outside(ranges, measured)) <= (5 if is_wrong else 0)  # up to the first normalisation


@settings(max_examples=40, suppress_health_check=list(HealthCheck), database=None)
@given(case=cases(models()))
def test_no_run_of_a_made_model_leaves_its_bounds(case, worker):
    proto, feeds = case
    given_bounds = {
        name: Interval(float(array.min()), float(array.max()))
        for name, array in feeds.items()
        if array.size and array.dtype.kind in "fiub"
    }
    ranges = Ranges(load(proto), given_bounds)
    measured, problems = measure(load(proto), ranges, worker, [feeds])
    assert problems == []
    assert outside(ranges, measured) == []
