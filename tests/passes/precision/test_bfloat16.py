"""bfloat16: what is converted and what stays, for each target; how a CPU that computes nothing in it compares the result."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from precision_harness import FLOAT, Arrays, check, done, kept, parsed, session_of

import rewright
from rewright.model.carrier import all_graphs
from rewright.ops.lowering import lower
from rewright.ops.standard_kernels import runs_in_bfloat16
from rewright.ops.widening import rounded, widened
from rewright.passes.precision.bfloat16 import BFloat16
from rewright.run.options import RunResult

ZOO = Path(__file__).parents[2] / "zoo"
NARROW = TensorProto.BFLOAT16
EYE = "{1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}"
BLOCK = f"""g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w = {EYE}, float large = {{LARGE}}> {{
    [first] a = MatMul(x, w)
    [up] b = Mul(a, large)
    [down] c = Div(b, large)
    [second] y = MatMul(c, w)
}}"""


def converted(source: object, chain: str = "bfloat16", inputs: list[Arrays] | None = None, **options: object) -> RunResult:
    return rewright.Chain(chain).run(rewright.load(source), inputs=inputs, target=options.pop("target", "cuda"), **options)  # type: ignore[arg-type]


def signal(result: RunResult) -> float:
    assert result.report.parity is not None
    return min(output.sqnr_db for output in result.report.parity.outputs if output.sqnr_db is not None)


@pytest.mark.parametrize("factor", ["1000", "60000", "100000000"])
def test_range_is_no_problem(factor: str) -> None:
    result = converted(parsed(BLOCK.replace("LARGE", factor)), inputs=[{"x": np.arange(1, 9, dtype=np.float32).reshape(2, 4)}])
    assert result.report.verdict == "passed"
    assert done(result) == {"first", "up", "down", "second"}
    (weight,) = [tensor for tensor in result.model.proto.graph.initializer if tensor.name == "w"]
    assert weight.data_type == NARROW
    np.testing.assert_array_equal(numpy_helper.to_array(weight).astype(np.float32), np.eye(4, dtype=np.float32))


def test_integers_from_256_on_and_long_sums_stay_in_float32() -> None:
    body = """g (float[2, 64] x, int64[2, 64] ids) => (float[2, 1] y, float[2, 64] z) <float h = {0.5}> {
        [mean] y = ReduceSum<keepdims = 1>(x, axes)
        [floats] f = Cast<to = 1>(ids)
        [halved] b = Mul(f, h)
        [act] r = Tanh(b)
        [shifted] z = Add(r, x)
    }"""
    model = parsed(body)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axes"))
    inputs = [{"x": np.full((2, 64), 2.5, np.float32), "ids": np.tile(np.arange(0, 640, 10), (2, 1))}]
    reasons = kept(converted(model, inputs=inputs))
    assert "adds up 64 terms" in reasons["mean"]
    assert "holds integers up to" in reasons["floats"]
    assert "rounds those above 256" in reasons["floats"]


@pytest.mark.parametrize("name", ["bert.ts17.sdpa", "llama.ts17.eager", "t5_enc.ts17.eager", "vit.dyn23.sdpa"])
@pytest.mark.parametrize("chain", ["bfloat16", "O2, bfloat16"])
def test_exported_models_are_converted_and_run_between_casts(name: str, chain: str) -> None:
    result = converted(ZOO / f"{name}.onnx", chain)
    assert result.report.verdict == "passed", result.report.reason
    record = result.report.passes[-1]
    assert record.status == "applied"
    assert all(entry.reason for entry in record.coverage if entry.outcome == "missed")
    floats = [tensor for tensor in result.model.proto.graph.initializer if tensor.data_type in (FLOAT, NARROW)]
    large = {tensor.data_type for tensor in floats if len(tensor.dims) == 2 and "position_embeddings" not in tensor.name}
    assert large == {NARROW}, "all but a table of 1024 numbers, which is not worth the casts around it"
    assert 30.0 < signal(result) < 60.0, "noise of eight digits, neither more nor, as if nothing had been rounded, less"
    again = rewright.Chain("bfloat16").run(result.model, verify="structure", target="cuda")
    assert again.report.passes[-1].status == "unchanged"


@pytest.mark.parametrize("target", ["cpu", "dml", "portable"])
def test_where_nothing_computes_in_it_products_stay(target: str) -> None:
    result = converted(ZOO / "bert.ts17.sdpa.onnx", "O2, bfloat16", target=target)
    record = result.report.passes[-1]
    assert (result.report.verdict, record.status) == ("passed", "unchanged")
    assert any(entry.reason == f"the target '{target}' has no kernel for ai.onnx.MatMul on bfloat16" for entry in record.coverage)


def test_ops_that_move_weights_are_converted_for_a_cpu_too_and_it_runs() -> None:
    model = parsed("g (int64[N] ids) => (float[N, 64] y) { [rows] r = Gather(table, ids) [act] y = Tanh(r) }")
    table = np.random.default_rng(0).standard_normal((256, 64)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(table, "table"))
    result = converted(model, target="cpu")
    assert result.report.verdict == "passed"
    assert done(result) == {"rows"}
    check(result.model)
    (rows,) = session_of(result.model).run(None, {"ids": np.arange(9)})
    np.testing.assert_allclose(rows, np.tanh(table[:9].astype(ml_dtypes.bfloat16).astype(np.float32)), rtol=1e-6)


def test_what_the_tables_say_of_kernels() -> None:
    assert runs_in_bfloat16("MatMul", 17, "cuda")
    assert not runs_in_bfloat16("Sin", 22, "cuda")
    assert not runs_in_bfloat16("MatMul", 17, "cpu")
    assert runs_in_bfloat16("Gather", 17, "cpu")
    assert not runs_in_bfloat16("Gather", 17, "dml")


@pytest.mark.parametrize(("budget", "verdict"), [(None, "passed-with-rollbacks"), ("sqnr=10, cosine=0.9", "passed")])
def test_what_loses_too_much_is_undone(budget: str | None, verdict: str) -> None:
    """A difference of numbers that agree in their first digits: three digits are left."""
    body = f"""g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w = {EYE}, float far = {{64}}> {{
        [first] a = MatMul(x, w) [up] b = Add(a, far) [down] c = Sub(b, far) [second] y = MatMul(c, w) }}"""
    inputs = [{"x": np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)}]
    result = converted(parsed(body), inputs=inputs, budget=budget)
    assert result.report.verdict == verdict
    if budget is None:
        assert "the budget asks for 25.0 dB" in result.report.passes[-1].reason


def test_it_asks_for_less_than_float16_and_for_more_than_eight_bits() -> None:
    assert rewright.Chain("bfloat16").passes[0].usual_budget == BFloat16().usual_budget == "sqnr=25, cosine=0.998"
    assert rewright.Chain("float16").passes[0].usual_budget == "sqnr=40, cosine=0.9999"


NARROWED = f"""g (float[N, 4] x) => (bfloat16[N, 4] y) <float[4, 4] w = {EYE}> {{
    h = Cast<to = 16>(x)
    v = Cast<to = 16>(w)
    t = Tanh(h)
    p = MatMul(t, v)
    f = Cast<to = 1>(p)
    n = Size(f)
    y = Exp(p)
}}"""


def test_each_op_of_bfloat16_is_computed_in_float32_and_its_result_is_rounded() -> None:
    wide = widened(rewright.load(parsed(NARROWED)))
    onnx.checker.check_model(wide.proto, full_check=True)
    counts = Counter(node.op_type for node in wide.proto.graph.node)
    assert counts["Cast"] == 3 + 2 * 1 + 3 + 2  # those that were there; around Tanh, MatMul and Exp
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    steps = onnx.ModelProto()
    steps.CopyFrom(wide.proto)
    del steps.graph.output[:]
    steps.graph.output.append(onnx.helper.make_tensor_value_info("f", FLOAT, ["N", 4]))
    (found,) = session_of(wide.with_proto(steps)).run(["f"], {"x": x})
    rounded = np.tanh(x.astype(ml_dtypes.bfloat16).astype(np.float32)).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(found, rounded.astype(np.float32))


def test_float16_is_rounded_after_each_op_and_each_fused_op_where_a_cpu_would_not_round() -> None:
    body = f"""g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w = {EYE}> {{
        h = Cast<to = 10>(x) v = Cast<to = 10>(w) p = MatMul(h, v)
        q = com.microsoft.FastGelu(p) r = MatMul(q, v) y = Cast<to = 1>(r)
    }}"""
    model = rewright.load(parsed(body, domains=', "com.microsoft" : 1'))
    x = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    (plain,), (found,) = session_of(model).run(None, {"x": x}), session_of(rounded(model)).run(None, {"x": x})
    np.testing.assert_array_equal(found, found.astype(np.float16).astype(np.float32))
    assert np.any(plain != plain.astype(np.float16).astype(np.float32)), "else the widening would not be needed"
    np.testing.assert_allclose(found, plain, rtol=2e-3, atol=1e-4)


def test_branches_are_widened_and_what_has_no_bfloat16_is_left_as_it_is() -> None:
    body = """g (float[N] x, bool c) => (float[N] y) {
        h = Cast<to = 16>(x)
        z = If(c) <then_branch = t () => (bfloat16[N] a) { a = Relu(h) }, else_branch = e () => (bfloat16[N] b) { b = Neg(h) }>
        y = Cast<to = 1>(z)
    }"""
    wide = widened(rewright.load(parsed(body)))
    x = np.array([-1.0, 2.0, 1.00390625], np.float32)
    for flag, expected in ((True, [0.0, 2.0, 1.0]), (False, [1.0, -2.0, -1.0])):
        np.testing.assert_array_equal(session_of(wide).run(None, {"x": x, "c": np.array(flag)})[0], expected)
    bodies = sorted([node.op_type for node in graph.node] for graph in list(all_graphs(wide.proto))[1:])
    assert bodies == [["Cast", "Neg", "Cast"], ["Cast", "Relu", "Cast"]]
    plain = rewright.load(parsed("g (float[N] x) => (float[N] y) { y = Relu(x) }"))
    assert widened(plain) is plain
    assert lower(plain) is plain
