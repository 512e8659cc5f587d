"""lower: fused ops become calls of functions that hold their meaning."""

import math

import numpy as np
import onnx
import onnxruntime as ort
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
