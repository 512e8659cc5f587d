"""Graphs on which the fuzzer found something, made small: they have to stay without a finding."""

import pytest
from onnx.parser import parse_model

from rewright.registry.catalog import default_catalog
from rewright.testing.fuzz.checks import Examiner
from rewright.verify.process import SessionWorker

GRAPHS = {
    "a nameless node that moves out of a body": (
        "inline-conditionals",
        17,
        """g (float[N] x) => (float[N] y) <bool flag = {1}> {
            y = If(flag) <then_branch = t () => (float[N] a) { b = Neg(x) a = Relu(b) },
                          else_branch = e () => (float[N] c) { c = Abs(x) }> }""",
    ),
    "a nameless node that makes an output after the Identity is gone": (
        "identity-elimination",
        17,
        "g (float[N, 8] x, float[8, 8] w) => (float[N, 8] y) { a = MatMul(x, w) y = Identity(a) }",
    ),
    "nameless nodes that onnxruntime writes": (
        "ort-session",
        17,
        """g (float16[N, 8] x, float16[8, 8] w) => (float16[N, 8] y) <float16[8] b = {15360, 0, 0, 0, 0, 0, 0, 0}> {
            a = MatMul(x, w) s = Add(a, b) t = LogSoftmax<axis = -1>(s) u = LogSoftmax<axis = -1>(t) y = Mul(u, s) }""",
    ),
    "a constant of half precision that is computed beforehand": (
        "constant-folding",
        17,
        "g (float16[N, 3] x) => (float16[N, 3] y) <float16[1] two = {16384}> { r = Sqrt(two) y = Div(x, r) }",
    ),
    "float64 that is normalised in float32": (
        "layer-norm",
        17,
        """g (double[N, 8] x) => (double[N, 8] y) <float e = {0.00001}, float[8] w = {1, 2, 3, 4, 5, 6, 7, 8}> {
            f = Cast<to = 1>(x) m = ReduceMean<axes = [1]>(f) c = Sub(f, m) q = Mul(c, c) v = ReduceMean<axes = [1]>(q)
            a = Add(e, v) r = Sqrt(a) d = Div(c, r) s = Mul(w, d) b = Add(s, w) y = Cast<to = 11>(b) }""",
    ),
    "a rotation by cosines that an output needs too": (
        "O2",
        17,
        """g (float[2, 3, 4, 4] x) => (float[2, 3, 4, 4] y, float[4, 4] c)
        <float[4, 4] angle = {0, 0, 0, 0, 1, 0.1, 1, 0.1, 2, 0.2, 2, 0.2, 3, 0.3, 3, 0.3},
         int64[1] zero = {0}, int64[1] two = {2}, int64[1] end = {9223372036854775807}, int64[1] last = {3}> {
            c = Cos(angle) s = Sin(angle) p = Mul(x, c) a = Slice(x, zero, two, last) b = Slice(x, two, end, last)
            n = Neg(b) e = Concat<axis = -1>(n, a) q = Mul(e, s) y = Add(p, q) }""",
    ),
    "a mean that is written twice": (
        "ort-session",
        17,
        """g (float[N, 8] x, float[N, 1] d) => (float[N, 8] y, float[N, 8] z) {
            m = ReduceMean<axes = [1]>(x) a = Sub(x, m) n = ReduceMean<axes = [1]>(x) y = Sub(x, n) z = Div(a, d) }""",
    ),
    "a shape that is spelled otherwise": (
        "ort-session",
        17,
        """g (float[N, 8] x) => (float[N, 1, 1, 8] y) <int64[1] first = {0}, int64[1] one = {1}, int64[1] eight = {8}> {
            s = Shape(x) n = Gather(s, first) shape = Concat<axis = 0>(n, one, one, eight) y = Reshape(x, shape) }""",
    ),
    "casts that onnxruntime names alike inside and outside of a body": (
        "ort-session",
        17,
        """g (bool flag, float16[N, 8] x, float16[8, 8] w) => (float16[N, 8] y, float16[N, 8] z) {
            y = If(flag) <then_branch = t () => (float16[N, 8] b) { a = MatMul(x, w) b = Add(a, x) },
                          else_branch = e () => (float16[N, 8] c) { c = Identity(x) }>
            z = MatMul(x, w) }""",
    ),
    "a part without elements": (
        "O2",
        17,
        """g (float[N, S, 4] x) => (float[N, S, 4] y) <int64[1] zero = {0}, int64[1] one = {1}> {
            none = Slice(x, zero, zero, one) s = Identity(none) y = Concat<axis = 1>(s, x) }""",
    ),
}


@pytest.fixture(scope="module")
def worker():
    with SessionWorker() as running:
        yield running


@pytest.mark.parametrize("graph", GRAPHS)
def test_nothing_is_found_any_more(graph, worker):
    chain, opset, text = GRAPHS[graph]
    model = parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {text}')
    examiner = Examiner(default_catalog(), verify="sites", worker=worker)
    finding = examiner.judge(model, chain, is_idempotent=True)
    assert finding is None, finding
    assert examiner.tally.verified.total(), "no pass fires any more"
