"""The contracts of the normalisations: their bodies against ONNX Runtime's own kernels, and what the kernels take."""

import itertools

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as state

from rewright.model.load import load
from rewright.ops.contract import CONTRACTS
from rewright.ops.lowering import LOWERED_DOMAIN, lower
from rewright.ops.normalization import SIMPLIFIED_LAYER_NORMALIZATION
from rewright.ops.targets import unsupported

ELEMENT_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def single_node_model(node, inputs, elem_type, opset):
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(name, elem_type, [None] * np.ndim(value)) for name, value in inputs.items()],
        [
            helper.make_tensor_value_info(
                name, TensorProto.FLOAT if name == "inverse" else elem_type, [None] * np.ndim(inputs["x"])
            )
            for name in node.output
            if name
        ],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def run(proto, feeds):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(item, np.float64) for item in session.run(None, feeds)]


def kernel_and_body(node, feeds, dtype, opset):
    elem_type = ELEMENT_TYPES[dtype]
    feeds = {name: np.asarray(value, helper.tensor_dtype_to_np_dtype(elem_type)) for name, value in feeds.items()}
    model = load(single_node_model(node, feeds, elem_type, opset))
    lowered = lower(model, every=True)
    onnx.checker.check_model(lowered.proto, full_check=True)
    assert [item.domain for item in lowered.proto.graph.node] == [LOWERED_DOMAIN]
    return run(model.proto, feeds), run(lowered.proto, feeds)


TOLERANCE = {"float32": 2e-6, "float16": 4e-3}


SHAPES = [((2, 3, 8), (2, 3, 8)), ((3, 4, 8), (1, 4, 8)), ((3, 4, 8), (4, 8)), ((5, 8), (5, 8)), ((1, 1, 8), (1, 8))]
OPTIONAL = list(itertools.product(["beta", ""], ["bias", ""], ["sum", ""]))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("shape", "skip_shape"), SHAPES)
def test_the_skip_layer_normalization_body_computes_what_the_kernel_computes(shape, skip_shape, dtype):
    rng = np.random.default_rng(1)
    for number, (beta, bias, total) in enumerate(OPTIONAL):
        epsilon = (None, 1e-5, 0.1)[number % 3]
        attributes = {} if epsilon is None else {"epsilon": epsilon}
        inputs = ["x", "skip", "gamma", beta, bias]
        node = helper.make_node("SkipLayerNormalization", inputs, ["y", "", "", total], domain="com.microsoft", **attributes)
        feeds = {"x": rng.standard_normal(shape), "skip": rng.standard_normal(skip_shape), "gamma": rng.standard_normal(8)}
        feeds |= {name: rng.standard_normal(8) for name in (beta, bias) if name}
        expected, found = kernel_and_body(node, feeds, dtype, (17, 18, 20)[number % 3])
        assert len(found) == (2 if total else 1)
        for left, right in zip(found, expected, strict=True):
            np.testing.assert_allclose(left, right, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_the_default_epsilon_is_not_that_of_layer_normalization():
    node = helper.make_node("SkipLayerNormalization", ["x", "skip", "gamma"], ["y"], domain="com.microsoft")
    x = 1e-4 * np.random.default_rng(2).standard_normal((1, 2, 8))
    expected, found = kernel_and_body(node, {"x": x, "skip": x, "gamma": np.ones(8)}, "float32", 17)
    assert np.abs(expected[0]).max() > 1  # with 1e-5 it would stay below 0.2
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-3)


@pytest.mark.parametrize(("offset", "spread"), [(0, 1), (0, 1e-3), (100, 1), (1000, 1), (10, 0.01)])
def test_the_kernel_survives_low_variance_and_large_offsets(offset, spread):
    """Against float64. The CPU kernel does not cancel catastrophically, but is up to ten times less exact than LayerNormalization
    where the offset is a hundred times the spread."""
    rng = np.random.default_rng(3)
    x = np.float32(offset + spread * rng.standard_normal((2, 5, 64)))
    skip = np.float32(spread * rng.standard_normal((2, 5, 64)))
    total = (x + skip).astype(np.float64)
    deviation = total - total.mean(-1, keepdims=True)
    exact = deviation / np.sqrt((deviation**2).mean(-1, keepdims=True) + 1e-5)
    node = helper.make_node("SkipLayerNormalization", ["x", "skip", "gamma"], ["y"], domain="com.microsoft", epsilon=1e-5)
    feeds = {"x": x, "skip": skip, "gamma": np.ones(64, np.float32)}
    found = run(single_node_model(node, feeds, TensorProto.FLOAT, 17), feeds)[0]
    assert np.abs(found - exact).max() < 3e-7 * (3 + offset / spread)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("shape", "skip_shape"), SHAPES)
def test_the_skip_simplified_layer_normalization_body_computes_what_the_kernel_computes(shape, skip_shape, dtype):
    rng = np.random.default_rng(4)
    for number, (bias, total, inverse) in enumerate(itertools.product(["bias", ""], ["sum", ""], ["inverse", ""])):
        attributes = [{}, {"epsilon": 1e-5}, {"epsilon": 0.1}][number % 3]
        inputs, outputs = ["x", "skip", "gamma", bias], ["y", "", inverse, total]
        node = helper.make_node("SkipSimplifiedLayerNormalization", inputs, outputs, domain="com.microsoft", **attributes)
        feeds = {"x": rng.standard_normal(shape), "skip": rng.standard_normal(skip_shape), "gamma": rng.standard_normal(8)}
        feeds |= {"bias": rng.standard_normal(8)} if bias else {}
        expected, found = kernel_and_body(node, feeds, dtype, (17, 18, 20)[number % 3])
        for left, right in zip(found, expected, strict=True):
            np.testing.assert_allclose(left, right, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_the_skip_simplified_default_epsilon_is_not_that_of_simplified_layer_normalization():
    x = 1e-4 * np.random.default_rng(5).standard_normal((1, 2, 8))
    skip = helper.make_node("SkipSimplifiedLayerNormalization", ["x", "skip", "gamma"], ["y"], domain="com.microsoft")
    expected, found = kernel_and_body(skip, {"x": x, "skip": x, "gamma": np.ones(8)}, "float32", 17)
    assert np.abs(expected[0]).max() > 1  # with 1e-5 it would stay below 0.2
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-3)


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 23])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("shape", "axis", "scale_shape"),
    [
        ((2, 3, 8), None, (8,)),
        ((2, 3, 8), 2, (8,)),
        ((2, 3, 8), 1, (3, 8)),
        ((2, 3, 8), -2, (3, 8)),
        ((2, 3, 8), 0, (2, 3, 8)),
        ((8,), -1, (8,)),
        ((1, 2, 3, 4, 8), -1, (8,)),
        ((2, 0, 8), -1, (8,)),
    ],
)
def test_the_simplified_layer_normalization_body_computes_what_the_kernel_computes(shape, axis, scale_shape, dtype, opset):
    rng = np.random.default_rng(6)
    for epsilon, outputs in itertools.product([None, 0.1], [["y"], ["y", "inverse"]]):
        attributes = {"axis": axis, "epsilon": epsilon}
        attributes = {name: value for name, value in attributes.items() if value is not None}
        node = helper.make_node("SimplifiedLayerNormalization", ["x", "scale"], outputs, **attributes)
        feeds = {"x": rng.standard_normal(shape), "scale": rng.standard_normal(scale_shape)}
        expected, found = kernel_and_body(node, feeds, dtype, opset)
        if 0 in shape:  # onnxruntime 1.31 gives the inverse deviation of no rows a shape of its own
            expected, found = expected[:1], found[:1]
        for left, right in zip(found, expected, strict=True):
            np.testing.assert_allclose(left, right, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_simplified_layer_normalization_is_of_the_standard_domain_and_known_to_onnxruntime_alone():
    contract = SIMPLIFIED_LAYER_NORMALIZATION
    assert CONTRACTS["::SimplifiedLayerNormalization"] is contract
    assert not onnx.defs.has(contract.op, 23, "")
    schema = next(item for item in state.get_all_operator_schema() if (item.domain, item.name) == ("", contract.op))
    assert [item.name for item in schema.inputs] == ["X", "scale"]
    assert [item.name for item in schema.outputs] == ["Y", "inv_std_var"]
    defaults = {name: onnx.AttributeProto.FromString(item._default_value) for name, item in schema.attributes.items()}
    assert {name: item.default for name, item in contract.attributes.items()} == {
        name: pytest.approx(helper.get_attribute_value(item), rel=1e-6) for name, item in defaults.items()
    }
    reason = unsupported("", contract.op, np.dtype(np.float32), "portable")
    assert reason == "the target 'portable' has no kernel for ai.onnx.SimplifiedLayerNormalization"
