"""The contracts of the activations: their bodies against ONNX Runtime's own kernels."""

import math

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from rewright.model.load import load
from rewright.ops.contract import CONTRACTS
from rewright.ops.lowering import LOWERED_DOMAIN, lower

RNG = np.random.default_rng(0)
BIAS = RNG.standard_normal(4).astype(np.float32)
NODES = {
    "Gelu": (["x"], {}),
    "BiasGelu": (["x", "b"], {}),
    "FastGelu": (["x"], {}),
    "FastGelu with bias": (["x", "b"], {}),
    "QuickGelu": (["x"], {}),
    "QuickGelu 1": (["x"], {"alpha": 1.0}),
    "QuickGelu -0.3": (["x"], {"alpha": -0.3}),
}


def single(op, inputs, attributes, shapes, elem_type=TensorProto.FLOAT, opset=17):
    """The op alone, and the same with its body in its place."""
    node = helper.make_node(op, inputs, ["y"], domain="com.microsoft", **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(name, elem_type, shapes[name]) for name in inputs if name],
        [helper.make_tensor_value_info("y", elem_type, [None] * len(shapes["x"]))],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = load(helper.make_model(graph, opset_imports=imports, ir_version=8))
    lowered = lower(model, every=True)
    onnx.checker.check_model(lowered.proto, full_check=True)
    assert [item.domain for item in lowered.proto.graph.node] == [LOWERED_DOMAIN]
    return model.proto, lowered.proto


def run(proto, feeds):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("case", NODES)
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (1, 2, 3, 4), (0, 4)])
def test_the_bodies_compute_what_the_kernels_compute(shape, case):
    inputs, attributes = NODES[case]
    feeds = {"x": np.float32(4) * RNG.standard_normal(shape, np.float32), "b": BIAS}
    feeds = {name: feeds[name] for name in inputs}
    for opset in (13, 17, 20, 23):
        proto, lowered = single(case.split()[0], inputs, attributes, {"x": shape, "b": (4,)}, opset=opset)
        np.testing.assert_allclose(run(lowered, feeds), run(proto, feeds), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", NODES)
def test_extreme_values(case):
    inputs, attributes = NODES[case]
    x = np.array([0.0, -0.0, 1e-20, -1e-20, 30.0, -30.0, 1e4, -1e4, 1e20, -1e20, 3e-4, -5.5], np.float32).reshape(3, 4)
    feeds = {name: value for name, value in (("x", x), ("b", BIAS)) if name in inputs}
    proto, lowered = single(case.split()[0], inputs, attributes, {"x": (3, 4), "b": (4,)})
    np.testing.assert_allclose(run(lowered, feeds), run(proto, feeds), rtol=1e-5, atol=1e-6)


def test_the_default_alpha_of_quick_gelu_is_not_one():
    x = np.linspace(-3, 3, 4, dtype=np.float32)
    proto, lowered = single("QuickGelu", ["x"], {}, {"x": (4,)})
    for found in (run(proto, {"x": x}), run(lowered, {"x": x})):
        np.testing.assert_allclose(found, x / (1 + np.exp(-1.702 * x)), rtol=1e-5)


@pytest.mark.parametrize("elem_type", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("bias", ["b", ""])
def test_gemm_fast_gelu_means_x_times_w_and_has_a_kernel_nowhere(bias, elem_type):
    """There is no kernel to compare with; the schema says: a fusion of MatMul and FastGelu."""
    assert not CONTRACTS["com.microsoft::GemmFastGelu"].kernels
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    feeds = {"x": RNG.standard_normal((2, 3, 5)), "w": RNG.standard_normal((5, 4)), "b": BIAS}
    feeds = {name: value.astype(dtype) for name, value in feeds.items() if name in ("x", "w", bias)}
    inputs = ["x", "w", bias] if bias else ["x", "w"]
    _, lowered = single("GemmFastGelu", inputs, {}, {"x": (2, 3, 5), "w": (5, 4), "b": (4,)}, elem_type)
    s = feeds["x"].astype(np.float64) @ feeds["w"].astype(np.float64) + (feeds["b"] if bias else 0)
    expected = 0.5 * s * (1 + np.tanh(math.sqrt(2 / math.pi) * (s + 0.044715 * s**3)))
    found = run(lowered, feeds)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=2e-3 if elem_type != 1 else 1e-4, atol=1e-3 if elem_type != 1 else 1e-6)
