"""float16 keeps in float32 what overflows, vanishes or rounds too much, although no run on a CPU would show it."""

from __future__ import annotations

import numpy as np
import pytest
from precision_harness import FLOAT, HALF, converted, done, kept, ops, parsed, types_made

import rewright
from rewright.passes.precision.float16 import Float16
from rewright.passes.session import PassSession

RMS_NORM = """g (float[N, 8] x) => (float[N, 8] y) <float two = {2}, float epsilon = {0.000001},
    float[8] scale = {1,2,1,2,1,2,1,2}> {
    [square] s = Pow(x, two)
    [mean] m = ReduceMean<axes = [-1]>(s)
    [add] a = Add(m, epsilon)
    [root] r = Sqrt(a)
    [divide] d = Div(x, r)
    [scaled] y = Mul(d, scale)
}"""


def rows(size: float, width: int = 8) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": (size * rng.standard_normal((count, width))).astype(np.float32)} for count in (2, 5)]


@pytest.mark.parametrize("size", [400.0, 1.0, 1e-4])
def test_a_written_out_normalisation_stays_in_float32_from_the_square_to_the_division(size: float) -> None:
    model = parsed("g (float[N, 8] x) => (float[N, 8] z) <float[8, 8] w = {" + ",".join(["0.125"] * 64) + "}, float two = {2},"
                   " float epsilon = {0.000001}> { [product] p = MatMul(x, w) [square] s = Pow(p, two)"
                   " [mean] m = ReduceMean<axes = [-1]>(s) [add] a = Add(m, epsilon) [root] r = Sqrt(a) [divide] d = Div(p, r)"
                   " [last] z = MatMul(d, w) }")  # fmt: skip
    result = converted(model, inputs=rows(size))
    assert done(result) == {"product", "last"}
    assert set(kept(result)) == {"square", "mean", "add", "root", "divide"}
    assert all("squares" in reason for reason in kept(result).values())
    assert ops(result.model).count("Cast") == 4  # of x, before the square, after the division, of the result
    assert result.report.verdict == "passed"


def test_a_normalisation_alone_is_not_worth_its_casts_and_the_model_stays_as_it_is() -> None:
    model = parsed(RMS_NORM)
    result = converted(model, inputs=rows(400.0))
    assert result.report.passes[-1].status == "unchanged"
    assert result.model.proto == model
    assert any("the model is unchanged" in note for note in result.report.passes[-1].notes)
    assert "casts would cost more than it saves" in kept(result)["scaled"]


BLOCK = """g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w = {1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}, float large = {LARGE}> {
    [first] a = MatMul(x, w)
    [up] b = Mul(a, large)
    [down] c = Div(b, large)
    [second] y = MatMul(c, w)
}"""


@pytest.mark.parametrize(("factor", "stays"), [("1000", False), ("5000", True), ("60000", True)])
def test_what_was_measured_has_to_fit_with_a_margin(factor: str, stays: bool) -> None:
    inputs = [{"x": np.full((2, 4), 2.0, np.float32)}, {"x": np.array([[1.0, -3.0, 0.5, 0.25]], np.float32)}]
    result = converted(parsed(BLOCK.replace("LARGE", factor)), inputs=inputs)
    assert set(kept(result)) == ({"up", "down"} if stays else set())
    assert {"first", "second"} <= done(result)
    if factor == "60000":
        assert "reaches 1.8e+05, and float16 ends at 65504" in kept(result)["up"]
    elif stays:
        assert "8 times that is more than float16 holds" in kept(result)["down"]
        assert set(kept(converted(parsed(BLOCK.replace("LARGE", factor)), "float16{margin=2}", inputs=inputs))) == set()


@pytest.mark.parametrize("constant", ["1e-12", "1e9", "1e-5"])
def test_constants_that_vanish_or_overflow_keep_their_nodes(constant: str) -> None:
    body = """g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w = {1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}, float c = {C}> {
        [first] a = MatMul(x, w) [root] b = Abs(a) [guard] d = Add(b, c) [ratio] e = Div(a, d) [second] y = MatMul(e, w) }"""
    model = parsed(body.replace("{C}", "{1}"))
    model.graph.initializer[1].ClearField("float_data")
    model.graph.initializer[1].raw_data = np.float32(constant).tobytes()
    result = converted(model, inputs=rows(1.0, 4))
    assert "guard" in kept(result)
    assert "first" in done(result)
    assert ("second" in kept(result)) == (constant == "1e9"), "what is divided by it is too small for float16 by then"
    if constant == "1e-5":
        assert "guard" in done(converted(model, "float16{min_normal=false}", inputs=rows(1.0, 4)))


def test_weights_are_cut_off_only_if_that_is_asked_for() -> None:
    weight = ",".join(["1", "100000", "-200000", "2"] + ["0.5"] * 12)
    body = "g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w = {" + weight + "}> { [a] b = MatMul(x, w) [c] y = Tanh(b) }"
    inputs = [{"x": np.full((2, 4), 1e-3, np.float32)}]
    plain = converted(parsed(body), inputs=inputs)
    assert "holds -2e+05, which float16 does not" in kept(plain)["a"]
    clipped = converted(parsed(body), "float16{clip_weights=true}", inputs=inputs, budget="sqnr=1, cosine=0.1")
    assert "a" in done(clipped)
    assert any("2 numbers of w were cut off at 65504" in note for note in clipped.report.passes[-1].notes)
    (held,) = [tensor for tensor in clipped.model.proto.graph.initializer if tensor.name == "w"]
    assert np.frombuffer(held.raw_data, np.float16).min() == -65504


def test_sums_integers_and_angles_stay_in_float32() -> None:
    body = """g (float[2, 4096] x, int64[N] ids) => (float[2, 1] y, float[N] z, int64[N] k) <float t = {0.01}, float h = {0.5}> {
        [mean] y = ReduceMean<axes = [1]>(x)
        [floats] f = Cast<to = 1>(ids)
        [angle] a = Mul(f, t)
        [sine] z = Sin(a)
        [halved] b = Mul(f, h)
        [whole] k = Cast<to = 7>(b)
    }"""
    inputs = [{"x": np.full((2, 4096), 2.5, np.float32), "ids": np.array([0, 5, 3000])}]
    result = converted(parsed(body), inputs=inputs)
    reasons = kept(result)
    assert "sum of 4096 terms" in reasons["mean"]
    assert "holds integers up to 24000" in reasons["floats"] or "integers are made of it" in reasons["floats"]
    assert "angle" in reasons["sine"]
    assert "integers are made of it" in reasons["halved"]
    assert result.report.passes[-1].status == "unchanged"


MASKED = """g (float[N, 4, 4] x, int64[N, 4] attention_mask) => (float[N, 4, 4] y) <float one = {1}, float lowest = {-3.4e38},
    int64[1] middle = {1}, float[4, 4] w = {1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}> {
    [keys] k = MatMul(x, w)
    [turned] t = Transpose<perm = [0, 2, 1]>(k)
    [scores] s = MatMul(k, t)
    [floats] f = Cast<to = 1>(attention_mask)
    [ahead] u = Unsqueeze(f, middle)
    [inverse] i = Sub(one, u)
    [mask] m = Mul(i, lowest)
    [masked] a = Add(s, m)
    [softmax] p = Softmax<axis = -1>(a)
    [context] y = MatMul(p, k)
}"""


def test_the_lowest_float_of_a_mask_becomes_one_that_float16_can_add_to_scores() -> None:
    result = converted(parsed(MASKED))
    assert result.report.verdict == "passed"
    assert kept(result) == {}
    made = types_made(result.model)
    assert {made[name] for name in ("scores", "mask", "masked", "softmax")} == {HALF}
    (lowest,) = [tensor for tensor in result.model.proto.graph.initializer if tensor.name == "lowest"]
    assert np.frombuffer(lowest.raw_data, np.float16)[0] == -16376


def test_the_lowest_float_of_something_else_stays() -> None:
    body = MASKED.replace("(float[N, 4, 4] y)", "(float[N, 4, 4] y, float[N, 1, 4] m)")
    result = converted(parsed(body))
    assert {"mask", "masked", "softmax"} <= set(kept(result))
    assert types_made(result.model)["masked"] == FLOAT
    assert {"keys", "scores", "context"} <= done(result)


ATTENTION = """g (float[N, 3, 8] x, bool[N, 1, 3, 3] valid) => (float[N, 3, 8] y) <float[8, 8] w = {EYE}, float zero = {0},
    float far = {3.4e38}, float[8, 8] v = {EYE}> {
    [query] q = MatMul(x, w)
    [value] u = MatMul(x, v)
    [low] l = Neg(far)
    [chosen] m = Where(valid, zero, l)
    [wide] b = Add(m, UP)
    [attention] a = com.microsoft.MultiHeadAttention<num_heads = 2>(q, q, u, , , b)
    [last] y = MatMul(a, w)
}""".replace("EYE", ",".join(str(int(row == column)) for row in range(8) for column in range(8)))


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_computed_mask_is_cut_off_where_attention_reads_it(target: str) -> None:
    model = parsed(ATTENTION.replace("UP", "zero"), domains=', "com.microsoft" : 1')
    valid = np.array([[[[1, 1, 0]] * 3], [[[0, 1, 1]] * 3]], np.bool_)
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    result = rewright.Chain("float16").run(model, inputs=[{"x": x, "valid": valid}], target=target)
    assert result.report.verdict == "passed", result.report.reason
    assert {"query", "value", "attention", "last"} <= done(result)
    assert {"chosen", "wide"} <= set(kept(result))
    assert any("1 masks of float32 are cut off at -16376" in note for note in result.report.passes[-1].notes)
    (raised,) = [node for node in result.model.proto.graph.node if node.op_type == "Max"]
    made = types_made(result.model)
    assert (made["wide"], made[raised.name]) == (FLOAT, FLOAT)
    assert rewright.Chain("float16").run(result.model, verify="structure").report.passes[-1].status == "unchanged"


def test_a_bias_that_is_too_large_in_both_directions_is_no_mask() -> None:
    model = parsed(ATTENTION.replace("UP", "far"), domains=', "com.microsoft" : 1')
    inputs = [{"x": np.ones((2, 3, 8), np.float32), "valid": np.array([[[[True, True, False]] * 3]] * 2)}]
    result = rewright.Chain("float16").run(model, inputs=inputs)
    assert "attention" in kept(result)
    assert not any(node.op_type == "Max" for node in result.model.proto.graph.node)


def test_without_a_run_nothing_is_known_and_nothing_is_converted() -> None:
    session = PassSession(Float16(), rewright.load(parsed(BLOCK.replace("LARGE", "2"))))
    Float16().apply(session)
    assert not session.sites
    assert {entry.reason for entry in session.coverage} == {
        "nobody has measured what values hold, so that nothing is known to fit"
    }


@pytest.mark.parametrize(
    ("target", "budget", "verdict"),
    [("cuda", None, "passed-with-rollbacks"), ("cuda", "sqnr=20, cosine=0.99", "passed"), ("cpu", None, "passed")],
)
def test_what_loses_more_than_float16_has_to_is_undone(target: str, budget: str | None, verdict: str) -> None:
    """A small difference of large numbers, of which three digits are left; a CPU rounds none of it."""
    model = parsed("""g (float[N, 4] x) => (float[N, 4] y)
        <float[4, 4] w = {1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}, float far = {100}> {
        [first] a = MatMul(x, w) [up] b = Add(a, far) [down] c = Sub(b, far) [second] y = MatMul(c, w) }""")
    inputs = [{"x": np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)}]
    result = rewright.Chain("float16").run(model, inputs=inputs, budget=budget, target=target)
    (record,) = result.report.passes
    assert result.report.verdict == verdict
    assert record.parity is not None
    signal = record.parity.outputs[0].sqnr_db
    assert signal is not None
    assert (20.0 < signal < 40.0) == (target == "cuda")
    if verdict != "passed":
        assert "the budget asks for 40.0 dB" in record.reason
        assert result.model.proto == model
        assert result.report.quantization is not None
        assert {each.quantized for each in result.report.quantization.coverage.values()} == {0}
