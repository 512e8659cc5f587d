"""quantize-weights by onnxruntime.quantization, which gets one weight at a time in the child process."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from rewright.api import Chain
from rewright.model.load import load
from rewright.passes.ort.exchange import NotCarriedOut
from rewright.passes.session import PassSession
from rewright.quant import ort_blocks
from rewright.quant.blocks import BlockFormat, packed, round_to_nearest
from rewright.quant.quantize_weights import QuantizeWeights
from tests.quant.weight_models import FLOATS, RNG, K, coverage, model_of, ops, quantized, rounded, run

X = RNG.standard_normal((5, K)).astype(np.float32)
W = FLOATS["w"].astype(np.float32)
SIGNATURE = f"(float[R, {K}] x) => (float y)"

needs_onnx_ir = pytest.mark.skipif(not importlib.util.find_spec("onnx_ir"), reason="onnxruntime.quantization imports onnx_ir")
needs_torch = pytest.mark.skipif(
    not (importlib.util.find_spec("torch") and importlib.util.find_spec("onnx_ir")), reason="its hqq imports torch"
)


@needs_onnx_ir
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", ["true", "false"])
@pytest.mark.parametrize("node", ["MatMul(x, w)", "Gemm<transB = 1>(x, wt, c)"])
def test_it_rounds_as_rewright_does(bits, symmetric, node):
    model = model_of(f"[m] y = {node}", SIGNATURE)
    options = f"bits={bits}, symmetric={symmetric}, accuracy_level=0"
    ours, theirs = (run(quantized(model, f"{options}{backend}"), {"x": X})[0] for backend in ("", ", backend=ort"))
    assert np.linalg.norm(ours - theirs) < 0.02 * np.linalg.norm(ours)
    if symmetric == "true":
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@needs_onnx_ir
def test_a_shared_table_and_bodies_are_as_without():
    body = """[g] h = Gather(e, i) t = Transpose(e) p = MatMul(h, t)
        y = If(b) <then_branch = t1 () => (float q) { [then] q = MatMul(p, s) },
                  else_branch = t2 () => (float r) { r = com.microsoft.Gelu(p) }>"""
    model = model_of(body, "(int64[B, S] i, bool b) => (float y)", s=RNG.standard_normal((40, 32)).astype(np.float32))
    result = quantized(model, "backend=ort, accuracy_level=0")
    assert {entry.outcome for entry in coverage(result).values()} == {"quantized"}
    assert sorted(ops(result)) == ["GatherBlockQuantized", "If", "MatMulNBits", "Reshape"]
    inner = [node for attribute in result.model.proto.graph.node[-1].attribute for node in attribute.g.node]
    assert {node.op_type: node.domain for node in inner} == {"MatMulNBits": "com.microsoft", "Gelu": "com.microsoft"}
    table = rounded(FLOATS["e"].astype(np.float32))
    ids = np.asarray([[1, 2]])
    found = run(result, {"i": ids, "b": np.asarray(False)})[0]
    product = table[ids] @ table.T
    assert np.abs(found - product).max() < np.abs(product).max()  # Gelu of it
    assert found.shape == product.shape


@needs_torch
def test_its_hqq_has_float_zero_points_and_the_smaller_error():
    model = model_of("[m] y = MatMul(x, w)", SIGNATURE)
    result = quantized(model, "backend=ort, algorithm=hqq, accuracy_level=0")
    held = {tensor.name: tensor.data_type for tensor in result.model.proto.graph.initializer}
    assert held["w_zero_points"] == held["w_scales"] == 1
    nearest = quantized(model, "accuracy_level=0")
    assert coverage(result)["m"].error < coverage(nearest)["m"].error
    weight = run(result, {"x": np.eye(K, dtype=np.float32)})[0]
    assert np.linalg.norm(weight - W) / np.linalg.norm(W) == pytest.approx(coverage(result)["m"].error, rel=1e-3)


def test_what_it_needs_and_is_not_there_is_told(monkeypatch):
    """As on a machine without onnx_ir, which onnxruntime imports and does not install."""
    session = PassSession(QuantizeWeights(backend="ort"), rewright_model())
    for name in [name for name in sys.modules if name.startswith(("onnx_ir", "onnxruntime.quantization"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    method = ort_blocks.ort_method(session, "rtn")
    with pytest.raises(NotCarriedOut, match="onnx_ir"):
        method(W.T, BlockFormat(4, 32, True, np.dtype(np.float32)))
    QuantizeWeights(backend="ort").apply(session)
    assert [entry.outcome for entry in session.coverage] == ["missed"]
    assert session.coverage[0].reason.startswith("onnxruntime.quantization did not do it: ")


def rewright_model():
    return load(model_of("[m] y = MatMul(x, w)", SIGNATURE))


def test_codes_come_back_as_they_were_packed(tmp_path):
    form = BlockFormat(4, 32, False, np.dtype(np.float32))
    rows = RNG.standard_normal((6, 80)).astype(np.float32)
    blocks = round_to_nearest(rows, form)
    np.savez(
        tmp_path / "blocks.npz",
        B=packed(blocks.codes, 4).reshape(6, -1),
        scales=blocks.scales.reshape(-1),
        zero_points=packed(blocks.zero_points, 4).reshape(-1),
    )
    found = ort_blocks._blocks(tmp_path, 6, 80, form)
    np.testing.assert_array_equal(found.codes, blocks.codes)
    np.testing.assert_array_equal(found.zero_points, blocks.zero_points)
    np.testing.assert_array_equal(found.scales, blocks.scales)


def test_auto_is_its_own_rounding_then_that_of_onnx_runtime():
    parts = QuantizeWeights(backend="auto").parts()
    assert [part.backend for part in parts] == ["standalone", "ort"]
    result = Chain("quantize-weights{backend=auto}").run(model_of("[m] y = MatMul(x, w)", SIGNATURE), verify="structure")
    assert ops(result) == ["MatMulNBits"]
