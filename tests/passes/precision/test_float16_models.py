"""float16 on exported models, plain and fused, by itself and by ONNX Runtime's converter; the order beside fusions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from precision_harness import HALF, check, converted, done, kept, ops, parsed

import rewright
from rewright.model.carrier import Model
from rewright.run.options import RunResult

ZOO = Path(__file__).parents[2] / "zoo"
SOME = ("bert.ts14.eager", "gpt2.ts17.eager", "llama.ts17.eager", "t5_enc.ts17.eager", "modernbert.dyn20.eager", "vit.dyn23.sdpa")
HEAVY = {"MatMul", "Gemm", "Conv", "Attention", "com.microsoft::Attention", "com.microsoft::MultiHeadAttention"}


def signal(result: RunResult) -> float:
    assert result.report.parity is not None
    return min(output.sqnr_db for output in result.report.parity.outputs if output.sqnr_db is not None)


def nodes_of(model: Model) -> Counter[str]:
    return Counter(f"{node.domain}::{node.op_type}" for node in model.proto.graph.node if node.op_type != "Cast")


@pytest.mark.parametrize("chain", ["float16", "O2, float16"])
@pytest.mark.parametrize("name", SOME)
def test_exported_models_are_converted_all_but_their_islands(name: str, chain: str) -> None:
    result = converted(ZOO / f"{name}.onnx", chain)
    assert result.report.verdict == "passed", result.report.reason
    record = result.report.passes[-1]
    assert record.status == "applied"
    missed = [entry for entry in record.coverage if entry.outcome == "missed"]
    assert not [entry for entry in missed if entry.op in HEAVY]
    assert all(entry.reason for entry in missed)
    # rows of padding that see nothing but masks give what the rounding of those leaves
    assert signal(result) > (20.0 if "modernbert" in name else 45.0)
    large = {tensor.data_type for tensor in result.model.proto.graph.initializer
             if len(tensor.dims) == 2 and tensor.data_type in (TensorProto.FLOAT, HALF)}  # fmt: skip
    assert large == {HALF}
    assert rewright.Chain("float16").run(result.model, verify="structure").report.passes[-1].status == "unchanged"


@pytest.mark.parametrize("name", ["bert.ts17.sdpa", "gpt2.dyn18.sdpa"])
def test_level_o4_is_for_cuda_and_holds_fused_ops_of_float16(name: str) -> None:
    result = rewright.optimize(ZOO / f"{name}.onnx", level="O4", target="cuda")
    assert result.report.verdict == "passed", result.report.reason
    (record,) = [record for record in result.report.passes if record.name == "float16"]
    assert record.status == "applied"
    assert not any("for the target cpu" in note for note in record.notes)
    assert any(node.domain == "com.microsoft" for node in result.model.proto.graph.node)


def test_for_a_cpu_it_is_said_what_float16_costs() -> None:
    result = converted(ZOO / "bert.ts17.sdpa.onnx")
    assert any("casts to float32 and back around most ops" in note for note in result.report.passes[-1].notes)


BLOCK = """g (float[N, 3, 4] x) => (float[N, 3, 4] y) <float[4, 4] w = {1,2,-1,0,0,1,2,-1,1,-1,0,2,2,0,1,1},
    float[4] b = {0,1,0,-1}, float[4] scale = {1,1,2,2}, float[4] shift = {0,1,0,1}> {
    [product] p = MatMul(x, w)
    [biased] q = Add(p, b)
    [gelu] r = Gelu(q)
    [back] s = MatMul(r, w)
    [sum] t = Add(s, x)
    [norm] u = LayerNormalization(t, scale, shift)
    [last] y = MatMul(u, w)
}"""


@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_before_or_after_the_fusions_comes_to_the_same(target: str) -> None:
    model = parsed(BLOCK.replace("Gelu(q)", "com.microsoft.Gelu(q)"), domains=', "com.microsoft" : 1')
    fusions = "bias-gelu, skip-layer-norm" if target == "cuda" else "skip-layer-norm"  # no BiasGelu of float16 on a CPU
    results = [rewright.Chain(chain).run(model, target=target) for chain in (f"float16, {fusions}", f"{fusions}, float16")]
    for result in results:
        assert result.report.verdict == "passed", result.report.reason
        assert {record.status for record in result.report.passes} == {"applied"}
    first, last = (result.model for result in results)
    assert nodes_of(first) == nodes_of(last)
    assert nodes_of(first)["com.microsoft::BiasGelu"] == (target == "cuda")
    assert nodes_of(first)["com.microsoft::SkipLayerNormalization"] == 1
    assert ops(first).count("Cast") == ops(last).count("Cast") == 2


@pytest.mark.parametrize("quantizing", ["quantize-dynamic", "quantize-weights{bits=8}"])
def test_after_quantization_the_rest_is_converted(quantizing: str) -> None:
    result = converted(ZOO / "llama.ts17.eager.onnx", f"O2, {quantizing}, float16")
    assert result.report.verdict == "passed", result.report.reason
    record = result.report.passes[-1]
    assert record.status == "applied"
    integers = {
        entry.op: (entry.outcome, entry.reason) for entry in record.coverage if "Quantize" in entry.op or "NBits" in entry.op
    }
    assert integers == (
        {"com.microsoft::DynamicQuantizeMatMul": ("missed", "com.microsoft.DynamicQuantizeMatMul has no float16")}
        if quantizing == "quantize-dynamic"
        else {"com.microsoft::MatMulNBits": ("quantized", ""), "com.microsoft::GatherBlockQuantized": ("quantized", "")}
    )


@pytest.mark.parametrize("name", ["bert.ts17.sdpa", "llama.ts17.eager"])
def test_the_converter_of_onnx_runtime_is_told_what_to_leave_and_is_sorted(name: str) -> None:
    own = converted(ZOO / f"{name}.onnx")
    result = converted(ZOO / f"{name}.onnx", "float16{backend=ort}")
    assert result.report.verdict == "passed", result.report.reason
    assert result.report.passes[-1].backend == "ort"
    assert signal(result) > 45.0
    islands = {node for node, reason in kept(own).items() if "casts would cost" not in reason}
    assert islands <= set(kept(result))
    assert len(done(result)) > len(done(own)) / 2
    assert any("Softmax" in node for node in kept(result)), "its mask is the lowest float16, to which nothing can be added"
    check(result.model)


def test_the_converter_of_onnx_runtime_is_not_asked_where_all_is_left() -> None:
    model = parsed(BLOCK.replace("Gelu(q)", "Tanh(q)"))
    result = converted(model, 'float16{backend=ort, exclude=["*"]}')
    assert result.report.passes[-1].status == "unchanged"
    assert result.model.proto == model


def test_an_overflow_that_a_run_on_a_cpu_hides_is_found_before_it() -> None:
    """The model is right on a CPU even if all of it is float16: ONNX Runtime squares in float32."""
    model = parsed("""g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w = {1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}, float t = {2}> {
        [first] a = MatMul(x, w) [square] b = Pow(a, t) [root] c = Sqrt(b) [second] y = MatMul(c, w) }""")
    rng = np.random.default_rng(0)
    result = converted(model, inputs=[{"x": (400 * rng.standard_normal((3, 4))).astype(np.float32)}])
    assert set(kept(result)) == {"square", "root"}
    assert "float16 ends at 65504" in kept(result)["square"]
    assert done(result) == {"first", "second"}
