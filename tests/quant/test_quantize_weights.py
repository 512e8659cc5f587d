"""The quantize-weights pass: which nodes it takes, what they compute then, and why the others stay."""

from __future__ import annotations

import numpy as np
import pytest

import rewright
from rewright.api import Chain
from tests.quant.weight_models import FLOATS, RNG, K, N, attributes, coverage, model_of, ops, quantized, rounded, run

X = RNG.standard_normal((2, 3, K)).astype(np.float32)
W, WT = FLOATS["w"].astype(np.float32), FLOATS["wt"].astype(np.float32)
EXACT = "accuracy_level=0"

SPELLINGS = {
    "an initializer": ("[m] y = MatMul(x, w)", W.T),
    "behind a Transpose": ("t = Transpose<perm = [1, 0]>(wt) [m] y = MatMul(x, t)", WT),
    "behind an Identity": ("i = Identity(w) [m] y = MatMul(x, i)", W.T),
    "behind a Reshape": (f"s = Constant<value_ints = [{K}, {N}]>() r = Reshape(flat, s) [m] y = MatMul(x, r)", None),
    "behind Casts": ("h = Cast<to = 10>(w) f = Cast<to = 1>(h) [m] y = MatMul(x, f)", None),
    "with a dimension of 1": ("[m] y = MatMul(x, w3)", None),
    "with zero points": ("[m] y = MatMul(x, w)", W.T),
}


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_constant_is_found_in_every_spelling(name, bits):
    body, rows = SPELLINGS[name]
    symmetric = name != "with zero points"
    model = model_of(body)
    result = quantized(model, f"bits={bits}, {EXACT}, symmetric={str(symmetric).lower()}")
    assert ops(result) == ["MatMulNBits"]
    assert attributes(result, "MatMulNBits") == {"K": K, "N": N, "bits": bits, "block_size": 32, "accuracy_level": 0}
    if rows is None:
        rows = {"flat": FLOATS["flat"].reshape(K, N), "w3": FLOATS["w3"][0], "h = ": W.astype(np.float16)}[
            next(key for key in ("flat", "w3", "h = ") if key in body)
        ].T.astype(np.float32)
    np.testing.assert_allclose(run(result, {"x": X})[0], X @ rounded(rows, bits, symmetric=symmetric).T, rtol=1e-4, atol=1e-4)
    entry = coverage(result)["m"]
    assert entry.outcome == "quantized"
    assert entry.bytes_before == (2 if name == "behind Casts" else 4) * K * N or name == "behind Casts"
    assert 0 < entry.bytes_after < entry.bytes_before / (4 if bits == 4 else 2.5)
    assert (0.05 if bits == 4 else 0.003) < entry.error < (0.11 if bits == 4 else 0.008)


@pytest.mark.parametrize(
    ("node", "wanted", "added"),
    [
        ("Gemm(x, w)", lambda x, w, wt: x @ w, []),
        ("Gemm<transB = 1>(x, wt, c)", lambda x, w, wt: x @ wt.T + FLOATS["c"], []),
        ("Gemm<beta = 2.0>(x, w, c2)", lambda x, w, wt: x @ w + 2 * FLOATS["c2"], []),
        ("Gemm<beta = 0.0>(x, w, c)", lambda x, w, wt: x @ w, []),
        ("Gemm(x, w, d)", lambda x, w, wt: x @ w + 7, ["Add"]),
    ],
)
def test_a_gemm_keeps_its_bias(node, wanted, added):
    result = quantized(model_of(f"[m] y = {node}", "(float[R, 48] x, float[1] d) => (float y)"), EXACT)
    assert ops(result) == ["MatMulNBits", *added]
    found = run(result, {"x": X[0], "d": np.full(1, 7, np.float32)})[0]
    np.testing.assert_allclose(found, wanted(X[0], rounded(W.T).T, rounded(WT)), rtol=1e-4, atol=1e-4)


MISSES = {
    "MatMul(x, z)": "no operand is a constant",
    "MatMul(w, z)": "its left operand",
    "MatMul(x, v)": "a vector",
    "MatMul(x, batch)": "a matrix for each element of a batch",
    "MatMul(x, w3)": "not proven to have as many dimensions",
    "MatMul(x, tiny)": "144 elements are fewer than min_elements=1024",
    "Gemm<alpha = 0.5>(x, w)": "alpha is 0.5",
    "Gemm<transA = 1>(x, w)": "transA is set",
    "Gemm<beta = 0.5>(x, w, z)": "beta is 0.5, and C is not constant",
    "MatMul(x, inf)": "holds NaN or infinity",
}


@pytest.mark.parametrize("node", MISSES)
def test_what_is_missed_is_told_with_the_reason(node):
    signature = "(float x, float z) => (float y)"
    infinite = np.full((K, N), np.inf, np.float32)
    model = model_of(f"[m] y = {node}", "(float[R, C] x, float z) => (float y)" if "w3" in node else signature, inf=infinite)
    result = quantized(model)
    assert result.report.passes[0].status == "unchanged"
    assert ops(result) == [node.partition("(")[0].partition("<")[0]]
    assert [(entry.outcome, MISSES[node] in entry.reason) for entry in coverage(result).values()] == [("missed", True)]


@pytest.mark.parametrize(("dtype", "reason"), [("double", "float64"), ("bfloat16", "bfloat16")])
def test_other_types_have_no_kernel(dtype, reason):
    import ml_dtypes

    kind = np.float64 if dtype == "double" else ml_dtypes.bfloat16
    result = quantized(model_of("[m] y = MatMul(x, q)", f"({dtype}[R, 48] x) => ({dtype} y)", q=W.astype(kind)), verify="off")
    assert coverage(result)["m"].reason == f"the weight is {reason}"


def test_a_float16_weight_has_float16_scales():
    half = W.astype(np.float16)
    result = quantized(model_of("[m] y = MatMul(x, q)", "(float16[R, 48] x) => (float16 y)", q=half), EXACT)
    x = X[0].astype(np.float16)
    wanted = np.float32(x) @ rounded(half.T).T
    np.testing.assert_allclose(np.float32(run(result, {"x": x})[0]), wanted, rtol=2e-2, atol=5e-2)


def test_a_weight_that_would_grow_stays():
    narrow = RNG.standard_normal((4, 600)).astype(np.float32)
    result = quantized(model_of("[m] y = MatMul(x, q)", "(float[R, 4] x) => (float y)", q=narrow), "block_size=256")
    assert coverage(result)["m"].reason == "it would take 79200 bytes, and takes 9600"


def test_a_second_run_changes_nothing():
    first = quantized(model_of("t = Transpose<perm = [1, 0]>(wt) a = MatMul(x, t) y = Add(a, c)"))
    again = Chain("quantize-weights").run(first.model, verify="structure")
    assert again.report.passes[0].status == "unchanged"
    assert again.model.fingerprint() == first.model.fingerprint()


def test_a_weight_of_two_nodes_is_stored_once_and_counted_once():
    result = quantized(model_of("[a] p = MatMul(x, w) [b] q = MatMul(x, w) y = Add(p, q)"), EXACT)
    assert [tensor.name for tensor in result.model.proto.graph.initializer] == ["w_blocks", "w_scales"]
    first, second = coverage(result).values()
    assert (first.bytes_before, second.bytes_before, second.bytes_after) == (4 * K * N, 0, 0)
    np.testing.assert_allclose(run(result, {"x": X})[0], 2 * X @ rounded(W.T).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("symmetric", ["true", "false"])
def test_a_table_that_is_gathered_from_and_multiplied_with_is_stored_once(symmetric):
    body = "[g] h = Gather(e, i) t = Transpose(e) [m] y = MatMul(h, t)"
    result = quantized(model_of(body, "(int64[B, S] i) => (float y)"), f"{EXACT}, symmetric={symmetric}")
    assert sorted(ops(result)) == ["GatherBlockQuantized", "MatMulNBits", "Reshape"]
    large = [tensor.name for tensor in result.model.proto.graph.initializer if "rows" not in tensor.name]
    assert large == ["e_blocks", "e_scales", *(["e_zero_points"] if symmetric == "false" else [])]
    table = rounded(FLOATS["e"].astype(np.float32), symmetric=symmetric == "true")
    ids = np.asarray([[0, 39], [-1, 7]])
    for optimized in (True, False):
        found = run(result, {"i": ids}, optimized=optimized)[0]
        np.testing.assert_allclose(found, table[ids] @ table.T, rtol=1e-4, atol=1e-3)
    assert sum(entry.bytes_before for entry in coverage(result).values()) == 4 * 40 * 64


def test_where_rows_have_no_whole_blocks_the_table_is_stored_twice_and_that_is_told():
    body = "[g] h = Gather(e, i) t = Transpose(e) [m] y = MatMul(h, t)"
    result = quantized(model_of(body, "(int64[B, S] i) => (float y)"), f"{EXACT}, block_size=128")
    assert "Reshape" not in ops(result)
    assert any("'e' is stored twice" in note for note in result.report.passes[0].notes)
    table = rounded(FLOATS["e"].astype(np.float32), block_size=128)
    np.testing.assert_allclose(run(result, {"i": np.asarray([[3]])})[0], table[[[3]]] @ table.T, rtol=1e-4, atol=1e-3)


def test_what_stays_in_float_beside_its_codes_is_told():
    body = "[g] h = Gather(e, i) t = Transpose(e) [m] y = MatMul(h, t)"
    result = quantized(model_of(body, "(int64[B, S] i) => (float y)"), "gather=false")
    assert ops(result) == ["Gather", "MatMulNBits"]
    assert "'e' is stored in float too: g reads it" in result.report.passes[0].notes
    assert list(coverage(result)) == ["m"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("[g] y = Gather(odd, i)", "a row has 33 elements, and two share a byte"),
        ("[g] y = Gather<axis = 1>(e, i)", "it gathers columns"),
        ("k = Constant<value_ints = [1, 2]>() [g] y = Gather(k, i)", None),
    ],
)
def test_other_gathers_stay(body, reason):
    kind = "int64" if reason is None else "float"
    result = quantized(model_of(body, f"(int64[B, S] i) => ({kind} y)"))
    assert "Gather" in ops(result)
    assert [entry.reason for entry in coverage(result).values() if reason is None or reason not in entry.reason] == []


def test_an_odd_row_is_gathered_in_eight_bits():
    result = quantized(model_of("[g] y = Gather(odd, i)", "(int64[B, S] i) => (float y)"), "bits=8")
    table = rounded(FLOATS["odd"].astype(np.float32), 8)
    np.testing.assert_allclose(run(result, {"i": np.asarray([[3, 60]])})[0], table[[[3, 60]]], rtol=1e-5, atol=1e-5)


def test_bodies_are_quantized_and_share_what_they_shared():
    body = """y = If(b) <then_branch = t () => (float p) { [then] p = MatMul(x, w) },
                        else_branch = f () => (float q) { [else] r = MatMul(x, w) q = Neg(r) }>"""
    result = quantized(model_of(body, f"(float[R, {K}] x, bool b) => (float y)"), EXACT)
    assert [entry.outcome for entry in coverage(result).values()] == ["quantized", "quantized"]
    proto = result.model.proto
    assert [tensor.name for tensor in proto.graph.initializer] == ["w_blocks", "w_scales"]
    assert not any(attribute.g.initializer for attribute in proto.graph.node[0].attribute)
    for flag, sign in ((True, 1), (False, -1)):
        found = run(result, {"x": X[0], "b": np.asarray(flag)})[0]
        np.testing.assert_allclose(found, sign * X[0] @ rounded(W.T).T, rtol=1e-4, atol=1e-4)


def test_a_weight_that_is_an_output_too_stays_one():
    result = quantized(model_of("[m] y = MatMul(x, w) z = Identity(w)", f"(float[R, {K}] x) => (float y, float[48, 40] z)"))
    np.testing.assert_array_equal(run(result, {"x": X[0]})[1], W)


def test_names_are_kept_and_patterns_choose():
    model = model_of("[a] p = MatMul(x, w) [b] y = MatMul(x, w)", f"(float[R, {K}] x) => (float p, float y)")
    for node in model.graph.node:
        node.name = f"/{node.name}/MatMul"
    result = quantized(model, 'exclude=["/b/*"]')
    assert {node.name: node.op_type for node in result.model.proto.graph.node} == {
        "/a/MatMul": "MatMulNBits",
        "/b/MatMul": "MatMul",
    }
    assert coverage(result)["/b/MatMul"].outcome == "excluded"
    assert "'w' is stored in float too: /b/MatMul reads it" in result.report.passes[0].notes
    with pytest.raises(rewright.UsageError, match="Near names: /a/MatMul"):
        quantized(model, 'exclude=["/a/Matmul"]')
