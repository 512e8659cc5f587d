"""lower: fused ops become calls of functions that hold their meaning."""

import math

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import parser

from rewright.model.load import load
from rewright.ops.lowering import LOWERED_DOMAIN, lower

HALF = """
    <ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    g (float16[2, 3, 4] x, float16[4] b, bool c) => (float16[2, 3, 4] y, float16[2, 3, 4] z, float[2, 3, 4] w) {
        y = com.microsoft.BiasGelu(x, b)
        z = If(c) <
            then_branch = t () => (float16[2, 3, 4] t1) { t1 = com.microsoft.BiasGelu(y, b) },
            else_branch = e () => (float16[2, 3, 4] e1) { e1 = com.microsoft.Gelu(y) }>
        f = Cast<to = 1>(z)
        w = com.microsoft.Gelu(f)
    }"""


def test_ops_without_a_kernel_for_their_dtype_become_calls_and_the_others_stay():
    model = load(parser.parse_model(HALF))
    lowered = lower(model)
    onnx.checker.check_model(lowered.proto, full_check=True)
    counts = {key: count for key, count in lowered.op_counts().items() if not key.startswith("ai.onnx")}
    assert counts == {"com.microsoft::Gelu": 1, f"{LOWERED_DOMAIN}::BiasGelu_0": 2, f"{LOWERED_DOMAIN}::Gelu_1": 1}
    assert [function.name for function in lowered.proto.functions] == ["BiasGelu_0", "Gelu_1"]
    assert model.op_counts()["com.microsoft::BiasGelu"] == 2


def test_the_lowered_model_runs_and_computes_the_meaning():
    model = lower(load(parser.parse_model(HALF)))
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((2, 3, 4)).astype(np.float16), "b": rng.standard_normal(4).astype(np.float16)}
    session = ort.InferenceSession(model.proto.SerializeToString(), providers=["CPUExecutionProvider"])
    y, z, _ = session.run(None, feeds | {"c": np.array(True)})

    def gelu(value):
        return 0.5 * value * (1 + np.vectorize(math.erf)(value / math.sqrt(2)))

    expected = gelu(feeds["x"].astype(np.float64) + feeds["b"])
    np.testing.assert_allclose(y, expected, atol=2e-3)
    np.testing.assert_allclose(z, gelu(y.astype(np.float64) + feeds["b"]), atol=2e-3)


def test_a_model_without_such_ops_is_returned_as_it_is():
    model = load(parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Relu(x) }'))
    assert lower(model) is model
    supported = load(
        parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'
            " g (float[2] x) => (float[2] y) { y = com.microsoft.Gelu(x) }"
        )
    )
    assert lower(supported) is supported


def test_functions_are_specialised_by_attributes_and_optional_inputs():
    model = load(
        parser.parse_model(
            """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
            g (float[2, 3, 4] x, float[4] g, float[4] b)
                => (float[2, 3, 4] y, float[2, 3, 4] z, float[2, 3, 4] w, float[2, 3, 4] s) {
                y = com.microsoft.SkipLayerNormalization<epsilon = 1e-5>(x, x, g)
                z = com.microsoft.SkipLayerNormalization<epsilon = 1e-3>(x, x, g)
                w, m, v, s = com.microsoft.SkipLayerNormalization<epsilon = 1e-5>(x, x, g, , b)
            }"""
        )
    )
    lowered = lower(model, every=True)
    onnx.checker.check_model(lowered.proto, full_check=True)
    calls = [(node.op_type, len(node.input), len(node.output)) for node in lowered.proto.graph.node]
    assert [name for name, _, _ in calls] == [f"SkipLayerNormalization_{number}" for number in range(3)]
    assert calls[2][1:] == (4, 4)


def test_lowering_twice_and_models_older_than_functions():
    text = HALF.replace("ir_version: 8", "ir_version: 7")
    once = lower(load(parser.parse_model(text)))
    assert once.proto.ir_version == 8
    twice = lower(once, every=True)
    onnx.checker.check_model(twice.proto, full_check=True)
    assert [function.name for function in twice.proto.functions] == ["BiasGelu_0", "Gelu_1", "Gelu_0"]
    assert "com.microsoft::Gelu" not in twice.op_counts()
    assert lower(twice, every=True) is twice


ATTENTION = """
    <ir_version: 8, opset_import: ["" : OPSET, "com.microsoft" : 1]>
    g (float[B, S, 32] x, float[B, 1, S, S] added, int64[B, S] positions, int32[B, S] mask, int32[B] last, int32 total,
       float[9, 8] cos, float[9, 8] sin, float[32, 96] weights, float[96] bias, float[B, T, 32] memory, float[32] gamma)
        => (float[B, S, 32] y) {
        turned = com.microsoft.RotaryEmbedding<num_heads = 2>(x, positions, cos, sin)
        a = com.microsoft.MultiHeadAttention<num_heads = 2, scale = 0.3>(turned, turned, x, , , added)
        b = com.microsoft.MultiHeadAttention<num_heads = 2>(a, memory, memory, bias)
        c = com.microsoft.MultiHeadAttention<num_heads = 2, mask_filter_value = -3e38>(b, x, x, , mask)
        d = com.microsoft.Attention<num_heads = 2>(c, weights, bias, mask, , added)
        e = com.microsoft.GroupQueryAttention<num_heads = 2, kv_num_heads = 2, causal = 0>(d, d, x, , , last, total)
        f = com.microsoft.Attention<num_heads = 4, unidirectional = 1>(e, weights, bias)
        y = com.microsoft.SkipLayerNormalization(f, x, gamma)
    }"""


def attention_model(opset):
    return load(parser.parse_model(ATTENTION.replace("OPSET", str(opset))))


@pytest.mark.parametrize("opset", [13, 17, 18, 23])
def test_a_chain_of_attention_ops_computes_the_same_lowered(opset):
    model = attention_model(opset)
    lowered = lower(model, every=True)
    onnx.checker.check_model(lowered.proto, full_check=True)
    assert {node.domain for node in lowered.proto.graph.node} == {LOWERED_DOMAIN}
    rng = np.random.default_rng(0)
    shapes = {"x": (3, 5, 32), "memory": (3, 4, 32), "added": (3, 1, 5, 5), "cos": (9, 8), "sin": (9, 8)}
    shapes |= {"weights": (32, 96), "bias": (96,), "gamma": (32,)}
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    feeds |= {
        "positions": rng.integers(0, 9, (3, 5)),
        "mask": np.array([[1] * 5, [1, 1, 0, 0, 0], [0, 0, 0, 1, 1]], np.int32),
        "last": np.full(3, 4, np.int32),
        "total": np.array(5, np.int32),
    }
    found, expected = (
        ort.InferenceSession(item.proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for item in (lowered, model)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_shapes_are_known_through_a_chain_of_attention_ops():
    inferred = onnx.shape_inference.infer_shapes(lower(attention_model(17), every=True).proto, data_prop=True)
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in inferred.graph.value_info
    }
    for name in ("turned", *"abcdef"):
        assert shapes[name] == ["B", "S", 32]


def test_nodes_beyond_what_a_contract_describes_are_left_alone():
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        g (float[B, S, 32] x) => (float[B, S, 32] y, float[B, S, 32] z) {
            y = com.microsoft.Gelu(x)
            z = com.microsoft.Gelu<of_a_later_version = 1>(x)
        }"""
    lowered = lower(load(parser.parse_model(text)), every=True)
    assert [node.domain for node in lowered.proto.graph.node] == [LOWERED_DOMAIN, "com.microsoft"]
    assert [node.output[0] for node in lowered.proto.graph.node] == ["y", "z"]
